"use strict";
document.documentElement.classList.add("js");

for (const figure of document.querySelectorAll(".compare")) {
  const stack = figure.querySelector(".stack");
  const range = figure.querySelector("input");
  const [over, under] = [...stack.querySelectorAll(".tag")].map((tag) => tag.textContent);
  // A picture that stands above others on the page already is inside it once.
  const top = figure.querySelector(".over");
  if (top.dataset.input) top.src = document.getElementById(top.dataset.input).src;

  const show = () => {
    stack.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % " + over + ", the rest " + under);
  };
  const follow = (event) => {
    const box = stack.getBoundingClientRect();
    range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    show();
  };
  range.addEventListener("input", show);
  stack.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stack.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true });
    follow(event);
  });
  stack.addEventListener("pointermove", (event) => {
    if (stack.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}

"use strict";
document.documentElement.classList.add("js");

for (const figure of document.querySelectorAll(".compare")) {
  const stack = figure.querySelector(".stack");
  const range = figure.querySelector("input");

  const show = () => {
    stack.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % first visit, the rest last");
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

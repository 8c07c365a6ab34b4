"use strict";
document.documentElement.classList.add("js");

for (const figure of document.querySelectorAll(".compare")) {
  const stack = figure.querySelector(".stack");
  const over = figure.querySelector(".over");
  const range = figure.querySelector("input");
  const name = figure.dataset.layer;
  over.src = document.getElementById(over.dataset.input).src;
  over.hidden = false;

  const show = () => {
    stack.style.setProperty("--cut", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % input, the rest " + name);
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

const search = document.getElementById("search");
if (search) {
  const flagged = document.getElementById("flagged");
  const found = document.getElementById("found");
  const rows = [...document.querySelectorAll("#joints tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    rows.forEach((row, index) => {
      const shown =
        texts[index].includes(wanted) && (!flagged.checked || row.dataset.flagged === "yes");
      row.hidden = !shown;
      count += shown ? 1 : 0;
    });
    found.textContent = count + " of " + rows.length + " joints";
  };
  search.addEventListener("input", filter);
  flagged.addEventListener("change", filter);
  filter();
}

"use strict";
const byId = (id) => document.getElementById(id);
const study = document.body.dataset.study;
const place = "blsgan-study-" + study;
const pictures = [...document.querySelectorAll("#stage img")];
const empty = () => ({
  reader: "",
  group: "",
  position: 0,
  answers: pictures.map(() => ({ answer: "", realism: "", seconds: 0 })),
});

// A browser may refuse to store for pages from files: the study then lasts as long as the page.
const load = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    if (kept && kept.answers.length === pictures.length) return kept;
  } catch (error) {
    return null;
  }
  return null;
};
const keep = () => {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch (error) {
    return false;
  }
  return true;
};

const kept = load();
let state = kept || empty();
let since = 0;

const isDone = (answer) => answer.answer !== "" && answer.realism !== "";
const answered = () => state.answers.filter(isDone).length;
const section = (name) => {
  for (const id of ["start", "reading", "end"]) byId(id).hidden = id !== name;
};

const spend = () => {
  if (since === 0) return;
  state.answers[state.position].seconds += (performance.now() - since) / 1000;
  since = 0;
};

const show = (position) => {
  spend();
  state.position = position;
  pictures.forEach((picture, index) => (picture.hidden = index !== position));
  const answer = state.answers[position];
  for (const input of document.querySelectorAll("#reading input")) {
    input.checked = answer[input.name] === input.value;
  }
  byId("counter").textContent = "Picture " + (position + 1) + " of " + pictures.length;
  byId("back").disabled = position === 0;
  byId("progress").value = answered();
  byId("next").disabled = !isDone(answer);
  byId("next").textContent = position + 1 === pictures.length ? "Finish" : "Next";
  section("reading");
  since = performance.now();
  keep();
};

const finish = () => {
  spend();
  keep();
  section("end");
  const count = answered();
  byId("complete").textContent =
    count === pictures.length
      ? "All " + count + " pictures are answered."
      : count + " of " + pictures.length + " pictures are answered; you can go back to the others.";
  byId("ended").focus();
};

const set = (name, value) => {
  state.answers[state.position][name] = value;
  document.querySelector(`#reading input[name="${name}"][value="${value}"]`).checked = true;
  byId("next").disabled = !isDone(state.answers[state.position]);
  byId("progress").value = answered();
  keep();
};

const next = () => {
  if (!isDone(state.answers[state.position])) return;
  if (state.position + 1 < pictures.length) show(state.position + 1);
  else finish();
};
const back = () => {
  if (state.position > 0) show(state.position - 1);
};

byId("who").addEventListener("submit", (event) => {
  event.preventDefault();
  state.reader = byId("reader").value;
  state.group = byId("group").value;
  const open = state.answers.findIndex((answer) => !isDone(answer));
  if (open < 0) finish();
  else {
    show(open);
    byId("counter").focus();
  }
});
for (const input of document.querySelectorAll("#reading input")) {
  input.addEventListener("change", () => set(input.name, input.value));
}
byId("next").addEventListener("click", next);
byId("back").addEventListener("click", back);
byId("review").addEventListener("click", () => {
  const open = state.answers.findIndex((answer) => !isDone(answer));
  show(open < 0 ? state.position : open);
});
byId("forget").addEventListener("click", () => {
  if (!confirm("Remove all answers of this study from this browser?")) return;
  state = empty();
  try {
    localStorage.removeItem(place);
  } catch (error) {
    // nothing was stored
  }
  byId("resumed").hidden = true;
  section("start");
});

document.addEventListener("keydown", (event) => {
  if (byId("reading").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "r" || key === "g") set("answer", key === "r" ? "real" : "generated");
  else if (key >= "1" && key <= "5" && key.length === 1) set("realism", key);
  else if (key === "enter" && event.target !== byId("back")) next();
  else if (key === "backspace") back();
  else return;
  event.preventDefault();
});

byId("save").addEventListener("click", () => {
  const rows = state.answers.map((answer, index) =>
    [study, state.reader, state.group, index + 1, answer.answer, answer.realism,
      answer.seconds.toFixed(1)].join(",")
  );
  const text = ["study,reader,group,item,answer,realism,seconds", ...rows].join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "study-" + study + "-" + state.reader + ".csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

window.addEventListener("pagehide", () => {
  if (byId("reading").hidden) return;
  spend();
  keep();
});

if (kept && kept.reader) {
  byId("reader").value = kept.reader;
  byId("group").value = kept.group;
  byId("resumed").textContent =
    answered() + " of " + pictures.length + " pictures are answered already; Start goes on from there.";
  byId("resumed").hidden = false;
}

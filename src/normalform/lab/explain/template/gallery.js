"use strict";
// An element carries its index (data-at) and its set (data-set). A figure has a branch for each
// recipe that its norm blends; the same element is lit in all of them.
const said = JSON.parse(document.getElementById("said").textContent);

for (const figure of document.querySelectorAll("[data-norm]")) {
  const branches = [...figure.querySelectorAll("[data-branch]")];
  const readout = figure.querySelector("[role=status]");
  const walked = [...branches[0].querySelector("svg").querySelectorAll("[data-at]")];
  const place = (element) => ["x", "y"].map((k) => Number(element.querySelector("text").getAttribute(k)));
  let at = figure.dataset.first;

  function light(index) {
    at = index;
    for (const branch of branches) {
      const set = branch.querySelector(`[data-at="${at}"]`).dataset.set;
      for (const element of branch.querySelectorAll("[data-set]")) {
        element.classList.toggle("lit", element.dataset.set === set);
        element.classList.toggle("here", element.dataset.at === at);
      }
    }
    readout.textContent = said[figure.dataset.norm][at];
  }

  function walk(axis, step) {
    const here = place(walked.find((element) => element.dataset.at === at));
    const ahead = walked
      .map((element) => [element, place(element)])
      .filter(([, p]) => p[1 - axis] === here[1 - axis] && (p[axis] - here[axis]) * step > 0)
      .sort(([, p], [, q]) => (p[axis] - q[axis]) * step);
    if (ahead.length) light(ahead[0][0].dataset.at);
  }

  const keys = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 1], ArrowUp: [1, -1] };
  figure.addEventListener("pointerover", (event) => {
    const element = event.target.closest("[data-at]");
    if (element) light(element.dataset.at);
  });
  figure.addEventListener("focusin", () => light(at));
  figure.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    walk(...keys[event.key]);
  });
}
document.body.dataset.ready = "true";

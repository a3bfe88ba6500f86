// The windows of a timeline by keyboard: Tab goes to the newest, the arrow keys to the others. Where it is wider than the
// screen, the newest windows are shown first.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".timeline").forEach(drawing => { drawing.parentNode.scrollLeft = drawing.parentNode.scrollWidth; });
});
document.addEventListener("keydown", event => {
  const here = event.target.closest?.(".timeline a.window");
  if (!here) return;
  const all = [...here.closest("svg").querySelectorAll("a.window")], place = all.indexOf(here);
  const next = {ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: all.length - 1}[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const there = all[Math.min(Math.max(next, 0), all.length - 1)];
  here.setAttribute("tabindex", "-1");
  there.setAttribute("tabindex", "0");
  there.focus();
});

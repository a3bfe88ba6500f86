// A link to our page in MLflow's own navigation, for which MLflow has no hook. The entry is a copy of "Experiments", so
// that it looks like its neighbours in each release and theme, and is made again whenever MLflow draws its navigation anew.
"use strict";
(() => {
  const href = document.currentScript.dataset.href;
  const icon = '<path fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" '
    + 'd="M13.2 6.2A5.5 5.5 0 1 0 13.5 8M13.6 2.6v3.6H10"/><circle cx="8" cy="8" r="1.6" fill="currentColor"/>';
  const place = () => {
    const original = document.querySelector('nav a[href="#/experiments"], aside a[href="#/experiments"]');
    if (!original) return;
    const item = original.closest("li") || original;
    const shape = original.childElementCount + "|" + original.textContent.length;
    const old = document.getElementById("flywheel-link");
    if (old && old.dataset.shape === shape && old.parentNode === item.parentNode) return;
    if (old) old.remove();
    const copy = item.cloneNode(true);
    copy.id = "flywheel-link";
    copy.dataset.shape = shape;
    const link = copy.matches("a") ? copy : copy.querySelector("a");
    link.setAttribute("href", href);
    link.removeAttribute("aria-current");
    link.title = "Flywheel: deployments and the health of their models";
    const others = [...item.parentNode.querySelectorAll('a[href^="#/"]:not([aria-current])')];
    const neighbour = others.find(other => other !== original);
    if (neighbour) link.className = neighbour.className;
    const [svg, ...more] = link.querySelectorAll("svg");
    if (svg) svg.innerHTML = icon;
    for (const other of more) (other.closest("[role=img]") || other).remove();
    const walker = document.createTreeWalker(link, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode());) if (text.data.trim()) { text.data = "Flywheel"; break; }
    item.after(copy);
  };
  new MutationObserver(place).observe(document.documentElement, {childList: true, subtree: true});
  place();
})();

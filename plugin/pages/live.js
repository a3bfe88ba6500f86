// Renews the page while it is looked at: only the parts that changed, and nobody loses the place, the focus or a choice.
"use strict";
(() => {
  const reachable = "a[href], button, summary, input, select, textarea";
  const shown = new WeakMap();
  const parts = page => [...page.querySelectorAll(".live")];
  const remember = () => parts(document).forEach(part => shown.has(part) || shown.set(part, part.outerHTML));

  const keep = (old, fresh) => {
    const same = element => fresh.querySelector("#" + CSS.escape(element.id));
    old.querySelectorAll("details[open][id]").forEach(element => same(element)?.setAttribute("open", ""));
    old.querySelectorAll("input:checked[id]").forEach(element => same(element)?.setAttribute("checked", ""));
  };

  const replace = (old, fresh) => {
    const place = [...old.querySelectorAll(reachable)].indexOf(document.activeElement);
    const lefts = [...old.querySelectorAll(".scroll")].map(element => element.scrollLeft);
    keep(old, fresh);
    old.replaceWith(fresh);
    fresh.querySelectorAll(".scroll").forEach((element, i) => { element.scrollLeft = lefts[i] ?? 0; });
    if (place >= 0) fresh.querySelectorAll(reachable)[place]?.focus({preventScroll: true});
  };

  const renew = page => {
    const old = parts(document), fresh = parts(page);
    if (old.length !== fresh.length || old.some((part, i) => part.id !== fresh[i].id)) {
      replace(document.querySelector("main"), page.querySelector("main"));
      return true;
    }
    const changed = old.flatMap((part, i) => shown.get(part) === fresh[i].outerHTML ? [] : [[part, fresh[i]]]);
    for (const [part, other] of changed) {
      shown.set(other, other.outerHTML);
      replace(part, other);
    }
    return changed.length > 0;
  };

  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, {headers: {Accept: "text/html"}});
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (renew(page)) document.dispatchEvent(new Event("flywheel:renewed"));
      remember();
      document.title = page.title;
    } catch {}  // the server is away for a moment; the next round comes
  };
  remember();
  setInterval(look, Number(document.body.dataset.refresh) * 1000);
})();

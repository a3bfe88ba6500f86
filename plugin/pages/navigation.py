"""A link to our page in MLflow's own navigation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from mlflow.server.handlers import _add_static_prefix

# MLflow has no hook for this. The entry is a copy of "Experiments", so that it looks like its neighbours in each
# release and theme, and is made again whenever MLflow draws its navigation anew.
_SCRIPT = """
<script>
(() => {
  const href = %s;
  const icon = '<path fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" '
    + 'd="M13.2 6.2A5.5 5.5 0 1 0 13.5 8M13.6 2.6v3.6H10"/><circle cx="8" cy="8" r="1.6" fill="currentColor"/>';
  const place = () => {
    const original = document.querySelector('nav a[href="#/experiments"], aside a[href="#/experiments"]');
    if (!original) return;
    const item = original.closest('li') || original;
    const shape = original.childElementCount + '|' + original.textContent.length;
    const old = document.getElementById('flywheel-link');
    if (old && old.dataset.shape === shape && old.parentNode === item.parentNode) return;
    if (old) old.remove();
    const copy = item.cloneNode(true);
    copy.id = 'flywheel-link';
    copy.dataset.shape = shape;
    const link = copy.matches('a') ? copy : copy.querySelector('a');
    link.setAttribute('href', href);
    link.removeAttribute('aria-current');
    link.title = 'Flywheel: deployments and the health of their models';
    const neighbour = [...item.parentNode.querySelectorAll('a[href^="#/"]:not([aria-current])')].find(a => a !== original);
    if (neighbour) link.className = neighbour.className;
    const svg = link.querySelector('svg');
    if (svg) svg.innerHTML = icon;
    const walker = document.createTreeWalker(link, NodeFilter.SHOW_TEXT);
    for (let text; (text = walker.nextNode());) if (text.data.trim()) { text.data = 'Flywheel'; break; }
    item.after(copy);
  };
  new MutationObserver(place).observe(document.documentElement, {childList: true, subtree: true});
  place();
})();
</script>
"""


def add_link(app: Flask) -> None:
    """Wrap MLflow's landing page so that its navigation has an entry for ours."""
    serve: Callable[..., Any] = app.view_functions["serve"]
    script = _SCRIPT % json.dumps(_add_static_prefix("/flywheel/"))

    def serve_with_link(*args: Any, **kwargs: Any) -> Any:
        # a browser that knows the page without the link must not be told "not modified"
        for header in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE"):
            request.environ.pop(header, None)
        response = serve(*args, **kwargs)
        if not isinstance(response, Response) or response.mimetype != "text/html":
            return response
        response.direct_passthrough = False
        page = response.get_data(as_text=True)
        response.set_data(page.replace("</body>", f"{script}</body>", 1))
        for header in ("ETag", "Last-Modified"):
            response.headers.pop(header, None)
        return response

    app.view_functions["serve"] = serve_with_link

"""A link to our page in MLflow's own navigation."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from flask import Flask, Response, request
from mlflow.server.handlers import _add_static_prefix

from .assets import asset_url


def add_link(app: Flask) -> None:
    """Wrap MLflow's landing page so that its navigation has an entry for ours."""
    serve: Callable[..., Any] = app.view_functions["serve"]
    source, href = asset_url("navigation.js"), _add_static_prefix("/flywheel/")
    script = f'<script src="{escape(source)}" data-href="{escape(href)}"></script>'

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

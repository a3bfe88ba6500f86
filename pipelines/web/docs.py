"""Swagger UI at /docs, from this machine alone: the only import of swagger_ui_bundle.

The page, its script and its styles are all served here, and its Content-Security-Policy lets it load nothing else.
"""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, send_from_directory
from swagger_ui_bundle import swagger_ui_path
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"
# validatorUrl: Swagger UI would send the document's address to a validator in the internet
_START = """window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, tryItOutEnabled: true
});
"""


def routes(deployment: str) -> Blueprint:
    """Return the page's routes."""
    docs = Blueprint("docs", __name__, template_folder=".")

    @docs.get("/docs")
    def page() -> Response:
        return Response(
            render_template("docs.html", deployment=deployment),
            mimetype="text/html",
            headers={"Content-Security-Policy": _POLICY},
        )

    @docs.get("/docs/")
    def page_with_a_slash() -> Response:
        return redirect("../docs")

    @docs.get("/docs/start.js")
    def start() -> Response:
        return Response(_START, mimetype="text/javascript")

    @docs.get("/docs/<path:name>")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise NotFound()
        return send_from_directory(swagger_ui_path, name, max_age=86_400)

    return docs

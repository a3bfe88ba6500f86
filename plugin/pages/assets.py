"""The files that our pages load, and what a browser may load at all. The only module that knows where Chart.js is.

Everything comes from this machine: Chart.js is in the package chartkick. No page holds a script or a style of its own,
so that the policy forbids these altogether, and with them whatever a name from outside could smuggle in.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from flask import Blueprint, Response, send_from_directory
from mlflow.server import handlers
from werkzeug.exceptions import NotFound

CHARTS = "Chart.bundle.js"
_OURS = ("flywheel.css", "live.js", "charts.js", "timeline.js", "navigation.js")
_CHART_SECONDS = 86_400
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)


def add_assets(pages: Blueprint) -> None:
    """Serve the files, and give every answer of the blueprint its Content-Security-Policy."""

    @pages.get(asset_url("<name>"))
    def asset(name: str) -> Response:
        if name == CHARTS:
            return send_from_directory(_charts_folder(), name, max_age=_CHART_SECONDS)
        if name not in _OURS:
            raise NotFound()
        return send_from_directory(Path(__file__).parent, name, max_age=0)

    @pages.after_request
    def limit(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        return response


def asset_url(name: str) -> str:
    """Return where the server has a file of ours, under MLflow's static prefix where it has one."""
    prefix: Callable[[str], str] = handlers._add_static_prefix
    return prefix(f"/flywheel/static/{name}")


def _charts_folder() -> Path:
    found = find_spec("chartkick")
    assert found is not None and found.submodule_search_locations  # a requirement of this package
    return Path(found.submodule_search_locations[0]) / "django" / "static" / "chartkick"

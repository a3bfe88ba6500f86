"""GET /: what this service is and how to call it, for people and, as JSON, for programs."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from typing import Any

from flask import Blueprint, render_template, request
from werkzeug.wrappers import Response

from mlflow_flywheel.pipelines.scoring import ScoringCore

from .example import Example
from .responses import json_response, to_json

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LINKS = {
    "docs": "the API, to try out",
    "openapi.json": "the same for programs",
    "metrics": "counts for Prometheus",
    "v2": "Open Inference Protocol",
}


def routes(core: ScoringCore) -> Blueprint:
    """Return the page's route."""
    home = Blueprint("home", __name__, template_folder=".")
    example = Example(core)
    about = _about(core, example)

    @home.get("/")
    def page() -> Response:
        if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
            response = json_response(about)
        else:
            text = render_template(
                "home.html",
                about=about,
                links=_LINKS,
                made_up=example.made_up,
                curl=_curl(request.url_root, example),
                python=_python(request.url_root, example),
            )
            response = Response(text, mimetype="text/html", headers={"Content-Security-Policy": _POLICY})
        response.headers["Vary"] = "Accept"
        return response

    return home


def _about(core: ScoringCore, example: Example) -> dict[str, Any]:
    return {
        "deployment": core.deployment,
        "model_name": core.scorer.ref.name,
        "model_version": core.scorer.ref.version,
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "features": [
            {"name": feature.name, "type": feature.type, "required": feature.required}
            for feature in core.scorer.schema.features
        ],
        "example": example.records,
        "links": {name.removesuffix(".json"): f"/{name}" for name in _LINKS},
    }


def _curl(root: str, example: Example) -> str:
    body = to_json(example.records).decode()
    return (
        f"curl {shlex.quote(f'{root}invocations')} \\\n  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def _python(root: str, example: Example) -> str:
    return (
        f"import requests\n\nanswer = requests.post(\n    {f'{root}invocations'!r},\n"
        f"    json={example.records!r},\n)\nprint(answer.json())"
    )

"""The routes of our pages, and the same as JSON. What changes something is in `asking`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, request
from markupsafe import Markup
from mlflow.server import handlers

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.times import parse_time
from mlflow_flywheel.plugin.policy_changes import KIND, fingerprint, present_policy
from mlflow_flywheel.plugin.policy_file import write_policy

from . import costs, view, words
from .asking import add_requests, wants_json
from .assets import add_assets, asset_url
from .snapshot import ModelView, has_report, mlflow_url, page_url, window_url
from .source import Source

_REFRESH_SECONDS = 5
_CHANGES = 30


def blueprint() -> Blueprint:
    """Return our routes, under MLflow's static prefix where it has one."""
    prefix: Callable[[str], str] = handlers._add_static_prefix
    source = Source()
    pages = Blueprint("flywheel", __name__, template_folder=".")
    add_assets(pages)
    add_requests(pages, source, lambda model, **shown: _policy_page(source, model, **shown))
    pages.context_processor(_shared)

    @pages.get(prefix("/flywheel/"))
    def home() -> str:
        snapshot = source.snapshot()
        return render_template(
            "flywheel.html",
            snapshot=snapshot,
            health=view.health(snapshot),
            drawings={model.name: Markup(view.timeline(model).svg()) for model in snapshot.models},
            refresh=_REFRESH_SECONDS,
        )

    @pages.get(prefix("/flywheel/window"))
    def window() -> str:
        look = source.window(_given("model"), _time("start"), _time("end"))
        return render_template("window.html", look=look, model=look.model, window=look.window)

    @pages.get(prefix("/flywheel/policy"))
    def policy() -> str:
        return _policy_page(source, _given("model"))

    @pages.get(prefix("/ajax-api/2.0/flywheel/status"))
    def status() -> Response:
        return jsonify(view.to_json(source.snapshot()))

    @pages.errorhandler(FlywheelError)
    def complain(error: FlywheelError) -> tuple[Any, int]:
        if wants_json():
            return jsonify({"error_code": error.error_code, "message": error.message}), error.http_status
        return render_template("complaint.html", message=error.message), error.http_status

    return pages


def _shared() -> dict[str, Any]:
    """Return what every template may use."""
    return {
        "api": handlers._add_static_prefix("/ajax-api/2.0/flywheel"),
        "asset_url": asset_url,
        "costs": costs,
        "has_report": has_report,
        "mlflow_url": mlflow_url,
        "page_url": page_url,
        "window_url": window_url,
        "words": words,
    }


def _policy_page(
    source: Source,
    name: str,
    text: str | None = None,
    complaint: str = "",
    checked: list[tuple[str, str, str]] | None = None,
    seen: str = "",
) -> str:
    """Show a policy to edit: the one in force, or what a person wrote, with what is wrong or would change."""
    model: ModelView = source.model(name)
    policy = present_policy(model.policy_settings)
    return render_template(
        "policy.html",
        model=model,
        text=write_policy(name, policy) if text is None else text,
        seen=seen or fingerprint(policy),
        complaint=complaint,
        checked=checked,
        history=source.records(source.home).actions(name, limit=_CHANGES, kinds=(KIND,)),
    )


def _given(name: str) -> str:
    value = request.args.get(name, "")
    if not value:
        raise BadInput(f"the address names no {name!r}; go there from the page")
    return value


def _time(name: str) -> datetime:
    try:
        return parse_time(_given(name))
    except ValueError:
        raise BadInput(
            f"{name}={_given(name)!r} is no time; give ISO 8601, such as 2013-03-01T00:00:00Z"
        ) from None

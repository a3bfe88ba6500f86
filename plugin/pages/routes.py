"""The routes: a page to look at, the same as JSON, and the few things that a person may ask for.

Whatever changes something is under `/ajax-api/`, the only place where MLflow's server blocks requests that another
site's page makes a browser send.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request
from markupsafe import Markup
from mlflow.server import handlers
from werkzeug.wrappers import Response as AnyResponse

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.plugin import approvals
from mlflow_flywheel.plugin.champion import Registry
from mlflow_flywheel.plugin.event_clock import event_now
from mlflow_flywheel.plugin.record_types import ActionRecord
from mlflow_flywheel.plugin.records import Records

from . import view, words
from .snapshot import Source, has_report, mlflow_url

_REFRESH_SECONDS = 5


def blueprint() -> Blueprint:
    """Return our routes, under MLflow's static prefix where it has one."""
    prefix = handlers._add_static_prefix
    source = Source()
    pages = Blueprint("flywheel", __name__, template_folder=".")

    @pages.get(prefix("/flywheel/"))
    def home() -> str:
        snapshot = source.snapshot()
        return render_template(
            "flywheel.html",
            snapshot=snapshot,
            health=view.health(snapshot),
            drawings={model.name: Markup(view.timeline(model).svg()) for model in snapshot.models},
            words=words,
            has_report=has_report,
            mlflow_url=mlflow_url,
            api=prefix("/ajax-api/2.0/flywheel"),
            refresh=_REFRESH_SECONDS,
        )

    @pages.get(prefix("/ajax-api/2.0/flywheel/status"))
    def status() -> Response:
        return jsonify(view.to_json(source.snapshot()))

    @pages.post(prefix("/ajax-api/2.0/flywheel/retrain"))
    def retrain() -> AnyResponse:
        records, model = source.records(source.home), _model(source)
        # a second click while the first is under way asks for nothing new
        running = [
            t
            for t in records.tasks(kind="retrain", subject=model, limit=5)
            if t.status in ("queued", "running")
        ]
        task = (
            running[0].id if running else records.enqueue("retrain", model, _request(source, model), "page")
        )
        return _answer(prefix, {"task": task})

    @pages.post(prefix("/ajax-api/2.0/flywheel/approve"))
    def approve() -> AnyResponse:
        records = source.records(source.home)
        action, version = _waiting(records)
        now = _now(source, action.model)
        # who sees the gate's words beside the button need not be asked twice
        approvals.promote(records, _registry(), action.model, version, _who(), now, force=True)
        return _answer(prefix, {"action": action.id, "version": version})

    @pages.post(prefix("/ajax-api/2.0/flywheel/reject"))
    def reject() -> AnyResponse:
        records = source.records(source.home)
        action, version = _waiting(records)
        approvals.reject(records, _registry(), action.model, version, _who())
        return _answer(prefix, {"action": action.id, "version": version})

    @pages.post(prefix("/ajax-api/2.0/flywheel/rollback"))
    def rollback() -> AnyResponse:
        records, model, seen = source.records(source.home), _model(source), _field("version")
        now = _now(source, model)
        action = approvals.rollback(records, _registry(), model, _who(), now, expected=seen)
        return _answer(prefix, {"action": action.id, "version": action.evidence["after"]})

    @pages.post(prefix("/ajax-api/2.0/flywheel/pause"))
    def pause() -> AnyResponse:
        model = _model(source)
        changed = source.records(source.home).pause(model, _who(), "", _now(source, model))
        return _answer(prefix, {"model": model, "paused": True, "changed": changed})

    @pages.post(prefix("/ajax-api/2.0/flywheel/resume"))
    def resume() -> AnyResponse:
        model = _model(source)
        changed = source.records(source.home).resume(model, _who(), "", _now(source, model))
        return _answer(prefix, {"model": model, "paused": False, "changed": changed})

    @pages.errorhandler(FlywheelError)
    def complain(error: FlywheelError) -> tuple[Any, int]:
        if _wants_json():
            return jsonify({"error_code": error.error_code, "message": error.message}), error.http_status
        back = prefix("/flywheel/")
        return render_template("complaint.html", message=error.message, back=back), error.http_status

    return pages


def _request(source: Source, model: str) -> dict[str, Any]:
    """Return the payload of a retraining that a person asked for."""
    return {"reason": "asked for on the page", "as_of": _now(source, model).isoformat()}


def _now(source: Source, model: str) -> datetime:
    home = source.home
    return event_now(home.tables, model, PolicySpec.parse(source.records(home).policy(model)))


def _registry() -> Registry:
    return Registry(handlers._get_model_registry_store())


def _who() -> str:
    """Return who asks: a name where MLflow's server asks for one."""
    name = request.authorization.username if request.authorization is not None else None
    return f"{name} (page)" if name else "page"


def _model(source: Source) -> str:
    """Return the deployed model that the request names."""
    model = _field("model")
    known = {deployment.model_name for deployment in source.records(source.home).deployments()}
    if model not in known:
        raise NotFound(
            f"model {model!r} has no deployment here; deployed are: {', '.join(sorted(known)) or 'none'}"
        )
    return model


def _field(name: str) -> str:
    body = request.get_json(silent=True) if request.is_json else request.form
    value = body.get(name) if isinstance(body, dict) or body is request.form else None
    if value in (None, ""):
        raise BadInput(f"the request names no {name!r}; send it as a form field or in a JSON object")
    return str(value)


def _waiting(records: Records) -> tuple[ActionRecord, str]:
    """Return the action that the request names, and the version that waits."""
    number = _field("action")
    action = next((a for a in records.actions(limit=1000) if str(a.id) == number), None)
    if action is None:
        raise NotFound(f"action {number!r} does not exist; reload the page")
    version = (action.result or {}).get("version")
    if action.status != "waiting" or not version:
        raise BadInput(f"action {number} is {action.status}: nothing waits for approval; reload the page")
    return action, str(version)


def _wants_json() -> bool:
    return (
        request.is_json
        or request.accept_mimetypes.best_match(["text/html", "application/json"]) != "text/html"
    )


def _answer(prefix: Any, body: dict[str, Any]) -> AnyResponse:
    """Answer a program with JSON, and send a browser's form back to the page."""
    return jsonify(body) if _wants_json() else redirect(prefix("/flywheel/"), code=303)

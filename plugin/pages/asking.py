"""What a person may ask for: a retraining, a decision, a pause, another policy.

All of it is under `/ajax-api/`, the only place where MLflow's server blocks requests that another site's page makes a
browser send.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Blueprint, jsonify, redirect, request
from mlflow.server import handlers
from werkzeug.wrappers import Response as AnyResponse

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.plugin import approvals
from mlflow_flywheel.plugin.champion import Registry
from mlflow_flywheel.plugin.event_clock import event_now
from mlflow_flywheel.plugin.policy_changes import change_policy, present_policy, text_of
from mlflow_flywheel.plugin.policy_file import changes, read_policy
from mlflow_flywheel.plugin.record_types import ActionRecord
from mlflow_flywheel.plugin.records import Records

from .snapshot import page_url
from .source import Source


def add_requests(pages: Blueprint, source: Source, policy_page: Callable[..., str]) -> None:
    """Add the routes; `policy_page` shows the form of a policy again, with what is to be said about it."""

    def route(what: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        path: str = handlers._add_static_prefix(f"/ajax-api/2.0/flywheel/{what}")
        return pages.post(path)

    @route("retrain")
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
        return _answer({"task": task})

    @route("approve")
    def approve() -> AnyResponse:
        records = source.records(source.home)
        action, version = _waiting(records)
        now = _now(source, action.model)
        # who sees the gate's words beside the button need not be asked twice
        approvals.promote(records, _registry(), action.model, version, _who(), now, force=True)
        return _answer({"action": action.id, "version": version})

    @route("reject")
    def reject() -> AnyResponse:
        records = source.records(source.home)
        action, version = _waiting(records)
        approvals.reject(records, _registry(), action.model, version, _who())
        return _answer({"action": action.id, "version": version})

    @route("rollback")
    def rollback() -> AnyResponse:
        records, model, seen = source.records(source.home), _model(source), _field("version")
        now = _now(source, model)
        action = approvals.rollback(records, _registry(), model, _who(), now, expected=seen)
        return _answer({"action": action.id, "version": action.evidence["after"]})

    @route("pause")
    def pause() -> AnyResponse:
        model = _model(source)
        changed = source.records(source.home).pause(model, _who(), "", _now(source, model))
        return _answer({"model": model, "paused": True, "changed": changed})

    @route("resume")
    def resume() -> AnyResponse:
        model = _model(source)
        changed = source.records(source.home).resume(model, _who(), "", _now(source, model))
        return _answer({"model": model, "paused": False, "changed": changed})

    @route("policy")
    def change() -> Any:
        model, text = source.model(_field("model")).name, _field("text").replace("\r\n", "\n")
        check, seen = bool(_field("check", "")), _field("seen", "")
        try:
            changed = _new_policy(source, model, text, check, seen or None)
        except BadInput as error:
            if wants_json():
                raise
            return policy_page(model, text=text, complaint=error.message, seen=seen), error.http_status
        if check and not wants_json():
            told = [(name, text_of(before), text_of(after)) for name, (before, after) in changed.items()]
            return policy_page(model, text=text, checked=told, seen=seen)
        said = {name: {"before": before, "after": after} for name, (before, after) in changed.items()}
        answer = {"model": model, "changes": said, "applied": not check}
        return _answer(answer, page_url("policy", model=model))


def wants_json() -> bool:
    """Tell whether a program asks, not a browser's form."""
    return (
        request.is_json
        or request.accept_mimetypes.best_match(["text/html", "application/json"]) != "text/html"
    )


def _new_policy(
    source: Source, model: str, text: str, check: bool, seen: str | None
) -> dict[str, tuple[Any, Any]]:
    """Put the policy that is written there in force, or only say what it would change."""
    home = source.home
    records = source.records(home)
    given = read_policy(text, "the policy")
    if given.model != model:
        raise BadInput(f"the policy is for model {given.model!r}, and this page is about {model!r}")
    if check:
        return changes(present_policy(records.policy(model)), given.policy)
    return change_policy(home, records, model, given.policy, _who(), seen)


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


def _field(name: str, default: str | None = None) -> str:
    body = request.get_json(silent=True) if request.is_json else request.form
    value = body.get(name) if isinstance(body, dict) or body is request.form else None
    if value in (None, ""):
        if default is not None:
            return default
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


def _answer(body: dict[str, Any], back: str | None = None) -> AnyResponse:
    """Answer a program with JSON, and send a browser's form back to the page."""
    return jsonify(body) if wants_json() else redirect(back or page_url(), code=303)

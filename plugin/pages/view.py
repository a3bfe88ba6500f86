"""From a snapshot to what is shown: the page's panels, and the same facts as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mlflow_flywheel.plugin.record_types import ActionRecord, VerdictRecord

from .snapshot import DRAWN, Costs, ModelView, Snapshot, has_report
from .timeline import Mark, Point, Timeline
from .words import (
    gate_words,
    headline,
    metric_name,
    metrics_of,
    noteworthy,
    outcome,
    verdict_text,
    version_of,
)

_A_DAY = timedelta(days=1)
_MARKED = ("promoted", "refused", "rejected", "waiting", "failed")


@dataclass(frozen=True)
class Health:
    """The page's first line."""

    status: str
    text: str


def health(snapshot: Snapshot) -> Health:
    """Return the worst thing there is to say about what serves now, in one line."""
    failed = [d.name for d in snapshot.deployments if not d.serves]
    if failed:
        return Health("alarm", f"{', '.join(failed)} {'is' if len(failed) == 1 else 'are'} not serving")
    current = [(m.name, v) for m in snapshot.models for v in m.current if m.in_force(v)]
    for level in ("alarm", "warn"):
        found = [
            f"{name}: {verdict.monitor} {level}" for name, verdict in current if verdict.verdict == level
        ]
        if found:
            return Health(level, ", ".join(found))
    if any(model.waiting for model in snapshot.models):
        return Health("warn", "A challenger waits for your approval")
    paused = [model.name for model in snapshot.models if model.paused is not None]
    if paused:
        return Health("warn", f"The loop of {', '.join(paused)} is paused")
    if not any(verdict.verdict == "ok" for _, verdict in current):
        return Health("unknown", "No verdict yet on what serves now")
    return Health("ok", "All is well")


def timeline(model: ModelView) -> Timeline:
    """Return the model's verdicts over event time, with what was done about them."""
    chosen = next(
        (m for v in model.verdicts if v.monitor == "performance" and (m := headline(metrics_of(v)))), None
    )
    return Timeline(
        metric=metric_name(chosen) if chosen else "performance",
        performance=_points(model, "performance", chosen or ""),
        drift=_points(model, "drift", "share"),
        marks=tuple(_marks(model)),
        drift_limit=model.policy.drift_share if model.policy is not None else None,
    )


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as JSON-ready values."""
    return {
        "home": snapshot.home,
        "exists": snapshot.exists,
        "taken": snapshot.taken.isoformat(),
        "health": {"status": health(snapshot).status, "text": health(snapshot).text},
        "models": [_model_json(model) for model in snapshot.models],
        "failed_tasks": [
            {"id": t.id, "kind": t.kind, "subject": t.subject, "error": t.error} for t in snapshot.failures
        ],
    }


def _model_json(model: ModelView) -> dict[str, Any]:
    counts = model.counts
    return {
        "name": model.name,
        "versions": model.versions,
        "deployments": [
            {
                "name": d.name,
                "mode": d.mode,
                "status": d.status,
                "version": d.version,
                "url": d.url,
                "message": d.message,
                "predictions": d.predictions,
            }
            for d in model.deployments
        ],
        "table": None
        if counts is None
        else {"rows": counts.answered, "labelled": counts.labelled, "duplicates": counts.duplicates},
        "verdicts": [_verdict_json(model, verdict) for verdict in model.current],
        "actions": [_action_json(model, action) for action in model.actions],
        "policy": dict(model.policy_settings),
        "retraining": model.retraining.status if model.retraining is not None else None,
        "paused": str(model.paused) if model.paused is not None else None,
        "cost": _cost_json(model.costs),
        "rollback": {"from": model.champion, "to": model.before} if model.before is not None else None,
    }


def _cost_json(costs: Costs | None) -> dict[str, Any] | None:
    if costs is None:
        return None
    return costs.view.to_json() if costs.view is not None else {"error": costs.error}


def _verdict_json(model: ModelView, verdict: VerdictRecord) -> dict[str, Any]:
    return {
        "monitor": verdict.monitor,
        "status": verdict.verdict,
        "version": version_of(verdict),
        "summary": verdict_text(verdict),
        "metrics": metrics_of(verdict),
        "window": [verdict.window_start.isoformat(), verdict.window_end.isoformat()],
        "run_id": verdict.run_id,
        "report_url": model.run_url(verdict.run_id, True) if has_report(verdict) else None,
        "window_url": model.window_url(verdict),
    }


def _action_json(model: ModelView, action: ActionRecord) -> dict[str, Any]:
    return {
        "id": action.id,
        "kind": action.kind,
        "status": action.status,
        "reason": action.reason,
        "as_of": action.as_of.isoformat(),
        "outcome": outcome(action),
        "run_url": model.run_url(action.run_id),
    }


def _points(model: ModelView, monitor: str, metric: str) -> list[Point]:
    """Return one point per window end, the newest verdict of each, in order of time."""
    points: dict[Any, Point] = {}
    for verdict in model.verdicts:
        if verdict.monitor == monitor and verdict.window_end not in points:
            metrics = metrics_of(verdict)
            points[verdict.window_end] = Point(
                verdict.window_end,
                verdict.verdict,
                verdict_text(verdict),
                metrics.get(metric),
                metrics.get(f"{metric}_low"),
                metrics.get(f"{metric}_high"),
                (verdict.summary.get("reference") or {}).get(metric),
                model.window_url(verdict),
            )
    return [points[end] for end in sorted(points)]


def _marks(model: ModelView) -> Iterator[Mark]:
    ends = [v.window_end for v in model.verdicts if v.monitor in DRAWN]
    # what was done by the clock about a model whose events are replayed would stretch the drawing over years
    latest = max(ends) + max((max(ends) - min(ends)) / 4, _A_DAY) if ends else None
    for action in noteworthy(model.actions):
        mark = _mark(action)
        if mark is not None and (latest is None or mark.at <= latest):
            yield mark


def _mark(action: ActionRecord) -> Mark | None:
    """Return how an action is drawn; None for what is not worth a mark."""
    result = action.result or {}
    said = f"{outcome(action)}: {action.reason}" if outcome(action) else action.reason
    if action.kind == "alert":
        return Mark(action.as_of, "", f"alert: {action.reason}", "alert")
    if action.kind == "policy":
        return Mark(action.as_of, "policy", f"policy: {action.reason}", "note")
    if action.kind in ("rollback", "promote") and action.status == "done":
        version, back = action.evidence["after"], action.kind == "rollback"
        return Mark(
            action.as_of,
            f"back to v{version}" if back else f"v{version}",
            said,
            "back" if back else "promoted",
        )
    if action.kind == "retrain" and action.status in _MARKED:
        gate, version = result.get("gate"), result.get("version")
        words = f"{outcome(action).partition(':')[0]}: {gate_words(gate)}" if gate else said
        label = f"v{version}" if action.status == "promoted" else action.status
        label = f"v{version} waits" if action.status == "waiting" else label
        return Mark(action.as_of, label, words, "promoted" if action.status == "promoted" else "refused")
    return None

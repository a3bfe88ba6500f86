"""One turn of the loop for one model: look at the window, say what was seen, decide, and remember the decision.

Nothing is done twice: verdicts and actions are keyed by model and `as_of`, so a turn that was killed may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mlflow_flywheel.monitors.all import ask, monitors
from mlflow_flywheel.monitors.drift import MONITOR as DRIFT
from mlflow_flywheel.monitors.drift import DriftSpec
from mlflow_flywheel.monitors.look import Look, Monitor
from mlflow_flywheel.monitors.performance import MONITOR as PERFORMANCE
from mlflow_flywheel.monitors.performance import reference_metrics
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import log_monitor_run
from mlflow_flywheel.monitors.verdicts import worst
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.registry import resolve_model
from mlflow_flywheel.pipelines.times import as_utc

from .acting import Occasion, act
from .champion import CHAMPION
from .home import Home
from .looking import look_at
from .probation import is_failing
from .records import Records
from .retraining import run_retraining
from .series import add_points
from .turn import Turn

__all__ = ["run_monitors", "run_retraining"]

_log = logging.getLogger(__name__)


def run_monitors(home: Home, records: Records, model: str, as_of: datetime) -> dict[str, Any]:
    """Run the monitors of a model on the window that ends at `as_of`, and let its policy decide.

    Labels count when they were true before `as_of`. A retraining that is decided is queued, not done here. Returns
    `version`, `run_id`, `verdicts`, `action` ("none", "alert", "alert_end", "retrain", "rollback", "promote"), `reason`,
    `action_id` and `retrain_task`.
    A window without any row, and without anybody to warn of that, says nothing: it leaves no run, no verdict and no
    trace in the policy's memory. But a version on probation that fails is looked at all the same.
    """
    from mlflow import MlflowClient

    as_of = as_utc(as_of)
    policy = PolicySpec.parse(records.policy(model))
    champion = resolve_model(f"models:/{model}@{CHAMPION}", home.tracking_uri)
    table = InferenceTable.open(home.tables, model)
    look = look_at(home, records, table, champion, policy, as_of)
    watching = monitors(policy.watched_by)
    verdicts = ask(watching, look)
    rows = look.rows.num_rows
    result = {"model": model, "version": champion.version, "as_of": as_of.isoformat(), "rows": rows}
    result["verdicts"] = [{**verdict.to_dict(), "evidence": []} for verdict in verdicts]
    if (
        rows == 0
        and worst(verdicts) in ("unknown", "ok")
        and not is_failing(records, policy, model, champion.version)
    ):
        reason = f"version {champion.version} has no rows in {look.window}"
        nothing = {
            "run_id": None,
            "action": "none",
            "reason": reason,
            "action_id": None,
            "retrain_task": None,
        }
        return result | nothing
    turn = Turn(home, records, MlflowClient(home.tracking_uri), table, look, verdicts)
    html, page = _report(turn), _overview(turn)
    run_id = _show(turn, watching, html, page, champion.model_id)
    _remember(turn, run_id, html is not None, page is not None)
    return result | {"run_id": run_id} | act(Occasion(turn, run_id))


def _show(
    turn: Turn, watching: Sequence[Monitor], html: str | None, page: str | None, model_id: str | None
) -> str:
    """Log the monitor run and a point of each deployment's series; return the run's id."""
    rows = turn.look.rows
    run_id = log_monitor_run(
        turn.client,
        turn.model,
        turn.look.version,
        turn.as_of,
        turn.verdicts,
        model_id=model_id,
        html=html,
        overview=page,
        rows=rows,
        source=turn.table.predictions.uri,
        table_version=turn.table.versions()["predictions"],
    )
    for deployment in turn.records.deployments(model_name=turn.model):
        own = turn.look.of(deployment.name)
        if own.rows.num_rows == 0:
            continue
        add_points(turn.client, turn.records, deployment, _series(turn, watching, own), turn.as_of)
    return run_id


def _series(turn: Turn, watching: Sequence[Monitor], own: Look) -> dict[str, float]:
    """Return the point of one deployment: size, labels, and what the monitors measure of its own rows."""
    rows = own.rows
    point = {
        "rows": float(rows.num_rows),
        "labelled_share": (rows.num_rows - rows["label"].null_count) / rows.num_rows,
    }
    drawn = [monitor for monitor in watching if monitor.series]
    alone = rows.num_rows == turn.look.rows.num_rows  # then the model's verdicts are its own
    measured = {v.monitor: v.metrics for v in (turn.verdicts if alone else ask(drawn, own))}
    for monitor in drawn:
        metrics = measured.get(monitor.name, {})
        point |= {name: metrics[metric] for metric, name in monitor.series if metric in metrics}
    return point


def _report(turn: Turn) -> str | None:
    """Draw the drift report when the policy wants it; a report that cannot be drawn stops no monitor."""
    verdict = next((v for v in turn.verdicts if v.monitor == DRIFT and v.status != "unknown"), None)
    reference, policy = turn.look.reference, turn.look.policy
    if verdict is None or reference is None or policy.report == "never":
        return None
    if policy.report == "on_change" and _last_status(turn, DRIFT) == verdict.status:
        return None
    from mlflow_flywheel.monitors.evidently import drift_report

    try:
        return drift_report(turn.look.rows, reference, verdict, DriftSpec.of(policy))
    except Exception:  # noqa: BLE001 - the verdict stands without its picture
        _log.exception("the drift report of %s cannot be drawn", turn.model)
        return None


def _overview(turn: Turn) -> str | None:
    """Draw the overview unless the policy wants no reports; like the report, it stops no monitor."""
    if turn.look.policy.report == "never" or not turn.verdicts:
        return None
    from mlflow_flywheel.monitors.overview import episode_start, overview

    since = {}
    for verdict in turn.verdicts:
        earlier = [
            (Window(known.window_start, known.window_end), known.verdict)
            for known in turn.records.verdicts(turn.model, monitor=verdict.monitor)
            if known.window_end < turn.as_of
        ]
        first = episode_start(verdict, earlier)
        if first is not None:
            since[verdict.monitor] = first
    try:
        look = turn.look
        return overview(turn.model, turn.look.version, turn.verdicts, look.rows, look.reference, since)
    except Exception:  # noqa: BLE001 - the verdicts stand without their picture
        _log.exception("the overview of %s cannot be drawn", turn.model)
        return None


def _last_status(turn: Turn, monitor: str) -> str | None:
    return next((v.verdict for v in turn.records.verdicts(turn.model, monitor=monitor, limit=1)), None)


def _remember(turn: Turn, run_id: str, report: bool, page: bool) -> None:
    """Record each verdict, once per monitor and window, and which reports its run has."""
    window, reference = turn.look.window, turn.look.reference
    known = {v.monitor for v in turn.records.verdicts(turn.model, window=(window.start, window.end))}
    more: Mapping[str, dict[str, Any]] = {
        DRIFT: {"report": report},
        PERFORMANCE: {"reference": reference_metrics(reference) if reference is not None else {}},
    }
    for verdict in turn.verdicts:
        if verdict.monitor in known:
            continue
        summary: dict[str, Any] = {"text": verdict.summary, "metrics": verdict.metrics}
        summary |= {"version": turn.look.version, "overview": page}
        turn.records.add_verdict(
            turn.model,
            verdict.monitor,
            window.start,
            window.end,
            verdict.status,
            summary | more.get(verdict.monitor, {}),
            run_id,
        )

"""One turn of the loop for one model: look at the window, say what was seen, decide, and remember the decision.

Nothing is done twice: verdicts and actions are keyed by model and `as_of`, so a turn that was killed may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.drift import MONITOR as DRIFT
from mlflow_flywheel.monitors.drift import DriftSpec, drift
from mlflow_flywheel.monitors.performance import PerformanceSpec, performance, reference_metrics
from mlflow_flywheel.monitors.policy import Decision, PolicySpec, PolicyState, decide
from mlflow_flywheel.monitors.reference import Reference, load_reference
from mlflow_flywheel.monitors.reporting import deployment_run, log_deployment_metrics, log_monitor_run
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window, last_window
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.registry import ResolvedModel, resolve_model
from mlflow_flywheel.pipelines.times import as_utc

from .home import Home
from .kept_out import kept_out, without
from .records import Records
from .release import AS_OF_TAG, CHAMPION
from .retraining import run_retraining

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["run_monitors", "run_retraining"]

_log = logging.getLogger(__name__)
# What the series of a deployment show of its performance.
_PERFORMANCE_SERIES = ("auc", "log_loss", "brier", "accuracy", "mae", "rmse")


@dataclass(frozen=True)
class Turn:
    """What one turn looks at: the version in force and its rows of the window."""

    home: Home
    records: Records
    client: MlflowClient
    policy: PolicySpec
    champion: ResolvedModel
    reference: Reference | None
    table: InferenceTable
    window: Window
    rows: pa.Table

    @property
    def model(self) -> str:
        return self.champion.name

    @property
    def as_of(self) -> datetime:
        return self.window.end


def run_monitors(home: Home, records: Records, model: str, as_of: datetime) -> dict[str, Any]:
    """Run the monitors of a model on the window that ends at `as_of`, and let its policy decide.

    Labels count when they were true before `as_of`. A retraining that is decided is queued, not done here. Returns
    `version`, `run_id`, `verdicts`, `action` ("none", "alert", "retrain"), `reason`, `action_id` and `retrain_task`.
    A window without any row says nothing: it leaves no run, no verdict and no trace in the policy's memory.
    """
    from mlflow import MlflowClient

    as_of = as_utc(as_of)
    policy = PolicySpec.parse(records.policy(model))
    champion = resolve_model(f"models:/{model}@{CHAMPION}", home.tracking_uri)
    table = InferenceTable.open(home.tables, model)
    window = last_window(as_of, policy.window)
    rows, reference = without(
        _champion_rows(table, window, champion.version),
        load_reference(model, champion.version, home.tracking_uri),
        kept_out(records, model),
    )
    turn = Turn(
        home,
        records,
        MlflowClient(home.tracking_uri),
        policy,
        champion,
        reference,
        table,
        window,
        rows,
    )
    verdicts = [
        drift(rows, turn.reference, window, DriftSpec.of(policy)),
        performance(rows, turn.reference, window, PerformanceSpec.of(policy)),
    ]
    result = {"model": model, "version": champion.version, "as_of": as_of.isoformat(), "rows": rows.num_rows}
    result["verdicts"] = [{**verdict.to_dict(), "evidence": []} for verdict in verdicts]
    if rows.num_rows == 0:
        reason = f"version {champion.version} has no rows in {window}"
        nothing = {
            "run_id": None,
            "action": "none",
            "reason": reason,
            "action_id": None,
            "retrain_task": None,
        }
        return result | nothing
    html = _report(turn, verdicts[0])
    run_id = _show(turn, verdicts, html)
    _remember(turn, verdicts, run_id, html is not None)
    return result | {"run_id": run_id} | _act(turn, verdicts, run_id)


def _champion_rows(table: InferenceTable, window: Window, version: str) -> pa.Table:
    """Read what the version in force answered as champion, with the labels known at the window's end."""
    return table.read(
        start=window.start, end=window.end, version=version, variant=CHAMPION, known_before=window.end
    )


def _show(turn: Turn, verdicts: Sequence[Verdict], html: str | None) -> str:
    """Log the monitor run and a point of each deployment's series; return the run's id."""
    run_id = log_monitor_run(
        turn.client,
        turn.model,
        turn.champion.version,
        turn.as_of,
        verdicts,
        model_id=turn.champion.model_id,
        html=html,
        rows=turn.rows,
        source=turn.table.predictions.uri,
        table_version=turn.table.versions()["predictions"],
    )
    for deployment in turn.records.deployments(model_name=turn.model):
        own = turn.rows.filter(pc.equal(turn.rows["deployment"], deployment.name))
        if own.num_rows == 0:
            continue
        series = deployment_run(turn.client, turn.model, deployment.name, deployment.mode)
        if deployment.run_id != series:
            turn.records.update_deployment(deployment.name, run_id=series)
        log_deployment_metrics(turn.client, series, _series(turn, own), turn.as_of)
    return run_id


def _series(turn: Turn, rows: pa.Table) -> dict[str, float]:
    """Return the point of one deployment: size, labels, drift and performance of its own rows."""
    drifted = drift(rows, turn.reference, turn.window, DriftSpec.of(turn.policy))
    performed = performance(rows, turn.reference, turn.window, PerformanceSpec.of(turn.policy))
    labelled = rows.num_rows - rows["label"].null_count
    point = {"rows": float(rows.num_rows), "labelled_share": labelled / rows.num_rows}
    if "share" in drifted.metrics:
        point["drift_share"] = drifted.metrics["share"]
    return point | {
        name: performed.metrics[name] for name in _PERFORMANCE_SERIES if name in performed.metrics
    }


def _report(turn: Turn, verdict: Verdict) -> str | None:
    """Draw the drift report when the policy wants it; a report that cannot be drawn stops no monitor."""
    if turn.reference is None or verdict.status == "unknown" or turn.policy.report == "never":
        return None
    if turn.policy.report == "on_change" and _last_status(turn, verdict.monitor) == verdict.status:
        return None
    from mlflow_flywheel.monitors.evidently import drift_report

    try:
        return drift_report(turn.rows, turn.reference, verdict, DriftSpec.of(turn.policy))
    except Exception:  # noqa: BLE001 - the verdict stands without its picture
        _log.exception("the drift report of %s cannot be drawn", turn.model)
        return None


def _last_status(turn: Turn, monitor: str) -> str | None:
    return next((v.verdict for v in turn.records.verdicts(turn.model) if v.monitor == monitor), None)


def _remember(turn: Turn, verdicts: Sequence[Verdict], run_id: str, report: bool) -> None:
    """Record each verdict, once per monitor and window."""
    known = {(v.monitor, v.window_start, v.window_end) for v in turn.records.verdicts(turn.model)}
    yardstick = reference_metrics(turn.reference) if turn.reference is not None else {}
    for verdict in verdicts:
        window = verdict.window
        if (verdict.monitor, window.start, window.end) in known:
            continue
        summary = {"text": verdict.summary, "metrics": verdict.metrics, "version": turn.champion.version}
        more = {"report": report} if verdict.monitor == DRIFT else {"reference": yardstick}
        turn.records.add_verdict(
            turn.model, verdict.monitor, window.start, window.end, verdict.status, summary | more, run_id
        )


def _act(turn: Turn, verdicts: Sequence[Verdict], run_id: str) -> dict[str, Any]:
    """Decide, record the action with its evidence, queue a retraining, and last of all remember the decision."""
    state = PolicyState.model_validate(turn.records.policy_state(turn.model))
    new_labels = _new_labels(turn, _trained_at(turn, state))
    decision, after = decide(turn.policy, state, verdicts, new_labels, turn.as_of)
    action_id = task_id = None
    if decision.action != "none":
        key = f"{decision.action}:{turn.model}:{turn.as_of.isoformat()}"
        status = "queued" if decision.action == "retrain" else "done"
        action_id = turn.records.add_action(
            turn.model,
            decision.action,
            decision.reason,
            _evidence(turn, decision, run_id),
            turn.as_of,
            key,
            status,
        )
        if decision.action == "retrain":
            payload = {"reason": decision.reason, "as_of": turn.as_of.isoformat(), "action_id": action_id}
            task_id = turn.records.enqueue("retrain", turn.model, payload, "policy", key)
    turn.records.set_policy_state(turn.model, after.model_dump(mode="json"))
    _log.info("%s as of %s: %s: %s", turn.model, turn.as_of, decision.action, decision.reason)
    return {
        "action": decision.action,
        "reason": decision.reason,
        "action_id": action_id,
        "retrain_task": task_id,
    }


def _evidence(turn: Turn, decision: Decision, run_id: str) -> dict[str, Any]:
    window = {"start": turn.window.start.isoformat(), "end": turn.window.end.isoformat()}
    return {
        **decision.evidence,
        "version": turn.champion.version,
        "window": window,
        "rows": turn.rows.num_rows,
        "monitor_run_id": run_id,
        "table_versions": turn.table.versions(),
    }


def _trained_at(turn: Turn, state: PolicyState) -> datetime | None:
    """Return when labels were last trained on: by the policy's own account, or by the version in force's lineage."""
    tags = turn.client.get_model_version(turn.model, turn.champion.version).tags
    of_version = datetime.fromisoformat(tags[AS_OF_TAG]) if AS_OF_TAG in tags else None
    return max((moment for moment in (state.trained_at, of_version) if moment is not None), default=None)


def _new_labels(turn: Turn, trained_at: datetime | None) -> int:
    """Count labels that a training as of now could use and that were not true yet at the last one."""
    found = turn.table.read(
        start=turn.as_of - turn.policy.training_window,
        end=turn.as_of,
        variant=CHAMPION,
        labelled=True,
        known_before=turn.as_of,
        columns=["label_time"],
        order_by=None,
    )["label_time"]
    if trained_at is None:
        return len(found)
    return int(pc.sum(pc.greater_equal(found, pa.scalar(trained_at, found.type))).as_py() or 0)

"""How good is the model probably, on rows whose labels have not come, and were such estimates right before?

The verdict asks what the performance monitor will ask once labels are there, with the same margins. Estimates rest on
what probabilities or features meant in the reference: a loss that comes from a changed meaning (concept drift) does not
show in them, only in labels. So estimates are held against what came wherever labels have come, and an alarm of
estimates that were wrong lately is only a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.checks import Check, failed, finite, loss_checks, status_of
from mlflow_flywheel.monitors.look import Look, Monitor
from mlflow_flywheel.monitors.measures import Measured, measure
from mlflow_flywheel.monitors.outcomes import Task, infer_task, outcomes
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.verdicts import Status, Verdict
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION, PREDICTION_PROBA

from .estimator import LEAST_ROWS, Estimator, teach, with_recent
from .support import rows_alike
from .trust import Compared, by_period, compare, distrusted, misses, widened

if TYPE_CHECKING:
    from mlflow_flywheel.monitors.policy import PolicySpec

MONITOR = "estimation"
_SHOWN = ("auc", "log_loss", "skill", "mae")
_SERIES = ("auc", "log_loss", "accuracy", "mae")


@dataclass(frozen=True)
class EstimationSpec:
    """Thresholds, those of the performance monitor."""

    min_rows: int = 200
    confidence: float = 0.95
    loss_margin: float = 0.02
    ranking_margin: float = 0.02
    seed: int = 0

    @classmethod
    def of(cls, policy: PolicySpec) -> EstimationSpec:
        """Return the thresholds that a policy asks for."""
        return cls(policy.min_rows, policy.confidence, policy.loss_margin, policy.ranking_margin)


def estimation(
    rows: pa.Table,
    reference: Reference | None,
    window: Window,
    spec: EstimationSpec | None = None,
    before: pa.Table | None = None,
) -> Verdict:
    """Estimate the performance of all rows of a window without their labels, and compare it with the reference.

    `before` are rows of the same version in the window before: their labels teach too when there are many, and tell
    how well estimates agree with what came. `unknown` below the fewest rows, and without a labelled reference.
    """
    spec = spec or EstimationSpec()
    metrics: dict[str, float] = {"rows": rows.num_rows}
    if reference is None or not {LABEL, PREDICTION} <= set(reference.table.column_names):
        return Verdict(
            MONITOR, "unknown", "the version has no labelled reference to learn from", window, metrics
        )
    if rows.num_rows < spec.min_rows:
        few = f"{rows.num_rows:,} rows in the window, fewer than {spec.min_rows:,}"
        return Verdict(MONITOR, "unknown", f"{few}: too few to judge", window, metrics)
    task = infer_task(reference.outcomes(), rows)
    asked = pa.concat_tables([_answers(each) for each in (rows, before) if each is not None])
    plain = teach(reference.table, reference.feature_names, asked, task, spec.seed)
    if isinstance(plain, str):
        return Verdict(MONITOR, "unknown", plain, window, metrics)
    known, learnt = _taught(reference, before, asked, task, spec.seed) or (reference.table, plain)
    shown, now = learnt.estimate(rows), learnt.estimate(rows, resampled=True)
    if shown is None or now is None:
        return Verdict(MONITOR, "unknown", "no row has an answer that can be judged", window, metrics)
    periods: list[Compared] = []
    if before is not None:
        periods = by_period(plain, before, window.before(), spec.confidence, spec.min_rows)
        shown, now = (widened(each, periods, spec.confidence) for each in (shown, now))
    # Equal draws of the reference's blocks taught the estimator when nothing else did: then both sides are paired.
    yardstick = measure(outcomes(reference.outcomes(), task), spec.seed)
    checks = _checks(now, yardstick, task, spec)
    came = compare(learnt, rows, window, spec.confidence, spec.min_rows)
    periods += by_period(learnt, rows, window, spec.confidence, spec.min_rows)
    missed, compared = misses(periods, checks[0].metric if checks else "")
    doubted = distrusted(missed, compared, spec.confidence)
    metrics |= _numbers(shown, came, spec.confidence)
    alike = rows_alike(known, reference.feature_names, rows)
    metrics |= {"compared_periods": compared, "missed_periods": missed, "rows_alike": alike}
    evidence = [
        *_metric_rows(shown, yardstick, spec.confidence),
        *(check.row() for check in checks),
        *(each.row() for each in periods),
    ]
    summary = _summary(shown, yardstick, checks, came, spec.confidence, rows)
    if doubted:
        summary += (
            f"; estimates are not to be trusted now: {checks[0].metric} was outside of its interval in "
        )
        summary += f"{missed} of {compared} periods with labels"
    status = _status(checks, doubted)
    if alike < LEAST_ROWS:
        status = "unknown"
        summary = f"the window's rows are like only {alike:,.0f} of those that it learnt from: {summary}"
    return Verdict(MONITOR, status, summary, window, metrics, evidence)


class EstimationMonitor(Monitor):
    """See `estimation`."""

    name = MONITOR
    series = tuple((f"estimated_{name}", f"estimated_{name}") for name in _SERIES)

    def look(self, look: Look) -> Verdict:
        spec = EstimationSpec.of(look.policy)
        if look.deployment is not None:
            # Only a point of its series: another read for each deployment is not worth it.
            return estimation(look.rows, look.reference, look.window, spec)
        before = look.before
        own = before.filter(pc.equal(before["model_version"], look.version))
        return estimation(look.rows, look.reference, look.window, spec, own if own.num_rows else None)


def _answers(rows: pa.Table) -> pa.Table:
    return rows.select([n for n in (PREDICTION, PREDICTION_PROBA, "event_time") if n in rows.column_names])


def _taught(
    reference: Reference, before: pa.Table | None, asked: pa.Table, task: Task, seed: int
) -> tuple[pa.Table, Estimator] | None:
    both = with_recent(reference, before) if before is not None else None
    if both is None:
        return None
    made = teach(both, reference.feature_names, asked, task, seed)
    return None if isinstance(made, str) else (both, made)


def _checks(now: Measured, yardstick: Measured, task: Task, spec: EstimationSpec) -> list[Check]:
    margins = (spec.loss_margin, spec.ranking_margin, spec.confidence)
    found = loss_checks(now, yardstick, task.kind == "regression", *margins)
    return [replace(check, strict=True) for check in found]


def _status(checks: Sequence[Check], doubted: bool) -> Status:
    status = status_of(checks)
    return "warn" if doubted and status == "alarm" else status


def _numbers(shown: Measured, came: Sequence[Compared], confidence: float) -> dict[str, float]:
    found = {}
    for name, value in shown.metrics.items():
        found[f"estimated_{name}"] = value
        found[f"estimated_{name}_low"], found[f"estimated_{name}_high"] = shown.interval(name, confidence)
    for each in came:
        found[f"realised_{each.metric}"] = each.realised
        found[f"gap_{each.metric}"] = each.estimated - each.realised
    if came:
        found["compared_rows"] = came[0].rows
    return found


def _metric_rows(shown: Measured, yardstick: Measured, confidence: float) -> list[dict[str, Any]]:
    rows = []
    for name, value in shown.metrics.items():
        low, high = shown.interval(name, confidence)
        row = {
            "metric": name,
            "estimated": value,
            "estimated_low": finite(low),
            "estimated_high": finite(high),
        }
        rows.append(row | {"reference": yardstick.metrics.get(name)})
    return rows


def _summary(
    shown: Measured,
    yardstick: Measured,
    checks: Sequence[Check],
    came: Sequence[Compared],
    confidence: float,
    rows: pa.Table,
) -> str:
    parts = []
    for name in [n for n in _SHOWN if n in shown.metrics] or list(shown.metrics):
        low, high = shown.interval(name, confidence)
        was = f", reference {yardstick.metrics[name]:.3f}" if name in yardstick.metrics else ""
        parts.append(f"{name} {shown.metrics[name]:.3f} ({low:.3f} to {high:.3f}{was})")
    labelled = rows.num_rows - rows[LABEL].null_count
    text = f"estimated {', '.join(parts)} on {shown.rows:,} rows, {labelled:,} of them with a label by now"
    text += failed(checks)
    judged = {check.metric for check in checks}
    said = [f"{c.metric} {c.estimated:.3f} and came as {c.realised:.3f}" for c in came if c.metric in judged]
    return text + (f"; of rows with a label it had estimated {', '.join(said)}" if said else "")

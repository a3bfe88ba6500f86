"""Is the model, on the labels that came, still as good as when it was validated?

Three questions, each with a margin and a confidence: is it worse than the reference by its loss, is it worse by its
ranking (AUC), and does it break a bound that holds for whichever model serves? The last ones keep hearing when every
promoted model is compared with its own poor past. The loss of a classifier with probabilities is compared as skill:
log loss alone moves whenever the base rate does.

A long window is slow to show a sudden change, so its newest third is asked about too, where that has days enough to
know how much they differ; each of the two then errs half as often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.gate import FULL_BLOCKS
from mlflow_flywheel.pipelines.training_files import LABEL

from .checks import Check, beyond, failed, finite, loss_checks, status_of
from .floors import Floor
from .look import Look, Monitor
from .measures import Measured, measure
from .outcomes import Outcomes, Task, infer_task, outcomes
from .reference import Reference
from .verdicts import Verdict
from .windows import Window

if TYPE_CHECKING:
    from .policy import PolicySpec

MONITOR = "performance"
# Fewer labelled reference rows than this are no yardstick.
_LEAST_REFERENCE = 50
_NEWEST_SHARE = 3
_LEAST_NEWEST = timedelta(days=FULL_BLOCKS)
_SHOWN = ("auc", "log_loss", "skill", "accuracy", "f1_macro", "mae", "r2")
# What the series of a deployment show of its performance, and of how soon its labels are true.
_SERIES = ("auc", "log_loss", "brier", "accuracy", "mae", "rmse", "label_delay_hours")
_LABEL_TIMES = {"label_delay_hours": "label_time", "label_arrival_hours": "received_time"}


@dataclass(frozen=True)
class PerformanceSpec:
    """Thresholds: the margins are tolerated losses against the reference, floors hold for any model."""

    min_rows: int = 200
    confidence: float = 0.95
    loss_margin: float = 0.02
    ranking_margin: float = 0.02
    floor: tuple[Floor, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, policy: PolicySpec) -> PerformanceSpec:
        """Return the thresholds that a policy asks for."""
        return cls(
            min_rows=policy.min_rows,
            confidence=policy.confidence,
            loss_margin=policy.loss_margin,
            ranking_margin=policy.ranking_margin,
            floor=policy.floor,
        )


def performance(
    rows: pa.Table, reference: Reference | None, window: Window, spec: PerformanceSpec | None = None
) -> Verdict:
    """Measure the labelled rows of a window and compare them with the version's reference and the floors.

    `rows` are all rows of the window; those without a label count for the coverage only. `unknown` below the fewest
    labelled rows. Intervals are block bootstraps over days; AUC's from DeLong's placement values.
    """
    spec = spec or PerformanceSpec()
    labelled = rows.filter(pc.is_valid(rows[LABEL]))
    metrics = _coverage(rows, labelled)
    if labelled.num_rows < spec.min_rows:
        few = f"{labelled.num_rows:,} of {rows.num_rows:,} rows have a label, fewer than {spec.min_rows:,}"
        return Verdict(MONITOR, "unknown", f"{few}: too few to judge", window, metrics)
    known = reference.outcomes() if reference is not None and LABEL in reference.table.column_names else None
    task = infer_task(*([known] if known is not None else []), labelled)
    sample = outcomes(labelled, task)
    now, before = measure(sample, spec.seed), _yardstick(known, task, spec.seed)
    if not now.metrics:
        return Verdict(MONITOR, "unknown", "no label can be compared with its prediction", window, metrics)
    recent = _newest(labelled, window, task, spec)
    checks = list(
        _checks(now, before, task, spec) if recent is None else _both(now, recent, before, task, spec)
    )
    metrics |= now.metrics
    for name in now.metrics:
        metrics[f"{name}_low"], metrics[f"{name}_high"] = now.interval(name, spec.confidence)
    evidence = [*_metric_rows(now, before, spec), *(check.row() for check in checks)]
    return Verdict(
        MONITOR, status_of(checks), _summary(now, before, checks, sample), window, metrics, evidence
    )


class PerformanceMonitor(Monitor):
    """See `performance`."""

    name = MONITOR
    series = tuple((name, name) for name in _SERIES)

    def look(self, look: Look) -> Verdict:
        return performance(look.rows, look.reference, look.window, PerformanceSpec.of(look.policy))


def reference_metrics(reference: Reference) -> dict[str, float]:
    """Return the reference's own metrics: what the version did when it was validated."""
    known = reference.outcomes()
    measured = _yardstick(known, infer_task(known), 0)
    return measured.metrics if measured else {}


def _yardstick(known: pa.Table | None, task: Task, seed: int) -> Measured | None:
    if known is None:
        return None
    sample = outcomes(known, task)
    # Another seed than the window's: the two bootstraps must be independent.
    return measure(sample, seed + 1) if len(sample) >= _LEAST_REFERENCE else None


def _both(
    now: Measured, recent: Measured, before: Measured | None, task: Task, spec: PerformanceSpec
) -> Iterator[Check]:
    """Ask about the window and about its newest third, so sure that both together err as often as one alone."""
    halved = replace(spec, confidence=(1 + spec.confidence) / 2)
    yield from _checks(now, before, task, halved)
    for check in _checks(recent, before, task, halved):
        yield replace(check, name=f"{check.name}, newest third", strict=True)


def _newest(labelled: pa.Table, window: Window, task: Task, spec: PerformanceSpec) -> Measured | None:
    """Measure the newest third of a window; None when it is too short, or has too few rows, to be judged by itself."""
    if window.length < _NEWEST_SHARE * _LEAST_NEWEST:
        return None
    start = pa.scalar(window.end - window.length / _NEWEST_SHARE, labelled["event_time"].type)
    newest = labelled.filter(pc.greater_equal(labelled["event_time"], start))
    if not spec.min_rows <= newest.num_rows < labelled.num_rows:
        return None
    return measure(outcomes(newest, task), spec.seed)


def _checks(now: Measured, before: Measured | None, task: Task, spec: PerformanceSpec) -> Iterator[Check]:
    if before is not None:
        margins = (spec.loss_margin, spec.ranking_margin)
        yield from loss_checks(now, before, task.kind == "regression", *margins, spec.confidence)
    # A model that never beat a constant answer (class weights distort its probabilities, say) has no such floor.
    if before is None or before.metrics.get("skill", 0.0) >= 0:
        yield from beyond(now, Floor(metric="skill", sense=">=", limit=0.0), spec.confidence)
    for floor in spec.floor:
        yield from beyond(now, floor, spec.confidence)


def _coverage(rows: pa.Table, labelled: pa.Table) -> dict[str, float]:
    """Return how many rows have a label, and how long after the event it was true and was here: median, and 90%."""
    found: dict[str, float] = {"rows": rows.num_rows, "label_rows": labelled.num_rows}
    if rows.num_rows:
        found["label_coverage"] = labelled.num_rows / rows.num_rows
    for name, column in _LABEL_TIMES.items():
        if not labelled.num_rows or not {column, "event_time"} <= set(labelled.column_names):
            continue
        moments = [
            labelled[n].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()) for n in (column, "event_time")
        ]
        hours = pc.divide(pc.cast(pc.subtract(*moments), pa.float64()), 3.6e9).drop_null().to_numpy()
        if len(hours):
            found[name], found[f"{name}_p90"] = (float(np.percentile(hours, q)) for q in (50, 90))
    return found


def _metric_rows(now: Measured, before: Measured | None, spec: PerformanceSpec) -> Iterator[dict[str, Any]]:
    for name, value in now.metrics.items():
        low, high = now.interval(name, spec.confidence)
        row = {"metric": name, "value": value, "low": finite(low), "high": finite(high)}
        if before is not None and name in before.metrics:
            was_low, was_high = before.interval(name, spec.confidence)
            row |= {
                "reference": before.metrics[name],
                "reference_low": finite(was_low),
                "reference_high": finite(was_high),
            }
        yield row


def _summary(now: Measured, before: Measured | None, checks: list[Check], sample: Outcomes) -> str:
    def shown(name: str) -> str:
        was = f" (reference {before.metrics[name]:.3f})" if before and name in before.metrics else ""
        return f"{name} {now.metrics[name]:.3f}{was}"

    text = ", ".join(shown(name) for name in _SHOWN if name in now.metrics)
    text += f" on {now.rows:,} labelled rows"
    text += failed(checks)
    if before is None:
        text += "; no labelled reference to compare with"
    if sample.unreadable:
        text += f"; {sample.unreadable:,} labels cannot be read as {sample.kind} labels"
    return text

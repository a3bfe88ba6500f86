"""Is the model worse for some of its rows, though all of them together look well?

Each slice's loss is compared with the same slice of the reference. Many slices are many chances to be wrong:
Benjamini-Hochberg over all of them keeps a window in which nothing changed from a warning as often as the policy's
confidence says. A slice that is surely worse than tolerated is a warning, unless the policy wants alarms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION

from .checks import Check, finite, loss_checks
from .columns import Unreadable
from .cutting import Part, parts
from .drift import DriftSpec, drift
from .look import Look, Monitor
from .measures import Measured, measure
from .outcomes import Task, infer_task, outcomes
from .reference import FEATURE_PREFIX, Reference
from .slicing import Slices
from .statistics import benjamini_hochberg
from .verdicts import Status, Verdict
from .windows import Window

if TYPE_CHECKING:
    from .policy import PolicySpec

MONITOR = "slices"
MOST_SLICES = 50
# Fewer labelled rows of a slice, here or in the reference, are not compared.
_LEAST = 50
_DRIFT_ROWS = 20_000
_NAME_LENGTH = 80
_SHOWN = 3
_METRICS = ("skill", "mae", "accuracy")


@dataclass(frozen=True)
class SlicesSpec:
    """Which slices, and the thresholds: those of the performance monitor; `alarm`: a worse slice is one."""

    slices: tuple[Slices, ...] = ()
    alarm: bool = False
    min_rows: int = 200
    confidence: float = 0.95
    loss_margin: float = 0.02
    drift: DriftSpec = field(default_factory=lambda: DriftSpec(max_rows=_DRIFT_ROWS))
    seed: int = 0

    @classmethod
    def of(cls, policy: PolicySpec) -> SlicesSpec:
        """Return what a policy asks for."""
        return cls(
            policy.slices,
            policy.slice_alarm,
            policy.min_rows,
            policy.confidence,
            policy.loss_margin,
            replace(DriftSpec.of(policy), max_rows=_DRIFT_ROWS),
        )


@dataclass(frozen=True)
class Slice:
    """What was found out about one slice; without `check` its loss could not be compared."""

    name: str
    rows: int
    labelled: int
    now: Measured | None
    before: Measured | None
    check: Check | None
    drifted: Verdict | None
    p_adjusted: float = math.nan

    @property
    def p_value(self) -> float:
        """How probable so great a loss is where the true one is just tolerated."""
        if self.check is None or not 0 < self.check.spread < math.inf:
            return math.nan
        beyond = (self.check.change - self.check.limit) / self.check.spread
        return float(stats.t.sf(beyond, self.check.blocks - 1))

    @property
    def metric(self) -> str | None:
        """The metric that is shown; None where nothing could be measured."""
        if self.check is not None:
            return self.check.metric
        known = self.now.metrics if self.now is not None else {}
        return next((name for name in _METRICS if name in known), None)

    @property
    def value(self) -> float:
        """The metric's value in the window."""
        return self.now.metrics[self.metric] if self.now is not None and self.metric else math.nan

    @property
    def reference(self) -> float:
        """The metric's value in the reference."""
        return self.before.metrics.get(self.metric or "", math.nan) if self.before is not None else math.nan

    def worse(self, spec: SlicesSpec) -> bool:
        """Whether it is surely worse than tolerated."""
        return self.p_adjusted <= 1 - spec.confidence

    def row(self, spec: SlicesSpec) -> dict[str, Any]:
        """Return the evidence row."""
        row: dict[str, Any] = {
            "slice": self.name,
            "worse": self.worse(spec),
            "rows": self.rows,
            "labelled": self.labelled,
        }
        if self.now is not None and self.metric is not None:
            low, high = self.now.interval(self.metric, spec.confidence)
            row |= {"metric": self.metric, "value": self.value, "low": finite(low), "high": finite(high)}
        if self.check is not None:
            row |= {
                "reference": self.reference,
                "worse_by": self.check.change,
                "tolerated": self.check.limit,
                "p_value": finite(self.p_value),
                "p_adjusted": finite(self.p_adjusted),
            }
        if self.drifted is not None:
            row["drift_share"] = self.drifted.metrics["share"]
            row["prediction_effect"] = self.drifted.metrics.get("prediction_effect")
        return row


def slices(
    rows: pa.Table, reference: Reference | None, window: Window, spec: SlicesSpec | None = None
) -> Verdict:
    """Compare each slice of a window with the same slice of the reference, by loss and by drift.

    `unknown` when no slice has enough labelled rows here and there. Never raises for what the rows hold: a slice that
    cannot be made is told in the summary.
    """
    spec = spec or SlicesSpec()
    problems: list[str] = []
    found = list(_slices(rows, reference, window, spec, problems)) if rows.num_rows >= spec.min_rows else []
    adjusted = benjamini_hochberg(np.array([each.p_value for each in found], dtype=np.float64))
    found = [replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True)]
    series = _series(found)  # in the setting's order: names must not wander between slices
    found.sort(key=lambda each: (not each.worse(spec), -_loss(each)))
    worse = [each for each in found if each.worse(spec)]
    compared = sum(each.check is not None for each in found)
    status: Status = "unknown" if not compared else "ok"
    if worse:
        status = "alarm" if spec.alarm else "warn"
    metrics: dict[str, float] = {
        "rows": rows.num_rows,
        "slices": len(found),
        "compared_slices": compared,
        "worse_slices": len(worse),
    }
    summary = "; ".join([_summary(rows, reference, found, compared, spec), *problems])
    evidence = [each.row(spec) for each in found]
    return Verdict(MONITOR, status, summary, window, metrics | series, evidence)


class SlicesMonitor(Monitor):
    """See `slices`."""

    name = MONITOR

    def look(self, look: Look) -> Verdict | None:
        spec = SlicesSpec.of(look.policy)
        return slices(look.rows, look.reference, look.window, spec) if spec.slices else None


def _slices(
    rows: pa.Table, reference: Reference | None, window: Window, spec: SlicesSpec, problems: list[str]
) -> Iterator[Slice]:
    known = reference.table if reference is not None else None
    labelled = known is not None and {LABEL, PREDICTION} <= set(known.column_names)
    samples = [reference.outcomes()] if reference is not None and labelled else []
    task = infer_task(*samples, rows)
    made = 0
    for entry in spec.slices:
        try:
            for part in parts(entry, rows, FEATURE_PREFIX, known):
                if made == MOST_SLICES:
                    problems.append(f"only the first {MOST_SLICES} slices were looked at")
                    return
                made += 1
                yield _slice(part, rows, known, task, window, spec)
        except Unreadable as error:
            problems.append(f"{entry}: {error}")


def _slice(
    part: Part, rows: pa.Table, known: pa.Table | None, task: Task, window: Window, spec: SlicesSpec
) -> Slice:
    own = rows.filter(pa.array(part.rows))
    labelled = own.filter(pc.is_valid(own[LABEL]))
    if known is None or part.reference is None:
        return Slice(part.name, own.num_rows, labelled.num_rows, None, None, None, None)
    then = Reference(known.filter(pa.array(part.reference)))
    now, before = _measured(labelled, task, spec.seed), None
    if {LABEL, PREDICTION} <= set(known.column_names):
        before = _measured(then.outcomes(), task, spec.seed + 1)
    check = None
    if now is not None and before is not None:
        regression = task.kind == "regression"
        checks = loss_checks(now, before, regression, spec.loss_margin, 0.0, spec.confidence)
        check = next((c for c in checks if c.metric != "auc"), None)
    drifted = drift(own, then, window, spec.drift)
    return Slice(
        part.name,
        own.num_rows,
        labelled.num_rows,
        now,
        before,
        check,
        drifted if drifted.status != "unknown" else None,
    )


def _measured(table: pa.Table, task: Task, seed: int) -> Measured | None:
    sample = outcomes(table, task)
    return measure(sample, seed) if len(sample) >= _LEAST else None


def _loss(each: Slice) -> float:
    return each.check.change if each.check is not None else -math.inf


def _series(found: list[Slice]) -> dict[str, float]:
    """Return the metrics of each slice under names that MLflow takes."""
    series: dict[str, float] = {}
    for each in found:
        name = _metric_name(each.name)
        while f"{name}/rows" in series:
            name += " too"
        series[f"{name}/rows"] = each.rows
        if each.metric is not None:
            series[f"{name}/{each.metric}"] = each.value
        if each.drifted is not None:
            series[f"{name}/drift_share"] = each.drifted.metrics["share"]
    return series


def _metric_name(name: str) -> str:
    for sign, word in (("<=", " to "), (">=", " from "), ("!=", " not "), ("<", " below "), (">", " above ")):
        name = name.replace(sign, word)
    # Dots in a row, or at an end, are parts of a path to MLflow.
    name = re.sub(r"[^\w\-.]+|\.\.+", " ", name).strip(" .")
    return name[:_NAME_LENGTH].strip(" .") or "slice"


def _summary(
    rows: pa.Table, reference: Reference | None, found: list[Slice], compared: int, spec: SlicesSpec
) -> str:
    if rows.num_rows < spec.min_rows:
        return (
            f"{rows.num_rows:,} rows in the window, fewer than {spec.min_rows:,}: too few to cut into slices"
        )
    if reference is None:
        return "the version has no reference to compare slices with"
    if not compared:
        return f"none of {len(found)} slices has {_LEAST} labelled rows here and in the reference"
    worse = [
        f"{each.name} ({each.metric} {each.value:.3f}, reference {each.reference:.3f})"
        for each in found
        if each.worse(spec)
    ]
    named = ": " + ", ".join(worse[:_SHOWN]) + (", ..." if len(worse) > _SHOWN else "") if worse else ""
    return f"{len(worse)} of {compared} slices surely worse than in the reference{named}"

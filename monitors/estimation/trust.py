"""How well estimates agree with what was realised, once labels have come.

The rows with labels, of the window and of the one before, are cut into periods. Each is estimated as if its labels had
not come, by an estimator that has not seen them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from mlflow_flywheel.monitors.checks import finite
from mlflow_flywheel.monitors.measures import Measured, measure
from mlflow_flywheel.monitors.outcomes import outcomes
from mlflow_flywheel.monitors.windows import Window, tile
from mlflow_flywheel.pipelines.training_files import LABEL

from .estimator import Estimator

_PERIODS = 4
# So many misses, or more, would be a coincidence of less than one in a hundred if the intervals were right.
_COINCIDENCE = 0.01
# An interval is taken to be right until some periods say otherwise: as many as these.
_BELIEVED = 2


@dataclass(frozen=True)
class Compared:
    """One metric of the labelled rows of a period: what was estimated, and what came."""

    period: Window
    metric: str
    rows: int
    estimated: float
    low: float
    high: float
    realised: float

    @property
    def inside(self) -> bool:
        """Whether what came is in the interval of the estimate."""
        return self.low <= self.realised <= self.high

    @property
    def miss(self) -> float:
        """How far what came was from the estimate, in halves of the interval."""
        half = self.high - self.estimated if self.realised > self.estimated else self.estimated - self.low
        return abs(self.realised - self.estimated) / half if half > 0 and math.isfinite(half) else 0.0

    def row(self) -> dict[str, Any]:
        """Return the evidence row."""
        return {
            "compared_from": self.period.start.isoformat(),
            "compared_to": self.period.end.isoformat(),
            "metric": self.metric,
            "rows": self.rows,
            "estimated": self.estimated,
            "estimated_low": finite(self.low),
            "estimated_high": finite(self.high),
            "realised": self.realised,
            "inside": self.inside,
        }


def compare(
    estimator: Estimator, rows: pa.Table, period: Window, confidence: float, least: int
) -> list[Compared]:
    """Return each metric that was estimated and realised on the labelled rows of a period; none below the fewest."""
    labelled = rows.filter(pc.is_valid(rows[LABEL]))
    if labelled.num_rows < least:
        return []
    estimated = estimator.estimate(labelled)
    if estimated is None:
        return []
    came = measure(outcomes(labelled, estimator.task), replicates=1)
    return [
        Compared(period, name, came.rows, value, *estimated.interval(name, confidence), came.metrics[name])
        for name, value in estimated.metrics.items()
        if name in came.metrics
    ]


def by_period(
    estimator: Estimator, rows: pa.Table, window: Window, confidence: float, least: int
) -> list[Compared]:
    """Compare each quarter of a window."""
    found = []
    for period in tile(window.start, window.end, window.length / _PERIODS):
        times = rows["event_time"]
        inside = pc.and_(
            pc.greater_equal(times, pa.scalar(period.start, times.type)),
            pc.less(times, pa.scalar(period.end, times.type)),
        )
        found += compare(estimator, rows.filter(inside), period, confidence, least)
    return found


def misses(compared: Sequence[Compared], metric: str) -> tuple[int, int]:
    """Return in how many periods what came lay outside of the estimate, and of how many."""
    of_metric = [each for each in compared if each.metric == metric]
    return sum(not each.inside for each in of_metric), len(of_metric)


def widened(measured: Measured, compared: Iterable[Compared], confidence: float) -> Measured:
    """Return an estimate whose intervals are wider by as much as those of earlier periods were too narrow.

    What moves from one period to the next, and no feature tells, is in no interval otherwise.
    """
    by_metric: dict[str, list[float]] = {}
    for each in compared:
        by_metric.setdefault(each.metric, []).append((each.miss * stats.norm.isf((1 - confidence) / 2)) ** 2)
    replicates = dict(measured.replicates)
    for name, squares in by_metric.items():
        if name in replicates:
            factor = math.sqrt(max(1.0, (_BELIEVED + sum(squares)) / (_BELIEVED + len(squares))))
            replicates[name] = measured.metrics[name] + factor * (replicates[name] - measured.metrics[name])
    return replace(measured, replicates=replicates)


def distrusted(missed: int, periods: int, confidence: float) -> bool:
    """Whether so many misses cannot be chance."""
    return missed >= 2 and float(stats.binom.sf(missed - 1, periods, 1 - confidence)) < _COINCIDENCE

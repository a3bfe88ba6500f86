"""How versions of a model would have done on the logged events, period by period, measured as the monitors measure.

Metrics are those of `measures.py`. Two versions are compared in the rows that both could score, by the same bootstrap
draws of the same days, so the interval of a difference is a paired one. The figures over all periods leave out every
period in which one of the versions meets rows that it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.backtest import ROW, Answers, Candidate, Features, ScoredPeriod, score_period
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.gate import Kind as ModelKind
from mlflow_flywheel.pipelines.gate import score, sums_interval, time_blocks
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Predictions, Scorer
from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION, PREDICTION_PROBA

from .calibration import Bin, calibration_error, merged, reliability
from .measures import Measured, measure, quantiles
from .outcomes import Floats, Outcomes, Task, infer_task, outcomes
from .windows import Window, tile

MOST_PERIODS = 1000
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse", "error_rate"})
# They say something about the rows or about the direction of errors, not which version is better.
_NOT_COMPARED = frozenset({"base_rate", "bias"})
_REPLICATES = 2000


@dataclass(frozen=True)
class BacktestSpec:
    """The span, how it is cut, and the fewest labelled rows of a period that say anything."""

    start: datetime
    end: datetime
    every: timedelta
    min_rows: int = 50
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None where the rows do not tell how sure it is."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, interval: tuple[float, float]) -> Estimate:
        """Make one of bounds that may be infinite."""
        low, high = interval
        return cls(value, low, high) if math.isfinite(low) and math.isfinite(high) else cls(value)


@dataclass(frozen=True)
class Side:
    """One version in one period; without metrics when too few rows could be scored."""

    metrics: dict[str, Estimate]
    scored: int
    unscored: dict[str, int]
    remarks: dict[str, int]
    training_rows: int
    chosen_rows: int
    calibration: tuple[Bin, ...] = ()


@dataclass(frozen=True)
class Period:
    """What one period says; `sides` in the order of the versions, `difference` is the first less the second."""

    window: Window
    events: int
    repeated: int
    labelled: int
    sides: tuple[Side, ...]
    difference: dict[str, Estimate] = field(default_factory=dict)

    @property
    def trained_on(self) -> bool:
        """Whether a version met rows here that it was trained on."""
        return any(side.training_rows for side in self.sides)

    @property
    def coverage(self) -> float | None:
        return self.labelled / self.events if self.events else None


@dataclass(frozen=True)
class Overall:
    """All periods without training rows together: the loss of each version, and the first's less the second's."""

    metric: str
    losses: tuple[Estimate, ...]
    difference: Estimate | None
    rows: int
    periods: int
    calibration: tuple[tuple[Bin, ...], ...]


@dataclass(frozen=True)
class Backtest:
    """A finished back-test of one version, or of one against another."""

    model: str
    spec: BacktestSpec
    versions: tuple[str, ...]
    training: tuple[str, ...]
    training_known: tuple[bool, ...]
    periods: tuple[Period, ...]
    overall: Overall | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that any period has, in their usual order."""
        names = (name for period in self.periods for side in period.sides for name in side.metrics)
        return tuple(dict.fromkeys(names))


def cut(spec: BacktestSpec) -> list[Window]:
    """Return the periods of a span; the last one may be shorter. Raises BadInput for an empty span or too many."""
    span = Window(spec.start, spec.end)
    if spec.every <= timedelta(0) or span.length / spec.every > MOST_PERIODS:
        raise BadInput(
            f"periods of {spec.every} cut {span} into more than {MOST_PERIODS:,}; give a longer --every, such as 1d"
        )
    windows = list(tile(span.start, span.end, spec.every))
    last = windows[-1].end if windows else span.start
    return [*windows, Window(last, span.end)] if last < span.end else windows


def backtest(
    table: InferenceTable,
    candidates: Sequence[Candidate],
    spec: BacktestSpec,
    logged: Features,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Backtest:
    """Score and measure one or two candidates over every period of the span.

    `progress` is told how many periods are done, of how many. Raises BadInput when the span has no rows, or no labels.
    """
    windows = cut(spec)
    tasks = [_task(candidate.scorer) for candidate in candidates]
    total = _Total(len(candidates))
    periods = []
    again = table.asked_again(spec.start, spec.end, spec.every)
    for done, window in enumerate(windows):
        scored = score_period(table, window.start, window.end, candidates, logged, again)
        periods.append(_measure_period(window, scored, candidates, tasks, spec, total))
        progress(done + 1, len(windows))
    model = table.model_name
    span = Window(spec.start, spec.end)
    if not any(period.events for period in periods):
        raise BadInput(f"model {model!r} has no logged rows in {span} UTC; choose another --from and --to")
    if not any(period.labelled for period in periods):
        events = sum(period.events for period in periods)
        raise BadInput(
            f"none of the {events:,} logged rows of model {model!r} in {span} UTC has a label yet; give labels with "
            "'flywheel feedback', or choose another --from and --to"
        )
    return Backtest(
        model,
        spec,
        tuple(candidate.version for candidate in candidates),
        tuple(str(candidate.training) for candidate in candidates),
        tuple(candidate.training.known for candidate in candidates),
        tuple(periods),
        total.result(spec, periods),
    )


def _task(scorer: Scorer) -> Task | None:
    """Return what a model is asked for where it says so itself; else each period's rows must tell."""
    classes = scorer.classes or getattr(scorer.raw_model, "classes_", None)
    if classes is not None and np.ndim(classes) == 1:
        names = tuple(str(name) for name in classes)
        return Task("binary" if len(names) == 2 else "multiclass", names)
    return Task("regression") if hasattr(scorer.raw_model, "fit") and scorer.kind == "double" else None


def _measure_period(
    window: Window,
    scored: ScoredPeriod,
    candidates: Sequence[Candidate],
    tasks: Sequence[Task | None],
    spec: BacktestSpec,
    total: _Total,
) -> Period:
    sides = tuple(_side(answers, task, spec) for answers, task in zip(scored.answers, tasks, strict=True))
    both = _in_common([answers.rows for answers in scored.answers])
    difference: dict[str, Estimate] = {}
    if both[0].num_rows >= spec.min_rows:
        known = [task or infer_task(rows) for task, rows in zip(tasks, both, strict=True)]
        if len(both) == 2:
            samples = [outcomes(rows, task) for rows, task in zip(both, known, strict=True)]
            difference = _difference(samples, spec)
        if not any(side.training_rows for side in sides):
            total.add(both, known, [candidate.scorer for candidate in candidates], sides)
    return Period(window, scored.events, scored.repeated, scored.labelled, sides, difference)


def _side(answers: Answers, task: Task | None, spec: BacktestSpec) -> Side:
    rows = answers.rows
    metrics: dict[str, Estimate] = {}
    bins: tuple[Bin, ...] = ()
    unscored = dict(answers.unscored)
    if rows.num_rows >= spec.min_rows:
        sample = outcomes(rows, task or infer_task(rows))
        if sample.unreadable:
            unscored[f"the label cannot be read as one of a {sample.kind} model"] = sample.unreadable
        measured = measure(sample, spec.seed)
        metrics = {
            name: Estimate.of(value, measured.interval(name, spec.confidence))
            for name, value in measured.metrics.items()
        }
        bins = reliability(sample)
        if bins:
            metrics["calibration_error"] = Estimate(calibration_error(bins))
    return Side(
        metrics,
        rows.num_rows,
        unscored,
        dict(answers.remarks),
        answers.training_rows,
        answers.chosen_rows,
        bins,
    )


def _in_common(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return the rows that all could score; they are in the order of their number already."""
    common = np.asarray(tables[0][ROW].to_numpy())
    for table in tables[1:]:
        common = np.intersect1d(common, table[ROW].to_numpy())
    kept = pa.array(common, pa.int64())
    return [
        table if len(common) == table.num_rows else table.filter(pc.is_in(table[ROW], kept))
        for table in tables
    ]


def _difference(samples: Sequence[Outcomes], spec: BacktestSpec) -> dict[str, Estimate]:
    """Return the first's metrics less the second's; equal seeds and blocks draw equal days, so they are paired."""
    if len(samples[0]) != len(samples[1]) or len(samples[0]) < spec.min_rows:
        return {}
    first, second = (measure(sample, spec.seed) for sample in samples)
    return {
        name: _paired(first, second, name, spec)
        for name in first.metrics
        if name in second.metrics and name not in _NOT_COMPARED
    }


def _paired(first: Measured, second: Measured, name: str, spec: BacktestSpec) -> Estimate:
    changes = first.replicates[name] - second.replicates[name]
    interval = quantiles(changes, first.blocks, (1 - spec.confidence) / 2)
    return Estimate.of(first.metrics[name] - second.metrics[name], interval)


class _Total:
    """Sums of losses by day over the periods, so that the whole span costs no more memory than one period."""

    def __init__(self, sides: int) -> None:
        self._sums: list[list[Floats]] = [[] for _ in range(sides)]
        self._counts: list[Floats] = []
        self._bins: list[tuple[Bin, ...]] = [() for _ in range(sides)]
        self._metrics: set[str] = set()

    def add(
        self,
        tables: Sequence[pa.Table],
        tasks: Sequence[Task],
        scorers: Sequence[Scorer],
        sides: Sequence[Side],
    ) -> None:
        """Add a period's rows that all versions could score."""
        blocks = time_blocks(tables[0]["event_time"])
        n = int(blocks.max()) + 1
        found = [_losses(*one) for one in zip(tables, tasks, scorers, strict=True)]
        if len({metric for metric, _ in found}) > 1:
            # Only one of the two has probabilities: both can be judged by the classes they name.
            plain = [
                t.drop_columns([PREDICTION_PROBA]) if PREDICTION_PROBA in t.column_names else t
                for t in tables
            ]
            found = [_losses(*one) for one in zip(plain, tasks, scorers, strict=True)]
        self._metrics |= {metric for metric, _ in found}
        self._counts.append(np.bincount(blocks, minlength=n).astype(np.float64))
        for place, (_, losses) in enumerate(found):
            self._sums[place].append(np.bincount(blocks, weights=losses, minlength=n).astype(np.float64))
            self._bins[place] = merged(self._bins[place], sides[place].calibration)

    def result(self, spec: BacktestSpec, periods: Sequence[Period]) -> Overall | None:
        """Return the figures over all; None when no period may count, or when they measure unlike things."""
        if not self._counts or len(self._metrics) != 1:
            return None
        counts = np.concatenate(self._counts)
        sums = [np.concatenate(parts) for parts in self._sums]
        every = [*sums, sums[0] - sums[1]] if len(sums) == 2 else sums
        estimates = []
        for values in every:
            mean, low, high = sums_interval(
                values, counts, seed=spec.seed, n_bootstrap=_REPLICATES, confidence=spec.confidence
            )
            estimates.append(Estimate.of(mean, (low, high)))
        return Overall(
            next(iter(self._metrics)),
            tuple(estimates[: len(sums)]),
            estimates[-1] if len(sums) == 2 else None,
            int(counts.sum()),
            len(self._counts),
            tuple(self._bins),
        )


def _losses(rows: pa.Table, task: Task, scorer: Scorer) -> tuple[str, Floats]:
    proba = rows[PREDICTION_PROBA].combine_chunks() if PREDICTION_PROBA in rows.column_names else None
    said = Predictions(rows[PREDICTION].combine_chunks(), proba, [])
    kind: ModelKind = "regressor" if task.kind == "regression" else "classifier"
    scores = score(said, scorer.classes, rows[LABEL].combine_chunks(), kind)
    return scores.metric, scores.losses


def reasons(periods: Sequence[Period], place: int, what: str) -> Iterator[tuple[str, int]]:
    """Yield each reason why rows of a side are `unscored` (or its `remarks`), with their number over all periods."""
    found: dict[str, int] = {}
    for period in periods:
        for reason, rows in getattr(period.sides[place], what).items():
            found[reason] = found.get(reason, 0) + rows
    yield from sorted(found.items(), key=lambda item: -item[1])

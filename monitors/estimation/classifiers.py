"""A classifier's expected performance from its own probabilities, calibrated: confidence-based estimation (CBPE).

A calibrated probability says how often an answer like it comes true, and so what its loss will be on average. Each
metric is put together from yes-or-no questions about rows ("is it this class?", "is the answer right?"), each with a
calibrator of its own; no independence between classes is needed, since losses of classes add up.

What it cannot see: that equal probabilities have come to mean something else (concept drift). Nothing that is known
before labels come can show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import special

from mlflow_flywheel.monitors.measures import MOST_RANKED, REPLICATES, Measured, block_weights
from mlflow_flywheel.monitors.outcomes import Codes, Floats, Outcomes, Task, blocks_of, probabilities
from mlflow_flywheel.pipelines.gate import class_codes
from mlflow_flywheel.pipelines.native_threads import on_one_thread
from mlflow_flywheel.pipelines.training_files import PREDICTION

from .calibrators import Calibration, calibrate
from .cells import Grid, bounded_probability

_STEP = 1e-5


@dataclass(frozen=True)
class Answers:
    """What a classifier said about rows, labelled or not."""

    predicted: Codes
    proba: Floats
    blocks: Codes

    @classmethod
    def of(cls, table: pa.Table, classes: tuple[str, ...]) -> Answers | None:
        """Read them; None when rows have no such probabilities. Rows without an answer are left out."""
        table = table.filter(table[PREDICTION].is_valid())
        proba = probabilities(table)
        if proba is None or proba.shape[1] != len(classes):
            return None
        predicted = class_codes(table[PREDICTION].combine_chunks(), classes)
        whole = np.isfinite(proba).all(axis=1) & (predicted >= 0)
        if not whole.any():
            return None
        blocks = np.unique(blocks_of(table)[whole], return_inverse=True)[1]
        return cls(predicted[whole], proba[whole], blocks)


@dataclass(frozen=True)
class _Question:
    """A yes-or-no question: the probability of yes, and what each answer adds to which metric.

    `column` is the class that it is about; -1: whether the predicted class is right. `ranks`: yes and no are to be
    told apart by the probability (AUC).
    """

    column: int
    grid: Grid
    calibration: Calibration
    ranks: bool

    def score(self, answers: Answers) -> Floats:
        return _score(answers, self.column)

    def costs(self, answers: Answers, binary: bool) -> dict[str, tuple[Floats, Floats]]:
        """Return for each metric what a row adds if the answer is yes, and if it is no."""
        q = bounded_probability(self.score(answers))
        if self.column < 0:
            return {"accuracy": (np.ones(len(q)), np.zeros(len(q)))}
        costs = {
            "log_loss": (-np.log(q), -np.log1p(-q) if binary else np.zeros(len(q))),
            "brier": ((1 - q) ** 2, q**2),
        }
        if binary:
            predicted = (answers.predicted == self.column).astype(np.float64)
            costs["accuracy"] = (predicted, 1 - predicted)
        return costs


@dataclass(frozen=True)
class _Sums:
    """Rows per block and cell of one question, and what they add to each metric for yes and for no."""

    rows: Floats
    costs: Mapping[str, tuple[Floats, Floats]]

    def weighted(self, weights: Floats) -> _Sums:
        """Add blocks up, once for each row of weights."""
        return _Sums(
            weights @ self.rows,
            {name: (weights @ yes, weights @ no) for name, (yes, no) in self.costs.items()},
        )


class Classifier:
    """Estimates a classifier's metrics on rows without labels, from the labelled ones that it was fitted to."""

    def __init__(self, known: Outcomes, expected: Answers, seed: int) -> None:
        """Fit to labelled rows; `expected` are answers that will be asked about, which only place the cells."""
        assert known.proba is not None
        familiar = np.asarray(known.truth) >= 0
        truth = np.asarray(known.truth, dtype=np.int64)
        said = Answers(np.asarray(known.predicted, dtype=np.int64), known.proba, known.blocks)
        self.task = Task(known.kind, known.classes)
        self.blocks = int(known.blocks.max()) + 1
        self._binary = known.kind == "binary"
        self._seed = seed
        weights = block_weights(self.blocks, seed)
        self._questions = []
        for column in self._columns():
            score = _score(said, column)
            right = said.predicted == truth if column < 0 else truth == column
            grid = Grid.over(score, _score(expected, column))
            places = grid.place(score)
            rows = grid.sums(places[familiar], known.blocks[familiar])
            hits = grid.sums(places[familiar], known.blocks[familiar], right[familiar].astype(np.float64))
            short = self.blocks - len(rows)  # the last blocks may hold unfamiliar labels only
            rows, hits = (np.pad(each, ((0, short), (0, 0))) for each in (rows, hits))
            self._questions.append(_Question(column, grid, calibrate(grid, rows, hits, weights), column >= 0))

    @property
    def calibrators(self) -> tuple[str, ...]:
        """The kinds of calibrators that were chosen, one per question."""
        return tuple(question.calibration.kind for question in self._questions)

    @on_one_thread
    def estimate(self, table: pa.Table, resampled: bool = False) -> Measured | None:
        """Return the expected metrics of rows, and what else they could be; None when they have no probabilities.

        The replicates hold the calibrators' uncertainty and the chance in labels: they are where the realised metrics
        of these very rows will be. With `resampled` also the rows are drawn anew, in blocks, as when this window stands
        for others.
        """
        answers = Answers.of(table, self.task.classes)
        if answers is None:
            return None
        n_blocks = int(answers.blocks.max()) + 1
        sums = [self._sums(question, answers) for question in self._questions]
        whole = [each.weighted(np.ones((1, n_blocks))) for each in sums]
        sides = [q.calibration.probability for q in self._questions]
        value = self._metrics([p[:1] for p in sides], whole)
        if resampled:
            drawn = block_weights(n_blocks, self._seed + 1)[1:]
            whole_or_drawn = [each.weighted(drawn) for each in sums]
        else:
            whole_or_drawn = whole
        spread = self._chance(sums, whole)
        moved = self._metrics([p[1:] for p in sides], whole_or_drawn)
        luck = np.random.default_rng(self._seed + 2).normal(size=REPLICATES)
        known = [name for name, found in value.items() if np.isfinite(found[0])]
        return Measured(
            {name: float(value[name][0]) for name in known},
            {name: moved[name] + luck * spread[name] for name in known},
            len(answers.predicted),
            self.blocks if not resampled else min(self.blocks, n_blocks),
        )

    def _columns(self) -> Sequence[int]:
        """Return what is asked: of many classes only the accuracy, since each has few rows to fit its calibrator."""
        if self._binary:
            return (1,)
        return (-1, *range(len(self.task.classes))) if len(self.task.classes) <= MOST_RANKED else (-1,)

    def _sums(self, question: _Question, answers: Answers) -> _Sums:
        places = question.grid.place(question.score(answers))

        def add(values: Floats | None = None) -> Floats:
            return question.grid.sums(places, answers.blocks, values)

        costs = question.costs(answers, self._binary)
        return _Sums(add(), {name: (add(yes), add(no)) for name, (yes, no) in costs.items()})

    def _metrics(self, probability: Sequence[Floats], sums: Sequence[_Sums]) -> dict[str, Floats]:
        """Return each metric for each row of probabilities per cell, or of sums; one row stands for all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            n = sums[0].rows.sum(axis=1)
            total: dict[str, Floats] = {}
            shares, areas = [], []
            for question, p, part in zip(self._questions, probability, sums, strict=True):
                for name, (yes, no) in part.costs.items():
                    total[name] = total.get(name, 0.0) + (p * yes + (1 - p) * no).sum(axis=1) / n
                if question.ranks:
                    shares.append((p * part.rows).sum(axis=1) / n)
                    areas.append(_area(p * part.rows, (1 - p) * part.rows))
            if shares:
                every = np.stack([1 - shares[0], shares[0]] if self._binary else np.broadcast_arrays(*shares))
                entropy = special.entr(every / every.sum(axis=0)).sum(axis=0)
                total["skill"] = np.where(entropy > 0, 1 - total["log_loss"] / entropy, np.nan)
                total["auc"] = np.asarray(sum(areas) / len(areas), dtype=np.float64)
        return total

    def _chance(self, sums: Sequence[_Sums], whole: Sequence[_Sums]) -> dict[str, float]:
        """Return the standard deviation of each metric that is due to chance in the labels.

        A label moves a metric by its slope, found by moving each cell's probability a little. Rows of one block share
        a part of their fate. Classes are taken as independent, which is a little too wide.
        """
        fitted = [q.calibration.probability[:1] for q in self._questions]
        base = self._metrics(fitted, whole)
        variance = dict.fromkeys(base, 0.0)
        for place, (question, part) in enumerate(zip(self._questions, sums, strict=True)):
            p = fitted[place]
            moved = [*fitted]
            moved[place] = p + _STEP * np.eye(p.shape[1])
            total = np.maximum(whole[place].rows, 1e-12)
            certain = part.rows * p * (1 - p)
            for name, values in self._metrics(moved, whole).items():
                slope = (values - base[name]) / _STEP / total
                own = (certain * slope**2).sum()
                common = ((certain * slope).sum(axis=1) ** 2).sum()
                variance[name] += float(own + question.calibration.shared * common)
        return {
            name: float(np.sqrt(found)) if np.isfinite(found) else 0.0 for name, found in variance.items()
        }


def _score(answers: Answers, column: int) -> Floats:
    if column >= 0:
        return answers.proba[:, column]
    return answers.proba[np.arange(len(answers.proba)), answers.predicted]


def _area(positive: Floats, negative: Floats) -> Floats:
    """Return the area under the ROC curve of expected counts per cell, in ascending order; ties count half."""
    below = np.cumsum(negative, axis=1) - negative / 2
    return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))

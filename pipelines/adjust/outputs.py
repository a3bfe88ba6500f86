"""What is adjusted: the number of a regressor, or the class probabilities of a classifier.

Both know how to read a model's predictions and labels, how to tell a good prediction from a bad one, how far an
adjustment may move one, and how to write an adjusted one back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.pipelines.gate import PROBABILITY_FLOOR
from mlflow_flywheel.pipelines.model import Predictions

from .rows import Floats, Sample

# When it is judged whether an adjustment helps, errors beyond so many times their usual size count as absolute ones
# (Huber 1964): the squares of a few would outweigh all others.
_HUBER_SIZES = 1.5
# A normal distribution has a tenth of its mass beyond so many standard deviations on one side, and this share within.
_NORMAL_TAIL = 1.2815515655446004
_NORMAL_SIZES = 0.8


class Outputs(Protocol):
    """Predictions of one kind, as an n x k matrix."""

    loss: str
    unit: str

    def matrix(self, predictions: Predictions) -> Floats:
        """Return predictions as a matrix; a row that is not finite can be neither adjusted nor learnt from."""

    def truth(self, label: float | str) -> float | None:
        """Return a label as a truth, None when it is none that the model knows."""

    def losses(self, matrix: Floats, truths: Floats) -> Floats:
        """Return what each prediction cost, in the unit that people watch."""

    def gains(self, sample: Sample) -> Floats:
        """Return by how much each proposal was better than what the model said, to judge by."""

    def limit(self, truths: Floats, bound: float) -> float:
        """Return how far a prediction may be moved, in `unit`."""

    def bounded(self, raw: Floats, proposals: Floats, limit: float) -> Floats:
        """Return proposals that are at most so far from what the model said."""

    def written(self, predictions: Predictions, raw: Floats, answers: Floats) -> Predictions:
        """Return predictions that say what is answered."""


class Numbers:
    """One number a row."""

    loss = "mean absolute error"
    unit = "the label's unit"

    def matrix(self, predictions: Predictions) -> Floats:
        values: Floats = predictions.values.to_numpy(zero_copy_only=False)
        return values.astype(np.float64, copy=False).reshape(-1, 1)

    def truth(self, label: float | str) -> float | None:
        return label if isinstance(label, float) else None

    def losses(self, matrix: Floats, truths: Floats) -> Floats:
        return np.abs(matrix[:, 0] - truths)

    def gains(self, sample: Sample) -> Floats:
        before, after = (sample.truths - matrix[:, 0] for matrix in (sample.raw, sample.proposals))
        unit = _HUBER_SIZES * float(np.quantile(np.abs(before), _NORMAL_SIZES)) / _NORMAL_TAIL
        if unit == 0:  # hardly any error: there is nothing to gain
            return np.zeros_like(before)
        with np.errstate(over="ignore", invalid="ignore"):  # labels may be absurd
            return huber(before / unit) - huber(after / unit)

    def limit(self, truths: Floats, bound: float) -> float:
        return bound * spread(truths)

    def bounded(self, raw: Floats, proposals: Floats, limit: float) -> Floats:
        return np.clip(proposals, raw - limit, raw + limit)

    def written(self, predictions: Predictions, raw: Floats, answers: Floats) -> Predictions:
        changed = (answers != raw).any(axis=1) & np.isfinite(answers).all(axis=1)
        numbers = answers[:, 0].tolist()
        native = [
            with_number(said, number) if change else said
            for said, number, change in zip(predictions.native, numbers, changed.tolist(), strict=True)
        ]
        values = np.where(changed, answers[:, 0], self.matrix(predictions)[:, 0])
        return Predictions(pa.array(values), predictions.proba, native)


@dataclass(frozen=True)
class Classes:
    """The probabilities of classes: `labels` as the inference table has them, `native` as the model answers them."""

    labels: Mapping[float | str, int]
    native: Sequence[Any]
    loss = "log loss"
    unit = "log-odds"

    def matrix(self, predictions: Predictions) -> Floats:
        assert predictions.proba is not None
        flat: Floats = predictions.proba.flatten().to_numpy()
        return flat.reshape(len(predictions), len(self.native))

    def truth(self, label: float | str) -> float | None:
        return self.labels.get(label)

    def losses(self, matrix: Floats, truths: Floats) -> Floats:
        of_truth = matrix[np.arange(len(truths)), truths.astype(np.int64)]
        return -np.log(np.clip(of_truth, PROBABILITY_FLOOR, 1.0))

    def gains(self, sample: Sample) -> Floats:
        return self.losses(sample.raw, sample.truths) - self.losses(sample.proposals, sample.truths)

    def limit(self, truths: Floats, bound: float) -> float:
        return bound

    def bounded(self, raw: Floats, proposals: Floats, limit: float) -> Floats:
        before, after = logarithms(raw), logarithms(proposals)
        moved = after - before
        moved -= (moved.max(axis=1, keepdims=True) + moved.min(axis=1, keepdims=True)) / 2
        return softmax(before + np.clip(moved, -limit / 2, limit / 2))

    def written(self, predictions: Predictions, raw: Floats, answers: Floats) -> Predictions:
        """The class becomes another one only where another one is the most probable now."""
        winners = answers.argmax(axis=1)
        values, native = predictions.values.to_pylist(), list(predictions.native)
        for i in np.flatnonzero(winners != raw.argmax(axis=1)).tolist():
            native[i] = self.native[winners[i]]
            values[i] = next(label for label, place in self.labels.items() if place == winners[i])
        kind = predictions.values.type
        return Predictions(pa.array(values, kind), pa.array(answers.tolist(), pa.list_(pa.float64())), native)


def spread(values: Floats) -> float:
    """Return the standard deviation that a normal distribution with the same middle four fifths would have.

    A tenth of the values on either side may be anything, so that wrong labels cannot widen a bound.
    """
    low, high = np.quantile(values, [0.1, 0.9])
    return float(high - low) / (2 * _NORMAL_TAIL)


def huber(errors: Floats) -> Floats:
    """Return half of the squares of errors, which beyond 1 grow like their size only."""
    size = np.abs(errors)
    squared = np.minimum(size, 1.0)
    return squared * (size - squared / 2)


def logarithms(probabilities: Floats) -> Floats:
    """Return log probabilities, none of them infinite."""
    return np.log(np.clip(probabilities, PROBABILITY_FLOOR, 1.0))


def softmax(scores: Floats) -> Floats:
    """Return scores as probabilities: each row's sum is 1."""
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)


def with_number(said: Any, number: float) -> Any:
    """Return what a model answered for a row with another number in it.

    Raises ModelError when there is no one number in it.
    """
    if isinstance(said, (int, float)) and not isinstance(said, bool):
        return number
    if isinstance(said, list) and len(said) == 1:
        return [with_number(said[0], number)]
    if isinstance(said, dict) and len(said) == 1:
        return {name: with_number(value, number) for name, value in said.items()}
    raise ModelError(f"its answer {said!r} for a row has no one number that could be adjusted")

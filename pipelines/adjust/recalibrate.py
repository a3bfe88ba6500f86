"""A running recalibration of a classifier's probabilities.

Of two classes: Platt's, log-odds -> intercept + slope * log-odds (Platt 1999), fitted by Newton's method. Of more: an
intercept on the log-probability of each, fitted by iterative scaling (Darroch and Ratcliff 1972), which for these
features is the multiplication of each class by (how often it came) / (how often it was expected).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .outputs import logarithms, softmax
from .rows import Floats, Labelled, Sample

# As many labels more are imagined, of the classes that the model expects: few labels move little.
PRIOR_LABELS = 50
_STEPS = 25
_CLOSE = 1e-6
_DIGITS = 4
_SLOPES = (0.0, 4.0)  # below 0 the order of the rows would turn round: that is no recalibration


class Recalibrate:
    """Maps the probabilities of k classes so that they fit the remembered labels, drawn towards no change."""

    name = "recalibrate"
    needs_features = False

    def __init__(self, classes: int) -> None:
        self._start = [0.0, 1.0] if classes == 2 else [0.0] * classes
        self._fitted = self._start

    def propose(self, raw: Floats, features: pa.RecordBatch | pa.Table) -> Floats:
        if self._fitted == self._start:
            return raw
        logs = logarithms(raw)
        if raw.shape[1] > 2:
            return softmax(logs + np.array(self._fitted))
        intercept, slope = self._fitted
        return _of_two(intercept + slope * (logs[:, 1] - logs[:, 0]))

    def learn(self, sample: Sample, fresh: Sequence[Labelled]) -> None:
        came = np.zeros_like(sample.raw)
        came[np.arange(len(sample)), sample.truths.astype(np.int64)] = 1.0
        weight = len(sample) / (len(sample) + PRIOR_LABELS)
        targets = weight * came + (1 - weight) * sample.raw
        fit = _platt if sample.raw.shape[1] == 2 else _intercepts
        self._fitted = [round(float(value), _DIGITS) for value in fit(logarithms(sample.raw), targets)]

    def effect(self) -> str:
        return ",".join(f"{value:g}" for value in self._fitted)

    def parameters(self) -> dict[str, float]:
        if len(self._fitted) == 2:
            return dict(zip(("intercept", "slope"), self._fitted, strict=True))
        return {f"intercept_{i}": value for i, value in enumerate(self._fitted)}

    def dump(self) -> Any:
        return self._fitted

    def load(self, state: Any) -> None:
        self._fitted = self._start if state is None else [float(value) for value in state]


def _platt(logs: Floats, targets: Floats) -> Floats:
    """Return intercept and slope with the highest likelihood of the targets."""
    odds, wanted = logs[:, 1] - logs[:, 0], targets[:, 1]
    design = np.stack([np.ones_like(odds), odds])
    fitted = np.array([0.0, 1.0])
    for _ in range(_STEPS):
        expected = _of_two(fitted @ design)[:, 1]
        slack = expected * (1 - expected)
        curvature = (design * slack) @ design.T + _CLOSE * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, design @ (wanted - expected)), -1, 1)
        before = fitted
        fitted = before + step
        fitted[1] = np.clip(fitted[1], *_SLOPES)
        if np.abs(fitted - before).max() < _CLOSE:
            break
    return fitted


def _intercepts(logs: Floats, targets: Floats) -> Floats:
    """Return the intercept of each class with the highest likelihood of the targets; their mean is 0."""
    came = np.maximum(targets.sum(axis=0), _CLOSE)
    fitted = np.zeros(logs.shape[1])
    for _ in range(_STEPS):
        step = np.log(came / np.maximum(softmax(logs + fitted).sum(axis=0), _CLOSE))
        fitted = fitted + step
        if np.abs(step).max() < _CLOSE:
            break
    return np.asarray(fitted - fitted.mean(), np.float64)


def _of_two(odds: Floats) -> Floats:
    """Return the probabilities of two classes."""
    return softmax(np.stack([np.zeros_like(odds), odds], axis=1))

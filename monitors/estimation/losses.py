"""Expected losses from the features: a small model of how far off the model was (direct loss estimation, DLE).

For regressors the loss is the absolute error, for classifiers without probabilities whether the answer was wrong.
Gradient boosting learns it from the reference, fold by fold in blocks of time; the level is corrected by rows that
their fold's model has not seen, those counting most that are like the rows which are asked about: trees go on flat where
they have seen few rows, and there other rows are.

What it cannot see: that equal rows have come to have other outcomes (concept drift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.measures import REPLICATES, Measured, block_weights
from mlflow_flywheel.monitors.outcomes import Codes, Floats, Outcomes, Task, blocks_of
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX
from mlflow_flywheel.pipelines.native_threads import on_one_thread
from mlflow_flywheel.pipelines.training_files import PREDICTION

from .features import Features
from .support import weights_of

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

_FOLDS = 5
_LEAST = 1e-12


class Losses:
    """Estimates the mean loss on rows without labels, from the labelled ones that it was fitted to."""

    def __init__(self, table: pa.Table, names: Sequence[str], known: Outcomes, seed: int) -> None:
        """Fit to labelled rows: `table` holds the features of just the rows of `known`."""
        self.task = Task(known.kind, known.classes)
        self.metric = "mae" if known.kind == "regression" else "accuracy"
        self.blocks = int(known.blocks.max()) + 1
        self._seed = seed
        self._features = Features(table, names)
        self._fit(self._features.of(table, ""), _loss(known), known.blocks)

    def _fit(self, rows: Floats, loss: Floats, blocks: Codes) -> None:
        fold = blocks % min(_FOLDS, self.blocks)
        self._rows, self._loss, self._of_block = rows, loss, blocks
        self._models = []
        self._unseen = np.empty(len(loss))
        everywhere = np.empty((int(fold.max()) + 1, len(loss)))
        for place in range(len(everywhere)):
            model = _model(self._features.categorical, self._seed).fit(
                rows[fold != place], loss[fold != place]
            )
            everywhere[place] = np.maximum(model.predict(rows), 0)
            self._unseen[fold == place] = everywhere[place, fold == place]
            self._models.append(model)
        self._usual = np.maximum(everywhere.mean(axis=1), _LEAST)

    def _level(self, weights: Floats) -> Floats:
        """Return by how much losses exceed what was expected of rows unseen: of all, then of each bootstrap replicate."""
        drawn = block_weights(self.blocks, self._seed)
        sums = [
            drawn @ np.bincount(self._of_block, weights=weights * each, minlength=self.blocks)
            for each in (self._loss, self._unseen)
        ]
        return np.asarray(sums[0] / np.maximum(sums[1], _LEAST))

    @on_one_thread
    def estimate(self, table: pa.Table, resampled: bool = False) -> Measured | None:
        """Return the expected metric of rows; see `Classifier.estimate`."""
        table = table.filter(_answered(table[PREDICTION]))
        if table.num_rows == 0:
            return None
        rows, blocks = self._features.of(table, FEATURE_PREFIX), blocks_of(table)
        weights = weights_of(self._rows, rows, self._features.categorical)
        level = self._level(weights)
        noise, shared = _noise(self._loss, level[0] * self._unseen, self._of_block, weights)
        each = np.stack([np.maximum(model.predict(rows), 0) for model in self._models])
        shape = each.mean(axis=1) / self._usual
        expected = each.mean(axis=0)
        n_blocks = int(blocks.max()) + 1
        drawn = block_weights(n_blocks, self._seed + 1)[1:] if resampled else np.ones((1, n_blocks))
        sums = [np.bincount(blocks, weights=w, minlength=n_blocks) for w in (expected, np.ones(len(rows)))]
        mean = (drawn @ sums[0]) / (drawn @ sums[1])
        luck = np.random.default_rng(self._seed + 2).normal(size=(2, REPLICATES))
        replicates = level[1:] * mean * (1 + luck[0] * _jackknife(shape))
        replicates += luck[1] * _chance(level[0] * expected, blocks, noise, shared)
        value = float(level[0] * expected.mean())
        if self.metric == "accuracy":
            value, replicates = 1 - value, 1 - replicates
        fewest = self.blocks if not resampled else min(self.blocks, n_blocks)
        return Measured({self.metric: value}, {self.metric: replicates}, len(rows), fewest)


def _answered(predictions: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_finite(predictions) if pa.types.is_floating(predictions.type) else predictions.is_valid()


def _loss(known: Outcomes) -> Floats:
    if known.kind == "regression":
        return np.abs(np.asarray(known.predicted - known.truth, dtype=np.float64))
    return np.asarray(known.predicted != known.truth, dtype=np.float64)


def _noise(loss: Floats, expected: Floats, blocks: Codes, weights: Floats) -> tuple[float, float]:
    """Return the variance of losses over the square of what was expected, and the share of it that blocks share."""
    surprise = loss - expected
    noise = float((weights * surprise**2).sum() / max((weights * expected**2).sum(), _LEAST))
    own = noise * np.bincount(blocks, weights=expected**2)
    common = np.bincount(blocks, weights=math.sqrt(noise) * expected)
    beyond = np.bincount(blocks, weights=surprise) ** 2 - own
    return noise, max(0.0, float(beyond.sum() / max((common**2).sum(), _LEAST)))


def _chance(expected: Floats, blocks: Codes, noise: float, shared: float) -> float:
    """Return the standard deviation of the mean loss that is due to chance in the labels."""
    own = noise * float((expected**2).sum())
    common = np.bincount(blocks, weights=math.sqrt(noise) * expected)
    return math.sqrt(own + shared * float((common**2).sum())) / len(expected)


def _jackknife(values: Floats) -> float:
    """Return the standard error of the mean of estimates that each leave out one fold, relative to it."""
    n = len(values)
    centre = float(values.mean())
    if n < 2 or centre <= 0:
        return 0.0
    return math.sqrt((n - 1) / n * float(((values - centre) ** 2).sum())) / centre


def _model(categorical: Sequence[bool], seed: int) -> HistGradientBoostingRegressor:
    from sklearn.ensemble import HistGradientBoostingRegressor

    settings: dict[str, Any] = {"categorical_features": list(categorical)} if any(categorical) else {}
    return HistGradientBoostingRegressor(
        max_iter=60,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        early_stopping=False,
        random_state=seed,
        **settings,
    )

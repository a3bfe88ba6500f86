"""Expected losses from the features: a small model of how far off the model was (direct loss estimation, DLE).

For regressors the loss is the absolute error, for classifiers without probabilities whether the answer was wrong.
Gradient boosting learns it from the reference, fold by fold in blocks of time; the level is corrected by rows that
their fold's model has not seen.

What it cannot see: that equal rows have come to have other outcomes (concept drift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.columns import Unreadable, kind_of, numbers_of, texts_of
from mlflow_flywheel.monitors.measures import REPLICATES, Measured, block_weights
from mlflow_flywheel.monitors.outcomes import Codes, Floats, Outcomes, Task, blocks_of
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX
from mlflow_flywheel.pipelines.native_threads import on_one_thread
from mlflow_flywheel.pipelines.training_files import PREDICTION

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

_FOLDS = 5
# The most frequent categories are told apart; scikit-learn's limit is 255.
_CATEGORIES = 100
_LEAST = 1e-12


class _Features:
    """The reference's features and the prediction as numbers; what cannot be read, or is new, is missing."""

    def __init__(self, table: pa.Table, names: Sequence[str]) -> None:
        self._words: dict[str, pa.Array | None] = {}
        for name in (*names, PREDICTION):
            kind = kind_of(table[name].type)
            if kind == "number":
                self._words[name] = None
            elif kind == "category":
                counted = pc.value_counts(texts_of(table[name]).drop_null())
                order = np.argsort(-counted.field("counts").to_numpy(zero_copy_only=False), kind="stable")
                self._words[name] = counted.field("values").take(pa.array(order[:_CATEGORIES]))
        self.categorical = [words is not None for words in self._words.values()]

    def of(self, table: pa.Table, prefix: str) -> Floats:
        """Return rows x features."""
        columns = [
            self._column(table, name if name == PREDICTION else prefix + name, words)
            for name, words in self._words.items()
        ]
        return np.column_stack(columns)

    def _column(self, table: pa.Table, name: str, words: pa.Array | None) -> Floats:
        missing = np.full(table.num_rows, np.nan)
        if name not in table.column_names:
            return missing
        try:
            if words is None:
                values = numbers_of(table[name])
                return np.where(np.isfinite(values), values, np.nan)
            codes = pc.index_in(texts_of(table[name]), words).cast(pa.float64())
            return np.asarray(codes.to_numpy(), dtype=np.float64)
        except Unreadable:
            return missing


class Losses:
    """Estimates the mean loss on rows without labels, from the labelled ones that it was fitted to."""

    def __init__(self, table: pa.Table, names: Sequence[str], known: Outcomes, seed: int) -> None:
        """Fit to labelled rows: `table` holds the features of just the rows of `known`."""
        self.task = Task(known.kind, known.classes)
        self.metric = "mae" if known.kind == "regression" else "accuracy"
        self.blocks = int(known.blocks.max()) + 1
        self._seed = seed
        self._features = _Features(table, names)
        self._fit(self._features.of(table, ""), _loss(known), known.blocks)

    def _fit(self, rows: Floats, loss: Floats, blocks: Codes) -> None:
        fold = blocks % min(_FOLDS, self.blocks)
        self._models = []
        unseen = np.empty(len(loss))
        everywhere = np.empty((int(fold.max()) + 1, len(loss)))
        for place in range(len(everywhere)):
            model = _model(self._features.categorical, self._seed).fit(
                rows[fold != place], loss[fold != place]
            )
            everywhere[place] = np.maximum(model.predict(rows), 0)
            unseen[fold == place] = everywhere[place, fold == place]
            self._models.append(model)
        self._usual = np.maximum(everywhere.mean(axis=1), _LEAST)
        weights = block_weights(self.blocks, self._seed)
        sums = [weights @ np.bincount(blocks, weights=each, minlength=self.blocks) for each in (loss, unseen)]
        self._level = sums[0] / np.maximum(sums[1], _LEAST)
        self._noise, self._shared = _noise(loss, self._level[0] * unseen, blocks)

    @on_one_thread
    def estimate(self, table: pa.Table, resampled: bool = False) -> Measured | None:
        """Return the expected metric of rows; see `Classifier.estimate`."""
        table = table.filter(_answered(table[PREDICTION]))
        if table.num_rows == 0:
            return None
        rows, blocks = self._features.of(table, FEATURE_PREFIX), blocks_of(table)
        each = np.stack([np.maximum(model.predict(rows), 0) for model in self._models])
        shape = each.mean(axis=1) / self._usual
        expected = each.mean(axis=0)
        n_blocks = int(blocks.max()) + 1
        drawn = block_weights(n_blocks, self._seed + 1)[1:] if resampled else np.ones((1, n_blocks))
        sums = [np.bincount(blocks, weights=w, minlength=n_blocks) for w in (expected, np.ones(len(rows)))]
        mean = (drawn @ sums[0]) / (drawn @ sums[1])
        luck = np.random.default_rng(self._seed + 2).normal(size=(2, REPLICATES))
        replicates = self._level[1:] * mean * (1 + luck[0] * _jackknife(shape))
        replicates += luck[1] * self._chance(self._level[0] * expected, blocks)
        value = float(self._level[0] * expected.mean())
        if self.metric == "accuracy":
            value, replicates = 1 - value, 1 - replicates
        fewest = self.blocks if not resampled else min(self.blocks, n_blocks)
        return Measured({self.metric: value}, {self.metric: replicates}, len(rows), fewest)

    def _chance(self, expected: Floats, blocks: Codes) -> float:
        """Return the standard deviation of the mean loss that is due to chance in the labels."""
        own = self._noise * float((expected**2).sum())
        common = np.bincount(blocks, weights=math.sqrt(self._noise) * expected)
        return math.sqrt(own + self._shared * float((common**2).sum())) / len(expected)


def _answered(predictions: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_finite(predictions) if pa.types.is_floating(predictions.type) else predictions.is_valid()


def _loss(known: Outcomes) -> Floats:
    if known.kind == "regression":
        return np.abs(np.asarray(known.predicted - known.truth, dtype=np.float64))
    return np.asarray(known.predicted != known.truth, dtype=np.float64)


def _noise(loss: Floats, expected: Floats, blocks: Codes) -> tuple[float, float]:
    """Return the variance of losses over the square of what was expected, and the share of it that blocks share."""
    surprise = loss - expected
    noise = float((surprise**2).sum() / max((expected**2).sum(), _LEAST))
    own = noise * np.bincount(blocks, weights=expected**2)
    common = np.bincount(blocks, weights=math.sqrt(noise) * expected)
    beyond = np.bincount(blocks, weights=surprise) ** 2 - own
    return noise, max(0.0, float(beyond.sum() / max((common**2).sum(), _LEAST)))


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

"""The features of rows, and the prediction, as numbers that something can be learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.columns import Unreadable, kind_of, numbers_of, texts_of
from mlflow_flywheel.monitors.outcomes import Floats
from mlflow_flywheel.pipelines.training_files import PREDICTION

# The most frequent categories are told apart; scikit-learn's limit is 255.
_CATEGORIES = 100


class Features:
    """The reference's features and the prediction as numbers, categories as their rank by frequency.

    What cannot be read, or is new, is missing (NaN).
    """

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

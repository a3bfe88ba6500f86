"""Predictions beside the labels that came: what kind of model it is, and losses as sums over rows.

Every metric here is a function of sums over rows, so a bootstrap only has to add up blocks of rows: its cost does not
grow with the window, and rows that share a day's weather are drawn together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.gate import class_codes, time_blocks
from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION, PREDICTION_PROBA

from .columns import Unreadable, numbers_of

Kind = Literal["binary", "multiclass", "regression"]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

# Numeric predictions without probabilities are classes when there are no more than this many, all of them whole.
_MOST_NUMERIC_CLASSES = 20
# Rows without a time are independent as far as anybody knows; more blocks than this add nothing.
_UNTIMED_BLOCKS = 200


@dataclass(frozen=True)
class Outcomes:
    """Labelled rows, ready to be measured. Classifiers hold class codes (-1: a label the model does not know).

    `places` are the rows' positions in the table that they were read from.
    """

    kind: Kind
    classes: tuple[str, ...]
    truth: Floats | Codes
    predicted: Floats | Codes
    proba: Floats | None
    blocks: Codes
    places: Codes
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Task:
    """What a model is asked for: its kind and, for classifiers, its classes in the order of their probabilities."""

    kind: Kind
    classes: tuple[str, ...] = ()


def probabilities(table: pa.Table) -> Floats | None:
    """Return the class probabilities as rows x classes, or None when the model gives none."""
    if PREDICTION_PROBA not in table.column_names or table.num_rows == 0:
        return None
    column = table[PREDICTION_PROBA].combine_chunks()
    if column.null_count or not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return None
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
    width = len(flat) // len(column)
    lengths = pc.list_value_length(column)
    same = width > 0 and pc.all(pc.equal(lengths, width)).as_py()
    return flat.reshape(len(column), width) if same and len(flat) == width * len(column) else None


def infer_task(*tables: pa.Table) -> Task:
    """Tell what kind of model answered these rows, from its predictions, its probabilities and the labels.

    With probabilities it is a classifier. Without them, texts are classes, and numbers are when all predictions and
    labels are whole and few; all other numbers are a regression.
    """
    tables = tuple(t for t in tables if t.num_rows)
    if not tables:
        return Task("regression")
    numeric = not pa.types.is_string(tables[0][PREDICTION].type)
    seen = _distinct(tables, numeric)
    proba = [p for p in map(probabilities, tables) if p is not None]
    if proba:
        width = proba[0].shape[1]
        classes = seen if len(seen) == width else _by_argmax(tables, width)
        return Task("binary" if width == 2 else "multiclass", classes)
    if numeric and not (2 <= len(seen) <= _MOST_NUMERIC_CLASSES and all(float(s).is_integer() for s in seen)):
        return Task("regression")
    return Task("binary" if len(seen) == 2 else "multiclass", seen)


def outcomes(table: pa.Table, task: Task) -> Outcomes:
    """Pair the predictions and labels of a table; rows without either are left out.

    A label that cannot be read (a word where a regressor's number should be) is counted as unreadable.
    """
    both = pc.and_(pc.is_valid(table[LABEL]), pc.is_valid(table[PREDICTION])).to_numpy()
    table = table.filter(pa.array(both))
    truth, predicted = _read(table[LABEL], task), _read(table[PREDICTION], task)
    readable = ~(np.isnan(truth) | np.isnan(predicted))
    proba = probabilities(table) if task.kind != "regression" else None
    if proba is not None and proba.shape[1] != len(task.classes):
        proba = None
    return Outcomes(
        task.kind,
        task.classes,
        truth[readable],
        predicted[readable],
        None if proba is None else proba[readable],
        # Numbered again: a block that lost all its rows must not be drawn.
        np.unique(blocks_of(table)[readable], return_inverse=True)[1],
        np.flatnonzero(both)[readable],
        int((~readable).sum()),
    )


def _read(column: pa.ChunkedArray, task: Task) -> Floats | Codes:
    return class_codes(column.combine_chunks(), task.classes) if task.classes else _lenient(column)


def _number(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def blocks_of(table: pa.Table) -> Codes:
    """Return a block number, 0 and up, per row: days where times are known (`time_blocks`), runs of rows elsewhere."""
    if "event_time" in table.column_names and table["event_time"].null_count == 0:
        return time_blocks(table["event_time"])
    n = table.num_rows
    return np.asarray(np.arange(n) * min(_UNTIMED_BLOCKS, n) // max(1, n), dtype=np.int64)


def _distinct(tables: tuple[pa.Table, ...], numeric: bool) -> tuple[str, ...]:
    """Return the values of predictions and labels, in the order in which an estimator keeps its classes."""
    columns = [table[name] for table in tables for name in (PREDICTION, LABEL) if name in table.column_names]
    if not numeric:
        return tuple(
            sorted({text for c in columns for text in pc.unique(c.cast(pa.string())).to_pylist() if text})
        )
    values = np.unique(np.concatenate([np.unique(_lenient(column)) for column in columns]))
    return tuple(f"{v:g}" if v.is_integer() else repr(v) for v in values[~np.isnan(values)].tolist())


def _lenient(column: pa.ChunkedArray) -> Floats:
    """Return numbers; what cannot be read as one is NaN."""
    try:
        return numbers_of(column)
    except Unreadable:
        return np.array([_number(value) for value in column.to_pylist()], dtype=np.float64)


def _by_argmax(tables: tuple[pa.Table, ...], width: int) -> tuple[str, ...]:
    """Learn which class each probability belongs to from what was predicted when it was the largest."""
    names = [f"class {position}" for position in range(width)]
    for table in tables:
        proba = probabilities(table)
        if proba is None or proba.shape[1] != width:
            continue
        largest = proba.argmax(axis=1)
        for position in range(width):
            answers = table[PREDICTION].filter(pa.array(largest == position))
            if len(answers):
                most = pc.mode(answers.dictionary_encode().combine_chunks().indices)[0]["mode"].as_py()
                value = answers.dictionary_encode().combine_chunks().dictionary[most].as_py()
                names[position] = f"{value:g}" if isinstance(value, float) else str(value)
    return tuple(names)

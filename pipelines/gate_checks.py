"""What the gate asks beside the score: parts of the rows that get worse, time to answer, size on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput, nearest
from .model import Scorer

# A numeric feature with more values than this is cut at its quartiles.
_MOST_VALUES = 20
_MOST_SLICES = 50
_LEAST_ROWS = 50
_TIMED_ROWS, _TIMED_REPEATS = (256, 1), 5


@dataclass(frozen=True)
class Slice:
    """A part of the hold-out: its rows, the challenger's mean gain there, and whether it is surely worse there."""

    slice: str
    rows: int
    difference: float
    low: float
    high: float
    worse: bool


@dataclass(frozen=True)
class GateChecks:
    """Which checks are made: features to slice by, and how many times as long or large a challenger may be (0: any).

    `attempt` counts the challengers that were judged on the same evidence, this one included.
    """

    slices: tuple[str, ...] = ()
    max_latency_ratio: float = 0.0
    max_size_ratio: float = 0.0
    attempt: int = 1

    def confidence(self, asked_for: float) -> float:
        """Return how sure this attempt's interval must be.

        Each attempt may err with half the probability of the one before: one that is no better than the champion
        passes any of them, however many there are, with at most 1 - `asked_for`.
        """
        return float(1 - (1 - asked_for) / 2 ** (self.attempt - 1))


def parts(rows: pa.Table, features: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield the slices of some rows by name, the largest first, with the rows that are in each.

    Raises BadInput for a feature that the rows do not have.
    """
    found = []
    for feature in features:
        if feature not in rows.column_names:
            raise BadInput(
                f"gate_slices names {feature!r}, which is no feature of the model{nearest(feature, rows.column_names)}"
            )
        found += list(_parts_of(feature, rows[feature].combine_chunks()))
    found.sort(key=lambda part: -int(part[1].sum()))
    yield from (part for part in found[:_MOST_SLICES] if part[1].sum() >= _LEAST_ROWS)


def times_as_long(old: Scorer, old_rows: pa.Table, new: Scorer, new_rows: pa.Table) -> float:
    """Return how many times as much processor time one scorer takes as the other, for many rows or for a single one.

    Processor time on this machine, now: a busy one does not change the ratio.
    """
    return max(
        _cost(new, new_rows.slice(0, n)) / max(_cost(old, old_rows.slice(0, n)), 1e-9) for n in _TIMED_ROWS
    )


def folder_bytes(folder: str) -> int:
    """Return how much disk the files of a model take."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _parts_of(feature: str, values: pa.Array) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    distinct = pc.unique(values.drop_null())
    if len(distinct) > _MOST_VALUES and pa.types.is_floating(values.type):
        yield from _quartiles(feature, values)
        return
    for value in distinct:
        yield f"{feature}={value.as_py()}", np.asarray(pc.fill_null(pc.equal(values, value), False))
    if values.null_count:
        yield f"{feature} missing", np.asarray(pc.is_null(values))


def _quartiles(feature: str, values: pa.Array) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    numbers = values.to_numpy(zero_copy_only=False)
    cuts = [-np.inf, *np.nanquantile(numbers, [0.25, 0.5, 0.75]), np.inf]
    for low, high in pairwise(cuts):
        yield f"{feature} in ({low:g}, {high:g}]", (numbers > low) & (numbers <= high)


def _cost(scorer: Scorer, rows: pa.Table) -> float:
    spent = []
    for _ in range(_TIMED_REPEATS):
        began = time.process_time()
        scorer.predict(rows)
        spent.append(time.process_time() - began)
    return min(spent)

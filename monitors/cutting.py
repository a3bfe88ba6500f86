"""Cutting a window, and the reference like it, into the slices that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .columns import DISCRETE, Unreadable, kind_of, numbers_of, texts_of
from .slicing import Condition, Slices, quoted

Mask = npt.NDArray[np.bool_]

MOST_CATEGORIES = 10
_OPERATORS: dict[str, Callable[[npt.NDArray[np.float64], float], Mask]] = {
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Part:
    """One slice: its name, which rows of the window are in it, and which of the reference's (None: none to tell)."""

    name: str
    rows: Mask
    reference: Mask | None


def parts(entry: Slices, rows: pa.Table, prefix: str, reference: pa.Table | None) -> Iterator[Part]:
    """Yield the slices of an entry; rows' features have the prefix. Raises Unreadable when there are none."""
    tables = [(rows, prefix), *([(reference, "")] if reference is not None else [])]
    if entry.conditions:
        masks = [np.all([holds(c, *each) for c in entry.conditions], axis=0) for each in tables]
        yield _part(str(entry), masks)
        return
    columns = []
    for table, before in tables:
        if before + entry.column not in table.column_names:
            raise Unreadable(f"there is no column {entry.column!r}")
        columns.append(table[before + entry.column])
    # The reference's type says what the values are.
    kind = kind_of(columns[-1].type)
    if kind == "moment":
        raise Unreadable(f"{entry.column!r} holds moments, which are not cut into slices")
    if kind == "number":
        numbers = [numbers_of(column) for column in columns]
        numbers = [np.where(np.isfinite(n), n, np.nan) for n in numbers]
        if len(np.unique(numbers[-1][~np.isnan(numbers[-1])])) > DISCRETE:
            yield from _quarters(entry.column, numbers)
        else:
            yield from _categories(entry.column, [_levels(values) for values in numbers])
    else:
        yield from _categories(entry.column, [texts_of(column) for column in columns])


def holds(condition: Condition, table: pa.Table, prefix: str) -> Mask:
    """Return for which rows a condition holds; missing values never do. Raises Unreadable when it cannot be asked."""
    name, operator, value = condition.column, condition.operator, condition.value
    if prefix + name not in table.column_names:
        raise Unreadable(f"there is no column {name!r}")
    column = table[prefix + name]
    if kind_of(column.type) == "number":
        numbers = numbers_of(column)
        try:
            return np.isfinite(numbers) & _OPERATORS[operator](numbers, float(value))
        except ValueError:
            raise Unreadable(f"{name!r} holds numbers, and {value!r} is none") from None
    if operator not in ("=", "!="):
        raise Unreadable(f"{name!r} holds no numbers, so nothing is {operator} {value}")
    same = pc.equal(texts_of(column), value)
    return _mask(same if operator == "=" else pc.invert(same))


def _categories(name: str, texts: list[pa.ChunkedArray]) -> Iterator[Part]:
    """Yield the categories with the greatest shares in both samples together, the others, and the missing."""
    shares: dict[str, float] = {}
    for column in texts:
        for counted in pc.value_counts(column.drop_null()).to_pylist():
            share = counted["counts"] / max(1, len(column))
            shares[counted["values"]] = shares.get(counted["values"], 0.0) + share
    top = sorted(shares, key=lambda word: (-shares[word], word))[:MOST_CATEGORIES]
    for word in top:
        yield _part(f"{quoted(name)}={quoted(word)}", [_mask(pc.equal(column, word)) for column in texts])
    known = pa.array(top, pa.string())
    if len(shares) > len(top):
        others = [_mask(pc.and_(column.is_valid(), pc.invert(pc.is_in(column, known)))) for column in texts]
        yield _part(f"{quoted(name)}: others", others)
    if any(column.null_count for column in texts):
        yield _part(f"{quoted(name)}: missing", [_mask(column.is_null()) for column in texts])


def _levels(numbers: npt.NDArray[np.float64]) -> pa.ChunkedArray:
    """Return numbers as texts, missing ones as null."""
    levels, codes = np.unique(numbers, return_inverse=True)
    words = pa.array([None if np.isnan(level) else f"{level:.6g}" for level in levels], pa.string())
    return pa.chunked_array([words.take(pa.array(codes))])


def _quarters(name: str, numbers: list[npt.NDArray[np.float64]]) -> Iterator[Part]:
    """Yield the spans between the last sample's quartiles, and the missing."""
    edges = np.unique(np.nanquantile(numbers[-1], _QUARTERS, method="lower"))
    shown = [f"{edge:.4g}" for edge in edges]
    for place in range(len(edges) + 1):
        low = edges[place - 1] if place else -np.inf
        high = edges[place] if place < len(edges) else np.inf
        spans = [(values > low) & (values <= high) for values in numbers]
        words = [
            *([f">{shown[place - 1]}"] if place else []),
            *([f"<={shown[place]}"] if place < len(edges) else []),
        ]
        yield _part(" & ".join(quoted(name) + word for word in words), spans)
    if any(np.isnan(values).any() for values in numbers):
        yield _part(f"{quoted(name)}: missing", [np.isnan(values) for values in numbers])


def _part(name: str, masks: list[Mask]) -> Part:
    return Part(name, masks[0], masks[1] if len(masks) > 1 else None)


def _mask(values: pa.ChunkedArray) -> Mask:
    return np.asarray(values.fill_null(False).to_numpy(), dtype=np.bool_)

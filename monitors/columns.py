"""One column of the reference and of the window, brought to the same terms so that they can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["number", "category", "moment"]
Values = npt.NDArray[np.float64]

# Numbers with at most this many values (flags, grades, months) are compared as categories: the Kolmogorov-Smirnov test
# is deaf to changes of such columns.
DISCRETE = 10


class Unreadable(ValueError):
    """The window's values cannot be read in the reference's type; the text says which types."""


@dataclass(frozen=True)
class Pair:
    """A column in both samples.

    Numbers are finite float64 without the missing ones; categories are counts over the joint `categories`. What is
    null, NaN or infinite is missing.
    """

    kind: Kind
    rows: tuple[int, int]
    missing: tuple[int, int]
    infinite: tuple[int, int] = (0, 0)
    numbers: tuple[Values, Values] | None = None
    categories: tuple[str, ...] = ()
    counts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None


def kind_of(column_type: pa.DataType) -> Kind:
    """Tell how values of an Arrow type are compared."""
    if pa.types.is_dictionary(column_type):
        return kind_of(column_type.value_type)
    if (
        pa.types.is_integer(column_type)
        or pa.types.is_floating(column_type)
        or pa.types.is_decimal(column_type)
    ):
        return "number"
    return "moment" if pa.types.is_temporal(column_type) else "category"


def pair(reference: pa.ChunkedArray, current: pa.ChunkedArray) -> Pair:
    """Bring two columns to the reference's terms. Raises Unreadable when the window's values do not fit them."""
    kind = kind_of(reference.type)
    if kind == "moment":
        return Pair(kind, (len(reference), len(current)), (reference.null_count, current.null_count))
    if kind == "category":
        return _categories(texts_of(reference), texts_of(current))
    (a, infinite_a), (b, infinite_b) = _numbers(reference), _numbers(current)
    levels = np.unique(a)
    if 0 < len(levels) <= DISCRETE:
        joint = _levels(a, b)
        rows, missing = (len(reference), len(current)), (len(reference) - len(a), len(current) - len(b))
        return Pair(
            "category", rows, missing, (infinite_a, infinite_b), categories=joint[0], counts=joint[1:]
        )
    missing = (len(reference) - len(a), len(current) - len(b))
    return Pair(kind, (len(reference), len(current)), missing, (infinite_a, infinite_b), numbers=(a, b))


def numbers_of(column: pa.ChunkedArray) -> Values:
    """Return a column as float64, missing values as NaN. Raises Unreadable when it holds something else."""
    column = _plain(column)
    try:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise Unreadable(f"type changed: {column.type} where numbers were") from None


def _numbers(column: pa.ChunkedArray) -> tuple[Values, int]:
    values = numbers_of(column)
    return values[np.isfinite(values)], int(np.isinf(values).sum())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as texts, missing values as null. Raises Unreadable for nested values."""
    column = _plain(column)
    try:
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            if pc.all(pc.equal(column, pc.floor(column))).as_py():
                column = column.cast(pa.int64())
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise Unreadable(f"type changed: {column.type} where categories were") from None


def _categories(a: pa.ChunkedArray, b: pa.ChunkedArray) -> Pair:
    joint = pa.chunked_array([*a.chunks, *b.chunks], type=pa.string()).combine_chunks().dictionary_encode()
    names = tuple(joint.dictionary.to_pylist())
    codes = joint.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    counts = [np.bincount(part, minlength=len(names) + 1) for part in (codes[: len(a)], codes[len(a) :])]
    return Pair(
        "category",
        (len(a), len(b)),
        (int(counts[0][-1]), int(counts[1][-1])),
        categories=names,
        counts=(counts[0][:-1], counts[1][:-1]),
    )


def _levels(a: Values, b: Values) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    levels, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = [np.bincount(part, minlength=len(levels)) for part in (codes[: len(a)], codes[len(a) :])]
    return tuple(f"{level:.6g}" for level in levels), counts[0], counts[1]

"""Which rows of a training set are used, and what each counts: bounds, class balance and recency.

The rows and the recipe decide, and the recipe's seed where lots are drawn: the same comes out again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput
from .lineage import TrainingSetSpec
from .schema import TIMESTAMP
from .times import as_utc
from .training_files import EVENT_TIME, LABEL

# Below this many rows neither a fit nor a comparison says anything.
MIN_ROWS = 50
_MOST_CLASSES = 1000
# The last digits of a power differ between processors; a training set must not.
_DIGITS = 9


def bounded(rows: pa.Table, recipe: TrainingSetSpec) -> pa.Table:
    """Keep at most `max_rows`, in their order: the newest, or as many drawn from all of them."""
    surplus = rows.num_rows - recipe.max_rows
    if surplus <= 0:
        return rows
    if recipe.rows_kept == "newest":
        return rows.slice(surplus)
    return rows.take(pa.array(np.sort(_lots(rows, recipe)[: recipe.max_rows])))


def thinned(rows: pa.Table, recipe: TrainingSetSpec) -> pa.Table:
    """Draw, of classes with more than `class_ratio` rows for each of the rarest, so many; of the others keep all.

    Rows that are balanced already stay as they are. Raises BadInput when the label is no class.
    """
    if recipe.class_balance != "downsample":
        return rows
    classes, counts = _classes(rows)
    most = int(min(counts, default=0) * recipe.class_ratio)
    if max(counts, default=0) <= most:
        return rows
    lots = _lots(rows, recipe)
    kept = [lots[classes[lots] == one][:most] for one in range(len(counts))]
    return rows.take(pa.array(np.sort(np.concatenate(kept))))


def weights(rows: pa.Table, recipe: TrainingSetSpec) -> npt.NDArray[np.float64] | None:
    """Return what each row counts, 1 on average; None when all count alike.

    A row counts half as much for each half-life that it is older than the newest one; an undated one is as old as the
    training window. Balanced classes count the same in total. Raises BadInput when the label is no class.
    """
    if rows.num_rows == 0 or (recipe.half_life is None and recipe.class_balance != "weights"):
        return None
    found = np.ones(rows.num_rows)
    if recipe.half_life is not None:
        dated = rows[EVENT_TIME].fill_null(pa.scalar(as_utc(recipe.start), TIMESTAMP))
        times = dated.cast(pa.int64()).to_numpy()
        found = 0.5 ** ((times.max() - times) / (recipe.half_life / timedelta(microseconds=1)))
    if recipe.class_balance == "weights":
        classes, counts = _classes(rows)
        found = found / np.bincount(classes, found, len(counts))[classes]
    return np.asarray(np.round(found / found.mean(), _DIGITS), dtype=np.float64)


def since(rows: pa.Table, length: timedelta | None, end: datetime) -> pa.Table:
    """Return the rows that happened within `length` before `end`; with None all before it, undated ones too."""
    before = pc.less(rows[EVENT_TIME], pa.scalar(as_utc(end), TIMESTAMP))
    if length is None:
        return rows.filter(before.fill_null(True))
    start = pa.scalar(as_utc(end) - length, TIMESTAMP)
    return rows.filter(pc.and_(before, pc.greater_equal(rows[EVENT_TIME], start)))


def _lots(rows: pa.Table, recipe: TrainingSetSpec) -> npt.NDArray[np.int64]:
    """Return the rows' positions in an order that was drawn with the seed."""
    return np.argsort(np.random.default_rng(recipe.seed).random(rows.num_rows), kind="stable")


def _classes(rows: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each row's class by number, and how many rows each class has."""
    encoded = rows[LABEL].combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > _MOST_CLASSES:
        raise BadInput(
            f"{len(encoded.dictionary):,} different labels are no classes that could be balanced; set "
            "loop.class_balance=none"
        )
    classes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return classes, np.bincount(classes, minlength=len(encoded.dictionary))

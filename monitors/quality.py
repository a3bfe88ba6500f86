"""Are the values that come in, and the answers that go out, whole?

Rules, not tests of distributions (that is drift's question): lost and infinite values, numbers far beyond all that the
reference has, categories that it does not know, columns that stand still or changed their type, predictions that are
none, requests that failed. Each counts the rows that are broken so, beyond what is usual for the reference and surely
no chance; the policy's `broken_share` of a column's rows is an alarm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.training_files import PREDICTION, PREDICTION_PROBA

from .columns import DISCRETE, Unreadable, kind_of, numbers_of, texts_of
from .look import Look, Monitor
from .reference import FEATURE_PREFIX, Reference
from .shares import share_bounds
from .verdicts import Status, Verdict

MONITOR = "quality"
# Many columns are looked at: what is called sure is so in all of them together.
_CONFIDENCE = 0.9995
# So many times the reference's whole range beyond its ends is no value of the same thing.
_FAR = 1.0
# A share of broken values that is worth a warning, as part of the share that is an alarm.
_WORTH = 0.2
# Fewer reference rows than this do not know what is usual.
_LEAST_REFERENCE = 50
_SHOWN = 3


@dataclass(frozen=True)
class Broken:
    """One way in which a column is broken: how many of its rows, and the share of them that is usual.

    `surely` is the share beyond the usual one that is no chance.
    """

    column: str
    role: str
    problem: str
    rows: int
    of: int
    usual: float = 0.0
    surely: float = 0.0
    note: str = ""

    @property
    def share(self) -> float:
        return self.rows / self.of

    def status(self, limit: float) -> Status:
        """`warn` for what is worth a look, `alarm` from the limit on."""
        if self.surely >= limit:
            return "alarm"
        return "warn" if self.surely > 0 and self.share - self.usual >= limit * _WORTH else "ok"

    def row(self, limit: float) -> dict[str, Any]:
        """Return the evidence row."""
        return {
            "column": self.column,
            "role": self.role,
            "problem": self.problem,
            "status": self.status(limit),
            "rows": self.rows,
            "share": self.share,
            "usual_share": self.usual,
            "note": self.note,
        }


class QualityMonitor(Monitor):
    """See the module."""

    name = MONITOR
    series = (("broken_share", "broken_share"), ("unanswered_share", "unanswered_share"))

    def look(self, look: Look) -> Verdict:
        rows, limit, window = look.rows, look.policy.broken_share, look.window
        n = rows.num_rows
        if n < look.policy.min_rows:
            few = f"{n:,} rows, fewer than {look.policy.min_rows:,}: too few to judge"
            return Verdict(MONITOR, "unknown", few, window, {"rows": n})
        known = look.reference
        if known is not None and len(known) < _LEAST_REFERENCE:
            known = None
        broken = [*_answers(rows), *(_infinite(rows) if known is None else _features(rows, known))]
        broken.sort(key=lambda found: -found.surely)
        statuses = {found.status(limit) for found in broken}
        status: Status = "alarm" if "alarm" in statuses else "warn" if "warn" in statuses else "ok"
        told = [found for found in broken if found.status(limit) == status != "ok"]
        summary = ", ".join(map(_told, told[:_SHOWN])) or "no broken values"
        if len(told) > _SHOWN:
            summary += f" and {len(told) - _SHOWN} more"
        if known is None:
            summary += "; without a reference, features are looked at for infinite values only"
        metrics = {
            "rows": float(n),
            "broken_columns": float(len({f.column for f in broken if f.status(limit) != "ok"})),
            "broken_share": max((max(0.0, f.share - f.usual) for f in broken), default=0.0),
            "unanswered_share": max((f.share for f in broken if f.role == "prediction"), default=0.0),
            "failed_share": max((f.share for f in broken if f.role == "request"), default=0.0),
        }
        return Verdict(MONITOR, status, summary, window, metrics, [found.row(limit) for found in broken])


def _told(found: Broken) -> str:
    return f"{found.column}: {found.share:.1%} {found.problem}{f' ({found.note})' if found.note else ''}"


def _beyond(
    column: str,
    role: str,
    problem: str,
    rows: int,
    of: int,
    usual: float = 0.0,
    most: float = 0.0,
    note: str = "",
) -> Iterator[Broken]:
    """Yield a finding when there are such rows; `most` is the largest share that may be usual."""
    if rows:
        surely = max(0.0, share_bounds(rows, of, _CONFIDENCE)[0] - most)
        yield Broken(column, role, problem, int(rows), of, usual, surely, note)


def _answers(rows: pa.Table) -> Iterator[Broken]:
    """Look at predictions, probabilities and what callers got: nothing of this may be broken at any time."""
    n, said = rows.num_rows, rows[PREDICTION]
    nothing = pc.is_null(said, nan_is_null=True)
    yield from _beyond(PREDICTION, "prediction", "without an answer", pc.sum(nothing).as_py(), n)
    if pa.types.is_floating(said.type):
        infinite = pc.sum(pc.is_inf(said)).as_py() or 0
        yield from _beyond(PREDICTION, "prediction", "infinite", infinite, n)
    if PREDICTION_PROBA in rows.column_names and pa.types.is_list(rows[PREDICTION_PROBA].type):
        listed = rows[PREDICTION_PROBA].combine_chunks()
        each = np.asarray(listed.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
        owners = pc.list_parent_indices(listed).to_numpy()
        impossible = len(np.unique(owners[~((each >= 0) & (each <= 1))]))
        yield from _beyond(PREDICTION_PROBA, "prediction", "outside of 0 to 1", impossible, n)
    if "status_code" in rows.column_names:
        failed = pc.sum(pc.greater_equal(rows["status_code"], 400)).as_py() or 0
        yield from _beyond("status_code", "request", "400 or above", failed, n)


def _infinite(rows: pa.Table) -> Iterator[Broken]:
    """Look at features of which nothing else is known."""
    for name in rows.column_names:
        if name.startswith(FEATURE_PREFIX) and pa.types.is_floating(rows[name].type):
            infinite = pc.sum(pc.is_inf(rows[name])).as_py() or 0
            yield from _beyond(
                name.removeprefix(FEATURE_PREFIX), "feature", "infinite", infinite, rows.num_rows
            )


def _features(rows: pa.Table, reference: Reference) -> Iterator[Broken]:
    for name in reference.feature_names:
        yield from _feature(name, rows, reference.table[name])


def _feature(name: str, rows: pa.Table, known: pa.ChunkedArray) -> Iterator[Broken]:
    """Look at one feature against its reference; one that is not there, or cannot be read, is broken as a whole."""
    n, logged = rows.num_rows, FEATURE_PREFIX + name
    if logged not in rows.column_names:
        yield Broken(name, "feature", "not logged", n, n, 0.0, 1.0)
        return
    kind = kind_of(known.type)
    try:
        if kind == "number":
            yield from _numbers(name, numbers_of(known), numbers_of(rows[logged]))
        elif kind == "category":
            yield from _categories(name, texts_of(known), texts_of(rows[logged]))
        else:
            missing = (known.null_count, rows[logged].null_count)
            yield from _missing(name, missing, len(known), n)
    except Unreadable as error:
        yield Broken(name, "feature", "unreadable", n, n, 0.0, 1.0, str(error))


def _missing(name: str, missing: tuple[int, int], known: int, n: int) -> Iterator[Broken]:
    most = share_bounds(missing[0], known, _CONFIDENCE)[1]
    yield from _beyond(name, "feature", "missing", missing[1], n, missing[0] / known, most)


def _numbers(name: str, known: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> Iterator[Broken]:
    n = len(values)
    yield from _missing(name, (int(np.isnan(known).sum()), int(np.isnan(values).sum())), len(known), n)
    yield from _beyond(
        name, "feature", "infinite", int(np.isinf(values).sum()), n, most=float(np.isinf(known).mean())
    )
    known, values = known[np.isfinite(known)], values[np.isfinite(values)]
    if not len(known) or not len(values):
        return
    low, high = float(known.min()), float(known.max())
    if low == high:
        return
    reach = _FAR * (high - low)
    far = int(((values < low - reach) | (values > high + reach)).sum())
    seen = f"{values.min():.4g} to {values.max():.4g}, the reference has {low:.4g} to {high:.4g}"
    yield from _beyond(name, "feature", "far out of range", far, n, note=seen)
    if values.min() == values.max() and len(np.unique(known)) > DISCRETE:
        yield Broken(name, "feature", "standing still", len(values), n, 0.0, 1.0, f"always {values[0]:.4g}")


def _categories(name: str, known: pa.ChunkedArray, texts: pa.ChunkedArray) -> Iterator[Broken]:
    yield from _missing(name, (known.null_count, texts.null_count), len(known), len(texts))
    counts = pc.value_counts(known.drop_null().combine_chunks())
    usual = counts.field("counts").to_numpy()
    if not len(usual):
        return
    # What share of rows has a category that was not seen yet is estimated by those that were seen once (Good, 1953);
    # where that is most of them, the column holds names rather than categories.
    once = int((usual == 1).sum())
    unseen, most = once / usual.sum(), share_bounds(once, int(usual.sum()), _CONFIDENCE)[1]
    if unseen > 0.5:
        return
    now = pc.value_counts(texts.drop_null().combine_chunks())
    new = now.filter(pc.invert(pc.is_in(now.field("values"), counts.field("values"))))
    rows = pc.sum(new.field("counts")).as_py() or 0
    yield from _beyond(
        name, "feature", "in unknown categories", rows, len(texts), unseen, most, f"{len(new):,} of them"
    )

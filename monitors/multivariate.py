"""Do the features still go together as they did in the reference, even if each of them alone looks as before?

A classifier is to tell rows of the window from rows of the reference, from nothing but how the features go together:
each column is replaced by the normal scores of its own ranks within its own sample, so that no change of a single
column helps it. It is the quadratic discriminant of two normal distributions, learnt on one half of the days and tried on
the other, and the other way round. That makes the test exact whatever it has learnt: the halves share no rows, and rows
of a day count as alike as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from mlflow_flywheel.pipelines.gate import auc
from mlflow_flywheel.pipelines.training_files import EVENT_TIME

from .columns import Unreadable, kind_of, numbers_of, texts_of
from .dependence import Days, days_of, likeness_of_mean, worth
from .drift import sampled
from .look import Look, Monitor
from .reference import FEATURE_PREFIX, Reference
from .verdicts import Status, Verdict
from .windows import Window

if TYPE_CHECKING:
    from .policy import PolicySpec

MONITOR = "multivariate"
Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Scores beyond this are cut off: one odd row must not decide.
_MOST_SCORE = 3.0
# Columns whose missing share changed by more than this say more about that than about anything else.
_MISSING_CHANGE = 0.1
_LEAST_SHRINKAGE = 0.02
_SHOWN_PAIRS = 10


@dataclass(frozen=True)
class MultivariateSpec:
    """Thresholds: `area` is the smallest area under the curve of the classifier that matters, `far` raises an alarm."""

    min_rows: int = 200
    alpha: float = 0.05
    area: float = 0.55
    far: float = 0.65
    max_rows: int = 20_000
    max_columns: int = 100

    @classmethod
    def of(cls, policy: PolicySpec) -> MultivariateSpec:
        """Return the thresholds that a policy asks for."""
        return cls(min_rows=policy.min_rows, alpha=round(1 - policy.confidence, 9))


class MultivariateMonitor(Monitor):
    """See `multivariate`."""

    name = MONITOR
    series = ()

    def look(self, look: Look) -> Verdict:
        return multivariate(look.rows, look.reference, look.window, MultivariateSpec.of(look.policy))


def multivariate(
    rows: pa.Table, reference: Reference | None, window: Window, spec: MultivariateSpec | None = None
) -> Verdict:
    """Compare how the features of a window (as `feature.<name>`) go together with how they do in the reference.

    `alarm` when the classifier surely tells them apart, and well; `warn` when it does so a little. Columns that are
    missing, unreadable, constant or mostly missing are left out, and those beyond `max_columns`. Never raises for what
    the rows hold.
    """
    spec = spec or MultivariateSpec()
    if reference is None:
        return Verdict(MONITOR, "unknown", "the version has no reference to compare with", window)
    n = rows.num_rows
    if min(n, len(reference)) < spec.min_rows:
        few = (
            f"{n:,} rows in the window and {len(reference):,} in the reference, fewer than {spec.min_rows:,}"
        )
        return Verdict(MONITOR, "unknown", f"{few}: too few to compare", window, {"rows": n})
    old_rows, new_rows = sampled(reference.table, spec.max_rows), sampled(rows, spec.max_rows)
    names, old, new = _scores(old_rows, new_rows, reference.feature_names, spec.max_columns)
    if len(names) < 2:
        return Verdict(
            MONITOR, "unknown", "fewer than two features can be looked at together", window, {"rows": n}
        )
    sides = _Side.of(old, days_of(old_rows, EVENT_TIME)), _Side.of(new, days_of(new_rows, "event_time"))
    tries = [_try(*sides, learnt) for learnt in (False, True)]
    # Two looks at the same question: the better one counts half.
    p_value = min(1.0, 2 * min(p for p, _ in tries))
    area = float(np.mean([a for _, a in tries]))
    return _verdict(names, sides, p_value, area, n, window, spec)


@dataclass(frozen=True)
class _Side:
    """Normal scores of one sample as rows x columns, the half that each row is in, and its day."""

    scores: Matrix
    half: Mask
    days: Days | None

    @classmethod
    def of(cls, scores: Matrix, days: Days | None) -> _Side:
        """Split into quarters of time, the first and third against the second and fourth (without time: every other)."""
        if days is None:
            return cls(scores, np.arange(len(scores)) % 2 == 0, None)
        known = np.unique(days.codes, return_inverse=True)[1]
        quarter = known * 4 // (known.max() + 1) if known.max() >= 3 else np.arange(len(scores))
        return cls(scores, quarter % 2 == 0, days)

    def correlations(self, of: Mask | None = None) -> Matrix:
        chosen = self.scores if of is None else self.scores[of]
        return chosen.T @ chosen / max(1, len(chosen))

    @property
    def rows(self) -> int:
        return len(self.scores)


def _scores(
    old: pa.Table, new: pa.Table, names: Sequence[str], most: int
) -> tuple[list[str], Matrix, Matrix]:
    """Return the normal scores of the columns that both samples have, and their names."""
    kept: list[str] = []
    columns: tuple[list[Matrix], list[Matrix]] = ([], [])
    for name in names:
        logged = FEATURE_PREFIX + name
        if logged not in new.column_names or len(kept) == most:
            continue
        try:
            both = _ordered(old[name], new[logged])
        except Unreadable:
            continue
        missing = [float(np.isnan(values).mean()) for values in both]
        scores = [_normal_scores(values) for values in both]
        if (
            max(missing) > 0.5
            or abs(missing[0] - missing[1]) > _MISSING_CHANGE
            or None in map(_spread, scores)
        ):
            continue
        kept.append(name)
        for side, values in zip(columns, scores, strict=True):
            side.append(values)
    if not kept:
        return [], np.empty((old.num_rows, 0)), np.empty((new.num_rows, 0))
    return kept, np.column_stack(columns[0]), np.column_stack(columns[1])


def _ordered(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[Matrix, Matrix]:
    """Return a column of both samples as numbers whose order means something; categories by how frequent they were."""
    kind = kind_of(old.type)
    if kind == "moment":
        raise Unreadable("moments move on by nature")
    if kind == "number":
        return numbers_of(old), numbers_of(new)
    texts = texts_of(old), texts_of(new)
    encoded = pa.chunked_array([c for t in texts for c in t.chunks], type=pa.string()).combine_chunks()
    codes = encoded.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes[: len(old)][codes[: len(old)] >= 0], minlength=int(codes.max(initial=0)) + 1)
    place = np.argsort(np.argsort(-counts, kind="stable"), kind="stable").astype(np.float64)
    values = np.where(codes >= 0, place[codes], np.nan)
    return values[: len(old)], values[len(old) :]


def _normal_scores(values: Matrix) -> Matrix:
    """Return the normal scores of ranks, of variance 1; a missing value is the middle."""
    present = np.isfinite(values)
    scores = np.zeros(len(values))
    if present.any():
        ranks = stats.rankdata(values[present])
        scores[present] = np.clip(stats.norm.ppf((ranks - 0.5) / len(ranks)), -_MOST_SCORE, _MOST_SCORE)
        scores[present] -= scores[present].mean()
    spread = _spread(scores)
    return scores / spread if spread else scores


def _spread(scores: Matrix) -> float | None:
    found = float(np.sqrt((scores**2).mean())) if len(scores) else 0.0
    return found if found > 1e-6 else None


def _try(old: _Side, new: _Side, learnt: bool) -> tuple[float, float]:
    """Learn on one half and return the p-value and the area under the curve of the other half."""
    directions = [np.linalg.inv(_shrunk(side, side.half == learnt)) for side in (old, new)]
    contrast = (directions[0] - directions[1]) / 2
    found, sizes = [], []
    for side in (old, new):
        tried = side.half != learnt
        rows = side.scores[tried]
        score = np.einsum("ij,jk,ik->i", rows, contrast, rows, optimize=True)
        days = side.days.only(tried) if side.days is not None else None
        found.append(score)
        sizes.append((len(score), likeness_of_mean(days, score) if days is not None else None))
    if min(len(score) for score in found) < 2:
        return 1.0, 0.5
    independent = worth(*sizes)
    variance = found[0].var() / independent.reference + found[1].var() / independent.current
    area = auc(np.repeat([False, True], [len(s) for s in found]), np.concatenate(found))
    if not variance > 0:
        return 1.0, area
    distance = (found[1].mean() - found[0].mean()) / math.sqrt(variance)
    return float(stats.t.sf(distance, independent.freedom)), area


def _shrunk(side: _Side, of: Mask) -> Matrix:
    """Return correlations, drawn towards none: the more, the fewer rows there are for them."""
    columns = side.scores.shape[1]
    share = min(0.5, max(_LEAST_SHRINKAGE, columns / max(1, int(of.sum()))))
    return np.asarray((1 - share) * side.correlations(of) + share * np.eye(columns))


def _verdict(
    names: list[str],
    sides: tuple[_Side, _Side],
    p_value: float,
    area: float,
    rows: int,
    window: Window,
    spec: MultivariateSpec,
) -> Verdict:
    pairs = _pairs(names, sides[0].correlations(), sides[1].correlations())
    detected = p_value <= spec.alpha
    status: Status = "ok"
    if detected and area >= spec.area:
        status = "alarm" if area >= spec.far else "warn"
    told = f"a classifier tells window and reference apart with AUC {area:.2f}, p = {p_value:.2g}"
    if status == "ok":
        summary = f"{len(names)} features go together as in the reference ({told})"
    else:
        most = ", ".join(
            f"{p['first']} with {p['second']} {p['correlation_reference']:.2f} to {p['correlation_window']:.2f}"
            for p in pairs[:2]
        )
        summary = f"{len(names)} features go together otherwise than in the reference ({told}); most: {most}"
    metrics = {"rows": rows, "columns": len(names), "auc": area, "p_value": p_value, "detected": detected}
    return Verdict(MONITOR, status, summary, window, metrics, pairs[:_SHOWN_PAIRS])


def _pairs(names: list[str], old: Matrix, new: Matrix) -> list[dict[str, Any]]:
    """Return how each pair of columns correlates by rank, the largest change first."""
    found = [
        {
            "first": names[i],
            "second": names[j],
            "correlation_reference": float(old[i, j]),
            "correlation_window": float(new[i, j]),
            "change": float(new[i, j] - old[i, j]),
        }
        for i, j in combinations(range(len(names)), 2)
    ]
    return sorted(found, key=lambda pair: -abs(pair["change"]))

"""Champion against challenger on the same frozen hold-out: promote only what is shown to help.

The test is a paired bootstrap of the per-row difference of a proper score. Rows close in time share what happened to
them (a storm delays every flight of a day), so whole blocks of event time are drawn, never single rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .compatibility import check_stands_in
from .errors import BadInput, ModelError
from .gate_checks import GateChecks, Slice, folder_bytes, parts, times_as_long
from .model import Scorer
from .scores import PROBABILITY_FLOOR, Floats, Kind, Scores, auc, class_codes, kind_of, score
from .scores import mean as mean_of
from .training_files import EVENT_TIME, LABEL

__all__ = [
    "PROBABILITY_FLOOR", "Floats", "GateResult", "Kind", "Scores", "auc", "block_interval", "class_codes", "compare",
    "decide", "kind_of", "refuse", "score", "sums_interval", "time_blocks",
]  # fmt: skip

# Fewer blocks than this and the spread between them is not known well enough to exclude anything.
MIN_BLOCKS = 5
# Days are the blocks where there are enough of them; a shorter hold-out is cut into this many spans of equal row count.
FULL_BLOCKS = 10


@dataclass(frozen=True)
class GateResult:
    """The decision and what it rests on.

    `metric` names the score among the metrics of both; `difference` is the challenger's mean gain (positive: it loses
    less), `low` and `high` its interval at `confidence`, which grows with the attempt. A ratio is how many times as
    long or large the challenger is, None when nobody asked.
    """

    promote: bool
    reason: str
    metric: str
    champion: dict[str, float]
    challenger: dict[str, float]
    difference: float
    low: float
    high: float
    rows: int
    blocks: int
    confidence: float = math.nan
    attempt: int = 1
    slices: tuple[Slice, ...] = ()
    latency_ratio: float | None = None
    size_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON, tags and records; what is not finite becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def compare(
    champion: Scorer,
    challenger: Scorer,
    holdout: pa.Table,
    kind: Kind,
    *,
    seed: int = 0,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    margin: float = 0.0,
    checks: GateChecks | None = None,
) -> GateResult:
    """Decide whether the challenger may replace the champion.

    It may when the interval of its mean gain lies above zero and the mean gain is at least `margin` (in units of the
    score: log loss for classifiers with probabilities, error rate without, absolute error for regressors). `holdout` has
    the features by name, `label` and the event time. A challenger that cannot score the hold-out, or cannot stand in
    for the champion, is refused, with the error as the reason; a champion that cannot raises. So is one that fails a
    check, with all reasons.
    """
    checks = checks or GateChecks()
    labels = holdout[LABEL].combine_chunks()
    said_before = champion.predict(champion.schema.from_table(holdout))
    before = score(said_before, champion.classes, labels, kind)
    try:
        check_stands_in(challenger, champion)
        said_after = challenger.predict(challenger.schema.from_table(holdout))
        after = score(said_after, challenger.classes, labels, kind)
    except (BadInput, ModelError) as error:
        return _refused(
            f"refused: the challenger cannot do the champion's work: {error.message}", before, holdout
        )
    if after.metric != before.metric:
        # Only one of the two has probabilities: both can be judged by the classes they name.
        before = score(replace(said_before, proba=None), None, labels, kind)
        after = score(replace(said_after, proba=None), None, labels, kind)
    blocks = time_blocks(holdout[EVENT_TIME])
    sure = checks.confidence(confidence)
    # an interval that is surer lies further out, and needs more draws to be found
    draws = n_bootstrap * min(2 ** (checks.attempt - 1), 8)
    result = decide(before, after, blocks, seed=seed, n_bootstrap=draws, confidence=sure, margin=margin)
    gains = before.losses - after.losses
    sliced = _slices(holdout, gains, blocks, checks.slices, seed=seed, n_bootstrap=draws, confidence=sure)
    result = replace(result, attempt=checks.attempt, slices=sliced)
    return _checked(result, champion, challenger, holdout, checks)


def _slices(
    holdout: pa.Table,
    gains: Floats,
    blocks: npt.NDArray[np.int64],
    features: tuple[str, ...],
    *,
    seed: int,
    n_bootstrap: int,
    confidence: float,
) -> tuple[Slice, ...]:
    """Return what each slice gains; their intervals are as sure together as one alone would be (Bonferroni)."""
    wanted = list(parts(holdout, features))
    found = []
    for name, inside in wanted:
        own = np.unique(blocks[inside], return_inverse=True)[1]
        mean, low, high = block_interval(
            gains[inside],
            own,
            seed=seed,
            n_bootstrap=n_bootstrap,
            confidence=1 - (1 - confidence) / len(wanted),
        )
        worse = int(own.max()) + 1 >= MIN_BLOCKS and high < 0
        found.append(Slice(name, int(inside.sum()), mean, low, high, worse))
    return tuple(found)


def _checked(
    result: GateResult, champion: Scorer, challenger: Scorer, holdout: pa.Table, checks: GateChecks
) -> GateResult:
    """Refuse a challenger that gained, but not everywhere, or at too high a price; say each reason."""
    why = [
        f"{one.slice} gets worse: gain {one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f}) on {one.rows:,} rows"
        for one in result.slices
        if one.worse
    ]
    if checks.max_latency_ratio > 0:
        given = (scorer.schema.from_table(holdout) for scorer in (champion, challenger))
        ratio = times_as_long(champion, next(given), challenger, next(given))
        result = replace(result, latency_ratio=ratio)
        if ratio > checks.max_latency_ratio:
            why.append(f"it takes {ratio:.1f} times as long, more than {checks.max_latency_ratio:g}")
    if checks.max_size_ratio > 0:
        ratio = folder_bytes(challenger.ref.path) / max(folder_bytes(champion.ref.path), 1)
        result = replace(result, size_ratio=ratio)
        if ratio > checks.max_size_ratio:
            why.append(f"it is {ratio:.1f} times as large, more than {checks.max_size_ratio:g}")
    if checks.attempt > 1:
        again = f"; attempt {checks.attempt} on this evidence, so the interval must be surer"
        result = replace(result, reason=result.reason + again)
    return refuse(result, "; ".join(why)) if why and result.promote else result


def refuse(result: GateResult, why: str) -> GateResult:
    """Return a passed comparison as a refused one, with the reason first."""
    return replace(result, promote=False, reason=f"refused: {why}; the score alone {result.reason}")


def decide(
    before: Scores,
    after: Scores,
    blocks: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    margin: float = 0.0,
) -> GateResult:
    """Decide from the losses of both models on the same rows and the block of each row."""
    gains = before.losses - after.losses
    n_blocks = int(blocks.max()) + 1 if len(blocks) else 0
    mean, low, high = block_interval(gains, blocks, seed=seed, n_bootstrap=n_bootstrap, confidence=confidence)
    interval = f"{100 * confidence:g}% interval {low:+.4f} to {high:+.4f}"
    name = before.metric.replace("_", " ")
    facts = (
        f"{name} {mean_of(before.losses):.4f} -> {mean_of(after.losses):.4f}, gain {mean:+.4f} ({interval})"
    )
    if n_blocks < MIN_BLOCKS:
        promote, why = (
            False,
            f"the hold-out has {n_blocks} blocks of time, too few to exclude harm (least {MIN_BLOCKS})",
        )
    elif not high > 0:
        promote, why = False, "the challenger is worse"
    elif not low > 0:
        promote, why = False, "the interval does not exclude harm"
    elif mean < margin:
        promote, why = False, f"the gain is below the margin of {margin:g}"
    else:
        promote, why = True, "the interval excludes harm"
    reason = f"{'passed' if promote else 'refused'}: {why}: {facts} on {len(gains)} rows in {n_blocks} blocks"
    return GateResult(
        promote,
        reason,
        before.metric,
        before.metrics,
        after.metrics,
        mean,
        low,
        high,
        len(gains),
        n_blocks,
        confidence,
    )


def time_blocks(event_times: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return a block number, 0 and up, per row: days in UTC, or finer spans when there are fewer than ten days."""
    micros = pc.cast(event_times, pa.timestamp("us", tz="UTC")).combine_chunks().cast(pa.int64()).to_numpy()
    days, by_day = np.unique(micros // 86_400_000_000, return_inverse=True)
    if len(days) >= FULL_BLOCKS or len(micros) == 0:
        return by_day.astype(np.int64)
    rank = np.empty(len(micros), dtype=np.int64)
    rank[np.argsort(micros, kind="stable")] = np.arange(len(micros))
    return rank * min(FULL_BLOCKS, len(micros)) // len(micros)


def block_interval(
    values: Floats, blocks: npt.NDArray[np.int64], *, seed: int, n_bootstrap: int, confidence: float
) -> tuple[float, float, float]:
    """Return the mean and its bootstrap interval when whole blocks are drawn with replacement.

    The percentiles are widened for the number of blocks (Hesterberg, "What Teachers Should Know About the Bootstrap",
    2015, section 4.3.2): plain percentile intervals of a dozen blocks are too narrow. Fewer than two blocks say nothing
    about spread: the interval is infinite.
    """
    if len(values) == 0:
        return 0.0, -math.inf, math.inf
    n = int(blocks.max()) + 1
    _, low, high = sums_interval(
        np.bincount(blocks, weights=values, minlength=n).astype(np.float64),
        np.bincount(blocks, minlength=n).astype(np.float64),
        seed=seed,
        n_bootstrap=n_bootstrap,
        confidence=confidence,
    )
    return float(values.mean()), low, high


def sums_interval(
    sums: Floats, counts: Floats, *, seed: int, n_bootstrap: int, confidence: float
) -> tuple[float, float, float]:
    """Return what `block_interval` does, of each block's sum and number of rows."""
    n = len(sums)
    mean = float(sums.sum() / max(counts.sum(), 1.0))
    if n < 2:
        return mean, -math.inf, math.inf
    from scipy.stats import norm, t

    draws = (
        np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=n_bootstrap).astype(np.float64)
    )
    means = (draws @ sums) / np.maximum(draws @ counts, 1.0)
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - confidence) / 2, n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return mean, float(low), float(high)


def _refused(reason: str, before: Scores, holdout: pa.Table) -> GateResult:
    n_blocks = len(np.unique(time_blocks(holdout[EVENT_TIME])))
    return GateResult(
        False,
        reason,
        before.metric,
        before.metrics,
        {},
        math.nan,
        math.nan,
        math.nan,
        holdout.num_rows,
        n_blocks,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Two-sample tests that are calibrated for any sample sizes, and effect sizes that say whether a change matters.

A p-value answers "is it chance?", an effect size "is it large?": on many rows everything is significant, on few every
distance is large, so the drift monitor asks both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from .dependence import Worth, worth
from .samples import MOST_POINTS, Location, Numbers

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Cells with fewer expected rows than this make the chi-squared approximation unreliable (Cochran 1954).
LEAST_EXPECTED = 5.0
PSI_BINS = 10
# A test that sees nothing must not silence one that does: p-values above this count as this in a combination.
_MOST_P = 0.9
# By how much a combination of two tests that agree in part is too small (counted over two million pairs).
_TOO_BOLD = 1.05
# Quantiles of an estimate's error, closer where it is small: there a distance that is large by chance comes from.
_EDGES = np.concatenate([[0.0], np.geomspace(1e-9, 0.05, 60), np.linspace(0.05, 1, 40)[1:]])
_QUANTILES, _WEIGHTS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)


@dataclass(frozen=True)
class Comparison:
    """One comparison of two samples; NaN p-value: nothing could be tested. `error` is the effect's standard error."""

    test: str
    p_value: float
    effect: float
    effect_name: str
    error: float = 0.0
    statistic: float = math.nan
    psi: float = math.nan

    @property
    def most(self) -> float:
        """The effect and its standard error: the true effect is probably (five of six) not larger."""
        return self.effect + self.error


def compare_numbers(reference: Numbers, current: Numbers, known: Worth | None = None) -> Comparison:
    """Compare two samples of finite numbers: Kolmogorov-Smirnov, and Wasserstein distance over the reference's deviation.

    `reference` is `thinned`. `known` says how many independent rows each sample is worth (default: its rows). The
    deviation is that of the reference. Where that misleads (outliers inflate it, or it is 0), the Kolmogorov-Smirnov
    distance counts as effect when it is the larger one: a tenth of the rows moved is as relevant as a tenth of a
    deviation.
    """
    if not reference.rows or not current.rows:
        return Comparison("ks", math.nan, math.nan, "wasserstein/sigma")
    known = known or Worth(reference.rows, current.rows)
    distance = _largest_gap(reference, current)
    p_value = _kolmogorov(distance, known)
    points = min(max(reference.rows, current.rows), MOST_POINTS)
    shares = (np.arange(points) + 0.5) / points
    with np.errstate(over="ignore", invalid="ignore"):
        apart = float(np.abs(reference.quantiles(shares) - current.quantiles(shares)).mean())
        moved = apart / reference.deviation if reference.deviation > 0 else math.inf if distance > 0 else 0.0
    edges = np.unique(reference.quantiles(np.arange(1, PSI_BINS) / PSI_BINS))
    counts = [
        np.diff(side.at_or_below(edges), prepend=0, append=side.rows).astype(np.int64)
        for side in (reference, current)
    ]
    psi = population_stability(*counts)
    error = 1 / math.sqrt(known.both)
    if distance > moved or not math.isfinite(moved):
        return Comparison("ks", p_value, distance, "ks distance", error / 2, distance, psi)
    return Comparison("ks", p_value, moved, "wasserstein/sigma", error, distance, psi)


def _largest_gap(reference: Numbers, current: Numbers) -> float:
    """Return the Kolmogorov-Smirnov distance: the shares at or below any value differ most at one of the reference's,
    or just below it (where only borders of groups are kept, at those alone).
    """
    points = reference.values
    gap = np.abs(reference.at_or_below(points) / reference.rows - current.at_or_below(points) / current.rows)
    if not reference.exact:
        return float(gap.max())
    under = np.abs(reference.under(points) / reference.rows - current.under(points) / current.rows)
    return float(max(gap.max(), under.max()))


def _kolmogorov(distance: float, worth: Worth) -> float:
    """Return the p-value of a Kolmogorov-Smirnov distance.

    Where the worth of the rows is an estimate, it is that over all the worths that may be true: what Student's t is to
    the normal distribution. Small samples are corrected as by Stephens (1970) then.
    """
    rows = max(1.0, worth.both)
    if math.isinf(worth.freedom):
        return float(stats.kstwo.sf(distance, round(rows)))
    true = stats.chi2.ppf(_QUANTILES, worth.freedom) / worth.freedom
    scaled = distance * (math.sqrt(rows) + 0.12 + 0.11 / math.sqrt(rows))
    return float(np.sum(special.kolmogorov(scaled * np.sqrt(true)) * _WEIGHTS))


def compare_counts(reference: Counts, current: Counts, known: Worth | None = None) -> Comparison:
    """Compare two rows of category counts: by two tests, and by the Jensen-Shannon distance.

    `known` is as in `compare_numbers`. The chi-squared contingency test asks all categories at once, and is deaf to a
    change of one of many; of more than two, the one whose share changed most is asked alone as well. Rare categories are
    pooled by their count in both samples together, which keeps the tests calibrated. The distance (base 2) has its expectation under "no difference" subtracted, so that many
    categories and few rows do not look like a change.
    """
    both = np.stack([reference, current]).astype(np.float64)
    if both.sum(axis=1).min() == 0:
        return Comparison("chi-squared", math.nan, math.nan, "jensen-shannon")
    psi = population_stability(reference, current)
    known = known or Worth(*both.sum(axis=1))
    both *= (np.array([known.reference, known.current]) / both.sum(axis=1))[:, None]
    table = pool_rare(both)
    totals = table.sum(axis=1)
    k = table.shape[1]
    if k < 2:
        return Comparison("chi-squared", math.nan, 0.0, "jensen-shannon", psi=psi)
    expected = totals[:, None] * table.sum(axis=0)[None, :] / totals.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    p_value = _tail(statistic, k - 1, known.freedom)
    if k > 2:
        p_value = combined((p_value, min(1.0, k * _tail(_of_one(table, expected), 1, known.freedom))))
    p, q = table[0] / totals[0], table[1] / totals[1]
    middle = (p + q) / 2
    divergence = float((special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / 2 / math.log(2))
    noise = (k - 1) * (1 / totals[0] + 1 / totals[1]) / (8 * math.log(2))
    effect = math.sqrt(max(0.0, divergence - noise))
    error = math.sqrt(1 / (8 * math.log(2) * known.both))
    return Comparison("chi-squared", p_value, effect, "jensen-shannon", error, statistic, psi)


def _tail(statistic: float, degrees: int, freedom: float) -> float:
    """Return the p-value of a chi-squared statistic whose scale is known with so many degrees of freedom."""
    if math.isinf(freedom):
        return float(stats.chi2.sf(statistic, degrees))
    return float(stats.f.sf(statistic / degrees, degrees, freedom))


def _of_one(table: Floats, expected: Floats) -> float:
    """Return the likelihood ratio statistic of the one category, against all others, whose share changed most.

    The likelihood ratio, since the tails of Pearson's statistic are too thin for few rows.
    """
    totals = table.sum(axis=1, keepdims=True)
    terms = special.rel_entr(table, expected) + special.rel_entr(totals - table, totals - expected)
    return 2 * float(terms.sum(axis=0).max())


def location_p_value(reference: Location, current: Location, rows: int, rows_now: int) -> float:
    """Return the p-value of Welch's t-test of the mean scores, for what the rows are worth; 1 where nothing varies."""
    known = worth((rows, reference.alike), (rows_now, current.alike))
    variance = reference.variance / known.reference + current.variance / known.current
    if not variance > 0:
        return 1.0
    distance = abs(current.value - reference.value) / math.sqrt(variance)
    return float(2 * stats.t.sf(distance, known.freedom))


def compare_shares(
    hits_a: int, rows_a: int, hits_b: int, rows_b: int, known: Worth | None = None
) -> Comparison:
    """Compare two proportions: two-sided z-test, Fisher's exact test where counts are small; effect is Cohen's h."""
    if rows_a == 0 or rows_b == 0 or hits_a + hits_b == 0:
        return Comparison("proportions", math.nan, 0.0, "cohen's h")
    p, q = hits_a / rows_a, hits_b / rows_b
    effect = abs(2 * math.asin(math.sqrt(p)) - 2 * math.asin(math.sqrt(q)))
    known = known or Worth(rows_a, rows_b)
    n, m, error = known.reference, known.current, 1 / math.sqrt(known.both)
    pooled = (p * n + q * m) / (n + m)
    if min(n, m) * min(pooled, 1 - pooled) < LEAST_EXPECTED:
        table = [[round(p * n), round((1 - p) * n)], [round(q * m), round((1 - q) * m)]]
        return Comparison("fisher", float(stats.fisher_exact(table)[1]), effect, "cohen's h", error, q - p)
    z = (q - p) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return Comparison(
        "proportions", float(2 * stats.t.sf(abs(z), known.freedom)), effect, "cohen's h", error, z
    )


def pool_rare(table: Floats) -> Floats:
    """Join the columns of a 2 x k table that are too rare for the chi-squared approximation into one.

    When even the pool is too rare, it joins the rarest column that is not.
    """
    totals = table.sum(axis=0)
    table, totals = table[:, totals > 0], totals[totals > 0]
    smaller_share = table.sum(axis=1).min() / max(1, totals.sum())
    order = np.argsort(totals, kind="stable")
    table, totals = table[:, order], totals[order]
    rare = int(np.searchsorted(totals * smaller_share, LEAST_EXPECTED, side="left"))
    if rare and totals[:rare].sum() * smaller_share < LEAST_EXPECTED and rare < len(totals):
        rare += 1
    if rare <= 1:
        return table
    return np.concatenate([table[:, :rare].sum(axis=1, keepdims=True), table[:, rare:]], axis=1)


def population_stability(reference: Counts, current: Counts) -> float:
    """Return the population stability index over given bins; empty bins count as half a row."""
    p = np.maximum(reference, 0.5) / max(1, reference.sum())
    q = np.maximum(current, 0.5) / max(1, current.sum())
    return float(np.sum((q - p) * np.log(q / p)))


def combined(p_values: Sequence[float]) -> float:
    """Return one p-value of several tests of the same question, however these depend on each other.

    The Cauchy combination of Liu and Xie (2020): nearly the smallest p-value times their number, and less of a loss when
    they agree.
    """
    within = np.clip(np.asarray(p_values, dtype=np.float64), 1e-300, _MOST_P)
    # For small p the tangent is 1 / (pi p), which it would lose digits on.
    scores = np.where(within < 1e-8, 1 / (np.pi * within), np.tan((0.5 - within) * np.pi))
    score = float(scores.mean())
    found = 1 / (math.pi * score) if score > 1e8 else 0.5 - math.atan(score) / math.pi
    return min(1.0, _TOO_BOLD * found)


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995); NaN stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    steps = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1])
    return adjusted

"""Two-sample tests that are calibrated for any sample sizes, and effect sizes that say whether a change matters.

A p-value answers "is it chance?", an effect size "is it large?": on many rows everything is significant, on few every
distance is large, so the drift monitor asks both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Cells with fewer expected rows than this make the chi-squared approximation unreliable (Cochran 1954).
LEAST_EXPECTED = 5.0
PSI_BINS = 10


@dataclass(frozen=True)
class Comparison:
    """One comparison of two samples; NaN p-value: nothing could be tested."""

    test: str
    p_value: float
    effect: float
    effect_name: str
    statistic: float = math.nan
    psi: float = math.nan


def compare_numbers(reference: Floats, current: Floats) -> Comparison:
    """Compare two samples of finite numbers: Kolmogorov-Smirnov, and Wasserstein distance over the reference's deviation.

    The deviation is that of the reference. Where that misleads (outliers inflate it, or it is 0), the
    Kolmogorov-Smirnov distance counts as effect when it is the larger one: a tenth of the rows moved is as relevant as
    a tenth of a deviation.
    """
    if not len(reference) or not len(current):
        return Comparison("ks", math.nan, math.nan, "wasserstein/sigma")
    a, b = np.sort(reference), np.sort(current)
    both = np.concatenate([a, b])
    both.sort(kind="stable")
    below_a = np.searchsorted(a, both, side="right") / len(a)
    below_b = np.searchsorted(b, both, side="right") / len(b)
    gap = np.abs(below_a - below_b)
    distance = float(gap.max())
    rows = len(a) * len(b) / (len(a) + len(b))
    p_value = float(stats.kstwo.sf(distance, max(1, round(rows))))
    sigma = float(a.std())
    moved = (
        float(np.sum(gap[:-1] * np.diff(both)) / sigma) if sigma > 0 else math.inf if distance > 0 else 0.0
    )
    psi = population_stability(*_binned(a, b))
    if distance > moved or not math.isfinite(moved):
        return Comparison("ks", p_value, distance, "ks distance", distance, psi)
    return Comparison("ks", p_value, moved, "wasserstein/sigma", distance, psi)


def compare_counts(reference: Counts, current: Counts) -> Comparison:
    """Compare two rows of category counts: chi-squared contingency test, and the Jensen-Shannon distance.

    Rare categories are pooled by their count in both samples together, which keeps the test calibrated. The distance
    (base 2) has its expectation under "no difference" subtracted, so that many categories and few rows do not look like
    a change.
    """
    table = pool_rare(np.stack([reference, current]))
    totals = table.sum(axis=1, dtype=np.float64)
    if totals.min() == 0:
        return Comparison("chi-squared", math.nan, math.nan, "jensen-shannon")
    psi = population_stability(reference, current)
    k = table.shape[1]
    if k < 2:
        return Comparison("chi-squared", math.nan, 0.0, "jensen-shannon", psi=psi)
    expected = totals[:, None] * table.sum(axis=0)[None, :] / totals.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    p_value = float(stats.chi2.sf(statistic, k - 1))
    p, q = table[0] / totals[0], table[1] / totals[1]
    middle = (p + q) / 2
    divergence = float((special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / 2 / math.log(2))
    noise = (k - 1) * (1 / totals[0] + 1 / totals[1]) / (8 * math.log(2))
    effect = math.sqrt(max(0.0, divergence - noise))
    return Comparison("chi-squared", p_value, effect, "jensen-shannon", statistic, psi)


def compare_shares(hits_a: int, rows_a: int, hits_b: int, rows_b: int) -> Comparison:
    """Compare two proportions: two-sided z-test, Fisher's exact test where counts are small; effect is Cohen's h."""
    if rows_a == 0 or rows_b == 0 or hits_a + hits_b == 0:
        return Comparison("proportions", math.nan, 0.0, "cohen's h")
    p, q, pooled = hits_a / rows_a, hits_b / rows_b, (hits_a + hits_b) / (rows_a + rows_b)
    effect = abs(2 * math.asin(math.sqrt(p)) - 2 * math.asin(math.sqrt(q)))
    least = min(rows_a, rows_b) * min(pooled, 1 - pooled)
    if least < LEAST_EXPECTED:
        table = [[hits_a, rows_a - hits_a], [hits_b, rows_b - hits_b]]
        return Comparison("fisher", float(stats.fisher_exact(table)[1]), effect, "cohen's h", q - p)
    z = (q - p) / math.sqrt(pooled * (1 - pooled) * (1 / rows_a + 1 / rows_b))
    return Comparison("proportions", float(2 * special.ndtr(-abs(z))), effect, "cohen's h", z)


def pool_rare(table: Counts) -> Counts:
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


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995); NaN stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    steps = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(steps[::-1])[::-1])
    return adjusted


def _binned(reference: Floats, current: Floats) -> tuple[Counts, Counts]:
    """Count both sorted samples in the bins between the reference's deciles."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    counts = [
        np.diff(np.searchsorted(s, edges, side="right"), prepend=0, append=len(s))
        for s in (reference, current)
    ]
    return counts[0], counts[1]

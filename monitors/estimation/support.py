"""How much of what was learnt speaks for the rows that are asked about.

A logistic regression is to tell the rows that were learnt from and those that are asked about; its odds are the
importance weights under which the former look like the latter (Shimodaira 2000, Bickel et al. 2009). Weighted rows
that are worth few (Kish 1965) say nothing: the window is then outside of what the reference supports.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy import special

from mlflow_flywheel.monitors.drift import sampled
from mlflow_flywheel.monitors.outcomes import Floats
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX
from mlflow_flywheel.pipelines.native_threads import on_one_thread

from .features import Features

# More rows of a side tell the shares of a few hundred terms no better.
_MOST_ROWS = 10_000
# Numbers further from the mean than so many deviations count as this far.
_FAR = 4.0
_LEVELS = 10
_STEPS = 25
_ENOUGH = 1e-6


@on_one_thread
def rows_alike(known: pa.Table, names: Sequence[str], asked: pa.Table) -> float:
    """Return how many rows of `known` (features by plain name, as a reference) speak for rows of the inference table."""
    features = Features(known, names)
    old, new = (
        features.of(sampled(side, _MOST_ROWS), prefix)
        for side, prefix in ((known, ""), (asked, FEATURE_PREFIX))
    )
    weights = weights_of(old, new, features.categorical)
    alike = float(weights.sum() ** 2 / (weights**2).sum())
    return alike * int(known.num_rows) / len(old)


def weights_of(known: Floats, asked: Floats, categorical: Sequence[bool]) -> Floats:
    """Return a weight for each known row, 1 on average, under which these look like the asked ones.

    Both are rows x features as of `Features`. Where the two sides look alike all weights are nearly 1: what the regression
    finds is drawn towards nothing by as much as it would find by chance.
    """
    design = _Design(known, categorical)
    old, new = (_thinned(side) for side in (known, asked))
    terms = np.vstack([design.of(old), design.of(new)])
    truth = np.repeat([0.0, 1.0], [len(old), len(new)])
    slopes, gain = _fitted(terms, truth)
    by_chance = terms.shape[1] - 1
    sure = max(0.0, 1 - by_chance / gain) if gain > 0 else 0.0
    odds = design.of(known) @ slopes * sure
    weights = np.exp(odds - odds.max())
    weights /= weights.mean()
    # Truncated as by Ionides (2008): one row must not speak for all.
    weights = np.minimum(weights, np.sqrt(len(weights)))
    return np.asarray(weights / weights.mean(), dtype=np.float64)


class _Design:
    """The terms of the regression: numbers and their squares, what is missing, and the frequent categories."""

    def __init__(self, known: Floats, categorical: Sequence[bool]) -> None:
        self._categorical = categorical
        with np.errstate(invalid="ignore", over="ignore"):
            present = np.maximum(np.isfinite(known).sum(axis=0), 1)
            self._middle = np.nansum(known, axis=0) / present
            self._spread = np.sqrt(np.nansum((known - self._middle) ** 2, axis=0) / present)

    def of(self, rows: Floats) -> Floats:
        """Return rows x terms, the first of them constant."""
        columns = [np.ones(len(rows))]
        for place, is_category in enumerate(self._categorical):
            values = rows[:, place]
            missing = np.isnan(values)
            columns.append(missing.astype(np.float64))
            if is_category:
                columns += [(values == level).astype(np.float64) for level in range(_LEVELS)]
            elif 0 < self._spread[place] < np.inf:
                scaled = (
                    np.where(missing, self._middle[place], values) - self._middle[place]
                ) / self._spread[place]
                scaled = np.clip(scaled, -_FAR, _FAR)
                columns += [scaled, scaled**2]
        return np.column_stack(columns)


def _thinned(rows: Floats) -> Floats:
    if len(rows) <= _MOST_ROWS:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), _MOST_ROWS, replace=False)]


def _fitted(terms: Floats, truth: Floats) -> tuple[Floats, float]:
    """Return slopes and twice the gain in log-likelihood over none; a prior of one deviation holds the slopes."""
    prior = np.ones(terms.shape[1])
    prior[0] = 1e-6
    share = float(truth.mean())
    slopes = np.zeros(terms.shape[1])
    slopes[0] = np.log(share) - np.log1p(-share)

    def height(at: Floats) -> float:
        z = terms @ at
        return float(truth @ z - np.logaddexp(0, z).sum() - prior[1:] @ at[1:] ** 2 / 2)

    base = reached = height(slopes)
    for _ in range(_STEPS):
        p = special.expit(terms @ slopes)
        slope = terms.T @ (truth - p) - prior * slopes
        curve = (terms * (p * (1 - p))[:, None]).T @ terms + np.diag(prior)
        step = np.linalg.solve(curve, slope)
        for _ in range(10):
            higher = height(slopes + step)
            if higher >= reached:
                break
            step /= 2
        else:
            break
        slopes = slopes + step
        gained, reached = higher - reached, higher
        if gained < _ENOUGH * (1 + abs(reached)):
            break
    return slopes, 2 * (reached - base)

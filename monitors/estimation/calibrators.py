"""What a stated probability is worth: calibrators fitted to what came true in the reference, and how sure they are.

Two are tried, and the one that predicts held-out blocks of time better is taken. Beta calibration (Kull, Silva Filho
and Flach 2017; Platt scaling with one slope for each end) is drawn towards the model's own probabilities when there are
few rows; isotonic regression must be better than it by more than chance, since it needs many rows. Both are fitted to
bootstrap replicates of the blocks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from mlflow_flywheel.monitors.outcomes import Floats

from .cells import Grid

Kind = Literal["beta", "isotonic"]
_FOLDS = 5
_STEPS = 30
_ENOUGH = 1e-5
# Precision of the prior on intercept and slopes around "as stated": a slope of 2 is one deviation away.
_PRIOR = np.array([0.01, 1.0, 1.0])
_AS_STATED = np.array([0.0, 1.0, 1.0])
_BOUND = 1e-4


@dataclass(frozen=True)
class Calibration:
    """Calibrated probabilities per cell: the fit's own first, then one row per bootstrap replicate.

    `shared` is the variance that the log-odds of all rows of one block have in common: what happens to a whole day and
    no feature tells. It is measured on blocks that were held out of the fit.
    """

    kind: Kind
    probability: Floats
    shared: float


def calibrate(grid: Grid, rows: Floats, hits: Floats, weights: Floats) -> Calibration:
    """Fit to `rows` and `hits` per block and cell, once for each row of block `weights` (the first is the sample)."""
    held_out = {kind: _held_out(kind, grid, rows, hits) for kind in ("beta", "isotonic")}
    kind = _better(held_out["beta"], held_out["isotonic"], rows, hits)
    probability = _FITS[kind](grid, weights @ rows, weights @ hits)
    return Calibration(kind, probability, shared_variance(held_out[kind], rows, hits))


def shared_variance(probability: Floats, rows: Floats, hits: Floats) -> float:
    """Return the variance of the log-odds between blocks, beyond what independent rows would show."""
    certain = rows * probability * (1 - probability)
    own = certain.sum(axis=1)
    surprise = (hits - rows * probability).sum(axis=1)
    return max(0.0, float((surprise**2 - own).sum() / max((own**2).sum(), 1e-12)))


def _held_out(kind: Kind, grid: Grid, rows: Floats, hits: Floats) -> Floats:
    """Return each block's probabilities per cell, fitted to the other folds' blocks."""
    fold = np.arange(len(rows)) % min(_FOLDS, len(rows))
    others = (fold != np.unique(fold)[:, None]).astype(np.float64)
    return _FITS[kind](grid, others @ rows, others @ hits)[fold]


def _better(beta: Floats, isotonic: Floats, rows: Floats, hits: Floats) -> Kind:
    gains = _losses(beta, rows, hits) - _losses(isotonic, rows, hits)
    error = gains.std() * np.sqrt(len(gains))
    return "isotonic" if gains.sum() > error else "beta"


def _losses(probability: Floats, rows: Floats, hits: Floats) -> Floats:
    p = np.clip(probability, _BOUND, 1 - _BOUND)
    return np.asarray(-(hits * np.log(p) + (rows - hits) * np.log1p(-p)).sum(axis=1), dtype=np.float64)


def _beta(grid: Grid, rows: Floats, hits: Floats) -> Floats:
    """Fit by Newton's method: to the first, and from there to all others together."""
    z = grid.logits
    terms = np.stack([np.ones(len(z)), -np.logaddexp(0, -z), np.logaddexp(0, z)], axis=1)
    squares = (terms[:, :, None] * terms[:, None, :]).reshape(len(z), 9)
    first = _climb(terms, squares, rows[:1], hits[:1], _AS_STATED[None, :])
    found = _climb(terms, squares, rows, hits, np.repeat(first, len(rows), axis=0))
    return np.asarray(special.expit(found @ terms.T), dtype=np.float64)


def _climb(terms: Floats, squares: Floats, rows: Floats, hits: Floats, start: Floats) -> Floats:
    """Climb to the most probable slopes; a step that leads down is halved, since Newton's may overshoot."""

    def height(slopes: Floats) -> Floats:
        odds = slopes @ terms.T
        fit = (hits * odds - rows * np.logaddexp(0, odds)).sum(axis=1)
        return np.asarray(fit - (_PRIOR * (slopes - _AS_STATED) ** 2).sum(axis=1) / 2, dtype=np.float64)

    found, high = start, height(start)
    for _ in range(_STEPS):
        p = special.expit(found @ terms.T)
        slope = (hits - rows * p) @ terms - _PRIOR * (found - _AS_STATED)
        curvature = ((rows * p * (1 - p)) @ squares).reshape(-1, 3, 3) + np.diag(_PRIOR)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        higher = height(found + step)
        for _ in range(_STEPS):
            down = higher < high - _ENOUGH
            if not down.any():
                break
            step[down] /= 2
            higher = height(found + step)
        found, high = found + step, higher
        if np.abs(step).max() < _ENOUGH:
            break
    return found


def _isotonic(grid: Grid, rows: Floats, hits: Floats) -> Floats:
    """Fit by pooling adjacent violators; cells without a row take the value between their neighbours'."""
    from sklearn.isotonic import isotonic_regression

    found = np.empty_like(rows)
    everywhere = np.arange(len(grid))
    for place, (n, k) in enumerate(zip(rows, hits, strict=True)):
        seen = np.flatnonzero(n)
        fitted = isotonic_regression(k[seen] / n[seen], sample_weight=n[seen], y_min=0, y_max=1)
        found[place] = np.interp(everywhere, seen, fitted)
    return found


_FITS = {"beta": _beta, "isotonic": _isotonic}

"""Metrics of labelled rows with bootstrap intervals that know that rows of one day are alike.

Every metric is computed from sums over blocks of rows; the bootstrap draws whole blocks with replacement and adds
their sums up again, so that it costs the same for a thousand rows and for a million. The area under the curve is no
such sum: it enters as its DeLong placement values (DeLong, DeLong and Clarke-Pearson 1988), whose mean is linear in
the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from mlflow_flywheel.pipelines.gate import PROBABILITY_FLOOR

from .outcomes import Codes, Floats, Outcomes

REPLICATES = 1000
# Each class is sorted for its AUC; of more classes it would take longer than anything else.
MOST_RANKED = 30


@dataclass(frozen=True)
class Measured:
    """Metrics of one sample and, under the same names, what they were in each bootstrap replicate."""

    metrics: dict[str, float]
    replicates: dict[str, Floats]
    rows: int
    blocks: int

    def interval(self, name: str, confidence: float) -> tuple[float, float]:
        """Return the two-sided interval of a metric; infinite where it is not known."""
        return quantiles(self.replicates[name], self.blocks, (1 - confidence) / 2)


def measure(sample: Outcomes, seed: int = 0, replicates: int = REPLICATES) -> Measured:
    """Measure labelled rows. Metrics that are not defined (one class only, no spread) are left out.

    Classifiers: `accuracy`, `f1` or `f1_macro`; with probabilities also `log_loss`, `brier`, `skill` (1 - log loss over
    the entropy of the rows' own base rate: it does not move with the base rate alone) and `auc` (of more than two classes the mean of each one's
    against all others).
    Regressors: `mae`, `rmse`, `r2`, `bias` (mean of predicted minus true), and `skill` (1 - mae over that of the rows'
    own median).
    """
    n_blocks = int(sample.blocks.max()) + 1 if len(sample) else 0
    if n_blocks == 0:
        return Measured({}, {}, 0, 0)
    weights = block_weights(n_blocks, seed, replicates)
    formula = _regression if sample.kind == "regression" else _classification
    with np.errstate(divide="ignore", invalid="ignore"):
        values = formula(sample, weights)
    known = {name: column for name, column in values.items() if math.isfinite(column[0])}
    return Measured(
        {name: float(column[0]) for name, column in known.items()},
        {name: column[1:] for name, column in known.items()},
        len(sample),
        n_blocks,
    )


def block_weights(n_blocks: int, seed: int, replicates: int = REPLICATES) -> Floats:
    """Return how often each block is drawn: first the sample itself (ones), then a row per bootstrap replicate."""
    rng = np.random.default_rng(seed)
    cells = (
        rng.integers(0, n_blocks, (replicates, n_blocks)) + np.arange(1, replicates + 1)[:, None] * n_blocks
    )
    weights = np.bincount(cells.ravel(), minlength=(replicates + 1) * n_blocks).astype(np.float64)
    weights = weights.reshape(replicates + 1, n_blocks)
    weights[0] = 1.0
    return weights


def quantiles(values: Floats, blocks: int, tail: float) -> tuple[float, float]:
    """Return the lower and upper `tail` quantile, widened for few blocks.

    Percentile intervals of a dozen blocks are too narrow; the correction is Hesterberg's ("What Teachers Should Know
    About the Bootstrap", 2015, section 4.3.2). One block alone says nothing about spread.
    """
    finite = values[np.isfinite(values)]
    if blocks < 2 or not len(finite):
        return -math.inf, math.inf
    widened = float(stats.norm.cdf(math.sqrt(blocks / (blocks - 1)) * stats.t.ppf(tail, blocks - 1)))
    low, high = np.quantile(finite, [widened, 1 - widened])
    return float(low), float(high)


def _classification(sample: Outcomes, weights: Floats) -> dict[str, Floats]:
    """Return each metric for each row of block weights."""
    add, count = _adder(sample, weights)
    truth, predicted, k = (
        sample.truth.astype(np.int64),
        sample.predicted.astype(np.int64),
        len(sample.classes),
    )
    n = add(np.ones(len(sample)))
    right = truth == predicted
    found, true_counts, predicted_counts = (
        count(truth[right], right, k),
        count(truth, None, k),
        count(predicted, None, k),
    )
    values = {"accuracy": add(right.astype(np.float64)) / n}
    f1 = 2 * found / (true_counts + predicted_counts)
    if sample.kind == "binary":
        values["f1"] = f1[:, 1]
        values["base_rate"] = true_counts[:, 1] / n
    else:
        values["f1_macro"] = np.nanmean(f1, axis=1)
    if sample.proba is None:
        return values
    known = truth >= 0
    of_truth = np.where(known, sample.proba[np.arange(len(truth)), np.maximum(truth, 0)], 0.0)
    log_loss = add(-np.log(np.clip(of_truth, PROBABILITY_FLOOR, 1.0))) / n
    entropy = special.entr(true_counts / n[:, None]).sum(axis=1)
    values["log_loss"] = log_loss
    values["skill"] = np.where(entropy > 0, 1 - log_loss / entropy, np.nan)
    if sample.kind == "binary":
        values["brier"] = add((sample.proba[:, 1] - (truth == 1)) ** 2) / n
    else:
        squares = (sample.proba**2).sum(axis=1) - 2 * of_truth + 1
        values["brier"] = add(squares) / n
    if k <= MOST_RANKED:
        area, influence = _mean_auc(truth, sample.proba)
        values["auc"] = area + add(influence) / n
    return values


def _mean_auc(truth: Codes, proba: Floats) -> tuple[float, Floats]:
    """Return the mean over the classes that are present of each one's AUC against all others, and each row's pull."""
    columns = (1,) if proba.shape[1] == 2 else range(proba.shape[1])
    found = [auc_with_influence(truth == column, proba[:, column]) for column in columns]
    known = [each for each in found if math.isfinite(each[0])]
    if not known:
        return math.nan, np.zeros(len(truth))
    areas, pulls = zip(*known, strict=True)
    return float(np.mean(areas)), np.asarray(np.mean(pulls, axis=0), dtype=np.float64)


def _regression(sample: Outcomes, weights: Floats) -> dict[str, Floats]:
    add, _ = _adder(sample, weights)
    errors = np.asarray(sample.predicted - sample.truth, dtype=np.float64)
    centred = np.asarray(sample.truth - sample.truth.mean(), dtype=np.float64)
    n = add(np.ones(len(sample)))
    absolute, squared = add(np.abs(errors)), add(errors**2)
    spread = add(centred**2) - add(centred) ** 2 / n
    constant = add(np.abs(sample.truth - np.median(sample.truth)))
    return {
        "mae": absolute / n,
        "rmse": np.sqrt(squared / n),
        "bias": add(errors) / n,
        "r2": np.where(spread > 0, 1 - squared / spread, np.nan),
        "skill": np.where(constant > 0, 1 - absolute / constant, np.nan),
    }


def auc_with_influence(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[float, Floats]:
    """Return the area under the ROC curve and how much each row pulls it (mean 0); NaN when a class is absent.

    The pulls are DeLong's placement values, computed from midranks (Sun and Xu 2014) in n log n.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return math.nan, np.zeros(len(positive))
    overall = stats.rankdata(score)
    placement = np.empty(len(score))
    placement[positive] = (overall[positive] - stats.rankdata(score[positive])) / n_negative
    placement[~positive] = 1 - (overall[~positive] - stats.rankdata(score[~positive])) / n_positive
    area = float(placement[positive].mean())
    scale = np.where(positive, len(score) / n_positive, len(score) / n_negative)
    return area, (placement - area) * scale


def _adder(
    sample: Outcomes, weights: Floats
) -> tuple[Callable[[Floats], Floats], Callable[[Codes, npt.NDArray[np.bool_] | None, int], Floats]]:
    """Return two functions that sum over rows under each row of block weights: values, and class codes per class."""
    blocks, n_blocks = sample.blocks, weights.shape[1]

    def add(values: Floats) -> Floats:
        return weights @ np.bincount(blocks, weights=values, minlength=n_blocks)

    def count(codes: Codes, of: npt.NDArray[np.bool_] | None, k: int) -> Floats:
        inside = blocks if of is None else blocks[of]
        known = codes >= 0
        cells = np.bincount(inside[known] * k + codes[known], minlength=n_blocks * k).astype(np.float64)
        return weights @ cells.reshape(n_blocks, k)

    return add, count

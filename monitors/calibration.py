"""Do the probabilities mean what they say? Answers in bins of their probability, against what came true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .outcomes import Outcomes

N_BINS = 10


@dataclass(frozen=True)
class Bin:
    """The rows of one tenth of the probabilities: how many, the sum of what was said, and how many came true."""

    rows: float = 0.0
    said: float = 0.0
    true: float = 0.0


def reliability(sample: Outcomes) -> tuple[Bin, ...]:
    """Return ten bins of equal width; of two classes by the second's probability, of more by the predicted one's.

    Empty for models without probabilities.
    """
    if sample.proba is None or len(sample) == 0:
        return ()
    if sample.kind == "binary":
        said, true = sample.proba[:, 1], sample.truth == 1
    else:
        said, true = sample.proba.max(axis=1), sample.proba.argmax(axis=1) == sample.truth
    place = np.minimum((said * N_BINS).astype(np.int64), N_BINS - 1)
    sums = [np.bincount(place, weights=w, minlength=N_BINS) for w in (np.ones(len(said)), said, true)]
    return tuple(Bin(*map(float, column)) for column in zip(*sums, strict=True))


def merged(first: Sequence[Bin], second: Sequence[Bin]) -> tuple[Bin, ...]:
    """Add bins of two samples; none is nothing."""
    if not first or not second:
        return tuple(first or second)
    return tuple(
        Bin(a.rows + b.rows, a.said + b.said, a.true + b.true) for a, b in zip(first, second, strict=True)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean distance of said and true over the rows."""
    rows = sum(each.rows for each in bins)
    return sum(abs(each.said - each.true) for each in bins) / rows if rows else 0.0

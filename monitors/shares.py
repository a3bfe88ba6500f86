"""Shares of rows, and how sure they are."""

from __future__ import annotations

import math
from statistics import NormalDist


def share_bounds(count: float, rows: int, confidence: float) -> tuple[float, float]:
    """Return the bounds below and above which the true share is not, each with this confidence (Wilson 1927).

    Without rows it may be anything.
    """
    if rows == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(confidence) ** 2
    share = count / rows
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = math.sqrt(z2 * (share * (1 - share) / rows + z2 / (4 * rows * rows))) / (1 + z2 / rows)
    return max(0.0, middle - half), min(1.0, middle + half)

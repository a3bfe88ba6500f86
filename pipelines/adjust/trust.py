"""Whether an adjustment is answered: only while it has lately been better than the model, beyond noise.

Proposals are made for every row, answered or not, and judged when the label comes: as they were when the row was
answered, so that nothing is ever judged on what it has learnt from (Dawid 1984).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .rows import Floats

ROWS = 200
LEAST_ROWS = 50
OPENS_AT = 2.0  # standard errors
CLOSES_AT = 1.0


class Trust(NamedTuple):
    """Whether proposals are answered, and by how many standard errors they have lately been better."""

    open: bool = False
    evidence: float = 0.0

    def judged(self, gains: Floats) -> Trust:
        """Judge by how much better than the model each of the newest proposals was, in the order of the answers."""
        recent = gains[-ROWS:]
        if len(recent) < LEAST_ROWS or not np.isfinite(recent).all():
            return Trust()
        mean, error = float(recent.mean()), float(recent.std(ddof=1)) / math.sqrt(len(recent))
        evidence = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
        evidence = float(np.clip(evidence, -99.0, 99.0))
        return Trust(evidence >= (CLOSES_AT if self.open else OPENS_AT), evidence)

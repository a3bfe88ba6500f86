"""Is a measure surely worse than a yardstick by more than is tolerated?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .floors import Floor
from .measures import Measured, quantiles
from .verdicts import Status


@dataclass(frozen=True)
class Check:
    """One question: how much worse (`change`, with its interval at the confidence), and how much is tolerated.

    `spread` is the standard deviation of `change`, `blocks` the fewest blocks of rows that it rests on. A `strict` one
    warns only of what is surely worse at all.
    """

    name: str
    metric: str
    change: float
    low: float
    high: float
    limit: float
    spread: float
    blocks: int
    strict: bool = False

    @property
    def status(self) -> Status:
        """`alarm` when it is surely worse than tolerated, `warn` when it looks so."""
        if self.low > self.limit:
            return "alarm"
        return "warn" if self.change > self.limit and (self.low > 0 or not self.strict) else "ok"

    def row(self) -> dict[str, Any]:
        """Return the evidence row."""
        return {
            "check": self.name,
            "metric": self.metric,
            "worse_by": self.change,
            "worse_by_low": finite(self.low),
            "worse_by_high": finite(self.high),
            "tolerated": self.limit,
            "status": self.status,
        }


def against(
    now: Measured, before: Measured, metric: str, margin: float, confidence: float, relative: bool = False
) -> Iterator[Check]:
    """Ask whether a metric is worse than it was; `relative`: a loss, by its share of what it was."""
    if metric not in now.metrics or metric not in before.metrics:
        return
    new, old = now.metrics[metric], before.metrics[metric]
    news, olds = now.replicates[metric], before.replicates[metric]
    if relative:
        if old <= 0:
            return
        change, changes = new / old - 1, news / np.where(olds > 0, olds, np.nan) - 1
    else:
        change, changes = old - new, olds - news
    blocks = min(now.blocks, before.blocks)
    low, high = quantiles(changes, blocks, 1 - confidence)
    name = f"{metric} against the reference"
    yield Check(name, metric, change, low, high, margin, _spread(changes, blocks), blocks)


def beyond(now: Measured, floor: Floor, confidence: float) -> Iterator[Check]:
    """Ask whether a metric is on the wrong side of a bound."""
    if floor.metric not in now.metrics:
        return
    sign = -1.0 if floor.sense == ">=" else 1.0
    changes = now.replicates[floor.metric] * sign - floor.limit * sign
    low, high = quantiles(changes, now.blocks, 1 - confidence)
    change = (now.metrics[floor.metric] - floor.limit) * sign
    yield Check(
        f"floor {floor}", floor.metric, change, low, high, 0.0, _spread(changes, now.blocks), now.blocks
    )


def loss_checks(
    now: Measured,
    before: Measured,
    regression: bool,
    loss_margin: float,
    ranking_margin: float,
    confidence: float,
) -> Iterator[Check]:
    """Compare with the yardstick by the loss (as skill where there are probabilities), and by the ranking."""
    if regression:
        yield from against(now, before, "mae", loss_margin, confidence, relative=True)
    elif "skill" in now.metrics and "skill" in before.metrics:
        yield from against(now, before, "skill", loss_margin, confidence)
    else:
        yield from against(now, before, "accuracy", loss_margin, confidence)
    yield from against(now, before, "auc", ranking_margin, confidence)


def status_of(checks: Iterable[Check]) -> Status:
    """Return the most severe status of checks."""
    statuses = {check.status for check in checks}
    return "alarm" if "alarm" in statuses else "warn" if "warn" in statuses else "ok"


def failed(checks: Iterable[Check]) -> str:
    """Say which checks failed, as the end of a sentence; empty when none did."""
    text, known = "", list(checks)
    for wanted, words in (("alarm", "surely"), ("warn", "perhaps")):
        worse = [c for c in known if c.status == wanted]
        if worse:
            text += f"; {words} worse: " + ", ".join(f"{c.name} by {c.change:.3f}" for c in worse)
    return text


def finite(value: float) -> float | None:
    """Return the value, or None where evidence can hold no such number."""
    return value if math.isfinite(value) else None


def _spread(changes: Any, blocks: int) -> float:
    known = changes[np.isfinite(changes)]
    # The bootstrap draws from n blocks as if they were all there are; of few blocks its spread is too small.
    return float(known.std() * math.sqrt(blocks / (blocks - 1))) if blocks > 1 and len(known) else math.inf

"""Does a version fail more often than the one before it? Requests, messages and rows that got no answer, counted.

Only what the model is to blame for counts: an error of its own, or no answer in time. What did not fit is the caller's
mistake, and a full disk is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

# One bad caller is no bad version: fewer failures, or all of them within ten minutes, say nothing.
LEAST_FAILURES, LEAST_SLOTS = 5, 2


@dataclass(frozen=True)
class Tally:
    """What a version did: answers, failures, and in how many slots of ten minutes there were failures."""

    answered: int = 0
    failed: int = 0
    failing_slots: int = 0

    @property
    def asked(self) -> int:
        return self.answered + self.failed

    @property
    def rate(self) -> float:
        """Return the share that failed, 0 when nothing was asked."""
        return self.failed / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Failures:
    """Failures of one deployment, before and now; `p_value` is how likely as many are when no more fail than before."""

    deployment: str
    before: Tally
    now: Tally
    p_value: float
    worse: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        said = f"{self.deployment}: the model failed {self.now.failed:,} of {self.now.asked:,} times"
        if not self.before.asked:
            return said
        return f"{said} ({self.now.rate:.2%}), the version before {self.before.failed:,} of {self.before.asked:,} ({self.before.rate:.2%})"


def can_judge(now: Mapping[str, Tally]) -> bool:
    """Tell whether any deployment has failures enough to be judged."""
    return any(
        tally.failed >= LEAST_FAILURES and tally.failing_slots >= LEAST_SLOTS for tally in now.values()
    )


def compare_failures(
    before: Mapping[str, Tally], now: Mapping[str, Tally], *, margin: float, alpha: float
) -> list[Failures]:
    """Compare each deployment with itself before, the worst first.

    It is worse when more than its share before and `margin` fail, and that is no chance by two exact tests: of the share
    against the one before and the margin, and of how the failures fall to the two versions, since the share before is
    only as well known as it was often asked. All deployments together err with at most `alpha`; 0 asks for no test.
    """
    compared = sum(1 for name in now if before.get(name, Tally()).asked)
    found = []
    for name, tally in now.items():
        was = before.get(name, Tally())
        p_value = _chance(was, tally, margin) if was.asked and tally.asked else 1.0
        enough = tally.failed >= LEAST_FAILURES and tally.failing_slots >= LEAST_SLOTS
        worse = enough and alpha > 0 and p_value <= alpha / max(1, compared)
        found.append(Failures(name, was, tally, p_value, worse))
    return sorted(found, key=lambda each: (not each.worse, each.p_value, -each.now.rate, each.deployment))


def _chance(was: Tally, now: Tally, margin: float) -> float:
    tolerated = min(1.0, was.rate + margin)
    of_share = float(binomtest(now.failed, now.asked, tolerated, alternative="greater").pvalue)
    failed = was.failed + now.failed
    if not failed:
        return 1.0
    share = now.asked / (was.asked + now.asked)
    of_fall = float(binomtest(now.failed, failed, share, alternative="greater").pvalue)
    return max(of_share, of_fall)

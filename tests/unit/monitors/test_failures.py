"""Failures: more of them than before are found, chance and one bad caller are not."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_flywheel.monitors.failures import Tally, can_judge, compare_failures

BEFORE = Tally(10_000, 10, 4)


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        (Tally(0, 5, 2), True),  # it answers nothing
        (Tally(950, 50, 3), True),
        (Tally(20_000_000, 800_000, 9), True),
        (Tally(995, 5, 2), False),  # more than before, but hardly any
        (Tally(0, 5, 1), False),  # one bad moment
        (Tally(1, 4, 2), False),  # too few to say
        (Tally(1000, 0, 0), False),
    ],
)
def test_a_version_that_fails_more_is_found(now: Tally, worse: bool) -> None:
    (found,) = compare_failures({"web": BEFORE}, {"web": now}, margin=0.01, alpha=0.025)
    assert found.worse is worse
    assert f"failed {now.failed:,} of {now.asked:,} times" in str(found) and "10 of 10,010 (0.10%)" in str(
        found
    )


def test_it_takes_more_than_the_versions_own_share_and_something_to_compare_with() -> None:
    now = {"web": Tally(900, 100, 5), "stream": Tally(500, 0, 0), "new": Tally(0, 900, 5)}
    worse, *others = compare_failures({"web": BEFORE, "stream": BEFORE}, now, margin=0.01, alpha=0.025)
    assert (worse.deployment, worse.worse) == ("web", True)
    assert [(each.deployment, each.worse) for each in others] == [("new", False), ("stream", False)]
    as_before = compare_failures({"web": Tally(9000, 1000, 9)}, {"web": now["web"]}, margin=0.01, alpha=0.025)
    little_known = compare_failures(
        {"web": Tally(1, 0, 0)}, {"web": Tally(900, 100, 5)}, margin=0.01, alpha=0.025
    )
    assert not as_before[0].worse and not little_known[0].worse
    assert not compare_failures({"web": BEFORE}, now, margin=0.01, alpha=0)[0].worse
    assert can_judge(now) and not can_judge({"stream": now["stream"]})


def test_chance_is_no_harm() -> None:
    """Both versions fail 3% of what they are asked; nothing is tolerated."""
    rng = np.random.default_rng(7)
    fooled = 0
    for _ in range(400):
        was, now = (int(rng.binomial(n, 0.03)) for n in (2000, 500))
        tallies = {"web": Tally(2000 - was, was, 9)}, {"web": Tally(500 - now, now, 9)}
        fooled += compare_failures(*tallies, margin=0.0, alpha=0.05)[0].worse
    assert fooled <= 0.05 * 400

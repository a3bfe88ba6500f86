"""Latency: a slower model is heard, a busy hour is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.looks import logged, look_of
from support.windows_of import WINDOW

from mlflow_flywheel.monitors.latency import LatencyMonitor
from mlflow_flywheel.monitors.verdicts import Verdict

N = 4000


def durations(seed: int, n: int = N, factor: float = 1.0, hours: int = 28 * 24) -> Any:
    """Return microseconds with a heavy tail and a load that wanders: neighbours share it."""
    rng = np.random.default_rng(seed)
    load = np.repeat(np.exp(rng.normal(0, 0.3, hours)), -(-n // hours))[:n]
    return np.int64(factor * load * 500 * np.exp(rng.normal(0, 0.5, n)))


def judged(now: Any, before: Any, **policy: Any) -> Verdict:
    rows = logged({"x": np.zeros(len(now))}, execution_duration_us=now)
    earlier = logged({"x": np.zeros(len(before))}, WINDOW.before(), execution_duration_us=before)
    return LatencyMonitor().look(look_of(rows, others=[earlier], **policy))


def test_a_model_that_takes_twice_as_long_is_an_alarm_with_both_times() -> None:
    verdict = judged(durations(1, factor=2.0), durations(2))
    assert (
        verdict.status == "alarm"
        and "web: p50 " in verdict.summary
        and "against the window before" in verdict.summary
    )
    assert verdict.metrics["slower"] > 0.5 and verdict.metrics["p99_ms"] > verdict.metrics["p50_ms"] > 0.8
    (p50, p99) = verdict.evidence
    assert (p50["slow"], p50["rows"], p99["above_bound"]) == (True, N, False)


def test_a_tail_that_grew_alone_is_heard_too() -> None:
    now = durations(1)
    now[::50] *= 20
    verdict = judged(now, durations(2))
    assert verdict.status == "alarm" and "p99" in verdict.summary and "p50" not in verdict.summary


def test_load_that_wanders_and_microseconds_that_round_are_no_alarm() -> None:
    told = [judged(durations(seed), durations(seed + 500)).status for seed in range(20)]
    assert told == ["ok"] * 20
    ticks = np.random.default_rng(0).integers(1, 3, N)
    assert judged(ticks + 2, ticks).status == "ok"


def test_a_bound_holds_without_any_window_before() -> None:
    now = durations(1)
    assert judged(now, now[:0]).status == "unknown"
    assert judged(now, now[:0], max_latency_ms="100").status == "ok"
    verdict = judged(now, now[:0], max_latency_ms="0.5")
    assert verdict.status == "alarm" and "above 0.5 ms" in verdict.summary


def test_the_margin_is_the_policys() -> None:
    slower = durations(1, factor=2.0), durations(2)
    assert judged(*slower, latency_margin="3").status == "ok"
    assert judged(durations(1, factor=1.25), durations(2), latency_margin="0.05").status == "alarm"


@pytest.mark.parametrize("rows", [0, 150])
def test_few_rows_are_no_verdict(rows: int) -> None:
    assert judged(durations(1, rows) if rows else np.zeros(0, np.int64), durations(2)).status == "unknown"

"""Does the model take longer to answer than it did?

The time that a row spent in the model, per deployment: its median and its 99th percentile against those of the window
before. Times come in batches and follow the load, so rows are not independent: each window is cut into spans, the
percentiles are taken in every span, and the ranks of the spans are compared (Mann-Whitney). An alarm needs a slow-down
that is no chance (Benjamini-Hochberg over all deployments) and that matters, or a broken bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .look import Look, Monitor
from .statistics import benjamini_hochberg
from .verdicts import Status, Verdict
from .windows import Window

MONITOR = "latency"
Floats = npt.NDArray[np.float64]

_COLUMNS = ("deployment", "mode", "event_time", "execution_duration_us")
_SPANS = 24
# Fewer spans with traffic than this, in either window, tell nothing about chance.
_LEAST_SPANS = 5
# The percentiles that are watched, and how many rows a span needs to have one.
_PERCENTILES = {"p50": (50.0, 5), "p99": (99.0, 100)}
# Times are whole microseconds per row: a step from 1 to 3 is the clock's, not the model's.
_LEAST_MS = 0.01


@dataclass(frozen=True)
class Pace:
    """One percentile of one deployment, in ms; `before` and `p_value` are NaN when there is nothing to compare with."""

    deployment: str
    mode: str
    percentile: str
    rows: int
    now: float
    before: float
    slower: float
    p_value: float

    def is_slow(self, alpha: float, margin: float) -> bool:
        """Whether the slow-down is no chance and matters."""
        more = self.before * self.slower
        return self.p_value <= alpha and self.slower > margin and more >= _LEAST_MS


class LatencyMonitor(Monitor):
    """See the module."""

    name = MONITOR
    series = (("p50_ms", "scoring_p50_ms"), ("p99_ms", "scoring_p99_ms"))

    def look(self, look: Look) -> Verdict:
        policy, window = look.policy, look.window
        now = _timed(look.rows)
        few = now.num_rows < policy.min_rows
        before = now.slice(0, 0) if few else _timed(look.read(window.before(), columns=_COLUMNS))
        paces = _adjusted(list(_paces(now, before, window)))
        metrics: dict[str, float] = {"rows": now.num_rows}
        for name in _PERCENTILES:
            metrics |= {f"{name}_ms": max(p.now for p in paces if p.percentile == name)} if paces else {}
        if few:
            said = f"{now.num_rows:,} timed rows, fewer than {policy.min_rows:,}: too few to judge"
            return Verdict(MONITOR, "unknown", said, window, metrics)
        bound, alpha = policy.max_latency_ms, round(1 - policy.confidence, 9)
        slow = [pace for pace in paces if pace.is_slow(alpha, policy.latency_margin)]
        beyond = [p for p in paces if bound is not None and p.percentile == "p99" and p.now > bound]
        compared = [pace for pace in paces if np.isfinite(pace.p_value)]
        if compared:
            metrics["slower"] = max(pace.slower for pace in compared)
        status: Status = "alarm" if slow or beyond else "ok" if compared or bound is not None else "unknown"
        summary = "; ".join(_sentences(paces, slow, beyond, bound, compared))
        return Verdict(
            MONITOR, status, summary, window, metrics, [_row(p, p in slow, p in beyond) for p in paces]
        )


def _timed(rows: pa.Table) -> pa.Table:
    rows = rows.select(list(_COLUMNS))
    return rows.filter(pc.is_valid(rows["execution_duration_us"]))


def _paces(now: pa.Table, before: pa.Table, window: Window) -> Iterator[Pace]:
    for name, mode in _deployments(now):
        own, earlier = (_times_of(rows, name, mode) for rows in (now, before))
        for percentile, (q, least) in _PERCENTILES.items():
            spans = [
                _by_span(*times, span, q, least)
                for times, span in ((own, window), (earlier, window.before()))
            ]
            typical, usual = (float(np.median(found)) if len(found) else np.nan for found in spans)
            enough = min(map(len, spans)) >= _LEAST_SPANS
            yield Pace(
                name,
                mode,
                percentile,
                len(own[1]),
                float(np.percentile(own[1], q)),
                float(np.percentile(earlier[1], q)) if len(earlier[1]) else np.nan,
                typical / usual - 1 if enough and usual > 0 else np.nan,
                _chance(*spans) if enough and usual > 0 else np.nan,
            )


def _deployments(rows: pa.Table) -> list[tuple[str, str]]:
    found = rows.group_by(["deployment", "mode"]).aggregate([]).to_pylist()
    return sorted((row["deployment"], row["mode"]) for row in found)


def _times_of(rows: pa.Table, deployment: str, mode: str) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the event times in microseconds and the times in the model in milliseconds."""
    own = rows.filter(pc.and_(pc.equal(rows["deployment"], deployment), pc.equal(rows["mode"], mode)))
    took = own["execution_duration_us"].to_numpy() / 1000.0
    return own["event_time"].cast(pa.int64()).to_numpy(), took


def _by_span(events: npt.NDArray[np.int64], took: Floats, window: Window, q: float, least: int) -> Floats:
    """Return the percentile of each span that has rows enough."""
    start, length = (int(value * 1e6) for value in (window.start.timestamp(), window.length.total_seconds()))
    spans = np.clip((events - start) * _SPANS // length, 0, _SPANS - 1)
    order = np.argsort(spans, kind="stable")
    parts = np.split(took[order], np.flatnonzero(np.diff(spans[order])) + 1)
    return np.array([np.percentile(part, q) for part in parts if len(part) >= least], dtype=np.float64)


def _chance(now: Floats, before: Floats) -> float:
    """Return the p-value of spans that are no slower than those before."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(now, before, alternative="greater").pvalue)


def _adjusted(paces: list[Pace]) -> list[Pace]:
    adjusted = benjamini_hochberg(np.array([pace.p_value for pace in paces], dtype=np.float64))
    return [replace(pace, p_value=float(p)) for pace, p in zip(paces, adjusted, strict=True)]


def _sentences(
    paces: Sequence[Pace],
    slow: Sequence[Pace],
    beyond: Sequence[Pace],
    bound: float | None,
    compared: Sequence[Pace],
) -> Iterator[str]:
    for pace in beyond:
        yield f"{pace.deployment}: {pace.percentile} {pace.now:.3g} ms, above {bound:g} ms"
    for pace in slow:
        yield (
            f"{pace.deployment}: {pace.percentile} {pace.now:.3g} ms, {pace.slower:+.0%} against the window before "
            f"({pace.before:.3g} ms)"
        )
    if not slow and not beyond:
        worst = max((p for p in paces if p.percentile == "p99"), key=lambda pace: pace.now)
        yield f"p99 {worst.now:.3g} ms in the model at most ({worst.deployment})"
        yield "no slower than the window before" if compared else "no window before to compare with"


def _row(pace: Pace, slow: bool, beyond: bool) -> dict[str, Any]:
    numbers = {
        "now_ms": pace.now,
        "before_ms": pace.before,
        "slower": pace.slower,
        "p_adjusted": pace.p_value,
    }
    return {
        "deployment": pace.deployment,
        "mode": pace.mode,
        "percentile": pace.percentile,
        "rows": pace.rows,
        **{name: value if np.isfinite(value) else None for name, value in numbers.items()},
        "slow": slow,
        "above_bound": beyond,
    }

"""Drawings of a back-test as inline SVG: metrics by period with their intervals, differences, reliability."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from .backtest import Backtest, Estimate, Period
from .backtest_words import better, interval
from .calibration import Bin

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 190, 52, 10, 10, 164
_SQUARE = 260
_MOST_TICKS = 6


class _Plane:
    """Places periods from left to right and values from bottom to top."""

    def __init__(self, periods: Sequence[Period], values: Sequence[float]) -> None:
        self.start, self.end = periods[0].window.start, periods[-1].window.end
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        self.low, self.high = low - room, high + room

    def x(self, moment: object) -> float:
        share = (moment - self.start) / (self.end - self.start)  # type: ignore[operator]
        return float(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))

    def middle(self, period: Period) -> float:
        return (self.x(period.window.start) + self.x(period.window.end)) / 2

    def y(self, value: float) -> float:
        return _BOTTOM - (value - self.low) / (self.high - self.low) * (_BOTTOM - _TOP)

    def frame(self, periods: Sequence[Period]) -> Iterator[str]:
        """Draw the marked periods, the grid and the ticks."""
        for period in periods:
            if period.trained_on:
                left, right = self.x(period.window.start), self.x(period.window.end)
                yield (
                    f'<rect class="marked" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
                    f'height="{_BOTTOM - _TOP}"/>'
                )
        for value in _ticks(self.low, self.high):
            y = self.y(value)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        step = max(1, math.ceil(len(periods) / _MOST_TICKS))
        for period in periods[::step]:
            x = self.x(period.window.start)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
            yield f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{period.window.start:%Y-%m-%d}</text>'


def lines(result: Backtest, metric: str) -> str:
    """Draw a metric of every version by period, with a band for its interval; a gap where nothing is known."""
    known = [e for period in result.periods for side in period.sides if (e := side.metrics.get(metric))]
    if not known:
        return ""
    plane = _Plane(result.periods, _extent(known))
    parts = [*plane.frame(result.periods)]
    for place, version in enumerate(result.versions):
        for run in _runs(result.periods, place, metric):
            parts += _band(run, place, plane)
            way = " L".join(f"{plane.middle(period):.1f} {plane.y(e.value):.1f}" for period, e in run)
            parts.append(f'<path class="line s{place}" d="M{way}"/>')
            for period, e in run:
                said = f"{period.window.start:%Y-%m-%d %H:%M}, version {version}: {interval(e)}"
                parts.append(
                    f'<circle class="s{place}" cx="{plane.middle(period):.1f}" cy="{plane.y(e.value):.1f}" r="2.6">'
                    f"<title>{escape(said)}</title></circle>"
                )
    return _svg(parts, f"{metric} by period")


def differences(result: Backtest, metric: str) -> str:
    """Draw the paired difference of each period with its interval; green is surely better, red surely worse."""
    known = [(period, e) for period in result.periods if (e := period.difference.get(metric))]
    if not known:
        return ""
    plane = _Plane(result.periods, [0.0, *_extent([e for _, e in known])])
    zero = plane.y(0.0)
    parts = [*plane.frame(result.periods)]
    parts.append(f'<line class="zero" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{zero:.1f}" y2="{zero:.1f}"/>')
    for period, e in known:
        x, colour = plane.middle(period), {True: "good", False: "bad", None: "even"}[better(metric, e)]
        said = escape(f"{period.window.start:%Y-%m-%d %H:%M}: {interval(e, signed=True)}")
        parts.append(f'<g class="{colour}"><title>{said}</title>')
        if e.low is not None and e.high is not None:
            ends = f'y1="{plane.y(e.low):.1f}" y2="{plane.y(e.high):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke-width="1.6"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{plane.y(e.value):.1f}" r="3.2"/></g>')
    return _svg(parts, f"difference of {metric} by period")


def reliability_chart(sides: Sequence[Sequence[Bin]]) -> str:
    """Draw what was said (across) against what came true (up)."""
    edge, size = 34, _SQUARE - 44

    def at(said: float, true: float) -> tuple[float, float]:
        return edge + said * size, 10 + (1 - true) * size

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, tick)
        parts.append(f'<line class="grid" x1="{edge}" x2="{edge + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{edge - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{size + 28}" text-anchor="middle">{tick:g}</text>')
    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    parts.append(f'<line class="zero" x1="{x0}" x2="{x1}" y1="{y0}" y2="{y1}" stroke-dasharray="4 4"/>')
    for place, bins in enumerate(sides):
        most = max((b.rows for b in bins), default=1.0) or 1.0
        points = [(*at(b.said / b.rows, b.true / b.rows), b) for b in bins if b.rows]
        way = " L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
        parts.append(f'<path class="line s{place}" d="M{way}"/>' if points else "")
        for x, y, b in points:
            said = f"said {b.said / b.rows:.3f}, true {b.true / b.rows:.3f}, {b.rows:,.0f} rows"
            radius = 2 + 4 * math.sqrt(b.rows / most)
            parts.append(
                f'<circle class="s{place}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{said}</title></circle>'
            )
    return (
        f'<svg viewBox="0 0 {_SQUARE} {_SQUARE}" style="max-width:360px" role="img" '
        f'aria-label="reliability">{"".join(parts)}</svg>'
    )


def _runs(periods: Sequence[Period], place: int, metric: str) -> Iterator[list[tuple[Period, Estimate]]]:
    """Yield stretches of neighbouring periods in which a metric is known."""
    run: list[tuple[Period, Estimate]] = []
    for period in periods:
        estimate = period.sides[place].metrics.get(metric)
        if estimate is not None:
            run.append((period, estimate))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _band(run: Sequence[tuple[Period, Estimate]], place: int, plane: _Plane) -> list[str]:
    sure = [(plane.middle(period), e) for period, e in run if e.low is not None and e.high is not None]
    if not sure:
        return []
    if len(sure) == 1:
        x, e = sure[0]
        ends = f'y1="{plane.y(e.low or 0.0):.1f}" y2="{plane.y(e.high or 0.0):.1f}"'
        return [f'<line class="s{place}" x1="{x:.1f}" x2="{x:.1f}" {ends} opacity=".5"/>']
    upper = [f"{x:.1f},{plane.y(e.high or 0.0):.1f}" for x, e in sure]
    lower = [f"{x:.1f},{plane.y(e.low or 0.0):.1f}" for x, e in reversed(sure)]
    return [f'<polygon class="band fill{place}" points="{" ".join(upper + lower)}"/>']


def _extent(estimates: Sequence[Estimate]) -> list[float]:
    return [value for e in estimates for value in (e.value, e.low, e.high) if value is not None]


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'

"""The verdicts of one model over event time, as one inline SVG: performance above, drift below, a link per window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from itertools import pairwise
from typing import Literal

_WIDTH, _LEFT, _RIGHT = 920, 52, 14
_UPPER = (52, 142)
_LOWER = (178, 238)
_HEIGHT = 262
_STEPS = [timedelta(hours=h) for h in (1, 3, 6, 12, 24, 48, 96, 168, 336)]
_MOST_TICKS = 9
# Labels of marks have two rows; one that fits in neither is left to the mark's own title.
_LABEL_ROWS = (_UPPER[0] - 8, _UPPER[0] - 20)
_LETTER = 6.4
_ALERTS_AT = _UPPER[1] + 11


@dataclass(frozen=True)
class Point:
    """One verdict: when its window ended, the number drawn (None: too little data), its interval, and its words.

    `reference` is what the version of that time did when it was validated; `link` leads to the window.
    """

    at: datetime
    status: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Mark:
    """Something that was done about the model at a time: a line with a label, or an `alert` without one."""

    at: datetime
    label: str
    text: str
    kind: Literal["promoted", "back", "refused", "note", "alert"]


@dataclass(frozen=True)
class Timeline:
    """What is drawn."""

    metric: str
    performance: Sequence[Point]
    drift: Sequence[Point]
    marks: Sequence[Mark] = ()
    drift_limit: float | None = None

    def svg(self) -> str:
        """Return the drawing, or an empty string when there is nothing to draw."""
        times = [*(p.at for p in (*self.performance, *self.drift)), *(m.at for m in self.marks)]
        if not times:
            return ""
        x = _Scale.over_time(min(times), max(times))
        y = self._performance_scale()
        size, label = f"0 0 {_WIDTH} {_HEIGHT}", escape(self._summary())
        parts = [
            f'<svg class="timeline" viewBox="{size}" role="group" aria-label="{label}">',
            *_axis(x),
            *self._upper(x, y),
            *self._lower(),
            *_marks(self.marks, x),
            *self._windows(x, y),
            "</svg>",
        ]
        return "\n".join(parts)

    def _summary(self) -> str:
        alarms = sum(point.status == "alarm" for point in (*self.performance, *self.drift))
        return f"{len(self.performance)} performance and {len(self.drift)} drift verdicts, {alarms} of them alarms"

    def _performance_scale(self) -> _Scale | None:
        known = [point for point in self.performance if point.value is not None]
        values = [v for p in known for v in (p.value, p.low, p.high, p.reference) if v is not None]
        return _Scale.over_values(min(values), max(values), _UPPER[1], _UPPER[0]) if values else None

    def _upper(self, x: _Scale, y: _Scale | None) -> Iterable[str]:
        references = [p for p in self.performance if p.reference is not None]
        reference = f"; dashed: at its validation, {references[-1].reference:.3f} now" if references else ""
        yield _lane(14, self.metric, f"on the labels that came{reference}")
        if y is None:
            yield f'<text class="tick" x="{_LEFT + 8}" y="{sum(_UPPER) / 2}">no labelled window yet</text>'
            return
        for value in y.ticks():
            yield from _level(y(value), f"{value:.3g}")
        if len(references) > 1:
            yield f'<polyline class="reference" points="{_steps(references, x, y)}"/>'
        known = [point for point in self.performance if point.value is not None]
        band = [p for p in known if p.low is not None and p.high is not None]
        if len(band) > 1:
            upper = [f"{x.time(p.at):.1f},{y(p.high or 0):.1f}" for p in band]
            lower = [f"{x.time(p.at):.1f},{y(p.low or 0):.1f}" for p in reversed(band)]
            yield f'<polygon class="band" points="{" ".join(upper + lower)}"/>'
        line = " ".join(f"{x.time(p.at):.1f},{y(p.value or 0):.1f}" for p in known)
        yield f'<polyline class="line" points="{line}"/>'

    def _lower(self) -> Iterable[str]:
        yield _lane(_LOWER[0] - 10, "Drift", "share of features that drifted")
        for value, text in ((0.0, "0"), (1.0, "100%")):
            yield from _level(_share(value), text)
        if self.drift_limit is not None:
            yield from _level(_share(self.drift_limit), f"{self.drift_limit:.0%}", "limit")

    def _windows(self, x: _Scale, y: _Scale | None) -> Iterable[str]:
        """Draw what was said of each window as one thing to point at, and to open."""
        performance, drift = ({p.at: p for p in points} for points in (self.performance, self.drift))
        ends = sorted({*performance, *drift})
        room = (_WIDTH - _LEFT - _RIGHT) / max(len(ends), 1)
        for end in ends:
            said = [point for point in (performance.get(end), drift.get(end)) if point is not None]
            shapes = [_area(x.time(end), room)]
            if end in drift:
                shapes.append(_bar(drift[end], x.time(end), min(max(room * 0.7, 1.5), 14)))
            if end in performance and y is not None:
                shapes.append(_dot(performance[end], x.time(end), y))
            yield _linked(said, "".join(shapes), end == ends[-1])


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over_time(cls, first: datetime, last: datetime) -> _Scale:
        # half a step of air on both sides, and some width for a single moment
        air = max((last - first) * 0.02, timedelta(minutes=30))
        return cls((first - air).timestamp(), (last + air).timestamp(), _LEFT, _WIDTH - _RIGHT)

    @classmethod
    def over_values(cls, low: float, high: float, start: float, end: float) -> _Scale:
        air = (high - low) * 0.12 or max(abs(high) * 0.05, 0.01)
        return cls(low - air, high + air, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def time(self, moment: datetime) -> float:
        return self(moment.timestamp())

    def ticks(self) -> list[float]:
        """Return the two to five round values between the ends."""
        rough = (self.high - self.low) / 3
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _axis(x: _Scale) -> Iterable[str]:
    first, last = (datetime.fromtimestamp(t, timezone.utc) for t in (x.low, x.high))
    for moment, label in _ticks(first, last):
        at = x.time(moment)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_UPPER[0]}" y2="{_LOWER[1]}"/>'
        yield f'<text class="tick middle" x="{at:.1f}" y="{_HEIGHT - 8}">{label}</text>'


def _ticks(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    span = last - first
    step = next((step for step in _STEPS if span / step <= _MOST_TICKS), None)
    if step is None:
        return _months(first, last)
    start = datetime(first.year, first.month, first.day, tzinfo=timezone.utc)
    moments = [start + i * step for i in range(1, int(span / step) + int(timedelta(days=1) / step) + 2)]
    form = "%d %b %H:%M" if step < timedelta(days=1) else "%d %b"
    return [(moment, moment.strftime(form).lstrip("0")) for moment in moments if first < moment < last]


def _months(first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    months = (last.year - first.year) * 12 + last.month - first.month
    every = max(1, -(-months // _MOST_TICKS))
    ticks = []
    for i in range(1, months + 1, every):
        year, month = divmod(first.month - 1 + i, 12)
        moment = datetime(first.year + year, month + 1, 1, tzinfo=timezone.utc)
        ticks.append((moment, moment.strftime("%b %Y" if month == 0 or i == 1 else "%b")))
    return ticks


def _steps(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    """Return the references as a line that jumps where the version changed."""
    corners = []
    for before, point in pairwise(points):
        corners += [(x.time(before.at), before.reference), (x.time(point.at), before.reference)]
    corners.append((x.time(points[-1].at), points[-1].reference))
    return " ".join(f"{left:.1f},{y(value or 0):.1f}" for left, value in corners)


def _lane(y: int, name: str, words: str) -> str:
    return f'<text class="lane" x="{_LEFT}" y="{y}"><tspan>{escape(name)}</tspan> {escape(words)}</text>'


def _level(y: float, text: str, kind: str = "grid") -> Iterable[str]:
    """Draw a line across with its value at the left."""
    yield f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield f'<text class="tick end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'


def _share(value: float) -> float:
    top, bottom = _LOWER
    return bottom - value * (bottom - top)


def _area(x: float, room: float) -> str:
    width = min(room, 40.0)
    left = min(max(x - width / 2, 0.0), _WIDTH - width)
    return (
        f'<rect class="area" x="{left:.1f}" y="{_UPPER[0]}" width="{width:.1f}" '
        f'height="{_LOWER[1] - _UPPER[0]}" rx="2"/>'
    )


def _bar(point: Point, x: float, width: float) -> str:
    if point.value is None:
        return ""
    height = max(_LOWER[1] - _share(point.value), 1.5)
    return (
        f'<rect class="bar {_class(point)}" x="{x - width / 2:.1f}" y="{_LOWER[1] - height:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}" rx="1"/>'
    )


def _dot(point: Point, x: float, y: _Scale) -> str:
    if point.value is None:
        return ""
    radius = 4.5 if point.status == "alarm" else 2.6
    return f'<circle class="{_class(point)}" cx="{x:.1f}" cy="{y(point.value):.1f}" r="{radius}"/>'


def _linked(said: Sequence[Point], shapes: str, newest: bool) -> str:
    """Return a window; the newest alone is reached by Tab, the others from there with the arrow keys."""
    words = "\n".join(f"{point.status}: {point.text}" for point in said)
    inner = f"<title>{said[0].at:%d %b %Y %H:%M}\n{escape(words)}</title>{shapes}"
    link = next((point.link for point in said if point.link), "")
    if not link:
        return f"<g>{inner}</g>"
    return f'<a class="window" href="{escape(link)}" tabindex="{0 if newest else -1}">{inner}</a>'


def _marks(marks: Sequence[Mark], x: _Scale) -> Iterable[str]:
    taken = [0.0 for _ in _LABEL_ROWS]
    for mark in sorted(marks, key=lambda mark: mark.at):
        at, title = x.time(mark.at), f"<title>{escape(mark.text)}</title>"
        if mark.kind == "alert":
            corners = f"{at:.1f},{_ALERTS_AT - 5} {at + 5:.1f},{_ALERTS_AT + 4} {at - 5:.1f},{_ALERTS_AT + 4}"
            yield f'<g class="mark alert">{title}<polygon points="{corners}"/></g>'
            continue
        half = len(mark.label) * _LETTER / 2
        row = next((i for i, end in enumerate(taken) if at - half >= end), None)
        label = ""
        if row is not None:
            taken[row] = at + half + 4
            middle = min(max(at, half), _WIDTH - half)
            label = f'<text class="tick middle" x="{middle:.1f}" y="{_LABEL_ROWS[row]}">{escape(mark.label)}</text>'
        yield (
            f'<g class="mark {mark.kind}">{title}'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_UPPER[0] - 4}" y2="{_LOWER[1]}"/>{label}</g>'
        )


def _class(point: Point) -> str:
    return point.status if point.status in ("ok", "warn", "alarm") else "unknown"

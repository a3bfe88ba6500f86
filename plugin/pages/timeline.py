"""The verdicts of one model over event time, as one inline SVG: performance above, drift below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from html import escape
from itertools import pairwise

_WIDTH, _LEFT, _RIGHT = 920, 52, 14
_UPPER = (44, 134)
_LOWER = (168, 228)
_HEIGHT = 252
_STEPS = [timedelta(hours=h) for h in (1, 3, 6, 12, 24, 48, 96, 168, 336)]
_MOST_TICKS = 9


@dataclass(frozen=True)
class Point:
    """One verdict: when its window ended, the number drawn (None: too little data), its interval, and its words.

    `reference` is what the version of that time did when it was validated.
    """

    at: datetime
    status: str
    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Mark:
    """Something that was done about the model at a time."""

    at: datetime
    label: str
    text: str
    promoted: bool


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
        parts = [
            f'<svg class="timeline" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._summary())}">',
            *_axis(x),
            *self._upper(x),
            *self._lower(x),
            *(_mark(mark, x) for mark in self.marks),
            "</svg>",
        ]
        return "\n".join(parts)

    def _summary(self) -> str:
        alarms = sum(point.status == "alarm" for point in (*self.performance, *self.drift))
        return f"{len(self.performance)} performance and {len(self.drift)} drift verdicts, {alarms} of them alarms"

    def _upper(self, x: _Scale) -> Iterable[str]:
        top, bottom = _UPPER
        references = [p for p in self.performance if p.reference is not None]
        reference = f"; dashed: at its validation, {references[-1].reference:.3f} now" if references else ""
        yield _lane(12, self.metric, f"on the labels that came{reference}")
        known = [point for point in self.performance if point.value is not None]
        values = [v for p in known for v in (p.value, p.low, p.high, p.reference) if v is not None]
        if not values:
            yield f'<text class="tick" x="{_LEFT + 8}" y="{(top + bottom) / 2}">no labelled window yet</text>'
            return
        y = _Scale.over_values(min(values), max(values), bottom, top)
        for value in y.ticks():
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            yield f'<text class="tick end" x="{_LEFT - 6}" y="{y(value) + 3.5:.1f}">{value:.3g}</text>'
        if len(references) > 1:
            yield f'<polyline class="reference" points="{_steps(references, x, y)}"/>'
        band = [p for p in known if p.low is not None and p.high is not None]
        if len(band) > 1:
            upper = [f"{x.time(p.at):.1f},{y(p.high or 0):.1f}" for p in band]
            lower = [f"{x.time(p.at):.1f},{y(p.low or 0):.1f}" for p in reversed(band)]
            yield f'<polygon class="band" points="{" ".join(upper + lower)}"/>'
        line = " ".join(f"{x.time(p.at):.1f},{y(p.value or 0):.1f}" for p in known)
        yield f'<polyline class="line" points="{line}"/>'
        for p in known:
            radius = 4.5 if p.status == "alarm" else 2.6
            at = y(p.value or 0)
            yield f'<circle class="{_class(p)}" cx="{x.time(p.at):.1f}" cy="{at:.1f}" r="{radius}">{_title(p)}</circle>'

    def _lower(self, x: _Scale) -> Iterable[str]:
        top, bottom = _LOWER
        yield _lane(top - 10, "Drift", "share of features that drifted")
        y = _Scale(0.0, 1.0, bottom, top)
        for value, text in ((0.0, "0"), (1.0, "100%")):
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            yield f'<text class="tick end" x="{_LEFT - 6}" y="{y(value) + 3.5:.1f}">{text}</text>'
        if self.drift_limit is not None:
            at = y(self.drift_limit)
            yield f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield f'<text class="tick end" x="{_LEFT - 6}" y="{at + 3.5:.1f}">{self.drift_limit:.0%}</text>'
        room = (_WIDTH - _LEFT - _RIGHT) / max(len(self.drift), 1)
        width = min(max(room * 0.7, 1.5), 14)
        for p in self.drift:
            if p.value is not None:
                height = max(bottom - y(p.value), 1.5)
                left = x.time(p.at) - width / 2
                yield (
                    f'<rect class="{_class(p)}" x="{left:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}" rx="1">{_title(p)}</rect>'
                )


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


def _mark(mark: Mark, x: _Scale) -> str:
    at = x.time(mark.at)
    kind = "promoted" if mark.promoted else "refused"
    return (
        f'<g class="mark {kind}"><title>{escape(mark.text)}</title>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_UPPER[0] - 4}" y2="{_LOWER[1]}"/>'
        f'<text class="tick middle" x="{at:.1f}" y="{_UPPER[0] - 8}">{escape(mark.label)}</text></g>'
    )


def _class(point: Point) -> str:
    return point.status if point.status in ("ok", "warn", "alarm") else "unknown"


def _title(point: Point) -> str:
    return f"<title>{point.at:%d %b %Y %H:%M}: {escape(point.status)}. {escape(point.text)}</title>"

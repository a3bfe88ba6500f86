"""A column of the reference and of the window as one small inline SVG: bars behind, a line or bars before them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from .column_drift import FEWEST_NAMED, shortened
from .samples import Categories, Column, Numbers, Values

_WIDTH, _HEIGHT, _BOTTOM = 300, 116, 96
_BINS = 24
_MOST_CATEGORIES = 7
_ROW, _NAME_WIDTH = 22, 104
_OTHER = "(other)"
# Longer tails are drawn as one bar at each end.
_TAIL = 0.01


def distributions(reference: Column, current: Column) -> str:
    """Return the drawing, or nothing for what cannot be drawn."""
    if reference.numbers is not None and current.numbers is not None:
        return _numbers(reference.numbers, current.numbers)
    if reference.categories is not None and current.categories is not None:
        return _categories(reference.categories, current.categories)
    return ""


def _numbers(reference: Numbers, current: Numbers) -> str:
    known = [side for side in (reference, current) if side.rows]
    if not known:
        return ""
    ends = np.array([side.quantiles(np.array([_TAIL, 1 - _TAIL])) for side in known])
    low, high = float(ends.min()), float(ends.max())
    if not np.isfinite(high - low):
        return ""
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, _BINS + 1)
    shares = [_shares(side, edges) for side in (reference, current)]
    top = max(float(side.max()) for side in shares) or 1.0
    step = _WIDTH / _BINS
    heights = [side / top * (_BOTTOM - 6) for side in shares]
    parts = [
        f'<rect class="before" x="{i * step:.1f}" y="{_BOTTOM - h:.1f}" width="{step:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(heights[0])
        if h > 0
    ]
    way = " ".join(
        f"L{i * step:.1f} {_BOTTOM - h:.1f} L{(i + 1) * step:.1f} {_BOTTOM - h:.1f}"
        for i, h in enumerate(heights[1])
    )
    parts.append(f'<path class="now" d="M0 {_BOTTOM} {way} L{_WIDTH} {_BOTTOM}"/>')
    parts.append(f'<line class="grid" x1="0" x2="{_WIDTH}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>')
    for x, anchor, value in ((0, "start", low), (_WIDTH, "end", high)):
        parts.append(f'<text x="{x}" y="{_BOTTOM + 15}" text-anchor="{anchor}">{value:.4g}</text>')
    return _svg(parts, _HEIGHT)


def _shares(side: Numbers, edges: Values) -> Values:
    """Return the share of the rows in each bin; what lies beyond the ends counts in the last bin there."""
    if not side.rows:
        return np.zeros(len(edges) - 1)
    counts = np.diff(side.at_or_below(edges[1:-1]), prepend=0, append=side.rows)
    return np.asarray(counts / side.rows)


def _categories(reference: Categories, current: Categories) -> str:
    names, old, new = reference.beside(current)
    before, now = (np.asarray(side / max(1, side.sum()), dtype=np.float64) for side in (old, new))
    nameable = np.maximum(old, new)[:-1] >= FEWEST_NAMED
    largest = np.argsort(-np.maximum(before, now)[:-1], kind="stable")
    order = [int(i) for i in largest if nameable[i]][:_MOST_CATEGORIES]
    bars = [(shortened(names[i]), float(before[i]), float(now[i])) for i in order]
    rest = (_OTHER, float(before.sum() - before[order].sum()), float(now.sum() - now[order].sum()))
    if max(rest[1:]) > 1e-9:
        bars.append(rest)
    top = max((max(old_share, share) for _, old_share, share in bars), default=1.0) or 1.0
    return _svg(
        [part for place, bar in enumerate(bars) for part in _bar(place, *bar, top)], _ROW * len(bars) + 4
    )


def _bar(place: int, name: str, before: float, now: float, top: float) -> Sequence[str]:
    y, room = place * _ROW, _WIDTH - _NAME_WIDTH - 44
    label = name if len(name) <= 16 else name[:15] + "…"
    return [
        f'<text x="{_NAME_WIDTH - 6}" y="{y + 14}" text-anchor="end">{escape(label)}<title>{escape(name)}</title></text>',
        f'<rect class="before" x="{_NAME_WIDTH}" y="{y + 3}" width="{max(0.0, before) / top * room:.1f}" height="7"/>',
        f'<rect class="now" x="{_NAME_WIDTH}" y="{y + 10}" width="{max(0.0, now) / top * room:.1f}" height="7"/>',
        f'<text x="{_WIDTH}" y="{y + 14}" text-anchor="end">{now:.1%}</text>',
    ]


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="reference and window">{"".join(parts)}</svg>'

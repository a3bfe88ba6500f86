"""Every monitor there is, in the order in which their verdicts are shown."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .look import Monitor

# Its name, module and class. A module is imported when its monitor is asked for: whoever only needs the names (the
# policy, the help) does not wait for numpy and scipy.
_MONITORS = {
    "drift": "drift:DriftMonitor",
    "performance": "performance:PerformanceMonitor",
    "quality": "quality:QualityMonitor",
    "latency": "latency:LatencyMonitor",
    "freshness": "freshness:FreshnessMonitor",
    "relevance": "relevance:RelevanceMonitor",
}
NAMES = tuple(_MONITORS)


def monitors(chosen: Iterable[str] = NAMES) -> list[Monitor]:
    """Return the monitors of these names, in their own order."""
    wanted = set(chosen)
    return [_monitor(place) for name, place in _MONITORS.items() if name in wanted]


def _monitor(place: str) -> Monitor:
    module, _, kind = place.partition(":")
    made: Monitor = getattr(import_module(f".{module}", __package__), kind)()
    return made

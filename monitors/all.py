"""Every monitor there is, in the order in which their verdicts are shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from .verdicts import Verdict

if TYPE_CHECKING:
    from .look import Look, Monitor

_log = logging.getLogger(__name__)

# Its name, module and class. A module is imported when its monitor is asked for: whoever only needs the names (the
# policy, the help) does not wait for numpy and scipy.
_MONITORS = {
    "drift": "drift:DriftMonitor",
    "performance": "performance:PerformanceMonitor",
    "estimation": "estimation.monitor:EstimationMonitor",
    "slices": "slices:SlicesMonitor",
    "quality": "quality:QualityMonitor",
    "latency": "latency:LatencyMonitor",
    "freshness": "freshness:FreshnessMonitor",
    "relevance": "relevance:RelevanceMonitor",
    "multivariate": "multivariate:MultivariateMonitor",
}
NAMES = tuple(_MONITORS)


def monitors(chosen: Iterable[str] = NAMES) -> list[Monitor]:
    """Return the monitors of these names, in their own order."""
    wanted = set(chosen)
    return [_monitor(place) for name, place in _MONITORS.items() if name in wanted]


def ask(watching: Sequence[Monitor], look: Look) -> list[Verdict]:
    """Ask every monitor; one that fails says so, and stops no other."""
    found = []
    for monitor in watching:
        try:
            verdict = monitor.look(look)
        except Exception as error:  # noqa: BLE001 - what the other monitors see must be heard
            _log.exception("the %s monitor of %s failed", monitor.name, look.model)
            said = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
            verdict = Verdict(monitor.name, "unknown", said, look.window)
        if verdict is not None:
            found.append(verdict)
    return found


def _monitor(place: str) -> Monitor:
    module, _, kind = place.partition(":")
    made: Monitor = getattr(import_module(f".{module}", __package__), kind)()
    return made

"""Going on through trouble that passes: repeat with growing pauses, until it works or the worker is told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from mlflow_flywheel.pipelines.errors import FlywheelError

from .stats import StatsKeeper

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Stopped(Exception):
    """The worker was told to stop while something did not work; what it held is not acknowledged and comes again."""


class Patience:
    """Retries what fails in a retryable way; the present trouble is in the log once and in the statistics."""

    def __init__(self, stop: threading.Event, stats: StatsKeeper) -> None:
        self._stop = stop
        self._stats = stats

    def insist(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, at last.

        Raises its error when that is not retryable, and Stopped when the stop event is set in a pause.
        """
        pause = _FIRST_PAUSE
        trouble: str | None = None
        while True:
            try:
                result = attempt()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                if error.message != trouble:
                    trouble = error.message
                    _log.warning("%s; trying again", trouble)
                    self._stats.note(trouble=trouble)
            else:
                if trouble is not None:
                    _log.warning("it works again after: %s", trouble)
                    self._stats.note(trouble=None)
                return result
            if self._stop.wait(pause):
                raise Stopped
            pause = min(2 * pause, _LONGEST_PAUSE)

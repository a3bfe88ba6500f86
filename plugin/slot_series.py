"""Metric series in MLflow with a point for every ten minutes that ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .usage_records import SLOT, slot_of

# A row is in the inference table some seconds after its answer, a count in the records somewhat later.
_SETTLED = SLOT / 5
_LOOKS_BACK = timedelta(days=1)


class SlotSeries:
    """Adds the points that have become due when it is called; a point that is written again is the same point.

    `tell` adds those of the slot that ended at a moment.
    """

    def __init__(self, tell: Callable[[Context, datetime], None]) -> None:
        self._tell = tell
        self._told: datetime | None = None

    def log(self, context: Context) -> None:
        """Tell every slot that has ended since the last call, at first the newest alone.

        Raises Unavailable when MLflow is away; then they are told later, those of the last day at least.
        """
        newest = slot_of(utc_now() - _SETTLED)
        end = newest if self._told is None else max(self._told + SLOT, newest - _LOOKS_BACK)
        while end <= newest:
            self._tell(context, end)
            self._told = end
            end += SLOT

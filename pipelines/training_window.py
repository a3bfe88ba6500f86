"""When the rows happened that a version was trained on, as far as anybody wrote it down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput
from .lineage import Lineage
from .schema import TIMESTAMP
from .times import as_utc, parse_time

TRAINING_START_TAG = "flywheel.training_start"
TRAINING_END_TAG = "flywheel.training_end"


def window_tags(start: datetime | str, end: datetime | str) -> dict[str, str]:
    """Return the tags of a version that was trained on what happened from `start` up to `end`.

    Raises BadInput for what is no time, or a window that ends before it starts.
    """
    try:
        first, last = parse_time(start), parse_time(end)
    except ValueError:
        raise BadInput(
            f"training window ({start!r}, {end!r}) does not hold two times; give datetimes or ISO 8601, such as "
            "('2013-01-01', '2013-02-01')"
        ) from None
    if last <= first:
        raise BadInput(
            f"training window ({start!r}, {end!r}) ends before it starts; give the earlier time first"
        )
    return {TRAINING_START_TAG: first.isoformat(), TRAINING_END_TAG: last.isoformat()}


@dataclass(frozen=True)
class TrainingWindow:
    """Event times a version was trained on, [start, end), and held out until `chosen_end`; None where not known.

    A start that is not known means that everything before the end may have been trained on. `source` says in words
    where this was found, or why it was not.
    """

    source: str
    start: datetime | None = None
    end: datetime | None = None
    chosen_end: datetime | None = None

    @classmethod
    def of_lineage(cls, lineage: Lineage) -> TrainingWindow:
        """Return the window of a version that a retraining made; the gate judged it on what was held out."""
        start, end, chosen = map(as_utc, (lineage.start, lineage.holdout_start, lineage.as_of))
        length = lineage.windows.get(lineage.chosen_window or "")
        if length is not None:
            start = max(start, end - length)
        return cls("the lineage of its retraining", start, end, chosen)

    @property
    def known(self) -> bool:
        return self.end is not None

    def trained_on(self, event_times: pa.ChunkedArray) -> int:
        """Count the moments inside the training window; 0 when it is not known."""
        return _inside(event_times, self.start, self.end) if self.end is not None else 0

    def chosen_on(self, event_times: pa.ChunkedArray) -> int:
        """Count the moments of the hold-out on which the version was chosen."""
        return _inside(event_times, self.end, self.chosen_end) if self.chosen_end is not None else 0

    def __str__(self) -> str:
        if self.end is None:
            return f"not known: {self.source}"
        start = f"{self.start:%Y-%m-%d %H:%M}" if self.start else "the beginning"
        chosen = (
            f", chosen on what followed until {self.chosen_end:%Y-%m-%d %H:%M}" if self.chosen_end else ""
        )
        return f"{start} to {self.end:%Y-%m-%d %H:%M} UTC{chosen} (from {self.source})"


def _inside(event_times: pa.ChunkedArray, start: datetime | None, end: datetime | None) -> int:
    inside = pc.less(event_times, pa.scalar(end, TIMESTAMP))
    if start is not None:
        inside = pc.and_(inside, pc.greater_equal(event_times, pa.scalar(start, TIMESTAMP)))
    return int(np.count_nonzero(inside.to_numpy()))

"""Which positions of a stream are in the inference table: how a redelivered message is told from a new one.

A message is delivered again when its worker died between logging and acknowledging it. Its position (ledger, entry,
index in its batch) is the same then. Positions arrive nearly in order, so they are kept as intervals: a stream without
gaps is one pair of numbers per ledger, however long it is.
"""

from __future__ import annotations

import bisect
import json
from pathlib import Path

_MAX_INTERVALS = 50_000
_INDEX_BITS = 20
_BEYOND = 1 << 62


class Positions:
    """The set of logged positions of all streams of one table.

    Memory is bounded: beyond 50,000 intervals in a ledger the oldest are forgotten, which is far more than the
    messages that a consumer can hold unacknowledged.
    """

    def __init__(self, state: dict[str, list[list[int]]] | None = None) -> None:
        self._state = state or {}

    def add(self, position: tuple[str, int, int, int]) -> bool:
        """Add (topic, ledger, entry, batch index); return whether it was new."""
        topic, ledger, entry, index = position
        # the first message of every entry, and all others: each of the two runs without gaps where it can
        if index <= 0:
            return _insert(self._state.setdefault(f"{topic}|{ledger}|first", []), entry)
        return _insert(self._state.setdefault(f"{topic}|{ledger}|rest", []), entry << _INDEX_BITS | index)

    def save(self, path: Path) -> None:
        """Write atomically."""
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(self._state))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Positions:
        """Read what `save` wrote; empty when there is no file."""
        try:
            return cls(json.loads(path.read_text()))
        except FileNotFoundError:
            return cls()


def _insert(intervals: list[list[int]], value: int) -> bool:
    """Insert a number into sorted, disjoint, closed intervals; return False when it was in one."""
    at = bisect.bisect_right(intervals, [value, _BEYOND])
    before = intervals[at - 1] if at else None
    after = intervals[at] if at < len(intervals) else None
    if before and before[0] <= value <= before[1]:
        return False
    joins_before = before is not None and before[1] == value - 1
    joins_after = after is not None and after[0] == value + 1
    if before is not None and after is not None and joins_before and joins_after:
        before[1] = after[1]
        del intervals[at]
    elif before is not None and joins_before:
        before[1] = value
    elif after is not None and joins_after:
        after[0] = value
    else:
        intervals.insert(at, [value, value])
        if len(intervals) > _MAX_INTERVALS:
            del intervals[0]
    return True

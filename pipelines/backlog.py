"""What is in the spool and not in a table: rows on their way, and rows that a table would not take."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .spool import PREDICTIONS, model_spool
from .spool_rows import rows_set_aside

_SLOT = "slot-*"
_SEGMENTS = ("*.seg", "*.open")


@dataclass(frozen=True)
class Backlog:
    """`lag_seconds` is how long the longest waiting segment has been waiting since it was last written to."""

    waiting_bytes: int
    lag_seconds: float
    rows_set_aside: int


def backlog_of(root: str | Path, model_name: str) -> Backlog:
    """Look at the predictions of one model in the spool."""
    folder = model_spool(root, model_name) / PREDICTIONS
    written = [found for found in _segments(folder, _SLOT) if found.st_size]
    now = time.time()
    oldest = min((found.st_mtime for found in written), default=now)
    size = sum(found.st_size for found in written)
    return Backlog(size, max(now - oldest, 0.0), rows_set_aside(folder))


def waiting_bytes(root: Path) -> int:
    """Return how much of all models' predictions and labels no commit has taken yet."""
    return sum(found.st_size for found in _segments(root, f"*/*/{_SLOT}"))


def _segments(folder: Path, slots: str) -> Iterator[os.stat_result]:
    for pattern in _SEGMENTS:
        for path in folder.glob(f"{slots}/{pattern}"):
            try:
                yield path.stat()
            except FileNotFoundError:  # committed meanwhile
                continue

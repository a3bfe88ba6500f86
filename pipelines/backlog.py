"""What of a model's spool is not in the inference table: rows on their way, and rows that the table would not take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .spool import PREDICTIONS, model_spool
from .spool_rows import rows_set_aside


@dataclass(frozen=True)
class Backlog:
    """`lag_seconds` is how long the longest waiting segment has been waiting since it was last written to."""

    waiting_bytes: int
    lag_seconds: float
    rows_set_aside: int


def backlog_of(root: str | Path, model_name: str) -> Backlog:
    """Look at the predictions of one model in the spool."""
    folder = model_spool(root, model_name) / PREDICTIONS
    size, oldest = 0, time.time()
    for pattern in ("slot-*/*.seg", "slot-*/*.open"):
        for path in folder.glob(pattern):
            try:
                found = path.stat()
            except FileNotFoundError:  # committed meanwhile
                continue
            size += found.st_size
            if found.st_size:
                oldest = min(oldest, found.st_mtime)
    return Backlog(size, max(time.time() - oldest, 0.0), rows_set_aside(folder))

"""How much waits in the spool."""

from __future__ import annotations

from pathlib import Path


def waiting_bytes(spool: Path) -> int:
    """Return how much is in the spool that no commit has taken yet."""
    waiting = 0
    for pattern in ("*/*/*/*.seg", "*/*/*/*.open"):
        for path in spool.glob(pattern):
            try:
                waiting += path.stat().st_size
            except FileNotFoundError:  # committed meanwhile
                continue
    return waiting

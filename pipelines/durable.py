"""What must survive a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: str | Path) -> None:
    """Return when a file's content, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Logs of the kept processes, from their end and onwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PAUSE_SECONDS = 0.2


def follow(file: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Yield what is written to a log from now on, over rotations, until `stopped`."""
    position = file.stat().st_size if file.exists() else 0
    inode = file.stat().st_ino if file.exists() else None
    while not stopped():
        try:
            found = file.stat()
            if found.st_ino != inode or found.st_size < position:
                inode, position = found.st_ino, 0
            if found.st_size > position:
                with open(file, "rb") as log:
                    log.seek(position)
                    text = log.read()
                position += len(text)
                yield text.decode(errors="replace")
                continue
        except FileNotFoundError:
            inode, position = None, 0
        time.sleep(_PAUSE_SECONDS)

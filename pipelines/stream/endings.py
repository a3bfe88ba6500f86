"""How a worker's end is told clean from unclean: on the embedded broker an unclean one can leave messages stuck.

When a consumer's process is killed with unread data on its socket, the embedded broker (pulsar-lite 0.2) never notices
and keeps the ghost's messages for it until it is restarted. So a worker leaves a mark, a locked file, for as long as
its consumers are open; a mark whose lock is free belongs to a worker that died without closing them.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from glob import escape
from pathlib import Path


class Mark:
    """This process's mark beside its deployment's status file; the lock falls with the process, however it ends."""

    def __init__(self, status_file: str | Path) -> None:
        status = Path(status_file)
        name = f"{status.stem}.subscribed-{uuid.uuid4().hex}"
        hidden = status.with_name(f".{name}")
        hidden.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._path = status.with_name(name)
        hidden.rename(self._path)  # never seen without its lock

    def remove(self) -> None:
        """Say that the consumers are closed."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def collect_unclean_endings(status_file: str | Path) -> int:
    """Return how many workers of a deployment died with open consumers, and remove their marks."""
    status = Path(status_file)
    found = 0
    for path in status.parent.glob(f"{escape(status.stem)}.subscribed-*"):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            found += 1
        except (BlockingIOError, FileNotFoundError):
            pass  # its worker lives, or another one has counted it
        finally:
            os.close(fd)
    return found

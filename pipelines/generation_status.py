"""The status file in which a master process reports its generations; the control plane only ever reads it."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from .config import Frozen


class Serving(Frozen):
    """The generation that answers."""

    digest: str
    version: str
    pids: tuple[int, ...]
    since: datetime


class Pending(Frozen):
    """A generation on its way: preparing, or taking over."""

    digest: str
    version: str


class Failed(Frozen):
    """The last generation, or worker, that could not serve, and why."""

    digest: str
    version: str
    error: str


class GenerationStatus(Frozen):
    """One snapshot; `digest` is the sha256 of the configuration file that a generation was started from."""

    serving: Serving | None = None
    pending: Pending | None = None
    failed: Failed | None = None
    url: str | None = None
    pid: int
    updated: datetime

    @property
    def master_alive(self) -> bool:
        """Whether the process that wrote this still exists."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def read_status(path: Path) -> GenerationStatus | None:
    """Return the newest status, or None when no master has written one (of this format) yet."""
    try:
        return GenerationStatus.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None

"""Functions for a warm process to call: they count, refuse, crash, hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from mlflow_flywheel.pipelines.errors import NotFound

_calls = 0


def count() -> tuple[int, int]:
    """Return this process and how often it was asked."""
    global _calls
    _calls += 1
    return os.getpid(), _calls


def refuse(what: str) -> None:
    raise NotFound(f"no such thing: {what!r}")


def fail() -> None:
    raise ValueError("told to")


def crash() -> None:
    os._exit(3)


def hang() -> None:
    threading.Event().wait()


def start_sleeper() -> tuple[int, int]:
    """Start a process that sleeps; return this process and that one."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    return os.getpid(), sleeper.pid

"""What tests need of processes that they start: a port of their own, and an end for all that they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import Any


def free_port() -> int:
    """Return a port of loopback that nobody listens on right now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end_group(leader: subprocess.Popen[Any]) -> None:
    """End a process that leads a group, and the group: asked first, killed when it does not end in ten seconds."""
    os.killpg(leader.pid, signal.SIGTERM)
    try:
        leader.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait(10)

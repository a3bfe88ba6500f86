"""The processes of one home, found by the mark that they carry in their environment.

A process manager that was killed leaves its children running and forgets them; the mark does not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

HOME_MARK = "FLYWHEEL_SUPERVISED"
NAME_MARK = "FLYWHEEL_PROCESS"
_KILL_SECONDS = 10
_YOUNG_SECONDS = 1.0


def in_kept_process() -> bool:
    """Tell whether a process manager of ours keeps this process: its environment is that of some earlier shell."""
    return NAME_MARK in os.environ


def marked_processes(home: Path, name: str | None = None) -> list[psutil.Process]:
    """Return the running processes of this home (or of one kept process), without the caller and its ancestors."""
    mark = {HOME_MARK: str(home)}
    return processes_with(mark if name is None else mark | {NAME_MARK: name})


def processes_with(variables: Mapping[str, str]) -> list[psutil.Process]:
    """Return the running processes that were started with these in their environment, whoever their parent is now.

    The caller and its ancestors are left out.
    """
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            environment = environment_of(process)
            if (
                all(environment.get(key) == value for key, value in variables.items())
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or already gone
    return found


def environment_of(process: psutil.Process) -> dict[str, str]:
    """Return the environment that a process was started with. Raises what psutil does.

    While a young process becomes its program, it has none for a moment, and would be overlooked.
    """
    environment: dict[str, str] = process.environ()
    while not environment and time.time() - process.create_time() < _YOUNG_SECONDS:
        time.sleep(0.001)
        environment = process.environ()
    return environment


def end_processes(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    """Terminate the processes and wait; kill those that are left after the grace."""
    sent = {process.pid: process for process in processes if _sent(process, signal.SIGTERM)}
    left = [pid for pid in wait_gone(sent, grace_seconds) if _sent(sent[pid], signal.SIGKILL)]
    wait_gone(left, _KILL_SECONDS)


def wait_gone(pids: Iterable[int], seconds: float) -> list[int]:
    """Wait until none of the processes runs and return those that still do after `seconds`.

    A zombie counts as gone: whoever should reap it may be a PID 1 that never does.
    """
    deadline = time.monotonic() + seconds
    left = [pid for pid in pids if not _gone(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [pid for pid in left if not _gone(pid)]
    return left


def _gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _sent(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True

"""What the kept processes of a home use, measured on the operating system's own account of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import psutil

from mlflow_flywheel.pipelines.times import EPOCH, utc_now

from .context import Context
from .runners.base import deployment_process
from .usage_records import Reading


class Meter:
    """Reads every kept process when it is called, and records what was used since the last reading.

    What a process used between its last reading and its death is lost, unless its parent waited for it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cleaned: datetime = EPOCH

    def read(self) -> None:
        """Read all processes now."""
        records = self._context.records
        deployed = {deployment_process(d.name): d.created for d in records.deployments()}
        for process in self._context.runner.status():
            if process.pid is None or not process.alive:
                continue
            reading = read_process(process.pid)
            if reading is not None:
                records.add_reading(process.name, deployed.get(process.name, EPOCH), reading)
        now = utc_now()
        if now.date() != self._cleaned.date():
            records.forget_old_usage(now)
            self._cleaned = now


def read_process(pid: int) -> Reading | None:
    """Return what a process and its descendants have used; None when it has gone.

    Descendants that ended are in the account of whoever waited for them, so the sum never shrinks while the process
    lives. Memory is the proportional set size where the system tells it, as workers share most of their pages.
    """
    try:
        root = psutil.Process(pid)
        created = root.create_time()
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return None
    cpu_seconds, memory = 0.0, 0
    for seconds, size in _measured(family):
        cpu_seconds += seconds
        memory += size
    started = datetime.fromtimestamp(created, timezone.utc)
    return Reading(f"{pid}:{created}", started, utc_now(), cpu_seconds, memory)


def _measured(family: list[psutil.Process]) -> Iterator[tuple[float, int]]:
    for process in family:
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
        except psutil.Error:
            continue  # gone meanwhile
        yield sum(times[:4]), getattr(memory, "pss", memory.rss)

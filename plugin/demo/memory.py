"""How much memory the demo and everything that it started took at most."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import final

import psutil

_EVERY_SECONDS = 1.0


@final
class PeakMemory:
    """Samples the resident memory of this process, its children, and the tree under a supervisor's pid file.

    Pages that processes share count once for each of them. `peak` is in bytes.
    """

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.peak = max(self.peak, self._resident())
            self._ended.wait(_EVERY_SECONDS)

    def _resident(self) -> int:
        roots = [psutil.Process()]
        try:
            roots.append(psutil.Process(int(self._pid_file.read_text())))
        except (OSError, ValueError, psutil.Error):
            pass  # no supervisor yet, or no longer
        found: dict[int, int] = {}
        for root in roots:
            try:
                for process in (root, *root.children(recursive=True)):
                    found[process.pid] = process.memory_info().rss
            except psutil.Error:
                continue  # gone meanwhile
        return sum(found.values())

"""Threads that only ever take turns run faster on one core.

The broker client's thread and the worker's hold Python's lock in turn, thousands of times a second; handing it from core
to core costs more than the work in between. A model's own threads must not be held together so: `apart` is for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = hasattr(os, "sched_setaffinity")  # Linux


class OneCore:
    """One of the cores that this process may use. The calling thread, and those that it starts, can be kept on it.

    `place` chooses it: places in a row are cores in a row.
    """

    def __init__(self, place: int) -> None:
        self._all = os.sched_getaffinity(0) if _KNOWN else set()
        cores = sorted(self._all)
        self._one = {cores[place % len(cores)]} if cores else set()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep this thread on the core."""
        self._move(self._one)
        try:
            yield
        finally:
            self._move(self._all)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let this thread, and those that it starts, run anywhere."""
        self._move(self._all)
        try:
            yield
        finally:
            self._move(self._one)

    def _move(self, cores: set[int]) -> None:
        if _KNOWN:
            os.sched_setaffinity(0, cores)

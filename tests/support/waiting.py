"""Waiting for something to become true, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_REST = 2.0  # seconds without a look for each second of looking


def eventually(check: Callable[[], T], timeout: float = 30.0, every: float = 0.05, what: str = "") -> T:
    """Return the first truthy answer of `check`; its last answer or error is in the message when time runs out.

    AssertionErrors and the usual "not there yet" errors raised by `check` count as "not yet". A check that works
    hard is made less often than `every` (seconds) says: what is waited for needs the processor too.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    pause = threading.Event()
    while time.monotonic() < deadline:
        before = time.thread_time()
        try:
            answer = check()
            if answer:
                return answer
            last = answer
        except (AssertionError, OSError, LookupError, ValueError) as error:
            last = error
        pause.wait(max(every, _REST * (time.thread_time() - before)))
    raise AssertionError(f"{what or check} was not so within {timeout} s; last: {last!r}")

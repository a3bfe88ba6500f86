"""Waiting for something to become true, with a deadline: tests never sleep and hope."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout: float = 30.0, every: float = 0.05, what: str = "") -> T:
    """Return the first truthy answer of `check`; its last answer or error is in the message when time runs out.

    AssertionErrors and the usual "not there yet" errors raised by `check` count as "not yet".
    """
    import time

    deadline = time.monotonic() + timeout
    last: object = None
    pause = threading.Event()
    while time.monotonic() < deadline:
        try:
            answer = check()
            if answer:
                return answer
            last = answer
        except (AssertionError, OSError, LookupError, ValueError) as error:
            last = error
        pause.wait(every)
    raise AssertionError(f"{what or check} was not so within {timeout} s; last: {last!r}")

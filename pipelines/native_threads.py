"""How many threads of their own the numeric libraries use: the only import of threadpoolctl.

Their threads wait for each other by spinning. Where many pieces are computed side by side, or each of them is small, one
thread for each does more in less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def keep_this_thread_on_one_core() -> None:
    """Let what this thread calls use no further OpenMP threads, for as long as it lives."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "openmp")


@contextmanager
def one_core_for_algebra() -> Iterator[None]:
    """Keep BLAS, in the whole process, to the thread that calls it."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Keep BLAS and OpenMP on one thread while a function runs.

    Small matrices and small trees took five times the processor time, and minutes where others use the cores too.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return function(*args, **kwargs)

    return alone

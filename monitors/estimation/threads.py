"""Numeric libraries on one thread, for work in small pieces."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Keep BLAS and OpenMP on one thread while a function runs.

    Their threads wait for each other by spinning: small matrices and small trees took five times the processor time, and
    minutes where others use the cores too.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return function(*args, **kwargs)

    return alone

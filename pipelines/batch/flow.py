"""Reading, scoring and writing at the same time, with a bounded number of chunks under way and their order kept.

Arrow, NumPy and most models let go of the interpreter while they work, so threads are enough. A generator here that is
closed early waits for what runs and drops what waits.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()
_WAITING_WRITES = 2


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(items: Iterable[T], n: int) -> Generator[T, None, None]:
    """Yield the items, while a thread gets the next `n`."""
    source = iter(items)
    with _ending(ThreadPoolExecutor(1, "batch-read")) as pool:
        waiting = deque(pool.submit(next, source, _END) for _ in range(n))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, source, _END))
            yield item


def mapped(items: Iterable[T], work: Callable[[T], R], threads: int) -> Generator[R, None, None]:
    """Yield what `work` makes of each item, in order, with at most `threads` + 1 items under way."""
    with _ending(ThreadPoolExecutor(threads, "batch-score", _with_one_core)) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Stage:
    """A thread that does what it is given in order, at most a few steps behind its giver.

    After a step that failed it does none of the later ones: a commit does not follow a write that was lost.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._waiting: deque[Future[Any]] = deque()
        self._failure: BaseException | None = None

    def do(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have something done; raises what an earlier step raised."""
        future = self._pool.submit(self._step, work, *arguments)
        self._waiting.append(future)
        while len(self._waiting) > _WAITING_WRITES:
            self._waiting.popleft().result()
        return future

    def _step(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._failure is not None:
            raise self._failure
        try:
            return work(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def settle(self) -> None:
        """Wait until all is done; raises what a step raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _with_one_core() -> None:
    """Keep a model's own OpenMP threads from competing with ours: many chunks at once fill the cores better.

    The setting is of this thread only.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "openmp")


@contextmanager
def _ending(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

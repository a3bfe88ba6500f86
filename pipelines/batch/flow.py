"""Reading, scoring and writing at the same time, with a bounded number of chunks under way and their order kept.

Arrow, NumPy and most models let go of the interpreter while they work, so threads are enough. A generator here that is
closed early waits for what runs and drops what waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from mlflow_flywheel.pipelines.native_threads import keep_this_thread_on_one_core

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()
_WAITING_WRITES = 2
_STEPS_BACK = 5


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stand_back() -> None:
    """Let other threads go before this one where cores are scarce, on Linux, whose threads have a niceness each.

    Rows that are there are better scored than more of them read; and while a model is loaded, on one core, reading does
    not hold it up.
    """
    if sys.platform == "linux":
        os.nice(_STEPS_BACK)


class Ahead(Iterator[T]):
    """The items, while a thread gets the next `n`; until the first is asked for, as many as fit in `room` bytes.

    The thread begins at once: what it reads while a model is being loaded costs no time later.
    """

    def __init__(self, items: Iterable[T], n: int, size: Callable[[T], int], room: int) -> None:
        self._source = iter(items)
        self._n = n
        self._size = size
        self._room = room
        self._is_asked = False
        self._order = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "batch-read")
        self._waiting: deque[Future[T]] = deque()
        self._begin()

    def __next__(self) -> T:
        self._is_asked = True
        while len(self._waiting) <= self._n:
            self._begin()
        item = self._waiting.popleft().result()
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Get no more, once what is under way is there."""
        self._is_asked = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        with self._order:
            self._waiting.append(self._pool.submit(self._get))

    def _get(self) -> T:
        item = next(self._source, _END)
        if item is not _END and not self._is_asked:
            self._room -= self._size(item)
            if self._room > 0:
                self._begin()
        return item


def mapped(items: Iterable[T], work: Callable[[T], R], threads: int) -> Generator[R, None, None]:
    """Yield what `work` makes of each item, in order, with at most `threads` + 1 items under way.

    A model's own OpenMP threads would compete with these: many chunks at once fill the cores better.
    """
    with _ending(ThreadPoolExecutor(threads, "batch-score", keep_this_thread_on_one_core)) as pool:
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


@contextmanager
def _ending(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

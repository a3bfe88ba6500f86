"""A child process that stays warm: heavy imports and loaded models are paid for once, a crash costs one call.

The child leads a process group of its own, so that whatever it starts can be ended with it. It ends itself, and that
group, when its parent is gone, however the parent went.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import Finalize
from typing import Any

from mlflow_flywheel.pipelines.errors import FlywheelError, Unavailable

_log = logging.getLogger(__name__)
_KILL_SECONDS = 5.0


class CallFailed(FlywheelError):
    """What the function raised in the child, as text."""


class WarmProcess:
    """Calls functions in one child process, one at a time; the child is dropped after a while without calls.

    `call` is for one thread, `drop_if_idle` and `stop` for any. Functions and values must pickle.
    """

    def __init__(self, name: str, idle_seconds: float = 60.0) -> None:
        self._name = name
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._pid: int | None = None
        self._busy = False
        self._used = time.monotonic()
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """Return the child's process id; None while there is none."""
        return self._pid

    @property
    def busy(self) -> bool:
        """Whether a call is in progress."""
        return self._busy

    @property
    def stopped(self) -> bool:
        """Whether it was told to take no more calls."""
        return self._stopped

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        """Return what the function returns in the child.

        Raises CallFailed with the message of what it raised (its traceback is logged), and Unavailable when the child
        died, was stopped, or took longer than `timeout` seconds (it is killed then).
        """
        with self._lock:
            if self._stopped:
                raise Unavailable(f"process {self._name!r} is being stopped")
            self._busy = True
        try:
            executor = self._started()
            future: Future[tuple[bool, Any]] = executor.submit(_guarded, function, arguments)
            worked, answer = future.result(timeout)
        except FutureTimeout:
            self._end()
            raise Unavailable(f"{self._name}: took longer than {timeout:g} s and was killed") from None
        except (BrokenProcessPool, RuntimeError) as error:
            pid = self._pid
            self._end()
            raise Unavailable(
                f"{self._name}: process {pid} died ({error}); see 'flywheel logs daemon'"
            ) from error
        finally:
            with self._lock:
                self._busy = False
                self._used = time.monotonic()
        if not worked:
            raise CallFailed(answer)
        return answer

    def drop_if_idle(self) -> None:
        """End the child when nothing was asked of it for a while; the next call starts another."""
        with self._lock:
            idle = not self._busy and time.monotonic() - self._used > self._idle_seconds
        if idle and self._executor is not None:
            self._end()

    def stop(self) -> None:
        """End the child and all that it started, also in the middle of a call, and take no more calls."""
        with self._lock:
            self._stopped = True
        self._end()

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, context, initializer=_begin)
            self._pid = self._executor.submit(os.getpid).result()
        return self._executor

    def _end(self) -> None:
        with self._lock:
            executor, pid = self._executor, self._pid
            self._executor, self._pid = None, None
        if pid is not None:
            _kill_group(pid)
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)


def _kill_group(leader: int) -> None:
    """Ask a process group to end, then make it."""
    deadline = time.monotonic() + _KILL_SECONDS
    try:
        os.killpg(leader, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(leader, 0)
            time.sleep(0.02)
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:  # macOS says so for a group whose only member is a zombie
        return


def _begin() -> None:
    """Prepare the child: lead a group, end with the parent, log like the parent, die at once when told to."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Two ways to notice: an idle child reads the end of its queue, and may be gone before the watching thread ran.
    Finalize(None, os.killpg, (0, signal.SIGKILL), exitpriority=0)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _guarded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Turn errors into text here: an exception that does not pickle would break the pool."""
    try:
        return True, function(*arguments)
    except FlywheelError as error:
        return False, error.message
    except Exception as error:  # noqa: BLE001 - whatever it was, the caller in the other process must hear of it
        _log.exception("%s failed", getattr(function, "__name__", function))
        return False, f"{type(error).__name__}: {error}"

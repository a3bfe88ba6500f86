"""Threads of the daemon: something done every so often, and tasks done as they come. Trouble is told, never fatal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from mlflow_flywheel.pipelines.errors import FlywheelError, NotFound

from .record_types import Task, TaskKind
from .records import Records

_log = logging.getLogger(__name__)
_LONGEST_PAUSE = 30.0


class Trouble:
    """What went wrong lately, one entry per source; it goes when the source works again. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[str, dict[str, str]] = {}

    def tell(self, source: str, error: BaseException) -> None:
        """Note an error and log it: in full when it is not one of ours, and only once while it stays the same."""
        text = error.message if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}"
        with self._lock:
            known = self._current.get(source, {}).get("error") == text
            self._current[source] = {"error": text, "time": datetime.now(timezone.utc).isoformat()}
        if not known:
            _log.warning("%s: %s", source, text, exc_info=None if isinstance(error, FlywheelError) else error)

    def over(self, source: str) -> None:
        """Note that the source works."""
        with self._lock:
            self._current.pop(source, None)

    def current(self) -> dict[str, dict[str, str]]:
        """Return the present trouble by source."""
        with self._lock:
            return dict(self._current)


class Repeating(threading.Thread):
    """Calls a function every `seconds`, less often while it fails, until `stop` is set (and it is nudged)."""

    def __init__(
        self,
        name: str,
        seconds: float,
        function: Callable[[], object],
        stop: threading.Event,
        trouble: Trouble,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._function = function
        self._stop_asked = stop
        self._trouble = trouble
        self._due = threading.Event()

    def nudge(self) -> None:
        """Cut the present pause short; while the function works, it works once more afterwards."""
        self._due.set()

    def run(self) -> None:
        pause = self._seconds
        while not self._is_over(pause):
            try:
                self._function()
                self._trouble.over(self.name)
                pause = self._seconds
            except Exception as error:  # noqa: BLE001 - the thread must outlive every kind of trouble
                self._trouble.tell(self.name, error)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _is_over(self, pause: float) -> bool:
        """Wait for the next turn; return whether there is none."""
        self._due.wait(pause)
        self._due.clear()
        return self._stop_asked.is_set()


class TaskThread(threading.Thread):
    """Claims tasks of some kinds and does them, one at a time, until `stop` is set.

    A task that is cut short by `stop` stays claimed: the next daemon queues it again.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        worker: str,
        handlers: Mapping[TaskKind, Callable[[Task], Mapping[str, Any]]],
        stop: threading.Event,
        trouble: Trouble,
        poll_seconds: float = 0.2,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._records = records
        self._worker = worker
        self._handlers = handlers
        self._kinds: Sequence[TaskKind] = tuple(handlers)
        self._stop_asked = stop
        self._trouble = trouble
        self._poll_seconds = poll_seconds
        self._idle = idle
        self.current: Task | None = None

    def run(self) -> None:
        pause = self._poll_seconds
        while not self._stop_asked.wait(pause):
            try:
                found = self._next()
                self._trouble.over(self.name)
                pause = 0.0 if found else self._poll_seconds
            except Exception as error:  # noqa: BLE001 - the thread must outlive every kind of trouble
                self._trouble.tell(self.name, error)
                pause = min(max(pause, self._poll_seconds) * 2, _LONGEST_PAUSE)

    def _next(self) -> bool:
        task = self._records.claim(self._kinds, self._worker)
        if task is None:
            self._idle()
            return False
        self.current = task
        _log.info("task %d: %s of %s begins", task.id, task.kind, task.subject)
        try:
            self._do(task)
        finally:
            self.current = None
        return True

    def _do(self, task: Task) -> None:
        try:
            result = self._handlers[task.kind](task)
        except Exception as error:  # noqa: BLE001 - whatever it was, the task has failed and its waiter must hear
            if self._stop_asked.is_set():
                _log.info("task %d was cut short; the next daemon does it", task.id)
                return
            known = isinstance(error, FlywheelError)
            text = error.message if isinstance(error, FlywheelError) else f"{type(error).__name__}: {error}"
            _log.warning("task %d failed: %s", task.id, text, exc_info=None if known else error)
            self._end(lambda: self._records.fail(task.id, text))
        else:
            _log.info("task %d is done", task.id)
            self._end(lambda: self._records.finish(task.id, result))

    def _end(self, say: Callable[[], None]) -> None:
        try:
            say()
        except NotFound as error:  # somebody removed the task meanwhile: there is nobody to tell
            _log.warning("%s", error.message)

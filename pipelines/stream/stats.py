"""What a stream worker has done, in a small file that others read: counters, lag, and trouble.

Counters go on over restarts and versions. They are written about every second, so a killed worker forgets its last
second; the inference table is exact.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from glob import escape
from pathlib import Path

from pydantic import ValidationError

from mlflow_flywheel.pipelines.config import Frozen

_log = logging.getLogger(__name__)


class StreamStats(Frozen):
    """One snapshot. `lag_ms` is the time from publishing to answering of the newest answered message.

    `broker_restart_wanted` is when a worker was found to have died without closing its consumer on the embedded
    broker, which may keep that consumer's messages until it is restarted: see `needs_broker_restart`.
    """

    starts: int = 0
    messages: int = 0
    rows: int = 0
    dead_letters: int = 0
    feedback: int = 0
    batches: int = 0
    last_batch_rows: int = 0
    last_batch_ms: float = 0.0
    lag_ms: float | None = None
    trouble: str | None = None
    broker_restart_wanted: datetime | None = None
    started: datetime
    updated: datetime


def stats_file(status_file: str | Path, worker: int) -> Path:
    """Return where worker number `worker` of the deployment with this status file keeps its statistics."""
    status = Path(status_file)
    return status.with_name(f"{status.stem}.stats-{worker}.json")


def read_stats(status_file: str | Path) -> StreamStats | None:
    """Return the statistics of a deployment, summed over its workers; None when there are none yet."""
    status = Path(status_file)
    found = [
        stats for path in status.parent.glob(f"{escape(status.stem)}.stats-*.json") if (stats := _read(path))
    ]
    if not found:
        return None
    newest = max(found, key=lambda stats: stats.updated)
    wanted = [stats.broker_restart_wanted for stats in found if stats.broker_restart_wanted]
    sums = {name: sum(getattr(stats, name) for stats in found) for name in _COUNTERS}
    return newest.model_copy(update={**sums, "broker_restart_wanted": max(wanted, default=None)})


def needs_broker_restart(status_files: Iterable[str | Path], broker_started: datetime) -> bool:
    """Tell whether the embedded broker, up since `broker_started` (UTC), must be restarted to free stuck messages.

    To be asked every second or two by whoever keeps the broker's process. Restarting it (SIGTERM, start again) is
    enough: it answers no more afterwards, because the wish is older than the broker then.
    """
    wishes = (stats.broker_restart_wanted for file in status_files if (stats := read_stats(file)))
    return any(wish is not None and wish > broker_started for wish in wishes)


_COUNTERS = ("starts", "messages", "rows", "dead_letters", "feedback", "batches")


class StatsKeeper:
    """Counts, and writes the file every second while there is something new. Safe to use from several threads.

    `watch` is called about every second too, from the keeper's thread.
    """

    def __init__(
        self, path: Path, watch: Callable[[], None] = lambda: None, every_seconds: float = 1.0
    ) -> None:
        now = datetime.now(timezone.utc)
        previous = _read(path)
        stats = previous or StreamStats(started=now, updated=now)
        update = {"starts": stats.starts + 1, "started": now, "trouble": None}
        self._stats = stats.model_copy(update=update)
        self._written: StreamStats | None = None
        self._path = path
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._every = every_seconds
        self._watch = watch
        self.write()
        self._thread = threading.Thread(target=self._keep, name="stats", daemon=True)
        self._thread.start()

    @property
    def now(self) -> StreamStats:
        return self._stats

    def count(self, **increments: int) -> None:
        """Add to counters."""
        with self._lock:
            update = {name: getattr(self._stats, name) + n for name, n in increments.items()}
            self._stats = self._stats.model_copy(update=update)

    def note(self, **values: object) -> None:
        """Replace values."""
        with self._lock:
            self._stats = self._stats.model_copy(update=values)

    def write(self) -> None:
        """Write the file now if it would say something new."""
        stats = self._stats
        if stats is not self._written:
            stats.model_copy(update={"updated": datetime.now(timezone.utc)}).save(self._path)
            self._written = stats

    def close(self) -> None:
        """Write for the last time."""
        self._closed.set()
        self._thread.join()
        self.write()

    def _keep(self) -> None:
        while not self._closed.wait(self._every):
            try:
                self._watch()
                self.write()
            except OSError as error:  # a full disk must not stop the counting
                _log.warning("statistics cannot be written to %s: %s", self._path, error)


def _read(path: Path) -> StreamStats | None:
    try:
        return StreamStats.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None

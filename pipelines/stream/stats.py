"""What a stream worker has done, in a small file that others read: counters, lag, latency, and trouble.

Counters go on over restarts and versions. They are written about every second, so a killed worker forgets its last
second; the inference table is exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from functools import reduce
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from mlflow_flywheel.pipelines.adjust.status import AdjustmentStatus
from mlflow_flywheel.pipelines.config import Frozen

from .latency import NO_COUNTS, added, counted, quantile_ms, without

_log = logging.getLogger(__name__)
RECENT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 5.0
_SILENT_SECONDS = 15.0
_FAILED = ("model", "answer")


class StreamStats(Frozen):
    """One snapshot.

    `oldest_ms` is when the oldest message in hand was published, None when none waits. `latency` counts, in the
    buckets of `latency.py`, the times from a message's publication until its answer (or dead letter) was stored;
    `recent_*` are about the last `recent_seconds`. `skipped` messages were published before the deployment starts.
    `broker_restart_wanted` is when a worker was found to have died without closing its consumer on the embedded
    broker, which may keep that consumer's messages until it is restarted: see `needs_broker_restart`.
    `adjustment` is how a live adjustment does, None where there is none. `version` is the one that counts now, and
    `before_version` how many answers and failures there were when it began.
    """

    starts: int = 0
    messages: int = 0
    rows: int = 0
    skipped: int = 0
    dead_letters: int = 0
    dead_letters_by: dict[str, int] = Field(default_factory=dict)
    feedback: int = 0
    batches: int = 0
    last_batch_rows: int = 0
    last_batch_ms: float = 0.0
    oldest_ms: int | None = None
    latency: tuple[int, ...] = NO_COUNTS
    latency_sum_ms: float = 0.0
    recent_seconds: float = 0.0
    recent_messages: int = 0
    recent_latency: tuple[int, ...] = NO_COUNTS
    trouble: str | None = None
    broker_restart_wanted: datetime | None = None
    adjustment: AdjustmentStatus | None = None
    version: str = ""
    before_version: tuple[int, int] = (0, 0)
    started: datetime
    updated: datetime

    def is_current(self, now: datetime) -> bool:
        """Tell whether a worker speaks here that still works: one that does writes at least every few seconds."""
        return (now - self.updated).total_seconds() < _SILENT_SECONDS

    def lag_seconds(self, now: datetime) -> float | None:
        """Return how old the oldest message in hand is, 0 when none waits; None when no worker can tell."""
        if not self.is_current(now) or (self.oldest_ms is None and self.trouble is not None):
            return None
        if self.oldest_ms is None:
            return 0.0
        return round(max(0.0, now.timestamp() - self.oldest_ms / 1000), 3)

    def messages_per_second(self, now: datetime) -> float:
        """Return the present rate."""
        if not self.is_current(now) or self.recent_seconds == 0:
            return 0.0
        return round(self.recent_messages / self.recent_seconds, 1)

    def latency_ms(self, share: float, now: datetime) -> float | None:
        """Return a quantile of the recent latencies, None without recent messages."""
        return quantile_ms(self.recent_latency, share) if self.is_current(now) else None

    @property
    def failed(self) -> int:
        """How many messages the model is to blame for that none was answered: it raised, or its answer is none."""
        return sum(self.dead_letters_by.get(refusal, 0) for refusal in _FAILED)

    @property
    def of_version(self) -> tuple[int, int]:
        """Answers and failures of the version that counts now."""
        return self.rows - self.before_version[0], self.failed - self.before_version[1]

    def present(self, now: datetime) -> dict[str, float]:
        """Return what can be said of the present: lag, rate, latencies, adjustment, as the series in MLflow are called."""
        said = {
            "lag_seconds": self.lag_seconds(now),
            "messages_per_second": self.messages_per_second(now),
            "latency_p50_ms": self.latency_ms(0.5, now),
            "latency_p99_ms": self.latency_ms(0.99, now),
        }
        adjustment = self.adjustment.series() if self.adjustment is not None and self.is_current(now) else {}
        return {name: value for name, value in said.items() if value is not None} | adjustment


def stats_file(status_file: str | Path, worker: int) -> Path:
    """Return where worker number `worker` of the deployment with this status file keeps its statistics."""
    status = Path(status_file)
    return status.with_name(f"{status.stem}.stats-{worker}.json")


def read_each(status_file: str | Path) -> dict[str, StreamStats]:
    """Return the statistics of each worker that a deployment has or had, by the name of its file."""
    status = Path(status_file)
    return {
        path.name: stats
        for path in status.parent.glob(f"{escape(status.stem)}.stats-*.json")
        if (stats := _read(path))
    }


def read_stats(status_file: str | Path) -> StreamStats | None:
    """Return the statistics of a deployment, summed over its workers; None when there are none yet."""
    found = list(read_each(status_file).values())
    if not found:
        return None
    newest = max(found, key=lambda stats: stats.updated)
    wanted = [stats.broker_restart_wanted for stats in found if stats.broker_restart_wanted]
    update = {name: sum(getattr(stats, name) for stats in found) for name in _COUNTERS}
    return newest.model_copy(
        update=update
        | {
            "dead_letters_by": dict(sum((Counter(stats.dead_letters_by) for stats in found), Counter())),
            "latency": _added(stats.latency for stats in found),
            "broker_restart_wanted": max(wanted, default=None),
        }
        | _present([stats for stats in found if stats.is_current(newest.updated)])
    )


def _present(working: list[StreamStats]) -> dict[str, Any]:
    """Put together what the workers say that still work: those of a larger number before have left their files."""
    return {
        "oldest_ms": min((s.oldest_ms for s in working if s.oldest_ms is not None), default=None),
        "trouble": next((stats.trouble for stats in working if stats.trouble), None),
        "recent_seconds": max(stats.recent_seconds for stats in working),
        "recent_messages": sum(stats.recent_messages for stats in working),
        "recent_latency": _added(stats.recent_latency for stats in working),
    }


def _added(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return reduce(added, counts, NO_COUNTS)


def needs_broker_restart(status_files: Iterable[str | Path], broker_started: datetime) -> bool:
    """Tell whether the embedded broker, up since `broker_started` (UTC), must be restarted to free stuck messages.

    To be asked every second or two by whoever keeps the broker's process. Restarting it (SIGTERM, start again) is
    enough: it answers no more afterwards, because the wish is older than the broker then.
    """
    wishes = (stats.broker_restart_wanted for file in status_files if (stats := read_stats(file)))
    return any(wish is not None and wish > broker_started for wish in wishes)


_COUNTERS = (
    "starts",
    "messages",
    "rows",
    "skipped",
    "dead_letters",
    "feedback",
    "batches",
    "latency_sum_ms",
)


class _Moment(NamedTuple):
    """What had been counted at a time (monotonic)."""

    at: float
    messages: int
    latency: tuple[int, ...]


def _recent(seconds: float, messages: int, latency: tuple[int, ...]) -> dict[str, Any]:
    return {"recent_seconds": round(seconds, 3), "recent_messages": messages, "recent_latency": latency}


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
        update: dict[str, Any] = {"starts": stats.starts + 1, "started": now}
        update |= dict.fromkeys(("trouble", "oldest_ms", "adjustment"))
        self._stats = stats.model_copy(update=update | _recent(0.0, 0, NO_COUNTS))
        self._written: StreamStats | None = None
        self._past = deque([_Moment(time.monotonic(), stats.messages, stats.latency)])
        self._path = path
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._every = every_seconds
        self._watch = watch
        self._written_at = now
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

    def count_refusals(self, refusals: Iterable[str]) -> None:
        """Count dead letters by their refusals."""
        counts = Counter(refusals)
        if counts:
            self.count(dead_letters=counts.total())
            with self._lock:
                by = dict(Counter(self._stats.dead_letters_by) + counts)
                self._stats = self._stats.model_copy(update={"dead_letters_by": by})

    def serves(self, version: str) -> None:
        """Say which version counts from now on; counts go on over its restarts."""
        with self._lock:
            if self._stats.version != version:
                before = (self._stats.rows, self._stats.failed)
                self._stats = self._stats.model_copy(update={"version": version, "before_version": before})

    def answered(self, published_ms: Iterable[int]) -> None:
        """Count the time that messages took until now, given when they were published."""
        now = 1000 * time.time()
        times = [max(0.0, now - published) for published in published_ms]
        counts = counted(times)
        with self._lock:
            update = {
                "latency": added(self._stats.latency, counts),
                "latency_sum_ms": round(self._stats.latency_sum_ms + sum(times), 3),
            }
            self._stats = self._stats.model_copy(update=update)

    def note(self, **values: object) -> None:
        """Replace values."""
        with self._lock:
            if any(getattr(self._stats, name) != value for name, value in values.items()):
                self._stats = self._stats.model_copy(update=values)

    def write(self) -> None:
        """Write the file now if it would say something new, or if it has been silent for a while."""
        self._look_back()
        with self._writing:
            stats, now = self._stats, datetime.now(timezone.utc)
            if stats is not self._written or (now - self._written_at).total_seconds() > _HEARTBEAT_SECONDS:
                stats.model_copy(update={"updated": now}).save(self._path)
                self._written, self._written_at = stats, now

    def _look_back(self) -> None:
        """Bring up to date what is said of the last seconds."""
        with self._lock:
            stats = self._stats
            present = _Moment(time.monotonic(), stats.messages, stats.latency)
            while len(self._past) > 1 and present.at - self._past[1].at >= RECENT_SECONDS:
                self._past.popleft()
            past = self._past[0]
            if present.at - self._past[-1].at >= self._every / 2:
                self._past.append(present)
            recent = _recent(
                present.at - past.at, present.messages - past.messages, without(present.latency, past.latency)
            )
            if stats.recent_messages or recent["recent_messages"]:
                self._stats = stats.model_copy(update=recent)

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

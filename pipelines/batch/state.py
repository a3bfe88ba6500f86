"""What a batch job remembers on disk: its plan, the files that are done, and a deployment's inputs scored so far.

Each is a journal: JSON lines that are only appended and synced one by one, so that a kill at any point loses at most
the line that was being written, and the work behind it is done again under the same ids.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import describe

from .inputs import InputFile

# The rows that made a job fail may be set aside when it goes on; those before them are the same.
_MAY_CHANGE = ("on_error", "fail", "skip")


@dataclass(frozen=True)
class DoneFile:
    """One input file whose answers are in the output and in the inference table."""

    index: int
    rows: int
    """Those that were answered."""
    pieces: int
    output: str
    rejected: int = 0
    rejects: str | None = None
    """Where they are, when there are any."""
    unread: bool = False
    """Whether the file as a whole was set aside."""
    mark: Any = None
    """The largest value of the watermark's column among the rows, as JSON."""
    newest_event: str | None = None
    """The latest event time among the rows that were logged, in ISO 8601."""
    failed: int = 0
    """Those set aside as the model raised."""


class Journal:
    """Appended JSON lines; a torn last line is dropped when it is opened."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        self.entries: list[Any] = [orjson.loads(line) for line in data[:whole].splitlines()]

    def append(self, *entries: Any) -> None:
        """Write entries that survive a power cut once this returns."""
        self._file.write(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries.extend(entries)

    def close(self) -> None:
        self._file.close()


class JobState:
    """The plan and the progress of one job id.

    The plan is fixed when the job first starts. Raises BadInput when the id was used for other work before.
    """

    def __init__(self, state_dir: Path, job_id: str, work: dict[str, Any]) -> None:
        self._journal = Journal(state_dir / "jobs" / f"{quote(job_id, safe='')}.jsonl")
        entries = self._journal.entries
        self.is_planned = bool(entries)
        self.started = datetime.now(timezone.utc)
        self.files: tuple[InputFile, ...] = ()
        self.done: dict[int, DoneFile] = {}
        self.since: Any = None
        """The watermark above which the job takes rows, as JSON."""
        self.until: Any = None
        """How far the result of its query goes."""
        if entries:
            self._check_same(job_id, entries[0]["work"], work)
            self.started = datetime.fromisoformat(entries[0]["started"])
            self.files = tuple(InputFile.from_json(fields) for fields in entries[0]["files"])
            self.since, self.until = entries[0].get("since"), entries[0].get("until")
            self.done = {fields[0]: DoneFile(*fields) for fields in entries[1:]}
        self._work = work

    def plan(self, files: Sequence[InputFile], since: Any = None, until: Any = None) -> None:
        """Fix what the job reads, and when it was asked to."""
        self.is_planned, self.files = True, tuple(files)
        self.since, self.until = since, until
        self.started = datetime.now(timezone.utc)
        self._journal.append(
            {
                "work": self._work,
                "started": self.started.isoformat(),
                "files": [file.to_json() for file in files],
                "since": since,
                "until": until,
            }
        )

    def finish(self, done: DoneFile) -> None:
        """Remember that a file is complete."""
        self.done[done.index] = done
        self._journal.append(list(astuple(done)))

    def close(self) -> None:
        self._journal.close()

    @staticmethod
    def _check_same(job_id: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        for key, value in now.items():
            if before.get(key) != value and (key, before.get(key), value) != _MAY_CHANGE:
                raise BadInput(
                    f"job {job_id!r} was started with {key}={before.get(key)!r} and cannot go on with {value!r}; "
                    "start it with a new job_id"
                )


def work_of(config: BatchConfig) -> dict[str, Any]:
    """Return what must not change between two starts of a job, or rows would be answered twice or differently."""
    free = {"model", "deployment", "variant", "state_dir", "job_id", "threads"}
    return {"model": describe(config.model), **config.model_dump(mode="json", exclude=free)}


class SeenInputs:
    """The inputs that a deployment's incremental jobs have scored."""

    def __init__(self, state_dir: Path) -> None:
        self._journal = Journal(state_dir / "seen.jsonl")
        self._known = {tuple(entry) for entry in self._journal.entries}

    def __contains__(self, file: InputFile) -> bool:
        return file.identity in self._known

    def add(self, file: InputFile) -> None:
        """Remember a file; one that is known already costs nothing."""
        if file not in self:
            self._known.add(file.identity)
            self._journal.append(list(file.identity))

    def close(self) -> None:
        self._journal.close()


def scored_before(state_dir: Path) -> frozenset[tuple[Any, ...]]:
    """Return the identities in `SeenInputs` without opening it for writing: a run may be at work."""
    return frozenset(tuple(entry) for entry in entries_of(state_dir / "seen.jsonl"))


def entries_of(path: Path) -> list[Any]:
    """Return the whole entries of a journal, without touching it; none when there is no such file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [orjson.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for a while; the system frees it when this process dies.

    Raises Unavailable at once when another process, or another thread of this one, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"{what} is running already; try again when it is finished") from None
        yield

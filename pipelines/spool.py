"""A durable local log in front of the inference table: what web and stream workers write before they answer.

One folder per registered model and table, one *slot* in it per writing process:

    <root>/<model>/schema.json            the features, so that the table can be created by whoever commits first
    <root>/<model>/predictions/slot-0/    lock    held (flock) by the writer for its life: free means its writer died
                                          stream  a uuid; with segment numbers it is the Delta transaction id
                                          next    above every segment number so far; none is ever used again
                                          7.open  the segment being written
                                          6.seg   sealed: complete, waiting for the committer

Each append is one line of JSON written with one `write`, so a line without its newline was never acknowledged.
A killed process loses nothing (`durability="process"`); with `durability="power"` an append returns only after
fdatasync, and the threads that wait share one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import orjson

from .config import Durability
from .durable import sync
from .errors import Unavailable
from .schema import Feature, FeatureSchema
from .scoring import ScoredBatch

_log = logging.getLogger(__name__)
PREDICTIONS, FEEDBACK = "predictions", "feedback"
SEGMENT_BYTES = 16 * 1024 * 1024
_NUMBERS_AT_ONCE = 256


def model_spool(root: str | Path, model_name: str) -> Path:
    """Return the folder of one model in the spool."""
    return Path(root) / quote(model_name, safe="@ ")


def spooled_models(root: str | Path) -> list[str]:
    """Return the names of the models that have a spool folder."""
    root = Path(root)
    return sorted(unquote(path.name) for path in root.iterdir() if path.is_dir()) if root.exists() else []


@dataclass
class _Segment:
    """A segment file that is open for writing."""

    number: int
    fd: int
    size: int = 0
    opened: float = field(default_factory=time.monotonic)


class SpoolWriter:
    """One process's place in a spool. Safe to call from several threads; close it to hand the last segment over.

    Whoever appends waits for one `write` only: segments are sealed, which waits for the disk, in a thread of their own,
    in the order of their numbers.
    """

    def __init__(
        self,
        folder: Path,
        durability: Durability = "process",
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = 1.0,
    ) -> None:
        self._durable = durability == "power"
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._synced: tuple[int, int] = (-1, 0)
        self._current: _Segment | None = None
        self._ended: deque[_Segment] = deque()  # to be sealed
        self._reserved = range(0)
        self._hurry = threading.Event()
        self._closed = False
        self.slot, self._lock_fd = _claim_slot(folder)
        self._sealer = threading.Thread(target=self._seal_in_time, name="spool-sealer", daemon=True)
        self._sealer.start()

    def append(self, line: bytes) -> None:
        """Append one line (without its newline).

        Raises Unavailable when it could not be written whole; then nothing of it counts.
        """
        with self._lock:
            if self._closed:
                raise Unavailable(f"the spool {self.slot} is closed; the worker is stopping, ask again")
            try:
                segment = self._current = self._current or self._open_segment()
                _write(segment, line + b"\n")
            except OSError as error:
                raise Unavailable(
                    f"the spool {self.slot} cannot be written: {error}; free disk space there"
                ) from error
            place = (segment.number, segment.size)
            if segment.size >= self._segment_bytes:
                self._end_segment()
                self._hurry.set()
        if self._durable:
            self._sync_up_to(place)

    def close(self) -> None:
        """Seal the current segment and free the slot."""
        with self._lock:
            self._closed = True
            self._end_segment()
        self._hurry.set()
        self._sealer.join()
        os.close(self._lock_fd)

    def _open_segment(self) -> _Segment:
        if not self._reserved:  # many at once: each time waits for the disk
            first = int((self.slot / "next").read_text())
            _write_durably(self.slot / "next", str(first + _NUMBERS_AT_ONCE))
            self._reserved = range(first, first + _NUMBERS_AT_ONCE)
        number, self._reserved = self._reserved[0], self._reserved[1:]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        return _Segment(number, os.open(self.slot / f"{number}.open", flags, 0o600))

    def _end_segment(self) -> None:
        if self._current is not None:
            self._ended.append(self._current)
            self._current = None

    def _seal_in_time(self) -> None:
        closed = False
        while not closed:
            self._hurry.wait(self._segment_seconds / 4)
            self._hurry.clear()
            with self._lock:
                closed = self._closed
                current = self._current
                if current is not None and time.monotonic() - current.opened >= self._segment_seconds:
                    self._end_segment()
            try:
                while self._ended:
                    self._seal(self._ended[0])
            except OSError as error:  # tried again, at the latest by whoever takes over the slot
                _log.error(
                    "the spool %s cannot hand a segment over: %s; free disk space there", self.slot, error
                )

    def _seal(self, segment: _Segment) -> None:
        """Hand the oldest ended segment over to the committer. Raises OSError when the disk does not take it."""
        os.fsync(segment.fd)
        (self.slot / f"{segment.number}.open").rename(self.slot / f"{segment.number}.seg")
        with self._lock:
            self._ended.popleft()
        os.close(segment.fd)

    def _sync_up_to(self, place: tuple[int, int]) -> None:
        """Return when everything up to `place` is on disk; one fdatasync serves all threads that wait for it."""
        with self._sync_lock:
            if self._synced >= place:
                return
            with self._lock:
                segments = [*self._ended, *([self._current] if self._current is not None else [])]
                reached = max([place, *((segment.number, segment.size) for segment in segments)])
                copies = [os.dup(segment.fd) for segment in segments]
            for fd in copies:
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            self._synced = reached


def _write(segment: _Segment, data: bytes) -> None:
    written = os.write(segment.fd, data)
    if written != len(data):
        os.ftruncate(segment.fd, segment.size)
        raise OSError("disk full")
    segment.size += written


class SpoolLog:
    """The prediction log of a web or stream worker."""

    def __init__(
        self,
        root: str | Path,
        model_name: str,
        schema: FeatureSchema,
        kind: str,
        durability: Durability = "process",
        segment_seconds: float = 1.0,
    ) -> None:
        save_schema(root, model_name, schema, kind)
        self._writer = SpoolWriter(
            model_spool(root, model_name) / PREDICTIONS, durability, segment_seconds=segment_seconds
        )

    def append(self, batch: ScoredBatch) -> None:
        self._writer.append(orjson.dumps({"k": batch.constants, "c": batch.columns()}))

    def close(self) -> None:
        self._writer.close()


def save_schema(root: str | Path, model_name: str, schema: FeatureSchema, kind: str) -> None:
    """Remember a model's features and prediction type beside its spool, for whoever creates the table."""
    path = model_spool(root, model_name) / "schema.json"
    known = {
        feature.name: feature
        for feature in (load_schema(root, model_name) or (FeatureSchema([]), ""))[0].features
    }
    merged = {**known, **{feature.name: feature for feature in schema.features}}
    text = json.dumps({"kind": kind, "features": [asdict(feature) for feature in merged.values()]}, indent=1)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(path, text)


def load_schema(root: str | Path, model_name: str) -> tuple[FeatureSchema, str] | None:
    """Return the remembered features and prediction type ("double" or "string"), or None."""
    try:
        found = json.loads((model_spool(root, model_name) / "schema.json").read_text())
    except FileNotFoundError:
        return None
    return FeatureSchema([Feature(**feature) for feature in found["features"]]), found["kind"]


def sealed_segments(folder: Path) -> dict[str, dict[int, Path]]:
    """Return the sealed segments of every slot: {stream id: {number: path}}.

    Segments that a dead writer left open are sealed first.
    """
    found: dict[str, dict[int, Path]] = {}
    for slot in sorted(folder.glob("slot-*")):
        _seal_orphans(slot)
        try:
            stream = (slot / "stream").read_text()
        except FileNotFoundError:
            continue  # its writer is just making it
        numbers = sorted(int(path.stem) for path in slot.glob("*.seg"))
        if numbers:
            # a directory listing is not atomic: one that shows 7 may have missed 6, so ask for those by name
            candidates = range(numbers[0], numbers[-1] + 1)
            segments = {n: slot / f"{n}.seg" for n in candidates if (slot / f"{n}.seg").exists()}
            found[stream] = segments
    return found


def read_segment(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a segment; a last line without newline was never acknowledged and is left out."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield orjson.loads(line)


def _claim_slot(folder: Path) -> tuple[Path, int]:
    for number in range(10_000):
        slot = folder / f"slot-{number}"
        slot.mkdir(parents=True, exist_ok=True)
        fd = os.open(slot / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        if not (slot / "stream").exists():
            _write_durably(slot / "next", "0")
            _write_durably(slot / "stream", str(uuid.uuid4()))
        _rename_open(slot)
        return slot, fd
    raise Unavailable(f"all 10000 slots of {folder} are taken; stop some of the processes that write there")


def _seal_orphans(slot: Path) -> None:
    """Seal what a dead writer left open; its slot's lock is free exactly when it is dead."""
    if not any(slot.glob("*.open")):
        return
    fd = os.open(slot / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _rename_open(slot)
    except BlockingIOError:
        pass  # its writer lives
    finally:
        os.close(fd)


def _rename_open(slot: Path) -> None:
    # in the order in which they were written: the committer takes a higher number to come after a lower one
    for path in sorted(slot.glob("*.open"), key=lambda path: int(path.stem)):
        path.rename(path.with_suffix(".seg"))


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)

"""A durable local log in front of the inference table: what web and stream workers write before they answer.

One folder per registered model and table, one *slot* in it per writing process:

    <root>/<model>/schema.json            the features, so that the table can be created by whoever commits first
    <root>/<model>/predictions/slot-0/    lock    held (flock) by the writer for its life: free means its writer died
                                          stream  a uuid; with segment numbers it is the Delta transaction id
                                          next    the next segment number; numbers are never used again
                                          7.open  the segment being written
                                          6.seg   sealed: complete, waiting for the committer

Each append is one line of JSON written with one `write`, so a line without its newline was never acknowledged.
A killed process loses nothing (`durability="process"`); with `durability="power"` an append returns only after
fdatasync, and the threads that wait share one.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import orjson

from .config import Durability
from .errors import Unavailable
from .schema import Feature, FeatureSchema
from .scoring import ScoredBatch

PREDICTIONS, FEEDBACK = "predictions", "feedback"
SEGMENT_BYTES = 16 * 1024 * 1024


def model_spool(root: str | Path, model_name: str) -> Path:
    """Return the folder of one model in the spool."""
    return Path(root) / quote(model_name, safe="@ ")


def spooled_models(root: str | Path) -> list[str]:
    """Return the names of the models that have a spool folder."""
    root = Path(root)
    return sorted(unquote(path.name) for path in root.iterdir() if path.is_dir()) if root.exists() else []


class SpoolWriter:
    """One process's place in a spool. Safe to call from several threads; close it to hand the last segment over."""

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
        self._fd = -1
        self._number = -1
        self._size = 0
        self._opened = 0.0
        self._closed = threading.Event()
        self.slot, self._lock_fd = _claim_slot(folder)
        self._sealer = threading.Thread(target=self._seal_in_time, name="spool-sealer", daemon=True)
        self._sealer.start()

    def append(self, line: bytes) -> None:
        """Append one line (without its newline).

        Raises Unavailable when it could not be written whole; then nothing of it counts.
        """
        with self._lock:
            if self._closed.is_set():
                raise Unavailable(f"the spool {self.slot} is closed; the worker is stopping, ask again")
            try:
                if self._fd < 0:
                    self._open_segment()
                self._write(line + b"\n")
            except OSError as error:
                raise Unavailable(
                    f"the spool {self.slot} cannot be written: {error}; free disk space there"
                ) from error
            place = (self._number, self._size)
            if self._size >= self._segment_bytes:
                self._seal()
        if self._durable:
            self._sync_up_to(place)

    def close(self) -> None:
        """Seal the current segment and free the slot."""
        self._closed.set()
        self._sealer.join()
        with self._lock:
            self._seal()
            os.close(self._lock_fd)

    def _write(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        if written != len(data):
            os.ftruncate(self._fd, self._size)
            raise OSError("disk full")
        self._size += written

    def _open_segment(self) -> None:
        number = int((self.slot / "next").read_text())
        _write_durably(self.slot / "next", str(number + 1))
        self._fd = os.open(
            self.slot / f"{number}.open", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600
        )
        self._number, self._size, self._opened = number, 0, time.monotonic()

    def _seal(self) -> None:
        if self._fd < 0:
            return
        os.fsync(self._fd)
        os.close(self._fd)
        self._synced = max(self._synced, (self._number, self._size))
        (self.slot / f"{self._number}.open").rename(self.slot / f"{self._number}.seg")
        self._fd = -1

    def _seal_in_time(self) -> None:
        while not self._closed.wait(self._segment_seconds / 4):
            with self._lock:
                if self._fd >= 0 and time.monotonic() - self._opened >= self._segment_seconds:
                    self._seal()

    def _sync_up_to(self, place: tuple[int, int]) -> None:
        """Return when everything up to `place` is on disk; one fdatasync serves all threads that wait for it."""
        with self._sync_lock:
            if self._synced >= place:
                return
            with self._lock:
                reached = (self._number, self._size)
                fd = os.dup(self._fd) if self._fd >= 0 else -1
            if fd >= 0:
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            self._synced = max(self._synced, reached)


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
    for path in slot.glob("*.open"):
        path.rename(path.with_suffix(".seg"))


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

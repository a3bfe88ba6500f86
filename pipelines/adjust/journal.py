"""What happened to an adjustment, in a file that outlives its worker: lines of JSON, each written whole or not at all.

The first line says whose it is, the second what was known when the file was written; the others are what happened
since. A file that has grown well beyond that is written again, in the place of the old one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from mlflow_flywheel.pipelines.config import Durability
from mlflow_flywheel.pipelines.durable import sync
from mlflow_flywheel.pipelines.errors import Unavailable

_LEAST_BYTES = 8 * 1024 * 1024
_GROWS_TO = 3
Entry = Mapping[str, Any]


class Journal:
    """The entries of one adjustment; `owner` is whose they are: those of another one are not read. One thread at a time."""

    def __init__(
        self,
        path: Path,
        owner: Mapping[str, Any],
        durability: Durability = "process",
        least_bytes: int = _LEAST_BYTES,
    ) -> None:
        self._path = path
        self._owner = {"of": dict(owner)}
        self._durable = durability == "power"
        self._least_bytes = least_bytes
        self._fd: int | None = None
        self._size = self._base = 0

    def read(self) -> Iterator[Entry]:
        """Yield the entries; none when there are none, or when they are another one's."""
        try:
            whole = self._path.read_bytes().split(b"\n")[
                :-1
            ]  # what has no newline was never said to be written
        except FileNotFoundError:
            return
        if whole and orjson.loads(whole[0]) == self._owner:
            for line in whole[1:]:
                yield orjson.loads(line)

    def append(self, entry: Entry) -> None:
        """Write an entry. Raises Unavailable when that fails; then it is not there."""
        assert self._fd is not None, "begin the journal first"
        data = orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                os.ftruncate(self._fd, self._size)
                raise OSError("disk full")
            if self._durable:
                os.fdatasync(self._fd)
        except OSError as error:
            raise self._trouble(error) from error
        self._size += len(data)

    @property
    def is_long(self) -> bool:
        """Whether it is time to begin anew with what is known now."""
        return self._size > max(self._least_bytes, _GROWS_TO * self._base)

    def begin(self, entries: Iterable[Entry]) -> None:
        """Put these entries in the place of all others. Raises Unavailable when that fails; then the old ones stay."""
        fresh = self._path.with_name(self._path.name + ".new")
        lines = [orjson.dumps(entry) + b"\n" for entry in (self._owner, *entries)]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            with open(fd, "wb", closefd=False) as file:
                file.writelines(lines)
            os.fsync(fd)
            fresh.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            raise self._trouble(error) from error
        self.close()
        self._fd = fd
        self._size = self._base = sum(map(len, lines))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _trouble(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"the adjustment's journal {str(self._path)!r} cannot be written: {error}; free disk space there"
        )

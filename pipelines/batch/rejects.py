"""Rows and files that were set aside: JSON Lines beside the answers, complete or absent like them.

One object each: `file`, `row` (as in its prediction id; null for a line that could not be read, or a whole file),
`line`, `column`, `expected`, `found`, `reason`, and `record`, the row as it was read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from mlflow_flywheel.pipelines.errors import Unavailable

from .locations import Location

FOLDER = "_rejects"
"""Readers of data sets pass over names with an underscore."""


@dataclass(frozen=True)
class Reject:
    """Why one row, one line or one whole file was set aside."""

    file: str
    reason: str
    row: int | None = None
    line: int | None = None
    column: str | None = None
    expected: str | None = None
    found: str | None = None
    record: Mapping[str, Any] | None = None


class RejectsFile:
    """The rejects of one input file; the first one makes the file. Safe to add to from several threads."""

    def __init__(self, target: Location) -> None:
        self.target = target
        self.count = 0
        self._partial = target.beside(f".{target.name}.partial")
        self._out: Any = None
        self._lock = threading.Lock()

    def add(self, *rejects: Reject) -> None:
        """Write rejects that nobody sees yet."""
        lines = b"".join(
            orjson.dumps(asdict(reject), default=str, option=orjson.OPT_APPEND_NEWLINE) for reject in rejects
        )
        with self._lock:
            try:
                if lines and self._out is None:
                    self._out = self._partial.write()
                if lines:
                    self._out.write(lines)
            except OSError as error:
                raise self._unwritable(error) from error
            self.count += len(rejects)

    def finish(self) -> None:
        """Show the file, or take away what an earlier attempt showed."""
        try:
            if self._out is None:
                self.target.remove()
                return
            self._out.close()
            self._partial.become(self.target)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Drop what is not visible yet."""
        if self._out is not None:
            self._out.close()
            self._partial.remove()

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(f"rejects file {self.target.text!r} cannot be written: {error.strerror or error}")

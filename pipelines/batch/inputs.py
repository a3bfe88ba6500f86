"""Which files a batch job reads: a file, a folder, a glob or a Delta table, in a fixed order.

An input is identified by its path, size and modification time (a Delta table by its path and version): no file is
read to find out that it is known, and a file that is replaced counts as new.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from mlflow_flywheel.pipelines.errors import BadInput, NotFound

Format = Literal["parquet", "csv", "jsonl", "delta"]

DELTA_PREFIX = "delta:"
_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".json": "jsonl",
    ".json.gz": "jsonl",
}


@dataclass(frozen=True)
class InputFile:
    """One unit of input: its rows are numbered from 0 and answered in their order."""

    path: str
    relative: str
    format: Format
    size: int
    stamp: int
    """Modification time in ns, or a Delta table's version."""

    @property
    def identity(self) -> tuple[str, int, int]:
        """Return what tells this state of the file from every other."""
        return self.path, self.size, self.stamp

    @property
    def digest(self) -> str:
        """Return a short hash of the identity: the middle part of its rows' prediction ids."""
        return hashlib.sha256("\0".join(map(str, self.identity)).encode()).hexdigest()[:16]

    def check_unchanged(self) -> None:
        """Raise BadInput when the file is no longer what the job planned to read."""
        if self.format == "delta":  # a version never changes
            return
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise BadInput(
                f"input file {self.path!r} disappeared during the job; start it with a new job_id"
            ) from None
        if (found.st_size, found.st_mtime_ns) != (self.size, self.stamp):
            raise BadInput(
                f"input file {self.path!r} changed during the job; write files under another name and rename them "
                "when they are complete, then start the job with a new job_id"
            )

    def to_json(self) -> list[Any]:
        """Return the fields as a JSON list; `from_json` reads it."""
        return [self.path, self.relative, self.format, self.size, self.stamp]

    @classmethod
    def from_json(cls, fields: list[Any]) -> InputFile:
        return cls(*fields)


def find_inputs(spec: str) -> list[InputFile]:
    """Return the inputs that `spec` names, sorted by path; an empty folder or glob gives none.

    Raises NotFound when a plain path does not exist and BadInput for a name whose format is not known.
    """
    location = local_path(spec.removeprefix(DELTA_PREFIX), "input")
    if spec.startswith(DELTA_PREFIX) or is_delta(location):
        from mlflow_flywheel.pipelines.delta import DeltaLog

        return [InputFile(location, Path(location).name, "delta", 0, DeltaLog(location).version())]
    if os.path.isdir(location):
        return [_input_file(path, location, form) for path, form in _walk(location)]
    if os.path.exists(location):
        return [_input_file(location, os.path.dirname(location), _format_of(location))]
    if glob.has_magic(location):
        root = _fixed_part(location)
        paths = sorted(path for path in glob.glob(location, recursive=True) if os.path.isfile(path))
        return [_input_file(path, root, _format_of(path)) for path in paths]
    raise NotFound(f"input {spec!r} does not exist; give a file, a folder or a glob such as 'data/*.parquet'")


def is_delta(location: str) -> bool:
    """Tell whether a local folder is a Delta table."""
    return os.path.isdir(os.path.join(location, "_delta_log"))


def searched_folder(spec: str) -> str | None:
    """Return the folder of which every file at any depth is input; None for a file or a glob of one depth."""
    location = local_path(spec.removeprefix(DELTA_PREFIX), "input")
    if os.path.isdir(location):
        return location
    return _fixed_part(location) if "**" in location and not os.path.exists(location) else None


def local_path(location: str, what: str) -> str:
    """Return an absolute local path; raises BadInput for a URL of another kind than file:."""
    if "://" in location:
        parts = urlsplit(location)
        if parts.scheme != "file":
            raise BadInput(f"{what} {location!r} is not on this machine; give a local path or a file:// URL")
        location = unquote(parts.path)
    return os.path.abspath(os.path.expanduser(location))


def _walk(folder: str) -> Iterator[tuple[str, Format]]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            form = _known_format(name)
            if form is not None and not _is_hidden(name):
                found.append((os.path.join(parent, name), form))
    yield from sorted(found)


def _is_hidden(name: str) -> bool:
    """Writers keep unfinished and auxiliary files under such names (_SUCCESS, _delta_log, .part)."""
    return name.startswith((".", "_"))


def _known_format(name: str) -> Format | None:
    lower = name.lower()
    return next((form for suffix, form in _SUFFIXES.items() if lower.endswith(suffix)), None)


def _format_of(path: str) -> Format:
    form = _known_format(path)
    if form is None:
        raise BadInput(
            f"the format of input file {path!r} is not known; its name must end with {', '.join(_SUFFIXES)}"
        )
    return form


def _fixed_part(pattern: str) -> str:
    """Return the folder above the first wildcard: what the names of the outputs are relative to."""
    head = pattern
    while glob.has_magic(head):
        head = os.path.dirname(head)
    return head


def _input_file(path: str, root: str, form: Format) -> InputFile:
    found = os.stat(path)
    relative = Path(path).relative_to(root).as_posix()
    return InputFile(path, relative, form, found.st_size, found.st_mtime_ns)

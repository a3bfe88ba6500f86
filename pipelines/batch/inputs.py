"""Which files a batch job reads: a file, a folder, a glob or a Delta table, in a fixed order.

An input is identified by its path, size and modification time (a Delta table by its path and version): no file is
read to find out that it is known, and a file that is replaced counts as new.
"""

from __future__ import annotations

import glob
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from mlflow_flywheel.pipelines.errors import BadInput, NotFound

from .locations import Location

Format = Literal["parquet", "csv", "jsonl", "delta"]

DELTA_PREFIX = "delta:"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
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

    @property
    def location(self) -> Location:
        return Location.of(self.path, "input file")

    @property
    def partition(self) -> dict[str, str | None]:
        """Return the columns that the folders of a partitioned data set name: `year=2013/a.csv` gives year."""
        values: dict[str, str | None] = {}
        for folder in self.relative.split("/")[:-1]:
            name, equals, value = folder.partition("=")
            if name and equals:
                values[unquote(name)] = None if value == _NO_VALUE else unquote(value)
        return values

    def check_unchanged(self) -> None:
        """Raise BadInput when the file is no longer what the job planned to read."""
        if self.format == "delta":  # a version never changes
            return
        found = self.location.state
        if found is None:
            raise BadInput(f"input file {self.path!r} disappeared during the job; start it with a new job_id")
        if found != (self.size, self.stamp):
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
    location = Location.of(spec.removeprefix(DELTA_PREFIX), "input")
    if spec.startswith(DELTA_PREFIX) or is_delta(location):
        from mlflow_flywheel.pipelines.delta import DeltaLog

        return [InputFile(location.text, location.name, "delta", 0, DeltaLog(location.text).version())]
    if location.is_folder:
        return list(_known_files(location))
    state = location.state
    if state is not None:
        return [InputFile(location.text, location.name, _format_of(location.text), *state)]
    if glob.has_magic(location.text):
        return _globbed(location)
    raise NotFound(f"input {spec!r} does not exist; give a file, a folder or a glob such as 'data/*.parquet'")


def is_delta(location: Location) -> bool:
    """Tell whether a folder is a Delta table."""
    return location.below("_delta_log").is_folder


def searched_folder(spec: str) -> str | None:
    """Return the folder of which every file at any depth is input; None for a file or a glob of one depth."""
    location = Location.of(spec.removeprefix(DELTA_PREFIX), "input")
    if location.is_folder:
        return location.text
    return _fixed_part(location.text) if "**" in location.text and not location.exists else None


def is_within(place: str, folder: str) -> bool:
    """Tell whether a place is a folder or something in it."""
    return f"{place.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _known_files(folder: Location) -> Iterator[InputFile]:
    for relative, size, stamp in folder.walk():
        form = _known_format(relative)
        if form is not None and not any(_is_hidden(part) for part in relative.split("/")):
            yield InputFile(folder.below(relative).text, relative, form, size, stamp)


def _globbed(pattern: Location) -> list[InputFile]:
    root = Location.of(_fixed_part(pattern.text), "input")
    if pattern.is_local:
        paths = sorted(path for path in glob.glob(pattern.path, recursive=True) if os.path.isfile(path))
        return [_found(root.below(os.path.relpath(path, root.path)), root) for path in paths]
    wanted = re.compile(_as_regex(pattern.text.removeprefix(root.text).lstrip("/")))
    return [
        InputFile(root.below(relative).text, relative, _format_of(relative), size, stamp)
        for relative, size, stamp in (root.walk() if root.is_folder else ())
        if wanted.fullmatch(relative)
    ]


def _found(file: Location, root: Location) -> InputFile:
    size, stamp = file.state or (0, 0)
    return InputFile(
        file.text, file.path.removeprefix(root.path).lstrip("/"), _format_of(file.text), size, stamp
    )


def _as_regex(pattern: str) -> str:
    """Translate a glob: `*` and `?` stay within a folder, `**/` is any number of folders."""
    parts = []
    for part in re.split(r"(\*\*/|\*|\?|\[[^]]+\])", pattern):
        known = {"**/": "(?:[^./][^/]*/)*", "*": "(?!\\.)[^/]*", "?": "[^/]"}.get(part)
        is_set = part.startswith("[") and part.endswith("]")
        parts.append(known or (part.replace("[!", "[^") if is_set else re.escape(part)))
    return "".join(parts)


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
        head = posixpath.dirname(head)
    return head

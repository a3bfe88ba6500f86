"""Whether code is what it was: one hash over the files of a folder, or of a single module."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_NOT_CODE = ("__pycache__", "mlruns", "mlartifacts", "node_modules")
_MOST_FILES = 5000
_MOST_BYTES = 200_000_000


def code_hash(place: Path, files: Iterable[Path] | None = None) -> str:
    """Return the sha256 of names and contents of the files in a folder, or of a single file.

    `files` says which ones; else it is all of them without hidden ones, caches and runs. Empty when they are too large
    to be code alone: then nobody can say whether it changed.
    """
    digest, read = hashlib.sha256(), 0
    if files is None:
        files = [place] if place.is_file() else _files(place)
    for number, file in enumerate(files):
        size = file.stat().st_size
        read += size
        if number >= _MOST_FILES or read > _MOST_BYTES:
            return ""
        name = file.name if file == place else file.relative_to(place).as_posix()
        digest.update(f"{name}\0{size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in _NOT_CODE or entry.suffix == ".pyc":
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.is_file():
            yield entry

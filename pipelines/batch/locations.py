"""Files on this machine and in object stores under one roof: what is read, and what becomes visible when it is whole.

A location is a local path, a URL of a store that Arrow speaks (s3://, gs://, hdfs://, abfs://) or one of fsspec's.
Credentials come from the environment, as each store's own tools take them; a URL with a password in it is refused.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from mlflow_flywheel.pipelines.durable import sync
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.stores import file_system


@dataclass(frozen=True)
class Location:
    """One file or folder; `text` is how people write it."""

    text: str
    path: str
    files: fs.FileSystem

    @classmethod
    def of(cls, text: str, what: str = "file") -> Location:
        """Find the store of a path or URL. Raises BadInput for a URL of a kind that nobody knows."""
        if not is_remote(text):
            path = local_path(text)
            return cls(path, path, fs.LocalFileSystem())
        files, path = _store(text, what)
        return cls(text, path, files)

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, fs.LocalFileSystem)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def exists(self) -> bool:
        return bool(self.files.get_file_info(self.path).type != fs.FileType.NotFound)

    @property
    def is_folder(self) -> bool:
        return bool(self.files.get_file_info(self.path).type == fs.FileType.Directory)

    @property
    def state(self) -> tuple[int, int] | None:
        """Return size and modification time in ns of a file; None when there is none."""
        found = self.files.get_file_info(self.path)
        return (found.size, found.mtime_ns or 0) if found.type == fs.FileType.File else None

    def below(self, relative: str) -> Location:
        """Return what is called so in this folder."""
        text, path = self.text.rstrip("/"), self.path.rstrip("/")
        return Location(f"{text}/{relative}", f"{path}/{relative}", self.files)

    def beside(self, name: str) -> Location:
        """Return what is called so in the same folder."""
        text, path = posixpath.dirname(self.text), posixpath.dirname(self.path)
        return Location(f"{text}/{name}", f"{path}/{name}", self.files)

    def walk(self) -> Iterator[tuple[str, int, int]]:
        """Yield name (relative to this folder), size and modification time of all files, at any depth, sorted."""
        root = self.path.strip("/") + "/"
        found = self.files.get_file_info(fs.FileSelector(self.path, recursive=True))
        for info in sorted(found, key=lambda info: str(info.path)):
            if info.type == fs.FileType.File:
                yield info.path.lstrip("/").removeprefix(root), info.size, info.mtime_ns or 0

    def read(self) -> Any:
        """Open for reading from the start; compressed files are unpacked."""
        return self.files.open_input_stream(self.path, compression="detect")

    def read_anywhere(self) -> Any:
        """Open for reading at any place."""
        return self.files.open_input_file(self.path)

    def write(self) -> Any:
        """Open for writing; the folder is made."""
        self.files.create_dir(posixpath.dirname(self.path) or ".", recursive=True)
        return self.files.open_output_stream(self.path, compression=None)

    def flush(self) -> None:
        """On this machine, wait until what was written is on the disk: `become` need not wait for all of it then."""
        if self.is_local:
            sync(self.path)

    def become(self, target: Location) -> None:
        """Take another name at once, and, on this machine, for good even when the power fails."""
        if self.is_local:
            sync(self.path)
            os.replace(self.path, target.path)
            sync(os.path.dirname(target.path))
        else:
            self.files.move(self.path, target.path)

    def remove(self) -> None:
        """Delete the file, if it is there."""
        if self.exists:
            self.files.delete_file(self.path)


def is_remote(text: str) -> bool:
    """Tell whether a location is a URL of something else than a local file."""
    return "://" in text and not text.startswith("file://")


def local_path(text: str) -> str:
    """Return an absolute local path of a path or a file:// URL."""
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return os.path.abspath(os.path.expanduser(text))


def _store(text: str, what: str) -> tuple[fs.FileSystem, str]:
    parts = urlsplit(text)
    if parts.password is not None or parts.query:
        raise BadInput(
            f"{what} {parts.scheme}://{parts.hostname}... has a password or options in it, which records would keep; "
            "leave them out and set the store's environment variables"
        )
    try:
        return file_system(parts.scheme, parts.netloc), f"{parts.netloc}{parts.path}"
    except (pa.ArrowException, ValueError, ImportError, OSError) as error:
        raise BadInput(
            f"{what} {text!r} is in no store that can be reached ({str(error).splitlines()[0]}); give a local path, or "
            "the URL of a store such as s3://bucket/folder"
        ) from None

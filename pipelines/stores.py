"""Object stores as Arrow reads them, with credentials from the environment."""

from __future__ import annotations

import os
from functools import lru_cache
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

# Those of which Arrow and delta-rs write places in the same way.
_OF_TABLES = ("s3", "s3a", "gs")


@lru_cache(maxsize=16)
def file_system(scheme: str, host: str) -> fs.FileSystem:
    """Return the file system of a store that Arrow speaks, or else one of fsspec's; raises what these raise."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and endpoint is not None:  # Arrow itself does not look there
        parts = urlsplit(endpoint)
        return fs.S3FileSystem(endpoint_override=parts.netloc, scheme=parts.scheme or "https")
    if scheme in ("s3", "gs", "gcs", "hdfs", "abfs", "abfss"):
        return fs.FileSystem.from_uri(f"{scheme}://{host}")[0]
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def table_files(uri: str) -> fs.FileSystem | None:
    """Return the folder of a Delta table in a store, read by Arrow alone; None where Arrow does not get there.

    delta-rs takes more kinds of stores and of credentials than Arrow does.
    """
    try:
        return _reached(uri)
    except (pa.ArrowException, OSError, ValueError):
        return None


@lru_cache(maxsize=64)
def _reached(uri: str) -> fs.FileSystem:
    parts = urlsplit(uri)
    if parts.scheme not in _OF_TABLES:
        raise ValueError(uri)
    store = file_system(parts.scheme.removesuffix("a"), parts.netloc)
    folder = fs.SubTreeFileSystem(f"{parts.netloc}{parts.path}", store)
    if folder.get_file_info("_delta_log").type != fs.FileType.Directory:
        raise FileNotFoundError(uri)
    return folder

"""An S3-compatible object store in a process of its own: delta-rs keeps the interpreter to itself while it waits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from pyarrow import fs

from .processes import end_group, free_port
from .waiting import eventually


@contextmanager
def s3_store(environment: pytest.MonkeyPatch, bucket: str) -> Iterator[None]:
    """Serve an empty bucket, and point the environment's S3 settings at it."""
    place = f"127.0.0.1:{free_port()}"
    host, port = place.split(":")
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{place}",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            environment.setenv(name, value)
        eventually(lambda: _answers(f"http://{place}/moto-api/"), what="the object store answers")
        fs.S3FileSystem(endpoint_override=place, scheme="http", allow_bucket_creation=True).create_dir(bucket)
        yield
    finally:
        end_group(server)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False

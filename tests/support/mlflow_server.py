"""A real MLflow server in a process group of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from .mlflow_store import empty_store
from .processes import end_group, free_port
from .waiting import eventually


@contextmanager
def mlflow_server(
    folder: Path, *arguments: str, prefix: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serve a new SQLite store under `folder` with our pages; yields the URL, prefix included."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "flywheel", "--workers", "1"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        empty_store(folder / "mlflow.db"),
    ]
    command += ["--artifacts-destination", str(folder / "artifacts"), *arguments]
    command += ["--static-prefix", prefix] if prefix else []
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
    url = f"http://127.0.0.1:{port}{prefix}"
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=variables, stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    try:
        eventually(
            lambda: server.poll() is not None or requests.get(f"{url}/health", timeout=2).ok,
            timeout=90,
            every=0.2,
        )
        assert server.poll() is None, log.read_text()
        yield url
    finally:
        end_group(server)

"""MLflow's own scoring server, `mlflow models serve`, in a process group of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from .processes import end_group, free_port
from .waiting import eventually


@contextmanager
def mlflow_serving(model: str, folder: Path) -> Iterator[str]:
    """Serve the model in this folder; yields the URL at once: wait for it with `wait_answering`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", model, "--host", "127.0.0.1", "--port", str(port)]
    # it starts uvicorn by name
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "mlflow-serve.log").open("w") as out:
        server = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        end_group(server)


def wait_answering(url: str) -> None:
    """Return when the server at this URL answers."""
    eventually(
        lambda: requests.get(f"{url}/ping", timeout=2).ok, timeout=90, every=0.2, what=f"{url} answers"
    )

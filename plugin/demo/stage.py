"""The folder in which a demo plays, and the processes in it: all that was started ends with it.

The folder is recognised by a marker file. What an earlier demo left in it is removed; a folder that holds anything
else is refused. The flights that were read once are kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.plugin.context import Context, log_tail
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import python_module

SERVER = "mlflow"
DEFAULT_PORT = 5000
_MARKER = "flywheel-demo"
_HOST = "127.0.0.1"
_SERVER_SECONDS = 120.0
_STOP_SECONDS = 10
_ELSEWHERE = ("FLYWHEEL_DATABASE_URL", "FLYWHEEL_TABLES", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@dataclass(frozen=True)
class Stage:
    """A fresh flywheel home with an MLflow server of its own beside it."""

    folder: Path
    context: Context

    @property
    def work(self) -> Path:
        """Where files of this demo may lie."""
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """Where the flights are kept from demo to demo."""
        return self.folder / "cache" / "flights"

    def start_server(self, port: int) -> str:
        """Start an MLflow server with our page, kept by the home's supervisor, and return its URL at once."""
        url = f"http://{_HOST}:{port}"
        self.context.home.bind(url)
        store = self.work / "mlflow"
        store.mkdir()
        command = python_module(
            "mlflow", "server", "--app-name", "flywheel", "--workers", "1", "--host", _HOST, "--port", str(port),
            "--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}", "--artifacts-destination", str(store / "artifacts"),
        )  # fmt: skip
        spec = self.context.process(SERVER, command, _STOP_SECONDS)
        lean = {**spec.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.context.runner.start(type(spec)(spec.name, spec.command, spec.log_file, lean, spec.stop_seconds))
        return url

    def wait_for_server(self, url: str) -> None:
        """Wait until the server answers. Raises Unavailable, with its last log lines, when it does not."""
        deadline = time.monotonic() + _SERVER_SECONDS
        while True:
            try:
                if requests.get(f"{url}/health", timeout=2).ok:
                    return
            except requests.RequestException:
                pass  # not there yet
            (process,) = self.context.runner.status(SERVER)
            if not process.alive or time.monotonic() > deadline:
                said = log_tail(self.context.home.log_file(SERVER))
                raise Unavailable(f"the MLflow server at {url} did not start; its last log lines:\n{said}")
            time.sleep(0.1)


@contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """Hold a fresh stage in `folder`; leaving it stops every process of it and keeps the files.

    Raises BadInput for a folder that holds something else, Unavailable while another demo plays there.
    """
    folder = folder.expanduser().absolute()
    _claim(folder)
    with open(folder / _MARKER, "a") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"a demo plays in {str(folder)!r} already; end it with Ctrl-C there, or give another folder with --home"
            ) from None
        # A demo is complete in its folder, whatever this shell is set to.
        for variable in _ELSEWHERE:
            os.environ.pop(variable, None)
        _wipe(folder)
        (folder / "run").mkdir()
        context = Context.open(Home(_home(folder)))
        try:
            yield Stage(folder, context)
        finally:
            with _undisturbed():
                context.runner.down()


def choose_port(wanted: int | None) -> tuple[int, str | None]:
    """Return a port to listen on, and what to say when it is not the usual one.

    Raises BadInput when a port that was asked for is taken.
    """
    port = DEFAULT_PORT if wanted is None else wanted
    if _is_free(port):
        return port, None
    if wanted is not None:
        raise BadInput(f"port {port} is taken; give another one, or leave out --port for any free one")
    with socket.socket() as free:
        free.bind((_HOST, 0))
        chosen = int(free.getsockname()[1])
    return chosen, f"port {port} is taken, so MLflow listens on {chosen}"


def _home(folder: Path) -> Path:
    return folder / "run" / "home"


def _claim(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / _MARKER).exists():
            if any(folder.iterdir()):
                raise BadInput(
                    f"folder {str(folder)!r} is not empty and was not made by a demo; give another one with --home"
                )
            (folder / _MARKER).touch(mode=0o600)
    except OSError as error:
        raise BadInput(
            f"folder {str(folder)!r} cannot be used for the demo: {error.strerror or error}; give another with --home"
        ) from error


def _wipe(folder: Path) -> None:
    """End what a killed demo may have left running, and remove its files."""
    home = Home(_home(folder))
    if home.path.exists():
        Context.open(home).runner.down()
    shutil.rmtree(folder / "run", ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal cut the stopping short, where this is the thread that signals interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True

"""A real web deployment for tests: its master process, its status, and callers that count what happened to them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from support.waiting import eventually
from typing_extensions import Self

from mlflow_flywheel.pipelines.config import ModelRef, WebConfig
from mlflow_flywheel.pipelines.generation_status import GenerationStatus, read_status
from mlflow_flywheel.pipelines.web.parsing import Rows
from mlflow_flywheel.pipelines.web.service import Answer, Service


@dataclass
class WebService:
    """One running master."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    def status(self) -> GenerationStatus:
        status = read_status(self.folder / "status.json")
        assert status is not None
        return status

    @property
    def url(self) -> str:
        url = self.status().url
        assert url is not None
        return url

    def wait_serving(self, version: str, workers: int) -> GenerationStatus:
        def serving() -> GenerationStatus | None:
            status = self.status()
            right = (
                status.serving and status.serving.version == version and len(status.serving.pids) == workers
            )
            return status if right else None

        return eventually(serving, timeout=90, what=f"version {version} serves with {workers} workers")  # type: ignore[return-value]


def web_config(folder: Path, model: ModelRef, **more: Any) -> WebConfig:
    return WebConfig(
        deployment="late-web",
        model=model,
        spool=str(folder / "spool"),
        status_file=str(folder / "status.json"),
        **{"port": 0, **more},
    )


@contextmanager
def running_web(config: WebConfig, folder: Path) -> Iterator[WebService]:
    """Run a master with this configuration until the block ends."""
    config.save(folder / "config.json")
    command = [sys.executable, "-m", "mlflow_flywheel.pipelines.web", "--config", str(folder / "config.json")]
    with open(folder / "web.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield WebService(folder, process)
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Callers:
    """Concurrent callers that ask until told to stop, with connections kept alive, each with a key of its own.

    `pause` is how long (seconds) a caller thinks between two requests.
    """

    url: str
    body: dict[str, Any]
    count: int
    pause: float = 0.0
    answers: list[tuple[str, ...]] = field(default_factory=list)
    predictions: list[list[Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    heard: dict[str, list[list[Any]]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(f"caller-{i}",)) for i in range(self.count)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered(self, n: int) -> None:
        """Return when `n` more answers have come."""
        goal = len(self.answers) + n
        eventually(lambda: len(self.answers) >= goal, timeout=60, what=f"{n} more answers")

    def _call(self, key: str) -> None:
        asked = {
            "body": json.dumps({**self.body, "client_request_id": key}).encode(),
            "headers": {"Content-Type": "application/json"},
        }
        heard = self.heard.setdefault(key, [])
        # a third of the work of `requests`: so many callers would take the processor from the workers
        with urllib3.connection_from_url(self.url, maxsize=1, timeout=30) as connection:
            while not self._stop.wait(self.pause):
                try:
                    answer = connection.urlopen("POST", "/invocations", retries=False, **asked).json()
                    heard.append(answer["predictions"])
                    self.predictions.append(answer["predictions"])
                    self.answers.append(tuple(answer["prediction_ids"]))
                except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
                    self.failures.append(repr(error))


def score(service: Service, rows: Rows) -> Answer:
    """Ask a service and wait for the answer."""
    return service.submit(rows).result(20)

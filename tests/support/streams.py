"""Real parts of stream mode for tests: the embedded broker's process, a deployment's master, a restarting keeper."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, final

from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.generation_status import GenerationStatus, read_status
from mlflow_flywheel.pipelines.stream.broker import HOST, embedded_broker, free_port, wait_ready
from mlflow_flywheel.pipelines.stream.stats import StreamStats, needs_broker_restart, read_stats

START_SECONDS = 120


class BrokerProcess:
    """The real binary on a folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.broker = embedded_broker(folder, free_port())
        self.url = self.broker.url
        self.log = folder / "broker.log"
        self._one_at_a_time = threading.Lock()
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.broker.command, stdout=log, stderr=subprocess.STDOUT)
        self.started = datetime.now(timezone.utc)
        wait_ready(HOST, self.broker.port)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(how)
        self._process.wait(30)

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and start it again; safe to call from several threads."""
        with self._one_at_a_time:
            self.stop(how)
            self.start()


@final
class Keeper:
    """What the control plane's daemon does: restarts the embedded broker when a deployment's statistics ask for it."""

    def __init__(self, broker: BrokerProcess, *status_files: str) -> None:
        self._broker = broker
        self._status_files = status_files
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep)
        self.restarts = 0

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._end.wait(0.2):
            if needs_broker_restart(self._status_files, self._broker.started):
                self._broker.restart()
                self.restarts += 1


class StreamDeployment:
    """A master process and its configuration, on topics named after the deployment unless told otherwise."""

    def __init__(self, folder: Path, broker_url: str, name: str, model: ModelRef, **settings: Any) -> None:
        self.folder = folder
        self.path = folder / f"{name}.json"
        self.log = folder / f"{name}.log"
        self.config = StreamConfig(
            **{
                "deployment": name,
                "model": model,
                "spool": str(folder / "spool"),
                "status_file": str(folder / f"{name}.status.json"),
                "broker": broker_url,
                "embedded": True,
                "input_topic": f"{name}-in",
                "output_topic": f"{name}-out",
                "feedback_topic": f"{name}-feedback",
                "dead_letter_topic": f"{name}-in-{name}-DLQ",
                "subscription": name,
                **settings,
            }
        )
        self.config.save(self.path)

    def start(self) -> StreamDeployment:
        command = [sys.executable, "-m", "mlflow_flywheel.pipelines.stream", "--config", str(self.path)]
        with self.log.open("ab") as log:
            self._master = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def wait_serving(self, version: str | None = None, other_than: int | None = None) -> int:
        """Return the pid of the worker that consumes; of another one than `other_than`."""

        def check() -> int:
            status = self.status()
            assert self._master.poll() is None, self.log.read_text()[-2000:]
            serving = status.serving if status else None
            assert serving is not None and serving.pids, status
            assert version is None or serving.version == version, status
            return 0 if serving.pids[0] == other_than else serving.pids[0]

        return eventually(check, START_SECONDS, what=f"{self.config.deployment} serving")

    def status(self) -> GenerationStatus | None:
        return read_status(Path(self.config.status_file))

    def stats(self) -> StreamStats:
        stats = read_stats(self.config.status_file)
        assert stats is not None, "no statistics yet"
        return stats

    def update(self, **settings: Any) -> None:
        """Change the configuration and tell the master."""
        self.config = self.config.model_copy(update=settings)
        self.config.save(self.path)
        self._master.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        self._master.send_signal(signal.SIGTERM)
        return self._master.wait(60)

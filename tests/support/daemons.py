"""A real daemon process on a home, and a look at everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from support.waiting import eventually

from mlflow_flywheel.plugin.home import Home

_MARK = "FLYWHEEL_TEST_DAEMON"


@contextmanager
def running_daemon(home: Home) -> Iterator[DaemonProcess]:
    """Keep a daemon ready; afterwards it is killed, and nothing of it is left behind."""
    daemon = DaemonProcess(home)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.kill()


class DaemonProcess:
    """One daemon and what it started."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._mark = uuid.uuid4().hex
        self._log = home.path / "test-daemon.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow_flywheel.plugin.daemon", "--home", str(home.path)],
                env={**os.environ, _MARK: self._mark},
                stdout=log,
                stderr=log,
                cwd=home.path,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until it has written its status."""
        status = self.home.path / "daemon.json"

        def ready() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended: {self.log()}")
            return status.exists() and f'"pid": {self.pid}' in status.read_text()

        eventually(ready, 60, what="the daemon writes its status")

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text()

    def family(self) -> list[int]:
        """Return the processes that carry this daemon's mark and are alive, the daemon included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (psutil.Error, OSError):
                continue
        return found

    def terminate(self, timeout: float = 60.0) -> int:
        """Ask it to end and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout)

    def kill(self) -> None:
        """Kill it alone, as the kernel would, and wait until all that it started is gone too."""
        self._process.kill()
        self._process.wait()
        eventually(lambda: not self.family(), what="children of a killed daemon end by themselves")

"""What keeps processes alive, as an interface: the plugin knows no process manager beyond this."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

State = Literal["starting", "running", "backoff", "stopping", "stopped", "exited", "fatal"]
DAEMON = "daemon"
BROKER = "broker"
APACHE_BROKER = "apache-broker"
_DEPLOYMENT_PREFIX = "deployment-"


@dataclass(frozen=True)
class ProcessSpec:
    """One process to keep alive.

    `name` is unique in a runner and made of letters, digits, `-`, `_` and `.`. The process gets the runner's own
    environment with `environment` over it. On stop it has `stop_seconds` after SIGTERM until it is killed, with its
    whole process group.
    """

    name: str
    command: tuple[str, ...]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: int = 30


@dataclass(frozen=True)
class ProcessStatus:
    """What a kept process does now; `uptime` in seconds, `exit` is the last exit code (negative: a signal)."""

    name: str
    state: State
    pid: int | None
    uptime: float
    exit: int | None

    @property
    def alive(self) -> bool:
        """Whether the operating system runs the process now."""
        return self.state in ("starting", "running", "stopping")


class Runner(Protocol):
    """Keeps named processes alive, also when the caller is gone.

    Every method is safe to call from several processes at once. Unknown names raise NotFound, a process manager that
    does not answer raises Unavailable.
    """

    def ensure_up(self) -> None:
        """Start the process manager, with every process it was ever given and not told to stop; idempotent."""

    def running(self) -> bool:
        """Return whether the process manager answers."""

    def start(self, spec: ProcessSpec) -> None:
        """Keep this process alive from now on.

        The same spec again changes nothing (a process that had been given up is started again); a changed one
        replaces the old process.
        """

    def stop(self, name: str) -> None:
        """Stop the process, wait until it and its group are gone, and forget it."""

    def restart(self, name: str) -> None:
        """Stop the process, wait until it is gone, and start it again."""

    def signal(self, name: str, signal: int) -> None:
        """Send a signal to the process itself, not to its children."""

    def status(self, name: str | None = None) -> list[ProcessStatus]:
        """Return what every kept process (or the named one) does, by name; all stopped when the manager is down."""

    def down(self) -> list[ProcessStatus]:
        """Stop everything and the process manager, and wait until no process is left.

        Returns what was stopped. What was kept comes back with the next `ensure_up`. Idempotent.
        """


def deployment_process(deployment: str) -> str:
    """Return the name of a deployment's process: prefixed, so that none collides with the daemon or the broker."""
    return _DEPLOYMENT_PREFIX + deployment


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs one of our modules with this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def process_environment(tracking_uri: str | None, home: Path) -> dict[str, str]:
    """Return what every process of ours is told: which home, and which MLflow server.

    Nothing of the calling shell is in it, or the next shell's caller would describe another process.
    """
    # Threads of OpenMP that wait by spinning take the cores from the other processes of a home: a fit of two seconds
    # took half a minute, and a prediction of 4 ms took 30.
    environment = {"FLYWHEEL_HOME": str(home), "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if tracking_uri:
        environment["MLFLOW_TRACKING_URI"] = tracking_uri
    return environment


def path_with_interpreter(path: str) -> str:
    """Return PATH with this interpreter's folders first: MLflow starts projects with what it finds on PATH."""
    first = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    return os.pathsep.join(dict.fromkeys([*first, *path.split(os.pathsep)]))

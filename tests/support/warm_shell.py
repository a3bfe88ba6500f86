"""Console commands in forks of one process that has imported what they import.

Each command is a process of its own, with its own environment, folder and output, as a shell would run it; what is
saved is the start, which for `mlflow` and `flywheel` is most of the work. That the installed scripts start cold is for
other tests to show.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from support.processes import end_group

_IMPORTS = ("mlflow.cli", "mlflow.deployments.cli", "mlflow.pyfunc", "mlflow_flywheel.plugin.deployments")
_TESTS = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class WarmShell:
    """Where commands are run; several may run at a time."""

    address: str

    def run(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run an installed command, and return its output and exit code; that of a killed one is -9."""
        asked = json.dumps({"words": list(words), "env": dict(env), "cwd": str(cwd)}).encode()
        with TemporaryFile() as out, TemporaryFile() as err, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self.address)
            descriptors = array.array("i", [out.fileno(), err.fileno()])
            connection.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            connection.sendall(asked)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(16)
            texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        return subprocess.CompletedProcess(list(words), int(answer or -signal.SIGKILL), *texts)


@contextmanager
def warm_shell() -> Iterator[WarmShell]:
    """Keep a shell warm."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": _TESTS}
    with TemporaryDirectory(prefix="warm-") as folder:  # a test's own has a long name, and sockets' are short
        address = f"{folder}/shell"
        process = subprocess.Popen(
            [sys.executable, "-m", "support.warm_shell", address],
            env=environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == b"warm\n"
            yield WarmShell(address)
        finally:
            end_group(process)


def _serve(address: str) -> None:
    for module in _IMPORTS:
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("warm", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """Be the command that is asked for over the connection; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    asked = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    for descriptor, standard in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv, sys.modules["__main__"].__package__ = asked["words"], None  # click says who it is by both
    script, *_ = entry_points(group="console_scripts", name=sys.argv[0])
    try:
        code = script.load()()
    except SystemExit as ended:
        code = ended.code
    except Exception:  # noqa: BLE001 - it is printed where the caller looks
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code or 0).encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])

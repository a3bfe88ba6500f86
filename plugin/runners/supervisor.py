"""The default runner: a supervisord of the home's own, started on demand, spoken to by XML-RPC on a unix socket.

Each kept process is one file in `supervisor/programs`, so programs come and go without touching the others. The
socket and all files are for the owner alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal as signals
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mlflow_flywheel.pipelines.errors import BadInput, NotFound, Unavailable, nearest
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.private_files import write_private

from . import launch
from .base import ProcessSpec, ProcessStatus, State, path_with_interpreter
from .processes import HOME_MARK, NAME_MARK, end_processes, marked_processes, wait_gone
from .supervisor_rpc import Fault, SupervisorDown, SupervisorRpc

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_STOP_MARGIN_SECONDS = 20
_START_SECONDS = 30
_ORPHAN_SECONDS = 15
_BAD_NAME, _SPAWN_ERROR, _ALREADY_STARTED = 10, 50, 60
_NOT_RUNNING, _ALREADY_ADDED, _STILL_RUNNING = 70, 90, 91
# Of the shell that happened to start the supervisor, these must not reach the processes it keeps: they say what that
# shell's own program is, and in which trace. Where traces go to (OTEL_EXPORTER_*) is meant for them.
_NOT_INHERITED = re.compile(
    r"_MLFLOW_|MLFLOW_(RUN_ID|EXPERIMENT_ID|EXPERIMENT_NAME)$|PYTEST_|SUPERVISOR_|FLYWHEEL_PROCESS$"
    r"|OTEL_SERVICE_NAME$|TRACEPARENT$|TRACESTATE$"
)

_CONFIG = """\
[supervisord]
logfile={folder}/supervisord.log
logfile_maxbytes=2MB
logfile_backups=2
pidfile={folder}/supervisord.pid
umask=077

[unix_http_server]
file={socket}
chmod=0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[include]
files=programs/*.conf
"""

_PROGRAM = """\
[program:{name}]
command={command}
autostart=true
autorestart=true
startsecs=1
startretries=100
stopsignal=TERM
stopwaitsecs={stop_seconds}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={log_file}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


class SupervisorRunner:
    """A Runner over supervisord; see the protocol for what each method promises."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.supervisor
        self._programs = self._folder / "programs"
        self._rpc = SupervisorRpc(home.socket, home.path)

    def ensure_up(self) -> None:
        if self.running():
            return
        with self._alone("supervisor"):
            if not self.running():
                end_processes(marked_processes(self._home.path), _ORPHAN_SECONDS)
                self._launch()

    def running(self) -> bool:
        try:
            return int(self._rpc.call("getState")["statecode"]) == 1
        except SupervisorDown:
            return False

    def start(self, spec: ProcessSpec) -> None:
        if not _NAME.fullmatch(spec.name):
            raise BadInput(f"process name {spec.name!r} may hold letters, digits, '-', '_' and '.' only")
        self.ensure_up()
        with self._alone(spec.name):
            known = self._find(spec.name)
            if known is not None and self._spec_file(spec.name).read_text() == _serialised(spec):
                if not known.alive:
                    self._start_known(spec.name)
                return
            if known is not None:
                self._remove(known)
            self._write(spec)
            self._rpc.call("reloadConfig")
            self._rpc.call("addProcessGroup", spec.name, harmless=_ALREADY_ADDED)

    def stop(self, name: str) -> None:
        with self._alone(name):
            if not self._spec_file(name).exists():
                raise self._unknown(name)
            known = self._find(name) if self.running() else None
            if known is not None:
                self._remove(known)
            grace = self._patience(name) - _STOP_MARGIN_SECONDS
            end_processes(marked_processes(self._home.path, name), grace)
            self._program_file(name).unlink(missing_ok=True)
            self._spec_file(name).unlink(missing_ok=True)

    def restart(self, name: str) -> None:
        with self._alone(name):
            known = self._known(name)
            self._rpc.call(
                "stopProcess", name, True, harmless=_NOT_RUNNING, seconds=self._patience(known.name)
            )
            self._start_known(name)

    def signal(self, name: str, signal: int) -> None:
        self._known(name)
        self._rpc.call("signalProcess", name, signals.Signals(signal).name, harmless=_NOT_RUNNING)

    def status(self, name: str | None = None) -> list[ProcessStatus]:
        try:
            running = {s.name: s for s in map(_status, self._rpc.call("getAllProcessInfo"))}
        except SupervisorDown:
            running = {}
        kept = {
            file.stem: ProcessStatus(file.stem, "stopped", None, 0.0, None) for file in self._spec_files()
        }
        statuses = {**kept, **running}
        if name is None:
            return [statuses[each] for each in sorted(statuses)]
        if name not in statuses:
            raise self._unknown(name)
        return [statuses[name]]

    def down(self) -> list[ProcessStatus]:
        if not self._folder.exists():
            return []
        with self._alone("supervisor"):
            stopped = [s for s in self.status() if s.alive]
            try:
                pid = int(self._rpc.call("getPID"))
                self._rpc.call("shutdown")
                patience = max([self._patience(s.name) for s in stopped], default=_STOP_MARGIN_SECONDS)
                wait_gone([pid], patience)
            except SupervisorDown:
                pass  # nothing to ask; whatever is left is ended by its mark
            end_processes(marked_processes(self._home.path), _ORPHAN_SECONDS)
            self._home.remove_socket()
            return stopped

    def _launch(self) -> None:
        self._home.create()
        self._programs.mkdir(mode=0o700, exist_ok=True)
        socket = self._home.make_socket_folder()
        config = self._folder / "supervisord.conf"
        write_private(config, _CONFIG.format(folder=_quoted(self._folder), socket=_quoted(socket)))
        inherited = {k: v for k, v in os.environ.items() if not _NOT_INHERITED.match(k)}
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
            env={
                **inherited,
                "PATH": path_with_interpreter(os.environ.get("PATH", os.defpath)),
                HOME_MARK: str(self._home.path),
            },
            cwd=self._home.path,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_START_SECONDS,
            check=False,
        )
        deadline = time.monotonic() + _START_SECONDS
        while started.returncode == 0 and time.monotonic() < deadline:
            if self.running():
                return
            time.sleep(0.02)
        said = started.stdout.decode(errors="replace").strip().splitlines()
        raise Unavailable(
            f"supervisord did not start in home {str(self._home.path)!r}: {'; '.join(said[-3:]) or 'it says nothing'}; "
            f"its log is {str(self._folder / 'supervisord.log')!r}"
        )

    def _write(self, spec: ProcessSpec) -> None:
        spec.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = (sys.executable, "-I", "-S", launch.__file__, str(self._spec_file(spec.name)))
        program = _PROGRAM.format(
            name=spec.name,
            command=" ".join(_quoted(argument, shell=True) for argument in command),
            log_file=_quoted(spec.log_file).replace("%", "%%"),  # supervisord expands this one twice
            stop_seconds=spec.stop_seconds,
        )
        write_private(self._spec_file(spec.name), _serialised(spec))
        write_private(self._program_file(spec.name), program)

    def _remove(self, known: ProcessStatus) -> None:
        patience = self._patience(known.name)
        deadline = time.monotonic() + patience
        while True:
            self._rpc.call("stopProcess", known.name, True, harmless=_NOT_RUNNING, seconds=patience)
            try:
                self._rpc.call("removeProcessGroup", known.name, harmless=_BAD_NAME)
                return
            except Fault as fault:
                # one that had just ended, and so was not running, may be started again before it is removed
                if fault.faultCode != _STILL_RUNNING or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _start_known(self, name: str) -> None:
        try:
            self._rpc.call("startProcess", name, False, harmless=_ALREADY_STARTED)
        except Fault as fault:
            raise Unavailable(f"process {name!r} cannot be started: {fault.faultString}") from None

    def _known(self, name: str) -> ProcessStatus:
        known = self._find(name)
        if known is None:
            raise self._unknown(name)
        return known

    def _find(self, name: str) -> ProcessStatus | None:
        try:
            return _status(self._rpc.call("getProcessInfo", name))
        except Fault as fault:
            if fault.faultCode == _BAD_NAME:
                return None
            raise

    def _unknown(self, name: str) -> NotFound:
        return NotFound(
            f"process {name!r} is not kept here{nearest(name, (f.stem for f in self._spec_files()))}"
        )

    def _patience(self, name: str) -> float:
        """Return how long stopping this process may take until its supervisor must have answered, in seconds."""
        try:
            return float(json.loads(self._spec_file(name).read_text())["stop_seconds"]) + _STOP_MARGIN_SECONDS
        except FileNotFoundError:
            return _STOP_MARGIN_SECONDS

    def _spec_files(self) -> list[Path]:
        return sorted(self._programs.glob("*.json"))

    def _spec_file(self, name: str) -> Path:
        return self._programs / f"{name}.json"

    def _program_file(self, name: str) -> Path:
        return self._programs / f"{name}.conf"

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        locks = self._home.create().supervisor / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        with open(locks / name, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _status(info: dict[str, Any]) -> ProcessStatus:
    state = info["statename"].lower()
    running = state in ("running", "stopping")
    return ProcessStatus(
        name=info["name"],
        state=cast(State, state if state != "unknown" else "fatal"),
        pid=info["pid"] or None,
        uptime=float(info["now"] - info["start"]) if running else 0.0,
        exit=info["exitstatus"] if state == "exited" else None,  # it forgets those of early deaths
    )


def _serialised(spec: ProcessSpec) -> str:
    environment = {**spec.environment, NAME_MARK: spec.name}
    return json.dumps(
        {"command": spec.command, "environment": environment, "stop_seconds": spec.stop_seconds,
         "log_file": str(spec.log_file)},
        indent=2, sort_keys=True,
    )  # fmt: skip


def _quoted(value: str | Path, *, shell: bool = False) -> str:
    """Return a path or argument as supervisord's configuration reads it back; raises BadInput when it cannot."""
    text = str(value)
    if re.search(r"\s[;#]|[\n\r\"'\\]|^\s|\s$", text):
        raise BadInput(
            f"path {text!r} holds quotes, line ends, ' ;' or ' #', which supervisord cannot read; move it"
        )
    text = text.replace("%", "%%")
    return f'"{text}"' if shell else text

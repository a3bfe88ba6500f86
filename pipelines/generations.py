"""A master process that keeps one generation of workers serving and swaps it without losing a request.

A generation is a configuration file's content: its model version, served by n worker processes for their whole life.
SIGHUP reads the file again; when it differs, the next generation's workers load the model first, and only when all of
them are prepared do they take over:

- `overlap` (web): the new ones accept on the same inherited socket, then the old ones drain and exit;
- `exclusive` (stream): the old ones finish and exit, then the new ones begin.

A generation that cannot be prepared is given up and the old one goes on. SIGTERM drains and exits 0. A dead worker is
started again, with backoff, from its own generation's configuration. `generation_status` describes what is reported.
This process stays light: it imports no MLflow, no pandas and no model.
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from .config import ModelRef, digest_of
from .errors import FlywheelError
from .generation_status import Failed, GenerationStatus, Pending, Serving
from .worker_channel import DRAIN_SECONDS
from .worker_process import Generation, Slot, WorkerProcess

Handover = Literal["overlap", "exclusive"]
PREPARE_SECONDS = 300.0

_logger = logging.getLogger(__name__)


class GenerationConfig(Protocol):
    """What a configuration must say for its workers to be kept."""

    @property
    def model(self) -> ModelRef: ...
    @property
    def workers(self) -> int: ...
    @property
    def status_file(self) -> str: ...


Command = Callable[[Generation, int], Sequence[str]]


class Generations:
    """The master's loop; `run` returns the exit code.

    `read` parses a configuration file and raises a FlywheelError for one that must not be served. `command` gives the
    argv of worker `index` of a generation, which should read `generation.config_path`. `pass_fds` stay open in workers.
    """

    def __init__(
        self,
        config_path: Path,
        read: Callable[[Path], GenerationConfig],
        command: Command,
        *,
        handover: Handover,
        pass_fds: Sequence[int] = (),
        url: str | None = None,
        prepare_seconds: float = PREPARE_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._config_path = config_path
        self._read = read
        self._command = command
        self._handover = handover
        self._pass_fds = tuple(pass_fds)
        self._url = url
        self._prepare_seconds = prepare_seconds
        self._drain_seconds = drain_seconds
        self._status_file = Path(read(config_path).status_file)
        self._numbers = 0
        self._serving: Generation | None = None
        self._since: datetime | None = None
        self._pending: Generation | None = None
        self._committed = False  # the old generation was told to leave: there is no way back
        self._failed: Failed | None = None
        self._retired: list[WorkerProcess] = []  # given up: nothing is expected from them but their end
        self._told: set[signal.Signals] = set()
        self._reported: str = ""

    def run(self) -> int:
        """Serve until SIGTERM (exit code 0), or until the first generation turns out not to be servable (1)."""
        for copy in self._status_file.parent.glob(f"{self._status_file.stem}.generation-*"):
            copy.unlink()
        with SignalFlags(self._told) as wakeup:
            self._begin()
            while self._pending or self._serving:
                self._report()
                self._wait(wakeup)
                self._collect()
                if self._told & {signal.SIGTERM, signal.SIGINT}:
                    self._drain(wakeup)
                    return 0
                if signal.SIGHUP in self._told and not self._committed:
                    self._told.discard(signal.SIGHUP)
                    self._begin()
                self._refill()
                self._advance()
                self._kill_overdue()
            self._drain(wakeup)
        return 1

    # -- one generation after the other

    def _begin(self) -> None:
        """Start preparing the generation that the configuration file describes now, unless it is there already."""
        serving, pending = self._serving, self._pending
        self._numbers += 1
        copy = self._status_file.with_name(f"{self._status_file.stem}.generation-{self._numbers}")
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._config_path, copy)
            digest = digest_of(copy)
            if pending is not None and pending.digest == digest:
                copy.unlink()
                return
            if pending is not None:
                self._retire(pending)
            if serving is not None and serving.digest == digest:
                self._failed = None
                copy.unlink()
                return
            config = self._read(copy)
            self._pending = Generation(self._numbers, digest, config.model.version, copy)
            self._pending.slots = [Slot(index) for index in range(config.workers)]
            self._failed = None
            for slot in self._pending.slots:
                self._start(self._pending, slot)
        except (FlywheelError, OSError) as error:
            if self._pending is not None:
                self._give_up(self._pending, str(error))
            else:
                digest = digest_of(copy) if copy.exists() else ""
                self._failed = Failed(digest=digest, version="", error=str(error))
                copy.unlink(missing_ok=True)

    def _advance(self) -> None:
        """Take the pending generation one step nearer to serving."""
        new, old = self._pending, self._serving
        if new is None:
            return
        if not self._committed:
            if new.lost:
                self._give_up(new, new.lost[0][1].last_words())
                return
            if not new.all_in("prepared", "told", "serving"):
                return
            if self._handover == "overlap" or old is None:
                self._go(new)
                if not new.all_in("serving"):
                    return
            self._committed = True
            if old is not None:
                self._stop(old)
        if old is None or not old.workers:
            self._go(new)
            if new.all_in("serving"):
                if old is not None:
                    old.config_path.unlink(missing_ok=True)
                if self._failed and self._failed.digest == new.digest:
                    self._failed = None
                self._serving, self._pending, self._committed = new, None, False
                self._since = datetime.now(timezone.utc)

    def _give_up(self, generation: Generation, reason: str) -> None:
        self._failed = Failed(digest=generation.digest, version=generation.version, error=reason)
        _logger.error("version %r cannot serve: %s", generation.version, reason)
        self._retire(generation)

    def _retire(self, pending: Generation) -> None:
        self._stop(pending)
        self._retired += pending.workers
        pending.config_path.unlink(missing_ok=True)
        self._pending = None

    def _stop(self, generation: Generation) -> None:
        for worker in generation.workers:
            worker.stop(time.monotonic() + self._drain_seconds)

    # -- workers

    def _start(self, generation: Generation, slot: Slot) -> None:
        now = time.monotonic()
        command = self._command(generation, slot.index)
        slot.worker = WorkerProcess(command, self._pass_fds, now + self._prepare_seconds, self._drain_seconds)
        slot.started = now

    def _go(self, generation: Generation) -> None:
        for worker in generation.workers:
            worker.go(time.monotonic() + self._prepare_seconds)

    def _collect(self) -> None:
        """Hear every worker and notice who has ended."""
        for worker in self._everyone():
            worker.hear()
            worker.reap()
        self._retired = [worker for worker in self._retired if worker.exit_code is None]
        for generation in (self._serving, self._pending if self._committed else None):
            if generation is not None:
                for slot, worker in generation.lost:
                    slot.empty(time.monotonic())
                    if not worker.stopping:
                        self._lament(generation, worker)

    def _lament(self, generation: Generation, worker: WorkerProcess) -> None:
        """Tell of a worker that ended without being asked; one that never served makes its generation suspect."""
        _logger.warning("%s; another one will be started", worker.last_words())
        if worker.state != "serving":
            self._failed = Failed(
                digest=generation.digest, version=generation.version, error=worker.last_words()
            )

    @property
    def _live(self) -> Generation | None:
        """The generation whose lost workers are replaced."""
        return self._pending if self._committed else self._serving

    def _refill(self) -> None:
        """Start workers in empty slots when they are due, and let those begin that join a serving generation."""
        live = self._live
        if live is None:
            return
        for slot in live.slots:
            if slot.worker is None and time.monotonic() >= slot.not_before:
                try:
                    self._start(live, slot)
                except OSError as error:  # out of processes or descriptors: wait like after a loss
                    _logger.error("a worker cannot be started: %s", error)
                    slot.empty(time.monotonic())
        if live is self._serving:
            self._go(live)
            if self._failed and self._failed.digest == live.digest and live.all_in("serving"):
                self._failed = None

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for worker in self._everyone():
            if worker.deadline is not None and now >= worker.deadline:
                seconds = self._drain_seconds if worker.stopping else self._prepare_seconds
                what = "drain" if worker.stopping else "load its model"
                worker.kill(f"worker process {worker.pid} did not {what} within {seconds:g} s and was killed")

    def _everyone(self) -> list[WorkerProcess]:
        generations = [generation for generation in (self._serving, self._pending) if generation is not None]
        return [worker for generation in generations for worker in generation.workers] + self._retired

    # -- waiting, ending, reporting

    def _wait(self, wakeup: socket.socket) -> None:
        """Sleep until a worker speaks or ends, a signal comes, or something is due."""
        if self._told - ({signal.SIGHUP} if self._committed else set()):
            return
        due = [worker.deadline for worker in self._everyone() if worker.deadline is not None]
        if self._live is not None:
            due += [slot.not_before for slot in self._live.slots if slot.worker is None]
        timeout = max(0.01, min(due) - time.monotonic()) if due else None
        with selectors.DefaultSelector() as selector:
            selector.register(wakeup, selectors.EVENT_READ)
            for worker in self._everyone():
                if not worker.silent:
                    selector.register(worker.status_fd, selectors.EVENT_READ)
            selector.select(timeout)
        with suppress(BlockingIOError):
            wakeup.recv(4096)

    def _drain(self, wakeup: socket.socket) -> None:
        """Stop everything, wait for it within the drain time, and report that nothing serves."""
        for generation in (self._serving, self._pending):
            if generation is not None:
                self._stop(generation)
                self._retired += generation.workers
                generation.config_path.unlink(missing_ok=True)
        self._serving = self._pending = None
        self._committed = False
        while self._retired:
            self._told.clear()
            self._wait(wakeup)
            self._collect()
            self._kill_overdue()
        self._report()

    def _report(self) -> None:
        """Write the status file when it would say something new."""
        serving = pending = None
        if self._serving is not None and self._since is not None:
            pids = tuple(worker.pid for worker in self._serving.workers if worker.state == "serving")
            serving = Serving(
                digest=self._serving.digest, version=self._serving.version, pids=pids, since=self._since
            )
        if self._pending is not None:
            pending = Pending(digest=self._pending.digest, version=self._pending.version)
        status = GenerationStatus(
            serving=serving,
            pending=pending,
            failed=self._failed,
            url=self._url,
            pid=os.getpid(),
            updated=datetime.now(timezone.utc),
        )
        said = status.model_dump_json(exclude={"updated"})
        if said != self._reported:
            status.save(self._status_file)
            self._reported = said


class SignalFlags:
    """Collect SIGHUP, SIGTERM and SIGINT into a set; the socket it yields wakes a select for these and SIGCHLD."""

    def __init__(self, told: set[signal.Signals]) -> None:
        self._told = told

    def __enter__(self) -> socket.socket:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, frame: self._told.add(signal.Signals(received)))
        signal.signal(signal.SIGCHLD, lambda received, frame: None)
        return self._read

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()

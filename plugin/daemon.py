"""The process that keeps a home turning: commits, schedules, tasks, rollouts, the broker's health.

    python -m mlflow_flywheel.plugin.daemon --home PATH

One per home (a lock); nothing is lost when it dies: work is in the records, rows are in the spool, and the next daemon
takes both up. What it does and what troubles it is in `daemon.json` in the home.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_flywheel.pipelines.errors import Unavailable

if TYPE_CHECKING:
    from .context import Context

STATUS_FILE, LOCK_FILE = "daemon.json", "daemon.lock"
_log = logging.getLogger(__name__)
_COMMIT_SECONDS = 0.5
_FOLLOW_SECONDS = 1.0
_SYNC_SECONDS = 2.0
_BROKER_SECONDS = 1.0
_DISK_SECONDS = 5.0
_FOLDER_SECONDS = 2.0  # a file that stays the same for so long is complete
_STATUS_SECONDS = 1.0
_REPORT_SECONDS = 1.0
_SERIES_SECONDS = 30.0  # as long as the workers' statistics look back
_METER_SECONDS = 15.0
_COST_SECONDS = 60.0
_ALERT_SECONDS = 5.0
_STOP_SECONDS = 10.0


class Daemon:
    """The threads of one home. `run` returns after SIGTERM or SIGINT, with no process left behind."""

    def __init__(self, context: Context) -> None:
        from mlflow_flywheel.monitors.schedule import Schedule
        from mlflow_flywheel.pipelines.committer import Committer

        from .alerts import tell
        from .answer_counting import AnswerMeter
        from .answer_series import tell_answers
        from .background import Repeating, TaskThread, Trouble
        from .batch_reports import report_batch_runs
        from .cost_series import tell_costs
        from .label_folders import FolderWatch
        from .metering import Meter
        from .series import end_runs
        from .slot_series import SlotSeries
        from .stream_series import StreamSeries
        from .tasks import batch_handlers, loop_handlers
        from .warm_process import WarmProcess
        from .webhook_inbox import WebhookInbox

        self._context = context
        self._stop = threading.Event()
        self._trouble = Trouble()
        self._worker = f"daemon-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._started = datetime.now(timezone.utc)
        self._committer = Committer(context.home.spool, context.home.tables)
        self._committed: dict[str, Any] = {
            "rows": 0,
            "feedback_rows": 0,
            "duplicates": 0,
            "last_commit": None,
        }
        self._waiting: set[str] = set()  # models whose tables are away
        self._schedule = Schedule(context.home.database_url)
        self._inbox = WebhookInbox(context.home, lambda: self._nudge("rollouts"))
        self._urls: dict[str, str | None] = {"metrics": None, "webhook": None}
        self._broker_bytes: int | None = None
        self._batch, self._loop = WarmProcess("batch"), WarmProcess("loop")
        self._folders = FolderWatch(context.home)
        series, costs, failures = StreamSeries(), SlotSeries(tell_costs), SlotSeries(tell_answers)
        meter, answers = Meter(context), AnswerMeter(context)
        repeated = {
            "commits": (_COMMIT_SECONDS, self._commit),
            "rollouts": (_FOLLOW_SECONDS, self._follow),
            "schedule": (_SYNC_SECONDS, self._sync),
            "broker": (_BROKER_SECONDS, self.look_after_broker),
            "broker's disk": (_DISK_SECONDS, self.look_at_disk),
            "label folders": (_FOLDER_SECONDS, self._folders.look),
            "stream series": (_SERIES_SECONDS, lambda: series.log(context)),
            "meter": (_METER_SECONDS, meter.read),
            "answers": (_METER_SECONDS, answers.read),
            "cost series": (_COST_SECONDS, lambda: costs.log(context)),
            "error series": (_COST_SECONDS, lambda: failures.log(context)),
            "alerts": (_ALERT_SECONDS, lambda: tell(context)),
            "ended runs": (_REPORT_SECONDS, lambda: end_runs(context)),
            "batch reports": (_REPORT_SECONDS, lambda: report_batch_runs(context)),
        }
        self._repeating = [
            Repeating(name, seconds, function, self._stop, self._trouble)
            for name, (seconds, function) in repeated.items()
        ]
        self._tasks = [
            TaskThread(
                name,
                context.records,
                self._worker,
                handlers,
                self._stop,
                self._trouble,
                idle=warm.drop_if_idle,
            )
            for name, handlers, warm in (
                ("batch runs", batch_handlers(context, self._batch), self._batch),
                ("loop", loop_handlers(context, self._loop), self._loop),
            )
        ]

    def run(self) -> None:
        """Work until told to stop."""
        from .daemon_server import DaemonServer

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        again = self._context.records.requeue_abandoned(lambda worker: worker == self._worker)
        if again:
            _log.info("tasks %s of a daemon that died are queued again", again)
        self._schedule.start()
        for thread in (*self._repeating, *self._tasks):
            thread.start()
        _log.info("daemon of %s is ready", self._context.home.path)
        with closing(DaemonServer(self._context, self._inbox)) as server:
            self._urls = {"metrics": server.metrics_url, "webhook": server.webhook_url}
            while not self._stop.wait(_STATUS_SECONDS):
                self._report()
        self._end()

    def _end(self) -> None:
        """Cut tasks short (they are taken up again), let a commit in progress finish, and go."""
        _log.info("stopping")
        self._schedule.stop()
        self._batch.stop()
        self._loop.stop()
        self._nudge()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in (*self._tasks, *self._repeating):
            thread.join(max(0.0, deadline - time.monotonic()))
        (self._context.home.path / STATUS_FILE).unlink(missing_ok=True)

    def _nudge(self, name: str | None = None) -> None:
        """Let what is done every so often be done now: all of it, or what has this name."""
        for thread in self._repeating:
            if name in (None, thread.name):
                thread.nudge()

    def _commit(self) -> None:
        report = self._committer.commit_once()
        if report.segments:
            for name in ("rows", "feedback_rows", "duplicates"):
                self._committed[name] += getattr(report, name)
            self._committed["last_commit"] = datetime.now(timezone.utc).isoformat()
        for model in self._waiting - set(report.waiting):
            self._trouble.over(f"table of {model}")
        for model, why in report.waiting.items():
            self._trouble.tell(f"table of {model}", Unavailable(f"its rows wait in the spool: {why}"))
        self._waiting = set(report.waiting)

    def _follow(self) -> None:
        from .rollout import follow_once

        context = self._context
        follow_once(context.home, context.records, context.runner)

    def _sync(self) -> None:
        from .tasks import recurring_jobs

        self._schedule.sync(recurring_jobs(self._context))

    def look_after_broker(self) -> None:
        """Restart the embedded broker when a stream worker found that it holds messages back."""
        from mlflow_flywheel.pipelines.stream.stats import needs_broker_restart

        from .embedded_broker import broker_exists
        from .runners.base import BROKER

        if not broker_exists(self._context):
            return
        streams = self._context.records.deployments(mode="stream")
        for broker in self._context.runner.status(BROKER):
            started = datetime.now(timezone.utc) - timedelta(seconds=broker.uptime)
            files = [self._context.home.status_file(d.name) for d in streams if "broker" not in d.config]
            if broker.alive and needs_broker_restart(files, started):
                _log.warning("the embedded broker holds messages back; restarting it")
                self._context.runner.restart(BROKER)

    def look_at_disk(self) -> None:
        """Measure what the embedded broker keeps, and say once when it is too much."""
        from . import broker_disk
        from .embedded_broker import broker_exists

        folder = self._context.home.broker
        before = self._broker_bytes or 0
        self._broker_bytes = broker_disk.used_bytes(folder) if broker_exists(self._context) else None
        warning = broker_disk.warning(self._broker_bytes or 0, folder)
        if warning is not None and broker_disk.warning(before, folder) is None:
            _log.warning("%s", warning)

    def _report(self) -> None:
        """Write the status file, whole or not at all."""
        from mlflow_flywheel.pipelines.backlog import waiting_bytes

        running = [thread.current for thread in self._tasks if thread.current is not None]
        status = {
            "pid": os.getpid(),
            "started": self._started.isoformat(),
            "updated": datetime.now(timezone.utc).isoformat(),
            **self._committed,
            "waiting_bytes": waiting_bytes(self._context.home.spool),
            "broker_bytes": self._broker_bytes,
            "metrics": self._urls["metrics"],
            "webhook": {"url": self._urls["webhook"], **self._inbox.status()},
            "label_folders": self._folders.views(),
            "tasks": [{"id": task.id, "kind": task.kind, "subject": task.subject} for task in running],
            "next_runs": {name: when.isoformat() for name, when in self._schedule.next_times().items()},
            "trouble": self._trouble.current(),
        }
        file = self._context.home.path / STATUS_FILE
        temporary = file.with_name(f"{file.name}.new")
        temporary.write_text(json.dumps(status, indent=2))
        temporary.replace(file)


def read_status(home: Path) -> dict[str, Any] | None:
    """Return what the daemon of a home last said about itself; None when none runs."""
    if not is_running(home):
        return None
    try:
        status: dict[str, Any] = json.loads((home / STATUS_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {"trouble": {}, "tasks": []}
    return status


def is_running(home: Path) -> bool:
    """Tell whether a daemon holds the home's lock."""
    if not (home / LOCK_FILE).exists():
        return False
    with _locked(home) as mine:
        return not mine


@contextmanager
def _locked(home: Path) -> Iterator[bool]:
    """Hold the home's lock, or say that a daemon has it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / LOCK_FILE, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@click.command()
@click.option("--home", required=True, type=click.Path(path_type=Path), help="the home folder")
def main(home: Path) -> None:
    """Keep the home at PATH turning until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    with _locked(home) as mine:
        if not mine:
            raise click.ClickException(
                f"a daemon works on the home {str(home)!r} already; 'flywheel status' shows it, 'flywheel down' ends it"
            )
        from .context import Context
        from .home import Home

        Daemon(Context.open(Home(home))).run()
    # Threads that did not end in time must not hold the process: what they do can be done again.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

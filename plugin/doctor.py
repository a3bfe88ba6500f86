"""Whether a home is well: what it depends on, what runs in it, and what waits, each with a remedy where it is not.

Nothing is changed by looking: an unbound home stays unbound, and nothing is started.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any, Literal

import requests

from mlflow_flywheel.pipelines.backlog import backlog_of
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable

from . import broker_disk
from .context import Context
from .daemon import read_status
from .runners.base import DAEMON, deployment_process
from .views import deployment_view

Level = Literal["ok", "warn", "fail"]
_ANSWER_SECONDS = 5.0
_CLOCK_SECONDS = 60.0
_LOW_DISK, _NO_DISK = 5e9, 1e9
_LATE_SECONDS = 120.0


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` is what to do about it, None where nothing is."""

    check: str
    level: Level
    said: str
    remedy: str | None = None


def examine(context: Context) -> list[Finding]:
    """Check a home and return what was found; a check that cannot be made has failed."""
    findings: list[Finding] = []
    for name, check in _CHECKS.items():
        try:
            findings += check(context)
        except FlywheelError as error:
            findings.append(Finding(name, "fail", error.message))
    return findings


def _disk(context: Context) -> Iterator[Finding]:
    free = shutil.disk_usage(context.home.path).free
    level: Level = "fail" if free < _NO_DISK else "warn" if free < _LOW_DISK else "ok"
    remedy = (
        None if level == "ok" else "free some, or move the home: predictions cannot be logged on a full disk"
    )
    yield Finding("disk", level, f"{free / 1e9:,.1f} GB free under {context.home.path}", remedy)


def _mlflow(context: Context) -> Iterator[Finding]:
    uri = context.home.tracking_uri
    if uri is None:
        said = "this home is bound to no MLflow yet"
        yield Finding(
            "MLflow",
            "warn",
            said,
            "export MLFLOW_TRACKING_URI=...; the first deployment or 'flywheel up' binds it",
        )
        return
    if not uri.startswith(("http://", "https://")):
        yield Finding("MLflow", "ok", f"{uri}, without a server")
        return
    uri = uri.rstrip("/")
    try:
        answer = _get(f"{uri}/version")
    except requests.RequestException as error:
        said = f"{uri} does not answer ({type(error).__name__})"
        yield Finding("MLflow", "fail", said, "start it; what is told to it meanwhile is told later")
        return
    if answer.status_code in (401, 403):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        yield Finding("MLflow", "fail", f"{uri} refuses us ({answer.status_code})", remedy)
        return
    if not answer.ok:
        yield Finding(
            "MLflow", "fail", f"{uri}/version answers {answer.status_code}", "is an MLflow server there?"
        )
        return
    ours, theirs = metadata.version("mlflow"), answer.text.strip()
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        remedy = f"run the server with mlflow {ours}, or expect what differs between the two"
        yield Finding("MLflow", "warn", f"{uri} is version {theirs[:40]}, this is {ours}", remedy)
    else:
        yield Finding("MLflow", "ok", f"{uri}, version {ours}")
    yield from _clock(answer)
    yield _page(uri)


def _clock(answer: requests.Response) -> Iterator[Finding]:
    said = answer.headers.get("Date")
    if said is None:
        return
    apart = abs(parsedate_to_datetime(said).timestamp() - time.time())
    if apart > _CLOCK_SECONDS:
        remedy = "set both by NTP: windows, schedules and probation go by the time"
        yield Finding("clock", "warn", f"{apart:,.0f} s apart from the MLflow server's", remedy)


def _page(uri: str) -> Finding:
    try:
        found = _get(f"{uri}/flywheel/")
    except requests.RequestException as error:
        return Finding("page", "warn", f"{uri}/flywheel/ does not answer ({type(error).__name__})")
    if found.ok:
        return Finding("page", "ok", f"{uri}/flywheel/")
    remedy = "start the server with 'mlflow server --app-name flywheel', with this package beside it"
    return Finding("page", "warn", f"the MLflow server has no {uri}/flywheel/ ({found.status_code})", remedy)


def _get(url: str) -> requests.Response:
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    basic = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    bearer = {"Authorization": f"Bearer {token}"} if token and not user else None
    return requests.get(url, timeout=_ANSWER_SECONDS, auth=basic, headers=bearer, allow_redirects=True)


def _processes(context: Context) -> Iterator[Finding]:
    processes, deployed = context.runner.status(), context.records.deployments()
    for process in processes:
        if not process.alive:
            log = f"'flywheel logs {process.name.removeprefix(deployment_process(''))}' says why; "
            remedy = f"{'' if process.state == 'stopped' else log}'flywheel up' starts it"
            yield Finding("processes", "fail", f"{process.name} is {process.state}", remedy)
    if deployed and all(process.name != DAEMON for process in processes):
        yield Finding(
            "processes",
            "fail",
            "no daemon runs, so nothing is committed, watched or scheduled",
            "flywheel up",
        )
    elif all(process.alive for process in processes):
        yield Finding(
            "processes", "ok", f"{len(processes)} run" if processes else "none, and none is needed yet"
        )


def _daemon(context: Context) -> Iterator[Finding]:
    daemon = read_status(context.home.path) or {}
    used = daemon.get("broker_bytes")
    said = None if used is None else broker_disk.warning(used, context.home.broker)
    if said is not None:
        yield Finding("disk", "warn", said)
    for source, trouble in daemon.get("trouble", {}).items():
        yield Finding("daemon", "warn", f"{source}: {trouble['error']}", "'flywheel logs daemon' says more")


def _deployments(context: Context) -> Iterator[Finding]:
    for record in context.records.deployments():
        view: dict[str, Any] = deployment_view(context, record, predictions=0)
        last = view.get("last_run") or {}
        if view["status"] != "ready":
            said = f"is {view['status']}{': ' if view['message'] else ''}{view['message']}"
            yield Finding(record.name, "fail", said, f"'flywheel logs {record.name}' says more")
        elif last.get("status") == "failed":
            yield Finding(
                record.name,
                "warn",
                f"its last run failed: {last['error']}",
                f"flywheel batch run {record.name}",
            )
        elif view["message"]:
            yield Finding(record.name, "warn", view["message"])
        else:
            yield Finding(record.name, "ok", f"{record.mode}, {record.model_name} version {record.version}")


def _tables(context: Context) -> Iterator[Finding]:
    for model in sorted({record.model_name for record in context.records.deployments()}):
        name = f"table of {model}"
        table = InferenceTable.open(context.home.tables, model)
        said = f"version {table.predictions.version()}" if table.exists else "no prediction yet"
        backlog = backlog_of(context.home.spool, model)
        if backlog.rows_set_aside:
            rows = f"{backlog.rows_set_aside:,} rows would not fit and were set aside"
            yield Finding(
                name, "warn", rows, f"they are under {context.home.spool}; 'flywheel logs daemon' says why"
            )
        if backlog.lag_seconds > _LATE_SECONDS:
            said = (
                f"{backlog.waiting_bytes / 1e6:,.1f} MB wait in the spool, for {backlog.lag_seconds:,.0f} s"
            )
            yield Finding(
                name, "warn", said, "the daemon commits them: 'flywheel up', 'flywheel logs daemon'"
            )
        else:
            yield Finding(name, "ok", said)


_CHECKS: dict[str, Callable[[Context], Iterator[Finding]]] = {
    "disk": _disk,
    "MLflow": _mlflow,
    "processes": _processes,
    "daemon": _daemon,
    "deployments": _deployments,
    "tables": _tables,
}

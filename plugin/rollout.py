"""Aliases followed: when `models:/name@alias` means another version, every deployment of it goes over.

A version that could not serve is not tried again at once: it is remembered with its reason, until the alias moves or
a while has passed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import ValidationError

from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.registry import resolve_model

from .context import Context
from .home import Home
from .operations import Operations
from .record_types import DeploymentRecord
from .records import Records
from .runners.base import Runner

_log = logging.getLogger(__name__)
_TRY_AGAIN_AFTER = timedelta(minutes=5)
_MOST_AT_ONCE = 8


@dataclass(frozen=True)
class RollOver:
    """A deployment that followed its alias, or could not: then `error` says why and `before` serves on."""

    deployment: str
    before: str
    after: str
    error: str | None = None


class Refused(Frozen):
    """A version that a deployment could not go over to; a file beside the deployment's others."""

    version: str
    error: str
    at: datetime


def roll_over(
    home: Home, records: Records, runner: Runner, deployment: str, version: str
) -> DeploymentRecord:
    """Let one deployment serve another version of its model, without failing a request.

    Batch deployments take it for their next run. Raises ModelError when the version cannot serve; the old one goes on.
    """
    return Operations(Context(home, records, runner)).roll_over(deployment, version)


def follow_once(home: Home, records: Records, runner: Runner) -> list[RollOver]:
    """Look where every followed alias points, and roll over the deployments that lag, at the same time.

    One registry call per distinct alias. Raises what the registry raises; a deployment that fails stops no other.
    """
    followers = [r for r in records.deployments() if r.status == "ready" and follows_alias(r)]
    lagging: list[tuple[DeploymentRecord, str]] = []
    for uri in sorted({record.model_uri for record in followers}):
        wanted = resolve_model(uri, home.tracking_uri)
        for record in (record for record in followers if record.model_uri == uri):
            if record.version == wanted.version:
                _forget_refusal(home, records, record)
            elif not _was_refused(home, record, wanted.version):
                lagging.append((record, wanted.version))
    return _roll_over_all(home, records, runner, lagging)


def follows_alias(record: DeploymentRecord) -> bool:
    """Return whether the deployment's model URI names an alias, such as models:/name@champion."""
    return record.model_uri.startswith("models:/") and "@" in record.model_uri


def _roll_over_all(
    home: Home, records: Records, runner: Runner, lagging: Sequence[tuple[DeploymentRecord, str]]
) -> list[RollOver]:
    def one(record: DeploymentRecord, version: str) -> RollOver:
        file = _refused_file(home, record.name)
        try:
            roll_over(home, records, runner, record.name, version)
        except FlywheelError as error:
            _log.error("deployment %r stays on version %s: %s", record.name, record.version, error.message)
            Refused(version=version, error=error.message, at=datetime.now(timezone.utc)).save(file)
            return RollOver(record.name, record.version, version, error.message)
        file.unlink(missing_ok=True)
        _log.info("deployment %r went from version %s to %s", record.name, record.version, version)
        return RollOver(record.name, record.version, version)

    if not lagging:
        return []
    with ThreadPoolExecutor(min(len(lagging), _MOST_AT_ONCE), thread_name_prefix="roll-over") as pool:
        return list(pool.map(lambda pair: one(*pair), lagging))


def _was_refused(home: Home, record: DeploymentRecord, version: str) -> bool:
    """Return whether the deployment could not go over to this version a short while ago."""
    try:
        refused = Refused.model_validate_json(_refused_file(home, record.name).read_bytes())
    except (FileNotFoundError, ValidationError):
        return False
    return refused.version == version and datetime.now(timezone.utc) - refused.at < _TRY_AGAIN_AFTER


def _forget_refusal(home: Home, records: Records, record: DeploymentRecord) -> None:
    """Take the complaint back when the alias means again what the deployment serves."""
    file = _refused_file(home, record.name)
    if file.exists():
        records.update_deployment(record.name, message="")
        file.unlink(missing_ok=True)


def _refused_file(home: Home, deployment: str) -> Path:
    return home.deployment(deployment) / "refused.json"

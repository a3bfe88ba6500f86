"""Aliases followed: when `models:/name@alias` means another version, every deployment of it goes over.

So it is for the version that serves, and then for the challenger beside it, which never holds the other one up. A
version that could not serve is not tried again at once: it is remembered with its reason, until the alias moves or
a while has passed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.errors import FlywheelError, NotFound
from mlflow_flywheel.pipelines.registry import resolve_model

from .champion import CHAMPION, Registry, finish_moves, note_move
from .champion_records import MOVES
from .context import Context
from .event_clock import event_now
from .home import Home
from .operations import Operations
from .record_types import DeploymentRecord
from .records import Records
from .runners.base import Runner
from .spec_reading import parse_spec
from .trials import challenger_in_force, challenger_uri

_log = logging.getLogger(__name__)
_TRY_AGAIN_AFTER = timedelta(minutes=5)
_MOST_AT_ONCE = 8

Role = Literal["champion", "challenger"]


@dataclass(frozen=True)
class RollOver:
    """A deployment that followed an alias, or could not: then `error` says why and `before` stays in its role."""

    deployment: str
    before: str
    after: str
    error: str | None = None
    role: Role = "champion"


class Refused(Frozen):
    """A version that a deployment could not go over to; a file beside the deployment's others."""

    version: str
    error: str
    at: datetime


@dataclass(frozen=True)
class _Move:
    """A deployment whose alias means another version than it has in that role."""

    record: DeploymentRecord
    role: Role
    before: str
    after: str

    @property
    def key(self) -> str:
        """Name what is tried: a challenger that does not suit one version may suit the next."""
        return self.after if self.role == "champion" else f"{self.after} beside {self.record.version}"


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
    context = Context(home, records, runner)
    _finish_moves(context)
    moves = _champions(context)
    _note_moves(context, moves)
    done = _roll_over_all(context, moves)
    return done + _roll_over_all(context, _challengers(context))


def follows_alias(record: DeploymentRecord) -> bool:
    """Return whether the deployment's model URI names an alias, such as models:/name@champion."""
    return _is_alias(record.model_uri)


def _finish_moves(context: Context) -> None:
    """Move the aliases that somebody wrote down and did not live to move."""
    if context.records.actions(kinds=MOVES, status="started", limit=1):
        from mlflow import MlflowClient

        finish_moves(context.records, Registry(MlflowClient(context.tracking_uri)))


def _note_moves(context: Context, moves: Sequence[_Move]) -> None:
    """Remember a champion alias that was set by hand: who goes back needs to know what was before."""
    before = {
        move.record.model_name: move.before
        for move in moves
        if move.record.model_uri == f"models:/{move.record.model_name}@{CHAMPION}" and move.before
    }
    for model, version in before.items():
        policy = PolicySpec.parse(context.records.policy(model))
        now = event_now(context.home.tables, model, policy)
        note_move(
            context.records, model, now, partial(_version, context, f"models:/{model}@{CHAMPION}"), version
        )


def _champions(context: Context) -> list[_Move]:
    """Return the deployments that serve another version than their alias means; one that is gone moves nobody."""
    followers = [r for r in context.records.deployments() if r.status == "ready" and follows_alias(r)]
    wanted = _wanted(context, {record.model_uri for record in followers})
    moves = [_Move(r, "champion", r.version, wanted[r.model_uri]) for r in followers if r.model_uri in wanted]
    return _due(context, moves)


def _challengers(context: Context) -> list[_Move]:
    """Return the deployments that try another version than their challenger's alias means.

    An alias that is gone leaves the trial as it is.
    """
    served = [r for r in context.records.deployments(mode="web") if r.status == "ready"]
    followers = [
        (r, uri)
        for r in served
        if (uri := challenger_uri(parse_spec(r.config))) is not None and _is_alias(uri)
    ]
    wanted = _wanted(context, {uri for _, uri in followers})
    moves = [
        _Move(record, "challenger", challenger_in_force(context, record.name) or "", wanted[uri])
        for record, uri in followers
        if uri in wanted
    ]
    return _due(context, moves)


def _due(context: Context, moves: Sequence[_Move]) -> list[_Move]:
    """Leave out what is there already, and what was refused a short while ago."""
    due = []
    for move in moves:
        if move.before == move.after:
            _forget_refusal(context, move)
        elif not _was_refused(context.home, move):
            due.append(move)
    return due


def _roll_over_all(context: Context, moves: Sequence[_Move]) -> list[RollOver]:
    operations = Operations(context)

    def one(move: _Move) -> RollOver:
        name, before, after = move.record.name, move.before, move.after
        file = _refused_file(context.home, move)
        try:
            if move.role == "champion":
                operations.roll_over(name, after)
            else:
                operations.try_beside(name, after)
        except FlywheelError as error:
            _log.error("deployment %r keeps %s version %s: %s", name, move.role, before, error.message)
            Refused(version=move.key, error=error.message, at=datetime.now(timezone.utc)).save(file)
            return RollOver(name, before, after, error.message, move.role)
        file.unlink(missing_ok=True)
        _log.info("deployment %r went from %s version %s to %s", name, move.role, before, after)
        return RollOver(name, before, after, role=move.role)

    if not moves:
        return []
    with ThreadPoolExecutor(min(len(moves), _MOST_AT_ONCE), thread_name_prefix="roll-over") as pool:
        return list(pool.map(one, moves))


def _wanted(context: Context, uris: set[str]) -> dict[str, str]:
    """Return which version each alias means; without those that are gone, such as a challenger's after its promotion."""
    found = {}
    for uri in sorted(uris):
        try:
            found[uri] = _version(context, uri)
        except NotFound as error:
            _say_once(error.message)
    return found


@lru_cache(maxsize=100)
def _say_once(message: str) -> None:
    _log.warning("deployments that follow it stay as they are: %s", message)


def _version(context: Context, uri: str) -> str:
    return resolve_model(uri, context.home.tracking_uri).version


def _is_alias(uri: str) -> bool:
    return uri.startswith("models:/") and "@" in uri


def _was_refused(home: Home, move: _Move) -> bool:
    """Return whether the deployment could not go over to this version a short while ago."""
    try:
        refused = Refused.model_validate_json(_refused_file(home, move).read_bytes())
    except (FileNotFoundError, ValidationError):
        return False
    return refused.version == move.key and datetime.now(timezone.utc) - refused.at < _TRY_AGAIN_AFTER


def _forget_refusal(context: Context, move: _Move) -> None:
    """Take the complaint back when the alias means again what the deployment has."""
    file = _refused_file(context.home, move)
    if file.exists():
        context.records.update_deployment(move.record.name, message="")
        file.unlink(missing_ok=True)


def _refused_file(home: Home, move: _Move) -> Path:
    name = "refused.json" if move.role == "champion" else "refused-challenger.json"
    return home.deployment(move.record.name) / name

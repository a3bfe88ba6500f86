"""Which version is champion: the alias is moved here only, and every move is written down before it is made.

A process that dies between the two leaves a move that is `started`; the daemon finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound, Unavailable

from .champion_records import MOVES, MoveKind
from .database import utc_now
from .record_types import ActionRecord
from .records import Records

CHAMPION, CHALLENGER = "champion", "challenger"
PARENT_TAG = "flywheel.parent"
# The version was in force and did worse than the one before: no gate promotes it again.
ROLLED_BACK_TAG = "flywheel.rolled_back"
# Who is named when an alias was set in MLflow's own interface, which does not say by whom.
BY_HAND = "MLflow"

_log = logging.getLogger(__name__)
_TEXT_LENGTH = 2000


class Registry:
    """The aliases and tags of registered versions: of an MlflowClient, or of the store inside the MLflow server.

    Raises NotFound for models and versions that do not exist, Unavailable when MLflow does not answer.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def aliases(self, model: str) -> dict[str, str]:
        """Return the version of each alias; MLflow's SQL stores count in integers, its server in texts."""
        with _mlflow_errors(f"model {model!r}"):
            found = self._backend.get_registered_model(model).aliases
        return {name: str(version) for name, version in found.items()}

    def champion(self, model: str) -> str:
        """Return the version in force."""
        version = self.aliases(model).get(CHAMPION)
        if version is None:
            raise NotFound(
                f"model {model!r} has no alias {CHAMPION}: set it in the MLflow UI, or register a version"
            )
        return version

    def tags(self, model: str, version: str) -> dict[str, str]:
        with _mlflow_errors(f"version {version!r} of model {model!r}"):
            return dict(self._backend.get_model_version(model, version).tags)

    def point(self, model: str, alias: str, version: str) -> None:
        """Let an alias mean a version."""
        self._write(
            f"version {version!r} of model {model!r}",
            lambda: self._backend.set_registered_model_alias(model, alias, version),
        )

    def drop(self, model: str, alias: str, version: str) -> None:
        """Remove an alias if it means this version."""
        if self.aliases(model).get(alias) == version:
            with _mlflow_errors(f"model {model!r}"):
                self._backend.delete_registered_model_alias(model, alias)

    def tag(self, model: str, version: str, key: str, value: str | None) -> None:
        """Set a tag of a version; None removes it."""
        from mlflow import MlflowClient
        from mlflow.entities.model_registry import ModelVersionTag

        def write() -> None:
            if value is None:
                self._backend.delete_model_version_tag(model, version, key)
            elif isinstance(self._backend, MlflowClient):
                self._backend.set_model_version_tag(model, version, key, value)
            else:
                tag = ModelVersionTag(key, value)  # type: ignore[no-untyped-call]
                self._backend.set_model_version_tag(model, version, tag)

        self._write(f"version {version!r} of model {model!r}", write)

    def _write(self, what: str, write: Callable[[], None]) -> None:
        """Write, and once more when that failed: MLflow fails the second of two who write the same at the same time."""
        try:
            with _mlflow_errors(what):
                write()
        except Unavailable:
            with _mlflow_errors(what):
                write()


def move(
    records: Records,
    registry: Registry,
    kind: MoveKind,
    model: str,
    after: str,
    reason: str,
    evidence: Mapping[str, Any],
    as_of: datetime,
) -> ActionRecord:
    """Record that another version becomes champion, and make it so; safe to repeat.

    `evidence` says who asked (`requested_by`). Raises BadInput while another move is under way.
    """
    registry.tags(model, after)  # it must exist
    before = note_move(records, model, as_of, lambda: registry.champion(model))
    action, _ = records.add_move(kind, model, before, after, reason[:_TEXT_LENGTH], evidence, as_of)
    return action if action.status == "done" else carry_out(records, registry, action)


def carry_out(records: Records, registry: Registry, action: ActionRecord) -> ActionRecord:
    """Move the alias as an action says, and all that goes with it; every step may be repeated."""
    model, before, after = action.model, str(action.evidence["before"]), str(action.evidence["after"])
    try:
        in_force = registry.champion(model)
        if in_force not in (before, after):
            why = f"version {in_force} became champion meanwhile"
            return records.update_action(action.id, "superseded", {"reason": why})
        if action.kind == "rollback":
            said = f"{utc_now():%Y-%m-%d %H:%M} UTC to version {after}: {action.reason}"
            registry.tag(model, before, ROLLED_BACK_TAG, said[:_TEXT_LENGTH])
        elif ROLLED_BACK_TAG in registry.tags(model, after):
            registry.tag(model, after, ROLLED_BACK_TAG, None)
        registry.point(model, CHAMPION, after)
        registry.drop(model, CHALLENGER, after)
    except FlywheelError as error:
        if not error.retryable:
            records.update_action(action.id, "failed", {"reason": error.message})
        raise
    _settle(records, model, after, str(action.evidence.get("requested_by", "")))
    _log.info("%s of %s: version %s to %s: %s", action.kind, model, before, after, action.reason)
    return records.update_action(action.id, "done", {"version": after})


def finish_moves(records: Records, registry: Registry) -> None:
    """Make the moves that somebody wrote down and did not live to make."""
    for action in records.actions(kinds=MOVES, status="started"):
        carry_out(records, registry, action)


def note_move(
    records: Records, model: str, as_of: datetime, in_force: Callable[[], str], before: str = ""
) -> str:
    """Remember a champion alias that somebody set by hand, and return the version in force.

    Our own moves are written down before they are made: what the alias says after the newest of them was read, and it
    does not, was done by hand. `in_force` asks the registry for the champion; `before` is what was in force when
    nothing is recorded yet.
    """
    newest = records.actions(model, limit=1, kinds=MOVES)
    moves = records.moves(model)
    now = in_force()
    if newest and newest[0].status == "started":
        return now
    before = str(moves[0].evidence["after"]) if moves else before
    if before in ("", now):
        return now
    # to a version that was in force once is a way back, which nobody judges
    known = {str(move.evidence["before"]) for move in moves}
    kind: MoveKind = "rollback" if now in known else "promote"
    reason, follows = f"the alias {CHAMPION} was set by hand", newest[0].id if newest else 0
    evidence = {"requested_by": BY_HAND}
    records.add_move(kind, model, before, now, reason, evidence, as_of, "done", follows=follows)
    _settle(records, model, now, BY_HAND)
    return now


def version_before(records: Records, registry: Registry, model: str, version: str) -> str:
    """Return the version that was in force before this one was promoted; raises NotFound when nobody knows."""
    for action in records.moves(model):
        if action.kind == "promote" and action.evidence["after"] == version:
            return str(action.evidence["before"])
    parent = registry.tags(model, version).get(PARENT_TAG)
    if parent is None:
        raise NotFound(
            f"no promotion of version {version} of {model!r} is recorded, so nobody knows what was in force before it; "
            "name a version: --to VERSION"
        )
    return parent


def waiting_for_approval(records: Records, model: str, version: str | None = None) -> ActionRecord:
    """Return the newest retraining of a model whose challenger waits for a person.

    Raises NotFound when none does, or not this version.
    """
    for action in records.actions(model, kinds=("retrain",), status="waiting"):
        if version is None or str((action.result or {}).get("version")) == version:
            return action
    what = f"version {version} of {model!r} does not wait" if version else f"no version of {model!r} waits"
    raise NotFound(f"{what} for approval; 'flywheel promote {model} VERSION' promotes any other one")


def settle(records: Records, action: ActionRecord, status: str, by: str) -> ActionRecord:
    """Record what a person decided about a challenger that waited."""
    if action.status != "waiting":
        raise BadInput(f"action {action.id} is {action.status}: nothing waits for approval")
    decided = {"status": status, "promoted": status == "promoted", "decided_by": by}
    return records.update_action(action.id, status, {**(action.result or {}), **decided})


def _settle(records: Records, model: str, version: str, by: str) -> None:
    for action in records.actions(model, kinds=("retrain",), status="waiting"):
        if str((action.result or {}).get("version")) == version:
            settle(records, action, "promoted", by)


@contextmanager
def _mlflow_errors(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise NotFound(f"{what} does not exist: {error.message}") from error
        raise Unavailable(f"MLflow does not answer about {what}: {error.message}") from error

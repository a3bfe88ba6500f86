"""What the loop remembers of each model: verdicts, actions, policies and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_flywheel.pipelines.errors import NotFound

from .database import Database, utc_now
from .record_rows import (
    ActionRow,
    PolicyRow,
    PolicyStateRow,
    TaskRow,
    ToldRow,
    VerdictRow,
    action_of,
    verdict_of,
)
from .record_types import ActionRecord, NewAction, VerdictRecord


class LoopRecords:
    """The part of `Records` that is about models rather than deployments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_verdict(
        self,
        model: str,
        monitor: str,
        window_start: datetime,
        window_end: datetime,
        verdict: str,
        summary: Mapping[str, Any],
        run_id: str | None = None,
    ) -> int:
        """Record a monitor's verdict and return its id."""
        row = VerdictRow(
            model=model,
            monitor=monitor,
            window_start=window_start,
            window_end=window_end,
            verdict=verdict,
            summary=dict(summary),
            run_id=run_id,
            created=utc_now(),
        )
        with self._database.write() as session:
            session.add(row)
            session.flush()
            return row.id

    def verdicts(
        self, model: str | None = None, limit: int = 100, *, monitor: str | None = None,
        window: tuple[datetime, datetime] | None = None,
    ) -> list[VerdictRecord]:  # fmt: skip
        """Return the newest verdicts first: of one model, of one monitor, about one window."""
        query = select(VerdictRow).order_by(VerdictRow.id.desc()).limit(limit)
        if model is not None:
            query = query.where(VerdictRow.model == model)
        if monitor is not None:
            query = query.where(VerdictRow.monitor == monitor)
        if window is not None:
            query = query.where(VerdictRow.window_start == window[0], VerdictRow.window_end == window[1])
        with self._database.read() as session:
            return [verdict_of(row) for row in session.scalars(query)]

    def add_action(
        self, model: str, kind: str, reason: str, evidence: Mapping[str, Any], as_of: datetime, key: str,
        status: str = "started",
    ) -> int:  # fmt: skip
        """Record an action and return its id; the same key gives the action that was recorded first."""
        made = _action_row(model, NewAction(kind, reason, evidence, key, status), as_of)
        return insert_once(self._database, made)

    def update_action(
        self, action_id: int, status: str, result: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> ActionRecord:
        """Record how an action went on; raises NotFound."""
        with self._database.write() as session:
            row = session.get(ActionRow, action_id)
            if row is None:
                raise NotFound(f"action {action_id} does not exist")
            row.status, row.updated = status, utc_now()
            row.result = dict(result) if result is not None else row.result
            row.run_id = run_id if run_id is not None else row.run_id
            session.flush()
            return action_of(row)

    def actions(
        self, model: str | None = None, limit: int = 100, *, kinds: Sequence[str] = (), status: str | None = None,
        key: str | None = None,
    ) -> list[ActionRecord]:  # fmt: skip
        """Return the newest actions first: of one model, of some kinds, in one state, of one key."""
        query = select(ActionRow).order_by(ActionRow.id.desc()).limit(limit)
        if model is not None:
            query = query.where(ActionRow.model == model)
        if kinds:
            query = query.where(ActionRow.kind.in_(kinds))
        if status is not None:
            query = query.where(ActionRow.status == status)
        if key is not None:
            query = query.where(ActionRow.key == key)
        with self._database.read() as session:
            return [action_of(row) for row in session.scalars(query)]

    def told(self, place: str) -> set[int]:
        """Return the ids of the actions that a place was told of."""
        with self._database.read() as session:
            return set(session.scalars(select(ToldRow.action_id).where(ToldRow.place == place)))

    def remember_told(self, place: str, action_id: int) -> None:
        """Remember that a place was told of an action; idempotent."""
        with self._database.write() as session:
            session.merge(ToldRow(place=place, action_id=action_id))

    def policy(self, model: str) -> dict[str, Any]:
        """Return the model's policy as it was set; empty when there is none."""
        with self._database.read() as session:
            row = session.get(PolicyRow, model)
            return dict(row.policy) if row is not None else {}

    def policies(self) -> dict[str, dict[str, Any]]:
        """Return every policy by model name."""
        with self._database.read() as session:
            return {row.model: dict(row.policy) for row in session.scalars(select(PolicyRow))}

    def set_policy(self, model: str, policy: Mapping[str, Any]) -> None:
        """Replace the model's policy; an empty one removes it."""
        with self._database.write() as session:
            if policy:
                session.merge(PolicyRow(model=model, policy=dict(policy), updated=utc_now()))
            else:
                session.execute(delete(PolicyRow).where(PolicyRow.model == model))

    def replace_policy(
        self,
        model: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        action: NewAction,
        as_of: datetime,
    ) -> bool:
        """Replace the model's policy and record that, in one transaction; False, and nothing is done, when the policy
        is not `before` by now.
        """
        try:
            with self._database.write() as session:
                row = session.get(PolicyRow, model, with_for_update=True)
                if (dict(row.policy) if row is not None else {}) != dict(before):
                    return False
                if row is None:
                    session.add(PolicyRow(model=model, policy=dict(after), updated=utc_now()))
                else:
                    row.policy, row.updated = dict(after), utc_now()
                session.add(_action_row(model, action, as_of))
        except IntegrityError:  # PostgreSQL: somebody else made the first policy in this moment
            return False
        return True

    def policy_state(self, model: str) -> dict[str, Any]:
        """Return what the policy remembers between decisions; empty at first."""
        with self._database.read() as session:
            row = session.get(PolicyStateRow, model)
            return dict(row.state) if row is not None else {}

    def commit_decision(
        self,
        model: str,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        actions: Sequence[NewAction],
        as_of: datetime,
    ) -> dict[str, tuple[int, int | None]] | None:
        """Record what was decided, all of it or nothing: actions, the work they queue, and the policy's memory.

        Returns each action's id and task by its key; None, and nothing is recorded, when the memory is no longer what
        the decision was made from: somebody else has decided meanwhile.
        """
        found: dict[str, tuple[int, int | None]] = {}
        try:
            with self._database.write() as session:
                row = session.get(PolicyStateRow, model, with_for_update=True)
                if (dict(row.state) if row is not None else {}) != dict(before):
                    return None
                for action in actions:
                    found[action.key] = _recorded(session, model, action, as_of)
                if row is None:
                    session.add(PolicyStateRow(model=model, state=dict(after), updated=utc_now()))
                else:
                    row.state, row.updated = dict(after), utc_now()
        except IntegrityError:  # PostgreSQL: two first decisions at the same time
            return None
        return found


def _action_row(model: str, action: NewAction, as_of: datetime) -> ActionRow:
    moment = utc_now()
    return ActionRow(
        model=model,
        kind=action.kind,
        reason=action.reason,
        evidence=dict(action.evidence),
        as_of=as_of,
        key=action.key,
        status=action.status,
        created=moment,
        updated=moment,
    )


def _recorded(session: Session, model: str, action: NewAction, as_of: datetime) -> tuple[int, int | None]:
    """Add an action and the work that it queues; return the ids of both, of the ones that are there already."""
    made = session.scalar(select(ActionRow).where(ActionRow.key == action.key))
    if made is None:
        made = _action_row(model, action, as_of)
        session.add(made)
        session.flush()
    if action.task is None:
        return made.id, None
    known = session.scalar(select(TaskRow.id).where(TaskRow.key == action.key))
    if known is not None:
        return made.id, known
    task = TaskRow(
        kind=action.task,
        subject=model,
        payload={"reason": action.reason, "as_of": as_of.isoformat(), "action_id": made.id},
        status="queued",
        requested_by="policy",
        key=action.key,
        attempts=0,
        created=utc_now(),
    )
    session.add(task)
    session.flush()
    return made.id, task.id


def insert_once(database: Database, row: TaskRow | ActionRow) -> int:
    """Insert a row and return its id; the same key gives the row that was inserted first."""
    table = type(row)
    same = select(table.id).where(table.key == row.key) if row.key is not None else None
    try:
        with database.write() as session:
            known = session.scalar(same) if same is not None else None
            if known is not None:
                return known
            session.add(row)
            session.flush()
            return row.id
    except IntegrityError:  # PostgreSQL: another writer was first with this key
        with database.read() as session:
            known = session.scalar(same) if same is not None else None
        if known is None:
            raise
        return known

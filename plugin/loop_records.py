"""What the loop remembers of each model: verdicts, actions, policies and their state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from mlflow_flywheel.pipelines.errors import NotFound

from .database import Database, utc_now
from .record_rows import ActionRow, PolicyRow, PolicyStateRow, TaskRow, VerdictRow, action_of, verdict_of
from .record_types import ActionRecord, VerdictRecord


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
        moment = utc_now()
        row = ActionRow(
            model=model,
            kind=kind,
            reason=reason,
            evidence=dict(evidence),
            as_of=as_of,
            key=key,
            status=status,
            created=moment,
            updated=moment,
        )
        return insert_once(self._database, row)

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

    def actions(self, model: str | None = None, limit: int = 100) -> list[ActionRecord]:
        """Return the newest actions first."""
        query = select(ActionRow).order_by(ActionRow.id.desc()).limit(limit)
        if model is not None:
            query = query.where(ActionRow.model == model)
        with self._database.read() as session:
            return [action_of(row) for row in session.scalars(query)]

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

    def policy_state(self, model: str) -> dict[str, Any]:
        """Return what the policy remembers between decisions; empty at first."""
        with self._database.read() as session:
            row = session.get(PolicyStateRow, model)
            return dict(row.state) if row is not None else {}

    def set_policy_state(self, model: str, state: Mapping[str, Any]) -> None:
        """Replace what the policy remembers."""
        with self._database.write() as session:
            session.merge(PolicyStateRow(model=model, state=dict(state), updated=utc_now()))


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

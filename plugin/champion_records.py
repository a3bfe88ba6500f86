"""What is remembered of who was champion, and of loops that are paused.

Every move of a champion alias is an action, written down before the alias is moved: whoever finds one that is only
`started` may finish it. A move's key names the move before it, so that the same move asked for twice is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_flywheel.pipelines.errors import BadInput

from .database import Database, utc_now
from .record_rows import ActionRow, PauseRow, action_of, pause_of
from .record_types import ActionRecord, Pause

MoveKind = Literal["promote", "rollback"]
MOVES: tuple[MoveKind, ...] = ("promote", "rollback")


class ChampionRecords:
    """The part of `Records` that is about champions and the kill switch."""

    _database: Database

    def add_move(
        self,
        kind: MoveKind,
        model: str,
        before: str,
        after: str,
        reason: str,
        evidence: Mapping[str, Any],
        as_of: datetime,
        status: Literal["started", "done"] = "started",
        *,
        follows: int | None = None,
    ) -> tuple[ActionRecord, bool]:
        """Record that the champion goes from one version to another; also whether this is new.

        The same move by somebody else a moment ago is that one. With `follows`, the id of a model's newest move (0: of
        none), nothing is recorded after another one. Raises BadInput while another move is under way.
        """
        try:
            with self._database.write() as session:
                last = _last_move(session, model)
                if last is not None and follows is not None and last.id != follows:
                    return action_of(last), False
                if last is not None and last.status in ("started", "done"):
                    if last.evidence["after"] == after:
                        return action_of(last), False
                    if last.status == "started":
                        raise BadInput(
                            f"version {last.evidence['after']} is just becoming the champion of {model!r} "
                            f"({last.kind}, action {last.id}); try again in a few seconds"
                        )
                moment = utc_now()
                row = ActionRow(
                    model=model,
                    kind=kind,
                    reason=reason,
                    evidence={**evidence, "before": before, "after": after},
                    as_of=as_of,
                    key=f"champion:{model}:{last.id if last is not None else 0}",
                    status=status,
                    created=moment,
                    updated=moment,
                )
                session.add(row)
                session.flush()
                return action_of(row), True
        except IntegrityError:  # PostgreSQL: somebody else's move was first; what follows is decided by it
            return self.add_move(kind, model, before, after, reason, evidence, as_of, status, follows=follows)

    def moves(self, model: str, limit: int = 1000) -> list[ActionRecord]:
        """Return the moves of a model's champion that were made or are under way, newest first."""
        query = select(ActionRow).where(
            ActionRow.model == model, ActionRow.kind.in_(MOVES), ActionRow.status.in_(("started", "done"))
        )
        with self._database.read() as session:
            return [
                action_of(row) for row in session.scalars(query.order_by(ActionRow.id.desc()).limit(limit))
            ]

    def pause(self, model: str, requested_by: str, reason: str, as_of: datetime) -> bool:
        """Let the policy of a model start nothing from now on; return False when that was so already."""
        return self._switch(model, "pause", requested_by, reason, as_of)

    def resume(self, model: str, requested_by: str, reason: str, as_of: datetime) -> bool:
        """End a pause; return False when there is none."""
        return self._switch(model, "resume", requested_by, reason, as_of)

    def paused(self, model: str) -> Pause | None:
        """Return the pause of a model's loop, None while it works."""
        with self._database.read() as session:
            row = session.get(PauseRow, model)
            return pause_of(row) if row is not None else None

    def pauses(self) -> dict[str, Pause]:
        """Return every pause by model name."""
        with self._database.read() as session:
            return {row.model: pause_of(row) for row in session.scalars(select(PauseRow))}

    def _switch(
        self, model: str, kind: Literal["pause", "resume"], requested_by: str, reason: str, as_of: datetime
    ) -> bool:
        """Change the switch and record that, in one transaction."""
        moment = utc_now()
        try:
            with self._database.write() as session:
                row = session.get(PauseRow, model, with_for_update=True)
                if (row is not None) == (kind == "pause"):
                    return False
                if row is None:
                    session.add(PauseRow(model=model, requested_by=requested_by, reason=reason, since=moment))
                else:
                    session.delete(row)
                session.add(
                    ActionRow(
                        model=model,
                        kind=kind,
                        reason=reason or f"asked for by {requested_by}",
                        evidence={"requested_by": requested_by},
                        as_of=as_of,
                        key=f"{kind}:{model}:{moment.isoformat()}",
                        status="done",
                        created=moment,
                        updated=moment,
                    )
                )
        except IntegrityError:  # PostgreSQL: somebody else paused it in this moment
            return False
        return True


def _last_move(session: Session, model: str) -> ActionRow | None:
    query = select(ActionRow).where(ActionRow.model == model, ActionRow.kind.in_(MOVES))
    return session.scalars(query.order_by(ActionRow.id.desc()).limit(1)).first()

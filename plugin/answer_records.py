"""How many answers each version gave, and how many it failed to give: every count once, whichever daemon read it.

The inference table has only what was answered; what failed is known to those who count it: web workers, stream workers
and batch runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, delete, func, select
from sqlalchemy.orm import Session

from mlflow_flywheel.monitors.failures import Tally

from .answer_rows import AnsweredRow, AnswerRow, CounterRow
from .database import Database
from .usage_records import SLOT, slot_of

_KEPT = timedelta(days=400)


@dataclass(frozen=True)
class Server:
    """Who answers: a version in a deployment that was made at a moment."""

    deployment: str
    deployed: datetime
    model: str
    version: str


@dataclass(frozen=True)
class Counter:
    """What a counter says now. It only grows within one incarnation; another one begins at zero.

    `answered` are requests, messages or rows with an answer; `failed` those that have none because the model failed.
    What did not fit the model, which is the caller's mistake, is in neither.
    """

    source: str
    incarnation: str
    server: Server
    answered: int
    failed: int


class AnswerRecords:
    """The part of `Records` that is about answers and failures."""

    _database: Database

    def add_answers(self, counters: list[Counter], read_at: datetime) -> None:
        """Count what is new since each counter was read last, in one transaction with the readings themselves."""
        with self._database.write() as session:
            for counter in counters:
                _add(session, counter, read_at)

    def answers(self, model: str, version: str, start: datetime, end: datetime) -> dict[str, Tally]:
        """Return what a version did in each deployment in the slots that touch [start, end)."""
        failing = func.sum(case((AnswerRow.failed > 0, 1), else_=0))
        query = (
            select(AnswerRow.deployment, func.sum(AnswerRow.answered), func.sum(AnswerRow.failed), failing)
            .where(AnswerRow.model == model, AnswerRow.version == version)
            .where(AnswerRow.slot > start - SLOT, AnswerRow.slot < end)
            .group_by(AnswerRow.deployment)
        )
        with self._database.read() as session:
            return {row[0]: Tally(*map(int, row[1:])) for row in session.execute(query)}

    def answers_of(self, deployment: str, deployed: datetime) -> dict[str, Tally]:
        """Return what each version did in a deployment since it was made, without a look at its slots."""
        query = select(AnsweredRow).where(
            AnsweredRow.deployment == deployment, AnsweredRow.deployed == deployed
        )
        with self._database.read() as session:
            return {row.version: Tally(row.answered, row.failed) for row in session.scalars(query)}

    def answers_in(self, deployment: str, deployed: datetime, start: datetime, end: datetime) -> Tally:
        """Return what a deployment did, whatever its version, in the slots that begin in [start, end)."""
        query = select(func.sum(AnswerRow.answered), func.sum(AnswerRow.failed)).where(
            AnswerRow.deployment == deployment,
            AnswerRow.deployed == deployed,
            AnswerRow.slot >= start,
            AnswerRow.slot < end,
        )
        with self._database.read() as session:
            answered, failed = session.execute(query).one()
            return Tally(int(answered or 0), int(failed or 0))

    def forget_old_answers(self, now: datetime) -> None:
        """Remove what is older than 400 days."""
        with self._database.write() as session:
            session.execute(delete(AnswerRow).where(AnswerRow.slot < now - _KEPT))
            session.execute(delete(CounterRow).where(CounterRow.read_at < now - _KEPT))
            left = select(AnswerRow).where(
                AnswerRow.deployment == AnsweredRow.deployment,
                AnswerRow.deployed == AnsweredRow.deployed,
                AnswerRow.version == AnsweredRow.version,
            )
            session.execute(delete(AnsweredRow).where(~left.exists()))


def _add(session: Session, counter: Counter, read_at: datetime) -> None:
    last = session.get(CounterRow, counter.source)
    answered, failed = counter.answered, counter.failed
    if last is not None and last.incarnation == counter.incarnation:
        if (answered, failed) == (last.answered, last.failed):
            return
        if answered >= last.answered and failed >= last.failed:
            answered, failed = answered - last.answered, failed - last.failed
    session.merge(
        CounterRow(
            source=counter.source,
            incarnation=counter.incarnation,
            answered=counter.answered,
            failed=counter.failed,
            read_at=read_at,
        )
    )
    if answered or failed:
        _count(session, counter.server, slot_of(read_at), answered, failed)


def _count(session: Session, server: Server, slot: datetime, answered: int, failed: int) -> None:
    key = {"deployment": server.deployment, "deployed": server.deployed, "version": server.version}
    row = session.get(AnswerRow, key | {"slot": slot})
    if row is None:
        row = AnswerRow(**key, slot=slot, model=server.model, answered=0, failed=0)
        session.add(row)
    total = session.get(AnsweredRow, key)
    if total is None:
        total = AnsweredRow(**key, answered=0, failed=0)
        session.add(total)
    for counted in (row, total):
        counted.answered += answered
        counted.failed += failed

"""What processes used, in the record database: a reading is counted exactly once, whichever daemon took it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from mlflow_flywheel.pipelines.times import EPOCH

from .database import Database
from .usage_rows import MeterRow, UsageRow, UsedRow

SLOT = timedelta(minutes=10)
_KEPT = timedelta(days=400)
_SUMS = (func.sum(UsageRow.cpu_seconds), func.sum(UsageRow.gb_seconds), func.sum(UsageRow.up_seconds))


@dataclass(frozen=True)
class Reading:
    """What a process and all that it started have used since it began, at one moment.

    `incarnation` tells this start of it from every other one, `cpu_seconds` only grow within one.
    """

    incarnation: str
    started: datetime
    read_at: datetime
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Usage:
    """What was used in a span: core seconds, gigabyte (10^9 bytes) seconds, and seconds of being there."""

    cpu_seconds: float = 0.0
    gb_seconds: float = 0.0
    up_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            self.gb_seconds + other.gb_seconds,
            self.up_seconds + other.up_seconds,
        )


class UsageRecords:
    """The part of `Records` that is about what processes use."""

    _database: Database

    def add_reading(self, process: str, deployed: datetime, reading: Reading) -> None:
        """Count what was used since the last reading of this process, in one transaction with the reading itself.

        Of a process that was never read in this incarnation all counts, back to its start.
        """
        with self._database.write() as session:
            last = session.get(MeterRow, process)
            since, before = reading.started, 0.0
            if last is not None and last.incarnation == reading.incarnation:
                since, before = last.read_at, last.cpu_seconds
            if reading.read_at <= since:
                return
            used = _used(session, process, deployed)
            more = max(0.0, reading.cpu_seconds - before)
            seconds = (reading.read_at - since).total_seconds()
            _spread(session, process, deployed, since, reading, more)
            used.cpu_seconds += more
            used.gb_seconds += reading.memory_bytes / 1e9 * seconds
            used.up_seconds += seconds
            session.merge(
                MeterRow(
                    process=process,
                    incarnation=reading.incarnation,
                    read_at=reading.read_at,
                    cpu_seconds=reading.cpu_seconds,
                )
            )

    def usage(self, start: datetime, end: datetime) -> dict[tuple[str, datetime], Usage]:
        """Return what each process used in the slots that begin in [start, end), by name and moment of deployment."""
        query = (
            select(UsageRow.process, UsageRow.deployed, *_SUMS)
            .where(UsageRow.slot >= start, UsageRow.slot < end)
            .group_by(UsageRow.process, UsageRow.deployed)
        )
        with self._database.read() as session:
            return {(row[0], row[1]): Usage(*map(float, row[2:])) for row in session.execute(query)}

    def used(self) -> dict[tuple[str, datetime], Usage]:
        """Return what each process used in all, by name and moment of deployment, without a look at its slots."""
        with self._database.read() as session:
            return {
                (row.process, row.deployed): Usage(row.cpu_seconds, row.gb_seconds, row.up_seconds)
                for row in session.scalars(select(UsedRow))
            }

    def usage_slots(self, process: str, deployed: datetime, start: datetime, end: datetime) -> list[Usage]:
        """Return what one process used in each of the slots that begin in [start, end)."""
        query = select(UsageRow).where(
            UsageRow.process == process,
            UsageRow.deployed == deployed,
            UsageRow.slot >= start,
            UsageRow.slot < end,
        )
        with self._database.read() as session:
            return [Usage(row.cpu_seconds, row.gb_seconds, row.up_seconds) for row in session.scalars(query)]

    def forget_old_usage(self, now: datetime) -> None:
        """Remove what is older than 400 days."""
        with self._database.write() as session:
            session.execute(delete(UsageRow).where(UsageRow.slot < now - _KEPT))
            left = select(UsageRow).where(
                UsageRow.process == UsedRow.process, UsageRow.deployed == UsedRow.deployed
            )
            session.execute(delete(UsedRow).where(~left.exists()))


def slot_of(moment: datetime) -> datetime:
    """Return the beginning of the slot that a moment is in."""
    return EPOCH + (moment - EPOCH) // SLOT * SLOT


def _used(session: Session, process: str, deployed: datetime) -> UsedRow:
    """Return the sum of a process, which begins with the slots that were counted before there were sums."""
    row = session.get(UsedRow, (process, deployed))
    if row is None:
        query = select(*_SUMS).where(UsageRow.process == process, UsageRow.deployed == deployed)
        cpu, gb, up = (float(total or 0.0) for total in session.execute(query).one())
        row = UsedRow(process=process, deployed=deployed, cpu_seconds=cpu, gb_seconds=gb, up_seconds=up)
        session.add(row)
    return row


def _spread(
    session: Session, process: str, deployed: datetime, since: datetime, reading: Reading, cpu_seconds: float
) -> None:
    """Add to every slot since the last reading its share by time: a daemon may have been away for long."""
    whole = (reading.read_at - since).total_seconds()
    for slot, seconds in _slots(since, reading.read_at):
        row = session.get(UsageRow, (process, deployed, slot))
        if row is None:
            row = UsageRow(
                process=process, deployed=deployed, slot=slot, cpu_seconds=0.0, gb_seconds=0.0, up_seconds=0.0
            )
            session.add(row)
        row.cpu_seconds += cpu_seconds * seconds / whole
        row.gb_seconds += reading.memory_bytes / 1e9 * seconds
        row.up_seconds += seconds


def _slots(start: datetime, end: datetime) -> Iterator[tuple[datetime, float]]:
    while start < end:
        slot = slot_of(start)
        until = min(end, slot + SLOT)
        yield slot, (until - start).total_seconds()
        start = until

"""Which runs in MLflow have lost their deployment and wait for their end to be told."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from .database import Database, utc_now
from .record_rows import Row

FINISHED, FAILED = "FINISHED", "FAILED"


class EndedRunRow(Row):
    """A deployment's run that is over, until MLflow knows it."""

    __tablename__ = "flywheel_ended_runs"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    ended: Mapped[datetime]


class RunRecords:
    """The part of `Records` that is about the ends of deployments' runs."""

    _database: Database

    def end_run(self, run_id: str, status: str = FINISHED) -> None:
        """Record that a deployment's run is over now; MLflow is told later."""
        with self._database.write() as session:
            record_end(session, run_id, status)

    def ended_runs(self) -> list[tuple[str, str, datetime]]:
        """Return the runs whose end MLflow is not told: each with its status and when it ended."""
        query = select(EndedRunRow).order_by(EndedRunRow.ended)
        with self._database.read() as session:
            return [(row.run_id, row.status, row.ended) for row in session.scalars(query)]

    def forget_ended_run(self, run_id: str) -> None:
        """Remember no longer that a run ended: MLflow knows it."""
        with self._database.write() as session:
            session.execute(delete(EndedRunRow).where(EndedRunRow.run_id == run_id))


def record_end(session: Session, run_id: str, status: str) -> None:
    """Add the end of a run to a transaction; idempotent."""
    session.merge(EndedRunRow(run_id=run_id, status=status, ended=utc_now()))

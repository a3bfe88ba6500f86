"""Rows that a job adds to Delta tables, piece by piece: its answers, and those of the inference table."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from mlflow_flywheel.pipelines.commits import Commit
from mlflow_flywheel.pipelines.delta import DeltaLog
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import TIMESTAMP


class DeltaSink:
    """See Sink."""

    def __init__(self, location: str, job_id: str, first_piece: int) -> None:
        self._log = DeltaLog(location)
        self._pieces = Pieces(self._log, f"batch-output:{job_id}", first_piece)
        self.settled = self._pieces.settled
        self._schema: pa.Schema | None = None

    def write(self, answers: pa.Table) -> None:
        if not answers.num_rows:
            return
        if self._schema is None:
            self._schema = self._log.ensure(pa.schema([_storable(column) for column in answers.schema]))
        self._pieces.write(_as_in(answers, self._schema))

    def flush(self) -> None:
        return None

    def end_piece(self) -> None:
        self._pieces.end_piece()

    def finish(self) -> str:
        return self._log.uri

    def close(self) -> None:
        self._pieces.close()


class Pieces:
    """Rows that a job adds to a Delta table, a commit for each piece, and each piece once however often it is tried."""

    def __init__(self, log: DeltaLog, app: str, first_piece: int) -> None:
        self._log = log
        self._app = app
        self._name = hashlib.sha256(app.encode()).hexdigest()[:16]
        self._piece = first_piece
        self._commit: Commit | None = None
        self.settled = log.committed([app])[app] if log.exists else -1

    def write(self, rows: pa.Table) -> None:
        """Add rows to the piece; of one that is settled nothing is written again."""
        if self._piece <= self.settled:
            return
        if self._commit is None:
            name = f"part-{self._name}-{self._piece:06}"
            self._commit = self._log.growing_commit(name, self._app, self._piece)
        self._commit.write(rows)

    def end_piece(self) -> None:
        """Commit the piece, if it has rows, and begin the next one."""
        if self._commit is not None:
            self._commit.commit()
            self._commit = None
        self._piece += 1

    def close(self) -> None:
        """Drop the rows that were not committed."""
        if self._commit is not None:
            self._commit.drop()


def _as_in(rows: pa.Table, have: pa.Schema) -> pa.Table:
    """Give answers the columns and types of the table that they go to."""
    columns = []
    for column in have:
        if column.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, column.type))
            continue
        try:
            columns.append(rows[column.name].cast(column.type))
        except pa.ArrowException as error:
            raise BadInput(
                f"column {column.name!r} is {rows[column.name].type}, but {column.type} in the output table: {error}"
            ) from None
    return pa.table(columns, schema=have)


def _storable(column: pa.Field) -> pa.Field:
    """Give a column a type that Delta has: nothing but nulls is text, and times are in UTC."""
    if pa.types.is_null(column.type):
        return column.with_type(pa.string())
    return column.with_type(TIMESTAMP) if pa.types.is_timestamp(column.type) else column

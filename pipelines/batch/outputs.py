"""Where answers go: one Parquet file per input file, complete or absent, or appended to a Delta table once.

Answers of an input are written under a hidden name and renamed when they are complete. A Delta table takes each chunk
in a transaction named by job and chunk, so a chunk that is written again is skipped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.delta import Commit, DeltaLog
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.parquet_parts import open_parquet
from mlflow_flywheel.pipelines.schema import TIMESTAMP

from .inputs import DELTA_PREFIX, InputFile, is_delta, local_path, searched_folder
from .rejects import FOLDER
from .state import DoneFile

ID_COLUMN = "prediction_id"
_ANSWERS = ("prediction", "prediction_proba")


class Sink(Protocol):
    """Takes the answers of one input file, chunk by chunk."""

    settled: int
    """The last piece of the job that is visible for good; -1 for none."""

    def write(self, answers: pa.Table) -> None: ...

    def end_piece(self) -> None:
        """Make a piece visible, where that is possible before the file is complete."""

    def finish(self) -> str:
        """Make the answers visible and return where they are."""

    def close(self) -> None:
        """Drop what is not visible yet."""


class Output:
    """Where the answers of a job go.

    Raises BadInput when a single file is asked for many inputs, or when the answers would become input.
    """

    def __init__(self, spec: str, job_id: str, source: str, files: Sequence[InputFile]) -> None:
        self._job_id = job_id
        self._path = Path(local_path(spec.removeprefix(DELTA_PREFIX), "output"))
        self.is_delta = spec.startswith(DELTA_PREFIX) or is_delta(str(self._path))
        self._single = not self.is_delta and self._path.suffix == ".parquet"
        if self._single and len(files) > 1:
            raise BadInput(f"output {spec!r} is one file, but the input is {len(files)} files; give a folder")
        targets = {str(self.target(file)): file for file in files}
        if not self.is_delta and len(targets) < len(files):
            raise BadInput(
                f"two of the input files would be answered in the same file under {spec!r}; rename one"
            )
        taken = {file.path for file in files}
        root = searched_folder(source)
        if taken & targets.keys() or (root is not None and self._path.is_relative_to(root)):
            raise BadInput(
                f"output {spec!r} is within the input {source!r} and would become input; give another folder"
            )

    def target(self, file: InputFile) -> Path:
        """Return the file that will hold the answers of an input: its name, and .parquet when it is no Parquet."""
        if self.is_delta or self._single:
            return self._path
        name = file.relative if file.relative.endswith(".parquet") else f"{file.relative}.parquet"
        return self._path / name

    def sink(self, file: InputFile, first_piece: int) -> Sink:
        """Open the place for one input's answers."""
        target = self.target(file)
        if self.is_delta:
            return _DeltaSink(str(target), self._job_id, first_piece)
        return _ParquetSink(target, self._job_id)

    def rejects(self, file: InputFile) -> Path:
        """Return the file for what is set aside of an input."""
        if self._single:
            return self._path.with_suffix(".rejects.jsonl")
        return self._path / FOLDER / f"{file.relative}.jsonl"

    def holds(self, done: DoneFile) -> bool:
        """Tell whether the answers of a file that was done are still there."""
        return self.is_delta or done.unread or os.path.exists(done.output)


class _ParquetSink:
    settled = -1

    def __init__(self, target: Path, job_id: str) -> None:
        job = hashlib.sha256(job_id.encode()).hexdigest()[:8]
        self._target = target
        self._partial = target.with_name(f".{target.name}.{job}.partial")
        self._writer: pq.ParquetWriter | None = None

    def write(self, answers: pa.Table) -> None:
        try:
            if self._writer is None:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._writer = open_parquet(str(self._partial), answers)
            self._writer.write_table(answers)
        except OSError as error:
            raise self._unwritable(error) from error

    def end_piece(self) -> None:
        return None

    def finish(self) -> str:
        assert self._writer is not None, "every input has at least one chunk, if an empty one"
        try:
            self._writer.close()
            with open(self._partial, "rb") as written:
                os.fsync(written.fileno())
            self._partial.replace(self._target)
        except OSError as error:
            raise self._unwritable(error) from error
        return str(self._target)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._partial.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(f"output file {str(self._target)!r} cannot be written: {error.strerror or error}")


class _DeltaSink:
    def __init__(self, location: str, job_id: str, first_piece: int) -> None:
        self._log = DeltaLog(location)
        self._pieces = Pieces(self._log, f"batch-output:{job_id}", first_piece)
        self.settled = self._pieces.settled

    def write(self, answers: pa.Table) -> None:
        if answers.num_rows:
            have = self._log.ensure(pa.schema([_storable(column) for column in answers.schema]))
            self._pieces.write(_as_in(answers, have))

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


def answers_of(chunk: pa.Table, kept: Sequence[str], ids: pa.Array, predictions: Predictions) -> pa.Table:
    """Put ids, the kept input columns and the predictions side by side.

    Raises BadInput when a kept column has the name of one of ours.
    """
    for name in kept:
        if name in (ID_COLUMN, *_ANSWERS):
            raise BadInput(
                f"column {name!r} would be kept, but the output has one of its own; name the columns to keep with "
                "passthrough, without it"
            )
    columns: dict[str, pa.Array | pa.ChunkedArray] = {ID_COLUMN: ids}
    columns.update((name, chunk[name]) for name in kept)
    columns[_ANSWERS[0]] = predictions.values
    if predictions.proba is not None:
        columns[_ANSWERS[1]] = predictions.proba
    return pa.table(columns)

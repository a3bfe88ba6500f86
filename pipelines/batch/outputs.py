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

from mlflow_flywheel.pipelines.delta import DeltaLog
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.schema import TIMESTAMP

from .inputs import DELTA_PREFIX, InputFile, is_delta, local_path, searched_folder

ID_COLUMN = "prediction_id"
_ANSWERS = ("prediction", "prediction_proba")


class Sink(Protocol):
    """Takes the answers of one input file, chunk by chunk."""

    def write(self, answers: pa.Table, chunk: int) -> None: ...

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

    def sink(self, file: InputFile) -> Sink:
        """Open the place for one input's answers."""
        target = self.target(file)
        return _DeltaSink(str(target), self._job_id) if self.is_delta else _ParquetSink(target, self._job_id)

    def holds(self, output: str) -> bool:
        """Tell whether an output that `finish` returned is still there."""
        return self.is_delta or os.path.exists(output)


class _ParquetSink:
    def __init__(self, target: Path, job_id: str) -> None:
        job = hashlib.sha256(job_id.encode()).hexdigest()[:8]
        self._target = target
        self._partial = target.with_name(f".{target.name}.{job}.partial")
        self._writer: pq.ParquetWriter | None = None

    def write(self, answers: pa.Table, chunk: int) -> None:
        try:
            if self._writer is None:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._partial, answers.schema)
            self._writer.write_table(answers)
        except OSError as error:
            raise self._unwritable(error) from error

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
    def __init__(self, location: str, job_id: str) -> None:
        self._log = DeltaLog(location)
        self._stream = f"batch-output:{job_id}"

    def write(self, answers: pa.Table, chunk: int) -> None:
        if answers.num_rows:
            rows = answers.cast(pa.schema([_storable(column) for column in answers.schema]))
            self._log.ensure(rows.schema)
            self._log.append(rows, {self._stream: chunk})

    def finish(self) -> str:
        return self._log.uri

    def close(self) -> None:
        return None


def _storable(column: pa.Field) -> pa.Field:
    """Give a column a type that Delta has: nothing but nulls is text, and times are in UTC."""
    if pa.types.is_null(column.type):
        return column.with_type(pa.string())
    return column.with_type(TIMESTAMP) if pa.types.is_timestamp(column.type) else column


def answers_of(
    chunk: pa.Table, kept: Sequence[str], ids: Sequence[str], predictions: Predictions
) -> pa.Table:
    """Put ids, the kept input columns and the predictions side by side.

    Raises BadInput when a kept column has the name of one of ours.
    """
    for name in kept:
        if name in (ID_COLUMN, *_ANSWERS):
            raise BadInput(
                f"column {name!r} would be kept, but the output has one of its own; name the columns to keep with "
                "passthrough, without it"
            )
    columns: dict[str, pa.Array | pa.ChunkedArray] = {ID_COLUMN: pa.array(ids, pa.string())}
    columns.update((name, chunk[name]) for name in kept)
    columns[_ANSWERS[0]] = predictions.values
    if predictions.proba is not None:
        columns[_ANSWERS[1]] = predictions.proba
    return pa.table(columns)

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

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.parquet_parts import open_parquet

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
            from .delta_output import DeltaSink

            return DeltaSink(str(target), self._job_id, first_piece)
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

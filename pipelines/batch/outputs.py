"""Where answers go: one Parquet file per input file, complete or absent, or appended to a Delta table once.

Answers of an input are written under a hidden name and renamed when they are complete. A Delta table takes each piece
in a transaction named by job and piece, so a piece that is written again is skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.parquet_parts import open_parquet

from .inputs import DELTA_PREFIX, InputFile, is_delta, is_within, searched_folder
from .locations import Location
from .rejects import FOLDER
from .state import DoneFile

ID_COLUMN = "prediction_id"
_ANSWERS = ("prediction", "prediction_proba")


class Sink(Protocol):
    """Takes the answers of one input file, chunk by chunk."""

    settled: int
    """The last piece of the job that is visible for good; -1 for none."""

    def write(self, answers: pa.Table) -> None: ...

    def flush(self) -> None:
        """Bring what was written so far to the disk, as far as that can be done before it is visible."""

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

    def __init__(self, spec: str, job_id: str, source: str | None, files: Sequence[InputFile]) -> None:
        self._job_id = job_id
        self._place = Location.of(spec.removeprefix(DELTA_PREFIX), "output")
        self.is_delta = spec.startswith(DELTA_PREFIX) or is_delta(self._place)
        self._single = not self.is_delta and self._place.name.endswith(".parquet")
        if self._single and len(files) > 1:
            raise BadInput(f"output {spec!r} is one file, but the input is {len(files)} files; give a folder")
        targets = {self.target(file).text: file for file in files}
        if not self.is_delta and len(targets) < len(files):
            raise BadInput(
                f"two of the input files would be answered in the same file under {spec!r}; rename one"
            )
        taken = {file.path for file in files}
        root = searched_folder(source) if source is not None else None
        if taken & targets.keys() or (root is not None and is_within(self._place.text, root)):
            raise BadInput(
                f"output {spec!r} is within the input {source!r} and would become input; give another folder"
            )

    def target(self, file: InputFile) -> Location:
        """Return the file that will hold the answers of an input: its name, and .parquet when it is no Parquet."""
        if self.is_delta or self._single:
            return self._place
        name = file.relative if file.relative.endswith(".parquet") else f"{file.relative}.parquet"
        return self._place.below(name)

    def sink(self, file: InputFile, first_piece: int) -> Sink:
        """Open the place for one input's answers."""
        target = self.target(file)
        if self.is_delta:
            from .delta_output import DeltaSink

            return DeltaSink(target.text, self._job_id, first_piece)
        return _ParquetSink(target, self._job_id)

    def rejects(self, file: InputFile) -> Location:
        """Return the file for what is set aside of an input."""
        if self._single:
            return self._place.beside(self._place.name.removesuffix(".parquet") + ".rejects.jsonl")
        return self._place.below(f"{FOLDER}/{file.relative}.jsonl")

    def holds(self, done: DoneFile) -> bool:
        """Tell whether the answers of a file that was done are still there."""
        return self.is_delta or done.unread or Location.of(done.output).exists


class _ParquetSink:
    settled = -1

    def __init__(self, target: Location, job_id: str) -> None:
        job = hashlib.sha256(job_id.encode()).hexdigest()[:8]
        self._target = target
        self._partial = target.beside(f".{target.name}.{job}.partial")
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def write(self, answers: pa.Table) -> None:
        with self._writing():
            if self._writer is None:
                self._file = self._partial.write()
                self._writer = open_parquet(self._file, answers)
            self._writer.write_table(answers)

    def flush(self) -> None:
        if self._writer is not None:
            with self._writing():
                self._partial.flush()

    def end_piece(self) -> None:
        return None

    def finish(self) -> str:
        assert self._writer is not None, "every input has at least one chunk, if an empty one"
        with self._writing():
            self._writer.close()
            self._file.close()
            self._partial.become(self._target)
        return self._target.text

    def close(self) -> None:
        if self._writer is not None and not self._file.closed:
            self._writer.close()
            self._file.close()
            self._partial.remove()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"output file {self._target.text!r} cannot be written: {error.strerror or error}"
            ) from error


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

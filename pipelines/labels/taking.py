"""A label file into the feedback table: all of its labels in one commit, once, whoever tries it again.

The commit carries the hash of the file's bytes as its Delta transaction. A try that was killed leaves at most a data
file that nobody reads and the next try replaces; a file that was taken is known by its bytes, under any name.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mlflow_flywheel.pipelines.batch.inputs import InputFile
from mlflow_flywheel.pipelines.batch.locations import Location
from mlflow_flywheel.pipelines.batch.rejects import Reject, RejectsFile
from mlflow_flywheel.pipelines.commits import Commit
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.table_columns import label_rows_for

from .checking import LabelCheck, Misfit
from .reading import read_labels

_HASHED_BYTES = 1024 * 1024
_TOLD = 3
Progress = Callable[[int, "float | None"], None]
"""Told how many labels were read, and which share of the file."""


@dataclass(frozen=True)
class Taken:
    """What became of a file: `before` says that its labels were in the table already, and nothing was done."""

    file: str
    accepted: int = 0
    rejected: int = 0
    rejects: str | None = None
    """Where the rows are that were set aside, when there are any."""
    before: bool = False


def take_label_file(
    table: InferenceTable,
    file: InputFile,
    folder: Path,
    *,
    skip: bool = False,
    progress: Progress = lambda rows, read: None,
) -> Taken:
    """Put the labels of a file into a model's table, all in one commit.

    A row that is no label keeps the whole file out, or, with `skip`, is set aside with its reason under `folder`, which
    belongs to this model on this machine. Raises BadInput for a file that does not fit, Unavailable when the table is
    away; nothing of the file is taken then.
    """
    digest = _digest(file)
    app = f"labels:{digest}"
    with _alone(folder):
        if table.feedback.committed([app])[app] >= 0:
            return Taken(file.path, before=True)
        aside = Location.of(str(folder / "rejects" / f"{quote(file.location.name)}-{digest[:8]}.jsonl"))
        commit = table.feedback.growing_commit(f"labels-{digest}", app, 0)
        try:
            with closing(RejectsFile(aside)) as rejects:
                accepted = _write(table, file, commit, rejects if skip else None, progress)
                if file.location.state != (file.size, file.stamp):
                    raise BadInput(
                        f"label file {file.path!r} changed while it was read, so nothing of it was taken; write files "
                        "under another name and rename them when they are complete"
                    )
                rejects.finish()  # before the commit: afterwards the file counts as taken
            before = accepted > 0 and not commit.commit()
        except BaseException:
            commit.drop()
            raise
    told = aside.text if rejects.count else None
    return Taken(file.path, 0 if before else accepted, rejects.count, told, before)


def _write(
    table: InferenceTable, file: InputFile, commit: Commit, rejects: RejectsFile | None, progress: Progress
) -> int:
    check = LabelCheck(table.kind, f"file:{file.location.name}")
    schema = table.feedback.schema()
    accepted, received = 0, 0
    for piece in read_labels(file):
        received = max(received, time.time_ns() // 1000)
        checked = check.check(piece, received)
        received += len(piece.rows)
        if checked.misfits and rejects is None:
            raise _refusal(file, checked.misfits)
        if rejects is not None:
            rejects.add(*(_reject(file, misfit) for misfit in checked.misfits))
        if checked.rows.num_rows:
            commit.write(label_rows_for(checked.rows, schema))
        accepted += checked.rows.num_rows
        progress(accepted, piece.read)
    return accepted


def _refusal(file: InputFile, misfits: Sequence[Misfit]) -> BadInput:
    what = "row" if file.format == "parquet" else "line"
    said = "; ".join(f"{what} {misfit.place}: {misfit.reason}" for misfit in misfits[:_TOLD])
    more = f" (and {len(misfits) - _TOLD:,} more near them)" if len(misfits) > _TOLD else ""
    return BadInput(
        f"label file {file.path!r}, {said}{more}; nothing of it was taken. Mend it, or set such rows aside with "
        "--on-error skip"
    )


def _reject(file: InputFile, misfit: Misfit) -> Reject:
    if file.format == "parquet":
        return Reject(file.path, misfit.reason, row=misfit.place - 1, record=misfit.record)
    return Reject(file.path, misfit.reason, line=misfit.place, record=misfit.record)


def _digest(file: InputFile) -> str:
    digest = hashlib.sha256()
    with file.location.read_anywhere() as stream:
        while data := stream.read(_HASHED_BYTES):
            digest.update(data)
    return digest.hexdigest()[:32]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine takes a file for this model."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""What lies in the input of a deployment and waits to be scored; looked at without disturbing a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_flywheel.pipelines.errors import NotFound
from mlflow_flywheel.pipelines.times import EPOCH

from .inputs import InputFile, find_inputs
from .state import scored_before
from .watermark import mark_before


@dataclass(frozen=True)
class InputState:
    """The input as of a moment: when the newest was written, and how many files no run has scored, since when.

    `waiting` is None where only a run can find out: of what a watermark chooses from, of tables and databases.
    """

    newest: datetime | None
    waiting: int | None = None
    waiting_since: datetime | None = None


def input_state(
    source: str, state_dir: Path, as_of: datetime, watermark: str | None = None, *, is_query: bool = False
) -> InputState:
    """Return what is in a folder, glob, file or Delta table of input, or how far a query's watermark has come.

    What was written after `as_of` does not count, nor do files of a store that tells no times. Runs are those that
    keep their state in `state_dir`. A Delta table is as new as its newest commit.
    """
    if is_query:
        mark = None if watermark is None else mark_before(state_dir, watermark)
        return InputState(mark if mark is not None and mark <= as_of else None)
    try:
        files = find_inputs(source)
    except NotFound:
        files = []
    if any(file.format == "delta" for file in files):
        from mlflow_flywheel.pipelines.delta import DeltaLog

        written = DeltaLog(files[0].path).written()
        return InputState(written if written is not None and written <= as_of else None)
    scored = scored_before(state_dir)
    there = [(time, file) for file in files if (time := _written(file)) is not None and time <= as_of]
    newest = max((time for time, _ in there), default=None)
    if watermark is not None:
        return InputState(newest)
    waiting = [time for time, file in there if file.identity not in scored]
    return InputState(newest, len(waiting), min(waiting, default=None))


def _written(file: InputFile) -> datetime | None:
    return EPOCH + timedelta(microseconds=file.stamp // 1000) if file.stamp else None

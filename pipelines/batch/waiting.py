"""What lies in the input of a deployment and waits to be scored; looked at without disturbing a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_flywheel.pipelines.errors import NotFound
from mlflow_flywheel.pipelines.times import EPOCH

from .inputs import InputFile, find_inputs
from .state import scored_before


@dataclass(frozen=True)
class InputState:
    """The input files as of a moment: when the newest was written, and how many no run has scored, since when."""

    newest: datetime | None
    waiting: int
    waiting_since: datetime | None


def input_state(source: str, state_dir: Path, as_of: datetime) -> InputState | None:
    """Return what is in a folder, glob or file of input; None for a Delta table, which does not tell.

    What was written after `as_of` does not count, nor do files of a store that tells no times. Runs are those that
    keep their state in `state_dir`.
    """
    try:
        files = find_inputs(source)
    except NotFound:
        files = []
    if any(file.format == "delta" for file in files):
        return None
    scored = scored_before(state_dir)
    there = [(time, file) for file in files if (time := _written(file)) is not None and time <= as_of]
    waiting = [time for time, file in there if file.identity not in scored]
    newest = max((time for time, _ in there), default=None)
    return InputState(newest, len(waiting), min(waiting, default=None))


def _written(file: InputFile) -> datetime | None:
    return EPOCH + timedelta(microseconds=file.stamp // 1000) if file.stamp else None

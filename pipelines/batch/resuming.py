"""Whether a job that failed can go on where it stopped, so that no row is answered again under another id."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, NotFound

from .inputs import InputFile, find_inputs
from .state import JobState, work_of
from .waiting import input_state


def can_go_on(config: BatchConfig) -> bool:
    """Tell whether this job was begun as it is told now, and what it has yet to read is as it was then.

    The result of a query, or an older version of a Delta table, stays as it is however a row in question is mended
    meanwhile: it is gone on with only where such rows are set aside, or it would fail there for ever.
    """
    try:
        state = JobState(Path(config.state_dir), config.job_id, work_of(config))
    except BadInput:
        return False
    with closing(state):
        left = [file for index, file in enumerate(state.files) if index not in state.done]
        return state.is_planned and all(_as_planned(config, file) for file in left)


def more_waits(config: BatchConfig) -> bool:
    """Tell whether there may be input that came after an incremental job was planned."""
    now, state_dir = datetime.now(timezone.utc), Path(config.state_dir)
    found = input_state(config.input, state_dir, now, config.watermark, is_query=config.query is not None)
    return found.waiting is None or found.waiting > 0


def _as_planned(config: BatchConfig, file: InputFile) -> bool:
    lenient = config.on_error == "skip"
    if file.format == "delta":
        return lenient or _is_newest(config.input, file)
    return (lenient or config.query is None) and file.location.state == (file.size, file.stamp)


def _is_newest(source: str, file: InputFile) -> bool:
    try:
        return file in find_inputs(source)
    except NotFound:
        return False

"""What a batch job says of itself: how far it is, and what it did."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from .answering import Answered
from .outputs import ID_COLUMN
from .state import JobState
from .watermark import as_text


@dataclass(frozen=True)
class BatchProgress:
    """How far a job is."""

    rows: int
    files_done: int
    files: int
    seconds: float


@dataclass(frozen=True)
class BatchResult:
    """What a job did, over all of its starts; `seconds` and the columns are of the last one."""

    job_id: str
    rows_in: int
    rows_out: int
    files: int
    seconds: float
    outputs: tuple[str, ...]
    id_column: str = ID_COLUMN
    rows_rejected: int = 0
    rows_failed: int = 0
    """Those of the rejected ones on which the model raised."""
    files_rejected: int = 0
    rejects: tuple[str, ...] = ()
    watermark: str | None = None
    """How far the deployment's runs have come, where a column says so."""
    newest_event: str | None = None
    """The latest event time among the rows that were logged, in ISO 8601."""
    input_digest: str = ""
    columns_in: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Types by column."""
    columns_out: Mapping[str, str] = field(default_factory=dict, compare=False)


class Notes:
    """What is seen of a job's input and answers on their way."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.columns_in: Mapping[str, str] = {}
        self._columns_out: Mapping[str, str] = {}
        self._newest: datetime | None = None
        self.failed = 0
        """Rows of the file on which the model raised."""

    def begin_file(self) -> None:
        self._newest, self.failed = None, 0

    @property
    def newest_event(self) -> str | None:
        """The latest event time in the file, in ISO 8601."""
        return None if self._newest is None else self._newest.isoformat()

    def look(self, answer: Answered) -> None:
        """Note what answers are like, how new their events are, and what has none."""
        self.failed += answer.failed
        if answer.answers is not None and not self._columns_out:
            self._columns_out = {column.name: str(column.type) for column in answer.answers.schema}
        if answer.logged is not None:
            times = [self._newest, pc.max(answer.logged["event_time"]).as_py()]
            self._newest = max((time for time in times if time is not None), default=None)

    def result(self, job_id: str, state: JobState, mark: Any) -> BatchResult:
        """Sum the job up; `mark` is the watermark in force after it."""
        done = [state.done[index] for index in sorted(state.done)]
        rows, rejected = sum(file.rows for file in done), sum(file.rejected for file in done)
        return BatchResult(
            job_id=job_id,
            rows_in=rows + rejected,
            rows_out=rows,
            files=len(state.files),
            seconds=time.perf_counter() - self._started,
            outputs=tuple(dict.fromkeys(file.output for file in done if not file.unread)),
            rows_rejected=rejected,
            rows_failed=sum(file.failed for file in done),
            files_rejected=sum(file.unread for file in done),
            rejects=tuple(file.rejects for file in done if file.rejects is not None),
            watermark=as_text(mark),
            newest_event=max((file.newest_event for file in done if file.newest_event), default=None),
            input_digest=_digest([file.digest for file in state.files]),
            columns_in=self.columns_in,
            columns_out=self._columns_out,
        )


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

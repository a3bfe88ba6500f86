"""What a job reads: all of its input, or only what is new since the jobs before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import FeatureSchema

from .inputs import InputFile, find_inputs
from .selection import Span, may_hold, selection_of
from .sql_narrowing import Narrowing, RowsAbove, RowsWithin
from .state import DoneFile, JobState, SeenInputs, locked
from .watermark import Watermarks, from_json, largest, to_json

_QUERY_NAME = "query.parquet"


class Intake:
    """Finds the input of one job, and remembers for later ones what it took.

    Files that were done are remembered one by one, the watermark when the whole job is. Incremental jobs of one
    `state_dir` exclude each other: raises Unavailable while another one has it.
    """

    def __init__(self, config: BatchConfig, state: JobState, held: ExitStack) -> None:
        self._config = config
        self._state = state
        self._seen: SeenInputs | None = None
        self._marks: Watermarks | None = None
        folder = Path(config.state_dir)
        self._query_file = folder / "jobs" / f"{quote(config.job_id, safe='')}.input.parquet"
        if not config.incremental:
            return
        what = f"an incremental job of deployment {config.deployment!r}"
        held.enter_context(locked(folder / "incremental.lock", what))
        self._seen = held.enter_context(closing(SeenInputs(folder)))
        if config.watermark is not None:
            self._marks = held.enter_context(closing(Watermarks(folder, config.watermark)))

    @property
    def since(self) -> Any:
        """The mark, as JSON, above which the job takes rows: fixed by its plan."""
        if self._state.is_planned:
            return self._state.since
        return None if self._marks is None else self._marks.mark

    def find(self, schema: Callable[[], FeatureSchema]) -> tuple[Sequence[InputFile], Any]:
        """Return what is to be read, and how far a query's result goes. Raises BadInput and NotFound."""
        if self._config.query is not None:
            return self._query_result(schema())
        files = find_inputs(self._config.input)
        if self._seen is None and not files:
            raise BadInput(f"input {self._config.input!r} holds no Parquet, CSV or JSON Lines file")
        by_file = self._seen is not None and self._marks is None
        if by_file and any(file.format == "delta" for file in files):
            raise BadInput(
                f"input {self._config.input!r} is a Delta table, of which only a watermark tells what is new; name its "
                "column (watermark=), or score the whole table without incremental, or give a folder of files"
            )
        selection = selection_of(self._config, self.since)
        return [
            file
            for file in files
            if (self._seen is None or file not in self._seen)
            and (selection is None or may_hold(file, selection))
        ], None

    def took(self, file: InputFile) -> None:
        """Remember a file that is done."""
        if self._seen is not None and self._config.query is None:
            self._seen.add(file)

    def finish(self, done: Sequence[DoneFile]) -> Any:
        """Remember how far the job came, and return it as JSON; None where there is no watermark."""
        if self._marks is not None:
            column = str(self._config.watermark)
            marks = (self._state.until, *(file.mark for file in done))
            newest = largest([from_json(mark) for mark in marks], column)
            self._marks.advance(self._config.job_id, to_json(newest, column))
        if self._config.query is not None:
            self._query_file.unlink(missing_ok=True)
        return None if self._marks is None else self._marks.mark

    def _query_result(self, schema: FeatureSchema) -> tuple[Sequence[InputFile], Any]:
        from .sql_input import save_query

        config = self._config
        assert config.query is not None
        narrowing = self._narrowing()
        last = save_query(config.input, config.query, schema, self._query_file, narrowing)
        if self._marks is not None and last is None:
            self._query_file.unlink()
            return [], None
        (file,) = find_inputs(str(self._query_file))
        mark = None if self._marks is None else to_json(last, str(config.watermark))
        return [replace(file, relative=_QUERY_NAME)], mark

    def _narrowing(self) -> Narrowing | None:
        config = self._config
        if self._marks is not None:
            return RowsAbove(str(config.watermark), from_json(self._marks.mark))
        span = selection_of(config, None)
        return RowsWithin(span.column, span.start, span.end) if isinstance(span, Span) else None

"""One batch job: read, score, log, write; exactly once, however often it is killed and started again.

Order, per chunk: predict and commit to the inference table (in a transaction named by job and chunk), then write the
answers. Per file: make the answers visible, then remember the file. After a kill the unfinished file is scored again
with the same ids: what the table has is skipped there, and the answers were not visible yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.ids import batch_prediction_ids
from mlflow_flywheel.pipelines.inference_table import DirectLog, InferenceTable
from mlflow_flywheel.pipelines.model import Predictions, Scorer, describe, load_scorer
from mlflow_flywheel.pipelines.scoring import NullLog, PredictionLog, Request, ScoringCore

from .columns import caller_ids, event_times, with_parsed_times
from .inputs import InputFile, find_inputs
from .outputs import ID_COLUMN, Output, answers_of
from .readers import peek, read_chunks
from .state import DoneFile, JobState, SeenInputs, locked
from .wanted import Retype, Wanted

T = TypeVar("T")


@dataclass(frozen=True)
class BatchProgress:
    """How far a job is."""

    rows: int
    files_done: int
    files: int
    seconds: float


@dataclass(frozen=True)
class BatchResult:
    """What a job did, over all of its starts; `seconds` are those of the last one."""

    job_id: str
    rows_in: int
    rows_out: int
    files: int
    seconds: float
    outputs: tuple[str, ...]
    id_column: str = ID_COLUMN


def run_batch(
    config: BatchConfig,
    scorer: Scorer | None = None,
    progress: Callable[[BatchProgress], None] | None = None,
) -> BatchResult:
    """Score the input and return when every answer is in the output and, unless `log` is off, in the table.

    A job that was killed goes on where it was; a finished one does nothing again. Without `scorer` the model is loaded
    from the configuration, and only when there is something to score. Raises BadInput that names the file and the
    column for input that does not fit, before anything is scored where its header or schema can tell, NotFound for
    input that does not exist and Unavailable while the same job, or another incremental one, is running.
    """
    started = time.perf_counter()
    if scorer is not None and (scorer.ref.name, scorer.ref.version) != (
        config.model.name,
        config.model.version,
    ):
        raise BadInput(
            f"job {config.job_id!r} is for {describe(config.model)}, but it was given {describe(scorer.ref)}"
        )
    state_dir = Path(config.state_dir)
    with ExitStack() as stack:
        lock = state_dir / "jobs" / f"{quote(config.job_id, safe='')}.lock"
        stack.enter_context(locked(lock, f"batch job {config.job_id!r}"))
        seen = None
        if config.incremental:
            what = f"an incremental job of deployment {config.deployment!r}"
            stack.enter_context(locked(state_dir / "incremental.lock", what))
            seen = stack.enter_context(closing(SeenInputs(state_dir)))
        state = stack.enter_context(closing(JobState(state_dir, config.job_id, _work(config))))
        job = _Job(config, state, seen, scorer, progress, started)
        return job.run()


def _work(config: BatchConfig) -> dict[str, Any]:
    """Return what must not change between two starts of a job, or rows would be answered twice or differently."""
    same = ("input", "output", "log", "chunk_rows", "id_column", "timestamp_column", "incremental", "tables")
    work: dict[str, Any] = {name: getattr(config, name) for name in same}
    return {"model": describe(config.model), "passthrough": list(config.passthrough), **work}


class _Job:
    def __init__(
        self,
        config: BatchConfig,
        state: JobState,
        seen: SeenInputs | None,
        scorer: Scorer | None,
        progress: Callable[[BatchProgress], None] | None,
        started: float,
    ) -> None:
        self._config = config
        self._state = state
        self._seen = seen
        self._scorer = scorer
        self._progress = progress
        self._started = started
        self._rows = 0

    def run(self) -> BatchResult:
        config, state = self._config, self._state
        if not state.is_planned:
            files = self._new_inputs()
            Output(config.output, config.job_id, config.input, files)
            self._check_fit(files)
            state.plan(files)
        output = Output(config.output, config.job_id, config.input, state.files)
        chunk = 0
        for index, file in enumerate(state.files):
            done = state.done.get(index)
            if done is None or not output.holds(done.output):
                done = self._score(index, file, output, chunk)
                if self._seen is not None:
                    self._seen.add(file)
                state.finish(done)
            self._rows += done.rows
            chunk += done.chunks
            self._tell(self._rows)
        rows = sum(done.rows for done in state.done.values())
        outputs = tuple(dict.fromkeys(state.done[index].output for index in sorted(state.done)))
        seconds = time.perf_counter() - self._started
        return BatchResult(config.job_id, rows, rows, len(state.files), seconds, outputs)

    def _new_inputs(self) -> list[InputFile]:
        files = find_inputs(self._config.input)
        if self._seen is None:
            if not files:
                raise BadInput(f"input {self._config.input!r} holds no Parquet, CSV or JSON Lines file")
            return files
        if any(file.format == "delta" for file in files):
            raise BadInput(
                f"input {self._config.input!r} is a Delta table, and only files can be scored incrementally; "
                "score the table without incremental, or give a folder of files"
            )
        return [file for file in files if file not in self._seen]

    def _check_fit(self, files: Sequence[InputFile]) -> None:
        """Refuse a job over several files before any is scored, where names and types can tell."""
        if len(files) < 2:
            return
        wanted = self._wanted
        for file in files:
            with _naming(file):
                _features(_retyping(partial(peek, file, wanted)), wanted)

    def _score(self, index: int, file: InputFile, output: Output, first_chunk: int) -> DoneFile:
        def attempt(types: Mapping[str, pa.DataType]) -> DoneFile:
            rows = chunks = 0
            core = ScoringCore(
                self._loaded,
                deployment=self._config.deployment,
                mode="batch",
                variant=self._config.variant,
                log=self._log(first_chunk),
            )
            with closing(output.sink(file)) as sink:
                for chunk in read_chunks(file, self._wanted, self._config.chunk_rows, types):
                    sink.write(self._answer(core, file, chunk, rows), first_chunk + chunks)
                    rows, chunks = rows + chunk.num_rows, chunks + bool(chunk.num_rows)
                    self._tell(self._rows + rows)
                file.check_unchanged()
                return DoneFile(index, rows, chunks, sink.finish())

        with _naming(file):
            return _retyping(attempt)

    def _answer(self, core: ScoringCore, file: InputFile, chunk: pa.Table, first_row: int) -> pa.Table:
        """Score and log one chunk; return its rows of the output."""
        wanted = self._wanted
        kept = wanted.kept(chunk.column_names)
        features = _features(chunk, wanted)
        ids = batch_prediction_ids(
            self._config.job_id, file.digest, range(first_row, first_row + chunk.num_rows)
        )
        if not ids:  # no model is asked to predict nothing
            return answers_of(chunk, kept, ids, _no_predictions(core.scorer))
        request = Request(
            features=features,
            prediction_ids=ids,
            client_request_ids=caller_ids(chunk, wanted.id_column),
            event_times=event_times(chunk, wanted.timestamp_column),
            request_time=self._state.started,
        )
        return answers_of(chunk, kept, ids, core.score(request).predictions)

    @cached_property
    def _loaded(self) -> Scorer:
        return self._scorer or load_scorer(self._config.model)

    @cached_property
    def _wanted(self) -> Wanted:
        config = self._config
        return Wanted(self._loaded.schema, config.passthrough, config.id_column, config.timestamp_column)

    @cached_property
    def _table(self) -> InferenceTable:
        table = InferenceTable.open(self._config.tables, self._config.model.name)
        table.ensure(self._loaded.schema, self._loaded.kind)
        return table

    def _log(self, first_chunk: int) -> PredictionLog:
        return (
            DirectLog(self._table, f"batch:{self._config.job_id}", first_chunk)
            if self._config.log
            else NullLog()
        )

    def _tell(self, rows: int) -> None:
        if self._progress is not None:
            seconds = time.perf_counter() - self._started
            self._progress(BatchProgress(rows, len(self._state.done), len(self._state.files), seconds))


def _features(chunk: pa.Table, wanted: Wanted) -> pa.Table:
    return wanted.features.from_table(with_parsed_times(chunk, wanted.features))


def _no_predictions(scorer: Scorer) -> Predictions:
    values = pa.nulls(0, pa.string() if scorer.kind == "string" else pa.float64())
    return Predictions(values, pa.nulls(0, pa.list_(pa.float64())) if scorer.classes else None, [])


def _retyping(read: Callable[[Mapping[str, pa.DataType]], T]) -> T:
    """Read a file, again from its start when a column turns out to need another type."""
    types: dict[str, pa.DataType] = {}
    while True:
        try:
            return read(types)
        except Retype as retype:
            types.update(retype.types)


@contextmanager
def _naming(file: InputFile) -> Iterator[None]:
    """Name the file in errors about its rows."""
    try:
        yield
    except FlywheelError as error:
        if file.path in error.message:
            raise
        raise type(error)(f"input file {file.path!r}: {error.message}") from error

"""One batch job: read, score, log, write; exactly once, however often it is killed and started again.

A file is cut into chunks, which are scored several at a time, and its chunks into pieces, which are committed. Order,
per piece: commit to the inference table (in a transaction named by job and piece), then to a Delta output. Per file:
make a Parquet output visible, then remember the file. After a kill the unfinished file is cut the same way again, with
the same ids: what a table has is skipped there, and what was not visible is made again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import pyarrow as pa

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.log_filters import check_excluded
from mlflow_flywheel.pipelines.model import OpenedModel, Scorer, describe, open_model
from mlflow_flywheel.pipelines.native_threads import one_core_for_algebra
from mlflow_flywheel.pipelines.scoring import NullLog, ScoringCore

from .answering import Answerer, Chunk
from .fitting import features_of
from .flow import Ahead, cores, mapped
from .inputs import InputFile
from .intake import Intake
from .outcome import BatchProgress, BatchResult, Notes
from .outputs import Output
from .readers import peek, read_chunks
from .rejects import Reject, RejectsFile
from .selection import Taken, selection_of
from .state import DoneFile, JobState, locked, work_of
from .wanted import Drop, Retype, Wanted
from .watermark import to_json
from .writing import NoPieces, PieceByPiece

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.inference_table import InferenceTable

    from .delta_output import Pieces

T = TypeVar("T")
_READ_AHEAD = 2
_READ_BEFORE = 128 * 1024 * 1024
_log = logging.getLogger(__name__)


def run_batch(
    config: BatchConfig,
    scorer: Scorer | None = None,
    progress: Callable[[BatchProgress], None] | None = None,
) -> BatchResult:
    """Score the input and return when every answer is in the output and, unless `log` is off, in the table.

    A job that was killed goes on where it was; a finished one does nothing again. Without `scorer` the model is loaded
    from the configuration, and only when there is something to score. Raises BadInput that names the file, the column
    and the row for input that does not fit, before anything is scored where its header or schema can tell, unless
    `on_error` is skip; NotFound for input that does not exist and Unavailable while the same job, or another
    incremental one, is running.
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
        state = stack.enter_context(closing(JobState(state_dir, config.job_id, work_of(config))))
        job = _Job(config, state, Intake(config, state, stack), scorer, progress, started)
        return job.run()


class _Job:
    def __init__(
        self,
        config: BatchConfig,
        state: JobState,
        intake: Intake,
        scorer: Scorer | None,
        progress: Callable[[BatchProgress], None] | None,
        started: float,
    ) -> None:
        self._config = config
        self._state = state
        self._intake = intake
        self._scorer = scorer
        self._progress = progress
        self._started = started
        self._rows = 0
        self._notes = Notes(started)

    def run(self) -> BatchResult:
        state = self._state
        if not state.is_planned:
            files, until = self._intake.find(lambda: self._model.schema)
            self._output(files)
            self._check_fit(files)
            state.plan(files, self._intake.since, until)
        model, left = describe(self._config.model), len(state.files) - len(state.done)
        _log.info("job %s: %s scores %d of %d inputs", self._config.job_id, model, left, len(state.files))
        output = self._output(state.files)
        piece = 0
        for index, file in enumerate(state.files):
            done = state.done.get(index)
            if done is None or not output.holds(done):
                done = self._score(index, file, output, piece)
                self._intake.took(file)
                state.finish(done)
                _log.info("%s: %d rows answered, %d set aside", file.path, done.rows, done.rejected)
            self._rows += done.rows
            piece += done.pieces
            self._tell(self._rows)
        mark = self._intake.finish(list(state.done.values()))
        return self._notes.result(self._config.job_id, state, mark)

    def _output(self, files: Sequence[InputFile]) -> Output:
        config = self._config
        return Output(config.output, config.job_id, config.input if config.query is None else None, files)

    def _check_fit(self, files: Sequence[InputFile]) -> None:
        """Refuse a job over several files before any is scored, where names and types can tell."""
        if len(files) < 2 or self._lenient:
            return
        for file in files:
            with _naming(file):
                features_of(_retyping(partial(peek, file, self._wanted)), self._wanted.features)

    def _score(self, index: int, file: InputFile, output: Output, first_piece: int) -> DoneFile:
        with closing(RejectsFile(output.rejects(file))) as rejects:
            try:
                with _naming(file):
                    done = _retyping(partial(self._attempt, index, file, output, first_piece))
            except BadInput as error:
                if not self._lenient:
                    raise
                rejects.add(Reject(file.path, error.message))
                rejects.finish()
                return DoneFile(index, 0, 1, output.target(file).text, 0, rejects.target.text, unread=True)
        return done

    def _attempt(
        self,
        index: int,
        file: InputFile,
        output: Output,
        first_piece: int,
        types: Mapping[str, pa.DataType],
    ) -> DoneFile:
        """Score a file, reading these columns as these types."""
        notes = self._notes
        notes.begin_file()
        with ExitStack() as stack:
            sink = stack.enter_context(closing(output.sink(file, first_piece)))
            rejects = stack.enter_context(closing(RejectsFile(output.rejects(file))))
            logged = stack.enter_context(closing(self._pieces(first_piece)))
            writer = stack.enter_context(closing(PieceByPiece(logged, sink, self._chunks_per_piece)))
            drop: Drop | None = partial(_dropped, file, rejects) if self._lenient else None
            read = read_chunks(file, self._wanted, self._config.chunk_rows, types, drop)
            numbered = _numbered(read if drop is None else _up_to_damage(read, drop))
            taken = Taken(numbered, self._wanted.selection)
            chunks = stack.enter_context(closing(Ahead(taken, _READ_AHEAD, _size, _READ_BEFORE)))
            settled = min(logged.settled, sink.settled) - first_piece + 1
            answerer = self._answerer(file, types, settled * self._chunks_per_piece)
            if self._threads > 1:
                stack.enter_context(one_core_for_algebra())
            answered = stack.enter_context(closing(mapped(chunks, answerer, self._threads)))
            rows = 0
            for answer in answered:
                notes.look(answer)
                writer.write(answer)
                rejects.add(*answer.rejects)
                rows += answer.rows
                self._tell(self._rows + rows)
            pieces = writer.settle()
            file.check_unchanged()
            rejects.finish()
            target = rejects.target.text if rejects.count else None
            notes.columns_in = taken.columns
            mark = None if taken.newest is None else to_json(taken.newest, str(self._config.watermark))
            return DoneFile(
                *(index, rows, pieces, sink.finish(), rejects.count, target),
                mark=mark,
                newest_event=notes.newest_event,
                failed=notes.failed,
            )

    def _answerer(self, file: InputFile, types: Mapping[str, pa.DataType], settled: int) -> Answerer:
        return Answerer(
            self._config,
            self._core,
            self._wanted,
            file,
            self._state.started,
            self._table_schema if self._config.log else None,
            {name for name, kind in types.items() if kind == pa.string()},
            0 if self._lenient else settled,  # what was set aside is not remembered
        )

    def _pieces(self, first_piece: int) -> Pieces | NoPieces:
        if not self._config.log:
            return NoPieces()
        from .delta_output import Pieces

        return Pieces(self._table.predictions, f"batch:{self._config.job_id}", first_piece)

    @property
    def _lenient(self) -> bool:
        return self._config.on_error == "skip"

    @property
    def _threads(self) -> int:
        return self._config.threads or cores()

    @property
    def _chunks_per_piece(self) -> int:
        return max(1, self._config.commit_rows // self._config.chunk_rows)

    @cached_property
    def _model(self) -> OpenedModel | Scorer:
        """What the model takes is known before it is loaded, and reading can begin."""
        model = self._scorer or open_model(self._config.model)
        check_excluded(self._config.log_exclude, model.schema)
        return model

    @cached_property
    def _loaded(self) -> Scorer:
        return self._model if isinstance(self._model, Scorer) else self._model.load()

    @cached_property
    def _core(self) -> ScoringCore:
        config = self._config
        return ScoringCore(
            self._loaded, deployment=config.deployment, mode="batch", variant=config.variant, log=NullLog()
        )

    @cached_property
    def _wanted(self) -> Wanted:
        config = self._config
        return Wanted(
            self._model.schema,
            config.passthrough,
            config.id_column,
            config.timestamp_column,
            selection_of(config, self._intake.since),
        )

    @cached_property
    def _table(self) -> InferenceTable:
        from mlflow_flywheel.pipelines.inference_table import InferenceTable

        table = InferenceTable.open(self._config.tables, self._config.model.name)
        table.ensure(self._model.schema, self._model.kind or self._loaded.kind)
        return table

    @cached_property
    def _table_schema(self) -> pa.Schema:
        return self._table.predictions.schema()

    def _tell(self, rows: int) -> None:
        if self._progress is not None:
            seconds = time.perf_counter() - self._started
            self._progress(BatchProgress(rows, len(self._state.done), len(self._state.files), seconds))


def _numbered(chunks: Iterator[pa.Table]) -> Iterator[Chunk]:
    first_row = 0
    for number, rows in enumerate(chunks):
        yield Chunk(number, first_row, rows)
        first_row += rows.num_rows


def _size(chunk: Chunk) -> int:
    return int(chunk.rows.nbytes)


def _up_to_damage(chunks: Iterator[pa.Table], drop: Drop) -> Iterator[pa.Table]:
    """Yield what can be read of a file that cannot be read to its end; what it begins with may be in a table already."""
    some = False
    try:
        for rows in chunks:
            yield rows
            some = some or rows.num_rows > 0
    except BadInput as error:
        if not some:
            raise
        drop(None, f"the rest of the file was left out: {error.message}")


def _dropped(file: InputFile, rejects: RejectsFile, line: int | None, reason: str) -> None:
    rejects.add(Reject(file.path, reason, line=line))


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

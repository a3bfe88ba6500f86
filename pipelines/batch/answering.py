"""One chunk of input: checked, scored, and made into rows of the output and of the inference table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.ids import batch_prediction_ids
from mlflow_flywheel.pipelines.inference_table import rows_for
from mlflow_flywheel.pipelines.isolation import score_isolating
from mlflow_flywheel.pipelines.log_filters import redacted, sampled
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.scoring import Request, ScoredBatch, ScoringCore

from .columns import caller_ids, event_times
from .fitting import Misfit, features_of, first_misfit, misfits, with_numbers
from .inputs import InputFile
from .outputs import answers_of
from .rejects import Reject
from .wanted import Wanted


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file, from `first_row` (counted from 0) on."""

    first_row: int
    rows: pa.Table


@dataclass(frozen=True)
class Answered:
    """What became of a chunk: its rows of the output, those of the inference table, and those that were set aside."""

    rows: int
    answers: pa.Table
    logged: pa.Table | None
    rejects: Sequence[Reject]


class Answerer:
    """Answers the chunks of one file. Safe to call from several threads at once.

    With `on_error=skip` rows that do not fit, or on which the model raises, are set aside; otherwise they raise.
    """

    def __init__(
        self,
        config: BatchConfig,
        core: ScoringCore,
        wanted: Wanted,
        file: InputFile,
        asked: datetime,
        table: pa.Schema | None,
        read_as_text: Collection[str] = (),
    ) -> None:
        self._config = config
        self._core = core
        self._wanted = wanted
        self._file = file
        self._asked = asked
        self._table = table
        self._read_as_text = read_as_text

    def __call__(self, chunk: Chunk) -> Answered:
        """Answer a chunk; raises BadInput and ModelError as `run_batch` says."""
        kept = self._wanted.kept(chunk.rows.column_names)
        places = pa.array(np.arange(chunk.first_row, chunk.first_row + chunk.rows.num_rows))
        rows, features, odd = self._fitting(chunk)
        fitting = _without(places, [misfit.at for misfit in odd])
        rejects = [self._reject(chunk, misfit) for misfit in odd]
        if not len(fitting):  # no model is asked to predict nothing
            ids = batch_prediction_ids(self._config.job_id, self._file.digest, fitting)
            return Answered(0, answers_of(rows, kept, ids, self._nothing()), None, rejects)
        request = Request(
            features=features,
            prediction_ids=batch_prediction_ids(self._config.job_id, self._file.digest, fitting),
            client_request_ids=caller_ids(rows, self._wanted.id_column),
            event_times=event_times(rows, self._wanted.timestamp_column),
            request_time=self._asked,
        )
        scored, refused = self._scored(request)
        if refused:
            whole = [i for i in range(len(fitting)) if i not in refused]
            for at, words in refused.items():
                row = fitting[at].as_py()
                misfit = Misfit(row - chunk.first_row, None, "one that the model can score", words)
                rejects.append(replace(self._reject(chunk, misfit), reason=words))
            rows = rows.take(pa.array(whole, pa.int64()))
            fitting = fitting.take(pa.array(whole, pa.int64()))
        if scored is None:
            ids = batch_prediction_ids(self._config.job_id, self._file.digest, fitting)
            return Answered(0, answers_of(rows, kept, ids, self._nothing()), None, rejects)
        answers = answers_of(rows, kept, scored.request.prediction_ids, scored.predictions)
        return Answered(rows.num_rows, answers, self._logged(scored), rejects)

    def _fitting(self, chunk: Chunk) -> tuple[pa.Table, pa.Table, list[Misfit]]:
        """Return the rows that fit, their features, and those that do not."""
        rows, schema = chunk.rows, self._wanted.features
        lenient = self._config.on_error == "skip"
        try:
            if not self._read_as_text:
                return rows, features_of(rows, schema), []
        except BadInput as error:
            odd = misfits(rows, schema, ())
            if not lenient:
                raise first_misfit(odd, chunk.first_row) or error from None
            if not odd:
                raise
        odd = misfits(rows, schema, self._read_as_text)
        rows = with_numbers(rows, schema, self._read_as_text)
        rows = rows.take(_without(pa.array(np.arange(rows.num_rows)), [misfit.at for misfit in odd]))
        return rows, features_of(rows, schema), odd

    def _scored(self, request: Request) -> tuple[ScoredBatch | None, dict[int, str]]:
        if self._config.on_error == "fail":
            return self._core.predict(request), {}
        parts, refused = score_isolating(self._core.predict, request)
        if not refused:
            return parts[0].scored, {}
        return _joined([part.scored for part in parts], request, sorted(refused)), refused

    def _logged(self, scored: ScoredBatch) -> pa.Table | None:
        if self._table is None:
            return None
        kept: ScoredBatch | None = scored
        if self._config.log_exclude:
            kept = redacted(scored, self._config.log_exclude)
        if self._config.log_sample < 1:
            kept = sampled(kept or scored, self._config.log_sample)
        return None if kept is None else rows_for(kept.rows, self._table)

    def _nothing(self) -> Predictions:
        scorer = self._core.scorer
        values = pa.nulls(0, pa.string() if scorer.kind == "string" else pa.float64())
        return Predictions(values, pa.nulls(0, pa.list_(pa.float64())) if scorer.classes else None, [])

    def _reject(self, chunk: Chunk, misfit: Misfit) -> Reject:
        return Reject(
            self._file.path,
            misfit.reason,
            row=chunk.first_row + misfit.at,
            column=misfit.column,
            expected=misfit.expected,
            found=misfit.found,
            record=chunk.rows.slice(misfit.at, 1).to_pylist()[0],
        )


def _joined(parts: Sequence[ScoredBatch], request: Request, refused: Sequence[int]) -> ScoredBatch | None:
    """Put the parts of a request together that were scored."""
    if not parts:
        return None
    kept = [i for i in range(len(request.prediction_ids)) if i not in set(refused)]
    values = pa.concat_arrays([part.predictions.values for part in parts])
    probabilities = [part.predictions.proba for part in parts]
    proba = pa.concat_arrays(probabilities) if probabilities[0] is not None else None
    native = [value for part in parts for value in part.predictions.native]
    return replace(parts[0], request=request.take(kept), predictions=Predictions(values, proba, native))


def _without(places: pa.Array, out: Sequence[int]) -> pa.Array:
    if not out:
        return places
    mask = np.ones(len(places), bool)
    mask[list(out)] = False
    return places.filter(pa.array(mask))

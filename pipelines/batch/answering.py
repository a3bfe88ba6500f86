"""One chunk of input: checked, scored, and made into rows of the output and of the inference table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.ids import batch_prediction_ids
from mlflow_flywheel.pipelines.isolation import score_isolating
from mlflow_flywheel.pipelines.log_filters import redacted, sampled
from mlflow_flywheel.pipelines.model import Predictions
from mlflow_flywheel.pipelines.scoring import Request, ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.table_columns import rows_for

from .columns import caller_ids, event_times
from .fitting import Misfit, features_of, first_misfit, misfits, with_numbers
from .inputs import InputFile
from .outputs import answers_of
from .rejects import Reject
from .wanted import Wanted

_PATIENCE = 1000
"""Rows of a chunk that a model may refuse one by one, before it has answered any, until it is taken for broken."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file, from `first_row` on; chunks and rows are counted from 0.

    `numbers` are those of the rows in the file, where not all of them were taken.
    """

    number: int
    first_row: int
    rows: pa.Table
    numbers: pa.Array | None = None

    def numbers_of(self, places: pa.Array) -> pa.Array:
        """Return which rows of the file are at these places of the chunk."""
        return pc.add(places, self.first_row) if self.numbers is None else self.numbers.take(places)

    def number_of(self, place: int) -> int:
        return int(self.numbers_of(pa.array([place]))[0].as_py())


@dataclass(frozen=True)
class Answered:
    """What became of a chunk: its rows of the output, those of the inference table, and those that were set aside.

    None where there is nothing to write, or where it was written before. `failed` of those set aside made the model
    raise.
    """

    rows: int
    answers: pa.Table | None
    logged: pa.Table | None
    rejects: Sequence[Reject]
    failed: int = 0


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
        settled_chunks: int = 0,
    ) -> None:
        self._config = config
        self._core = core
        self._wanted = wanted
        self._file = file
        self._asked = asked
        self._table = table
        self._read_as_text = read_as_text
        self._settled_chunks = settled_chunks

    def __call__(self, chunk: Chunk) -> Answered:
        """Answer a chunk; raises BadInput and ModelError as `run_batch` says."""
        if chunk.number < self._settled_chunks:
            return Answered(chunk.rows.num_rows, None, None, ())
        rows, request, odd = self._fitting(chunk)
        rejects = [self._reject(chunk, misfit) for misfit in odd]
        kept = self._wanted.kept(chunk.rows.column_names)
        if not rows.num_rows:  # no model is asked to predict nothing
            return self._only(rejects, rows, kept)
        scored, refused = self._scored(request)
        if refused:
            places = self._places(chunk, odd)
            for at, words in refused.items():
                rejects.append(self._reject(chunk, Misfit(places[at].as_py(), None, "", ""), words))
            rows = rows.take(_without(rows.num_rows, list(refused)))
        if scored is None:
            return replace(self._only(rejects, rows, kept), failed=len(refused))
        answers = answers_of(rows, kept, scored.request.prediction_ids, scored.predictions)
        return Answered(rows.num_rows, answers, self._logged(scored), rejects, len(refused))

    def _fitting(self, chunk: Chunk) -> tuple[pa.Table, Request, list[Misfit]]:
        """Return the rows that fit, what is asked about them, and the rows that do not fit."""
        try:
            return chunk.rows, self._request(chunk, chunk.rows, []), []
        except BadInput as error:
            odd = misfits(chunk.rows, self._wanted, self._read_as_text)
            if self._config.on_error == "fail":
                raise first_misfit(odd, chunk.number_of) or error from None
            if not odd and not self._read_as_text:
                raise
        rows = with_numbers(chunk.rows, self._wanted.features, self._read_as_text)
        rows = rows.take(self._places(chunk, odd))
        return rows, self._request(chunk, rows, odd), odd

    def _request(self, chunk: Chunk, rows: pa.Table, odd: Sequence[Misfit]) -> Request:
        numbers = chunk.numbers_of(self._places(chunk, odd))
        return Request(
            features=features_of(rows, self._wanted.features),
            prediction_ids=batch_prediction_ids(self._config.job_id, self._file.digest, numbers),
            client_request_ids=caller_ids(rows, self._wanted.id_column),
            event_times=event_times(rows, self._wanted.timestamp_column),
            request_time=self._asked,
        )

    def _places(self, chunk: Chunk, odd: Sequence[Misfit]) -> pa.Array:
        """Return the places in the chunk of the rows that fit."""
        return _without(chunk.rows.num_rows, [misfit.at for misfit in odd])

    def _only(self, rejects: Sequence[Reject], no_rows: pa.Table, kept: Sequence[str]) -> Answered:
        return Answered(
            0, answers_of(no_rows, kept, pa.array([], pa.string()), self._nothing()), None, rejects
        )

    def _scored(self, request: Request) -> tuple[ScoredBatch | None, dict[int, str]]:
        if self._config.on_error == "fail":
            return self._core.predict(request), {}
        parts, refused = score_isolating(self._core.predict, request, _PATIENCE)
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

    def _reject(self, chunk: Chunk, misfit: Misfit, words: str | None = None) -> Reject:
        return Reject(
            self._file.path,
            words or misfit.reason,
            row=chunk.number_of(misfit.at),
            column=misfit.column,
            expected=misfit.expected or None,
            found=misfit.found or None,
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


def _without(n: int, out: Sequence[int]) -> pa.Array:
    """Return the places 0 to n-1 but these."""
    mask = np.ones(n, bool)
    mask[list(out)] = False
    return pa.array(np.flatnonzero(mask))

"""What versions of a model would have answered to the events of the inference table that have a label by now.

One period is read at a time, its features a day at a time: what is kept of a row is its label and the answers.

An event counts once, however often it was logged. Rows of shadows repeat an answered row and are left out; rows that
carry the same `client_request_id` in one period (two deployments that were asked the same) are one event, whose label
is the latest of theirs. A feature that was not logged is no missing value: such rows are not scored, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput, ModelError
from .ids import SHADOW_SUFFIX
from .inference_table import InferenceTable
from .model import Scorer
from .schema import Feature
from .scoring import FEATURE_PREFIX
from .training_files import LABEL, PREDICTION, PREDICTION_PROBA
from .training_window import TrainingWindow

ROW = "row"
_PIECE = timedelta(days=1)
_SLICE_ROWS = 50_000
# A feature without any value in so many rows of one deployment was not logged; in fewer it may just be missing.
_TELLING_ROWS = 50
_CANNOT_BE_MISSING = ("integer", "long", "boolean")
_INDEX = ["prediction_id", "client_request_id", "variant", "event_time", LABEL, "label_time"]

Filled = Mapping[tuple[str, str], tuple[int, Mapping[str, int]]]
Features = Callable[[str], frozenset[str] | None]


@dataclass(frozen=True)
class Candidate:
    """A version that is tried, and when it was trained."""

    version: str
    scorer: Scorer
    training: TrainingWindow


@dataclass(frozen=True)
class Answers:
    """What one candidate says of a period's labelled events.

    `rows`: `row` (the event's number in its period), `event_time`, `label`, `prediction` and, where there are any,
    `prediction_proba`, of the events that it could score. `unscored` and `remarks` count rows by reason: those that it
    could not score, and those that it scored without an optional feature. `training_rows` of the scored ones lie in
    its training window, `chosen_rows` in the hold-out on which it was chosen.
    """

    rows: pa.Table
    unscored: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, int] = field(default_factory=dict)
    training_rows: int = 0
    chosen_rows: int = 0


@dataclass(frozen=True)
class ScoredPeriod:
    """A period's events: how many there are, how many rows repeated one of them, how many have a label."""

    events: int
    repeated: int
    labelled: int
    answers: tuple[Answers, ...]


def score_period(
    table: InferenceTable,
    start: datetime,
    end: datetime,
    candidates: Sequence[Candidate],
    logged: Features,
) -> ScoredPeriod:
    """Let the candidates answer the labelled events of [start, end).

    `logged` tells the features that the deployments of a version logged; where it answers None the rows must tell.
    """
    rows = table.read(start=start, end=end, columns=_INDEX, order_by=None)
    events = _events(rows)
    labelled = events.filter(pc.is_valid(events[LABEL]))
    columns = _columns(table, candidates)
    filled = table.filled(start, end, columns) if labelled.num_rows else {}
    tries = [_Try(candidate, logged, filled) for candidate in candidates]
    if labelled.num_rows:
        for piece in _pieces(table, start, end, columns):
            at = pc.index_in(piece["prediction_id"], labelled["prediction_id"].combine_chunks())
            chosen = piece.append_column(ROW, at).filter(pc.is_valid(at))
            for attempt in tries:
                attempt.add(chosen)
    return ScoredPeriod(
        events.num_rows,
        rows.num_rows - events.num_rows,
        labelled.num_rows,
        tuple(attempt.answers(labelled) for attempt in tries),
    )


def _events(rows: pa.Table) -> pa.Table:
    """Keep one row per event, the one with the latest label, of them the champion's, of them the first."""
    rows = rows.filter(pc.invert(pc.ends_with(rows["prediction_id"], SHADOW_SUFFIX)))
    asked = rows["client_request_id"]
    if asked.null_count == len(asked):
        return rows
    named = rows.filter(pc.is_valid(asked))
    named = named.append_column("second", pc.not_equal(named["variant"], "champion").cast(pa.int8()))
    order = pc.sort_indices(
        named,
        sort_keys=[
            ("label_time", "descending"),
            ("second", "ascending"),
            ("event_time", "ascending"),
            ("prediction_id", "ascending"),
        ],
    )
    named = named.take(order).drop_columns(["second"])
    keys = named["client_request_id"].combine_chunks().dictionary_encode().indices
    first = np.unique(keys.to_numpy(), return_index=True)[1]
    return pa.concat_tables([rows.filter(pc.is_null(asked)), named.take(pa.array(np.sort(first)))])


def _columns(table: InferenceTable, candidates: Sequence[Candidate]) -> list[str]:
    """Return the columns of the features that any candidate takes and the table has."""
    names = {FEATURE_PREFIX + name for candidate in candidates for name in candidate.scorer.schema.names}
    return sorted(names & set(table.predictions.schema().names))


def _pieces(
    table: InferenceTable, start: datetime, end: datetime, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Read the features of a span, as they are called in the table, at most a day at a time."""
    own = ["prediction_id", "deployment", "model_version"]
    while start < end:
        stop = min(start + _PIECE, end)
        rows = table.read(start=start, end=stop, columns=[*own, *columns], order_by=None)
        if rows.num_rows:
            yield rows
        start = stop


class _Try:
    """One candidate at work on the pieces of a period."""

    def __init__(self, candidate: Candidate, logged: Features, filled: Filled) -> None:
        self._candidate = candidate
        self._logged = logged
        self._filled = filled
        self._parts: list[pa.Table] = []
        self._unscored: Counter[str] = Counter()
        self._remarks: Counter[str] = Counter()

    def add(self, piece: pa.Table) -> None:
        """Score what can be scored of a piece, group by group of what was logged together."""
        groups = piece.select(["deployment", "model_version"]).group_by(["deployment", "model_version"])
        for group in groups.aggregate([]).to_pylist():
            same = pc.and_(
                pc.equal(piece["deployment"], group["deployment"]),
                pc.equal(piece["model_version"], group["model_version"]),
            )
            self._add_group(piece.filter(same), group["deployment"], group["model_version"])

    def answers(self, labelled: pa.Table) -> Answers:
        """Put the parts together, with label and time."""
        if not self._parts:
            none = pa.table({ROW: pa.array([], pa.int64())})
            return Answers(none, dict(self._unscored), dict(self._remarks))
        rows = pa.concat_tables(self._parts).sort_by(ROW)
        known = labelled.take(rows[ROW]).select(["event_time", LABEL])
        for name in known.column_names:
            rows = rows.append_column(name, known[name])
        training = self._candidate.training
        return Answers(
            rows,
            dict(self._unscored),
            dict(self._remarks),
            training.trained_on(rows["event_time"]),
            training.chosen_on(rows["event_time"]),
        )

    def _add_group(self, rows: pa.Table, deployment: str, version: str) -> None:
        schema = self._candidate.scorer.schema
        for feature in schema.features:
            why = self._not_logged(feature, deployment, version)
            if why and feature.required:
                self._unscored[why] += rows.num_rows
                return
            if why:
                self._remarks[f"{why}; it is optional, so they were scored without it"] += rows.num_rows
        for feature in schema.features:
            if feature.required and feature.type in _CANNOT_BE_MISSING:
                rows = self._with_value(rows, feature)
        features = [name for name in schema.names if FEATURE_PREFIX + name in rows.column_names]
        if not features:
            self._unscored["none of its features was logged"] += rows.num_rows
            return
        given = rows.select([FEATURE_PREFIX + name for name in features]).rename_columns(features)
        for begin in range(0, rows.num_rows, _SLICE_ROWS):
            self._score(given.slice(begin, _SLICE_ROWS), rows[ROW].slice(begin, _SLICE_ROWS))

    def _not_logged(self, feature: Feature, deployment: str, version: str) -> str:
        """Say why a feature has no value in any row of a deployment, or return an empty string when it may have one."""
        known = self._logged(version)
        if known is not None and feature.name not in known:
            return f"feature {feature.name!r} was not logged: version {version} did not take it"
        n, values = self._filled[deployment, version]
        found = values.get(FEATURE_PREFIX + feature.name)
        if found is None or (found == 0 and n >= _TELLING_ROWS):
            return f"feature {feature.name!r} was not logged by deployment {deployment!r}"
        return ""

    def _with_value(self, rows: pa.Table, feature: Feature) -> pa.Table:
        absent = pc.is_null(rows[FEATURE_PREFIX + feature.name], nan_is_null=True)
        missing = pc.sum(absent).as_py() or 0
        if missing:
            why = f"feature {feature.name!r} is missing, but {feature.type} has no missing value"
            self._unscored[why] += missing
            rows = rows.filter(pc.invert(absent))
        return rows

    def _score(self, features: pa.Table, positions: pa.ChunkedArray) -> None:
        scorer = self._candidate.scorer
        try:
            said = scorer.predict(scorer.schema.from_table(features))
        except (BadInput, ModelError) as error:
            self._unscored[error.message] += features.num_rows
            return
        columns = {ROW: positions.cast(pa.int64()), PREDICTION: said.values}
        if said.proba is not None:
            columns[PREDICTION_PROBA] = said.proba
        part = pa.table(columns)
        answered = pc.is_valid(part[PREDICTION])
        if pa.types.is_floating(said.values.type):
            answered = pc.and_(answered, pc.fill_null(pc.is_finite(part[PREDICTION]), False))
        if said.proba is not None:
            sure = np.isfinite(said.proba.flatten().to_numpy()).reshape(len(said), -1).all(axis=1)
            answered = pc.and_(answered, pa.array(sure))
        kept = part.filter(answered)
        if kept.num_rows < part.num_rows:
            self._unscored["the model answered nothing"] += part.num_rows - kept.num_rows
        self._parts.append(kept)


def score_again(scorer: Scorer, rows: pa.Table, logged: Features = lambda version: None) -> Answers:
    """Let a version answer logged rows, labelled or not; `row` is their number in `rows`.

    `rows` have `deployment`, `model_version`, `event_time` and the logged features; `logged` as for `score_period`.
    """
    names = [
        FEATURE_PREFIX + name for name in scorer.schema.names if FEATURE_PREFIX + name in rows.column_names
    ]
    groups = rows.group_by(["deployment", "model_version"])
    counts = groups.aggregate([([], "count_all"), *((name, "count") for name in names)]).to_pylist()
    filled = {
        (row["deployment"], row["model_version"]): (
            row["count_all"],
            {name: row[f"{name}_count"] for name in names},
        )
        for row in counts
    }
    never = TrainingWindow("nobody asks when it was trained")
    attempt = _Try(Candidate(scorer.ref.version, scorer, never), logged, filled)
    attempt.add(rows.append_column(ROW, pa.array(np.arange(rows.num_rows))))
    unlabelled = rows.select(["event_time"]).append_column(LABEL, pa.nulls(rows.num_rows))
    return attempt.answers(unlabelled)

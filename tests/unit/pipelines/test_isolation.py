"""Rows on which a model raises are found, and their neighbours are answered."""

from __future__ import annotations

from datetime import datetime, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import ModelError, Unavailable
from mlflow_flywheel.pipelines.isolation import score_isolating
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import NullLog, Request, ScoredBatch, ScoringCore

SCHEMA = FeatureSchema([Feature("x", "double")])
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def request_of(values: list[float]) -> Request:
    n = len(values)
    return Request(
        features=SCHEMA.from_records([{"x": value} for value in values]),
        prediction_ids=[f"id-{i}" for i in range(n)],
        client_request_ids=[f"r-{i}" for i in range(n)],
        event_times=[NOW] * n,
    )


class Picky:
    """A scoring core over a function that raises on negative numbers; it counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0
        scorer = Scorer(
            ModelRef(name="m", version="1", path=""), SCHEMA, self._predict, None, None, "double", None
        )
        self.core = ScoringCore(scorer, deployment="d", mode="stream", log=NullLog())

    def _predict(self, frame: object, params: object) -> tuple[object, None]:
        self.calls += 1
        values = frame["x"]  # type: ignore[index]
        if (values < 0).any():
            raise ValueError("negative")
        return values * 2, None


@given(st.lists(st.sampled_from([1.0, 2.0, -1.0]), min_size=1, max_size=60))
def test_every_row_is_answered_or_refused_whatever_its_neighbours(values: list[float]) -> None:
    parts, refused = score_isolating(Picky().core.score, request_of(values))
    answers: dict[int, tuple[str, float]] = {}
    for part in parts:
        for i, prediction in enumerate(part.scored.predictions.values.to_pylist()):
            answers[part.start + i] = (part.scored.prediction_ids[i], prediction)
            assert part.scored.request.client_request_ids is not None
            assert part.scored.request.client_request_ids[i] == f"r-{part.start + i}"
    assert answers == {i: (f"id-{i}", 2 * value) for i, value in enumerate(values) if value >= 0}
    assert sorted(refused) == [i for i, value in enumerate(values) if value < 0]
    assert all("negative" in reason for reason in refused.values())
    assert [part.start for part in parts] == sorted(part.start for part in parts)


def test_a_good_batch_is_scored_once_and_one_bad_row_costs_a_logarithm() -> None:
    good, bad = Picky(), Picky()
    score_isolating(good.core.score, request_of([1.0] * 1024))
    score_isolating(bad.core.score, request_of([1.0] * 700 + [-1.0] + [1.0] * 323))
    assert good.calls == 1
    assert bad.calls == 21


def test_trouble_that_is_not_the_models_goes_through() -> None:
    def away(request: Request) -> ScoredBatch:
        raise Unavailable("the spool is full")

    with pytest.raises(Unavailable):
        score_isolating(away, request_of([1.0]))


def test_a_model_that_refuses_all_is_no_endless_loop() -> None:
    def refuse(request: Request) -> ScoredBatch:
        raise ModelError("no")

    parts, refused = score_isolating(refuse, request_of([1.0] * 5))
    assert parts == []
    assert refused == dict.fromkeys(range(5), "no")


@pytest.mark.parametrize(("good", "gives_up"), [(None, True), (0, False), (999, False), (500, True)])
def test_patience_ends_where_a_model_answers_nothing(good: int | None, gives_up: bool) -> None:
    model = Picky()
    request = request_of([1.0 if i == good else -1.0 for i in range(1000)])  # 500 is in no sample of the rest
    if gives_up:
        with pytest.raises(ModelError, match=r"none of 20 rows.*It says: .*negative"):
            score_isolating(model.core.predict, request, patience=20)
        assert model.calls < 100
    else:
        parts, refused = score_isolating(model.core.predict, request, patience=20)
        assert [part.start for part in parts] == [good] and len(refused) == 999


def test_slices_keep_their_features() -> None:
    seen: list[list[float]] = []

    def note(request: Request) -> ScoredBatch:
        features = request.features
        assert isinstance(features, pa.RecordBatch)
        seen.append(features.column(0).to_pylist())
        raise ModelError("no")

    score_isolating(note, request_of([1.0, 2.0, 3.0]))
    assert seen == [[1.0, 2.0, 3.0], [1.0], [2.0, 3.0], [2.0], [3.0]]

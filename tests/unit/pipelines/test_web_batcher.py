"""Joined requests: each caller gets exactly its own rows, whoever else asked at the same time and however wrongly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cores import SCHEMA
from support.waiting import eventually
from support.web import score

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, ModelError, Unavailable
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.scoring import ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.web.batcher import Batcher, TimedOut
from mlflow_flywheel.pipelines.web.parsing import Rows

POISON = 666.0


class DoublingModel:
    """Answers 2x, raises on a poisonous value, and can be held in the middle of a call."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.calls: list[int] = []

    def __call__(self, frame: Any, params: Any) -> tuple[Any, Any]:
        self.calls.append(len(frame))
        assert self.open.wait(20)
        values = frame["x"].to_numpy()
        if (values == POISON).any():
            raise ValueError("poison")
        return values * float((params or {}).get("factor", 2)), None


class ListLog:
    def __init__(self) -> None:
        self.batches: list[ScoredBatch] = []
        self.trouble: Exception | None = None

    def append(self, batch: ScoredBatch) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.batches.append(batch)

    def rows(self) -> dict[str, tuple[Any, Any]]:
        """Return {prediction id: (x, prediction)} of all that was logged, from both forms of a batch."""
        found: dict[str, tuple[Any, Any]] = {}
        for batch in self.batches:
            columns, table = batch.columns(), batch.rows
            assert table.column("prediction_id").to_pylist() == columns["prediction_id"]
            for key, x, value in zip(
                columns["prediction_id"], columns["feature.x"], columns["prediction"], strict=True
            ):
                assert key not in found
                found[key] = (x, value)
        return found


@pytest.fixture
def model() -> DoublingModel:
    return DoublingModel()


@pytest.fixture
def log() -> ListLog:
    return ListLog()


def batcher(model: DoublingModel, log: ListLog, **options: Any) -> Batcher:
    scorer = Scorer(ModelRef(name="tiny", version="1", path=""), SCHEMA, model, None, None, "double", None)
    return Batcher(ScoringCore(scorer, deployment="tiny", mode="web", log=log), **options)


def rows(values: Sequence[Any], **more: Any) -> Rows:
    said = {"client_request_ids": None, "event_times": None, "params": None, **more}
    return Rows({"x": values, "city": ["Rome"] * len(values)}, len(values), **said)


VALUES = st.lists(
    st.one_of(st.floats(-100, 100), st.integers(-9, 9), st.none(), st.just(POISON), st.just("text")),
    min_size=1,
    max_size=6,
)


@given(requests=st.lists(VALUES, min_size=1, max_size=16), wait=st.sampled_from([0.0, 0.002]))
@settings(max_examples=40, deadline=None)
def test_every_caller_gets_its_own_rows_and_only_wrong_ones_are_refused(
    requests: list[list[Any]], wait: float
) -> None:
    model, log = DoublingModel(), ListLog()
    joining = batcher(model, log, max_rows=8, wait_seconds=wait, threads=2)
    start = threading.Barrier(len(requests))

    def ask(values: list[Any]) -> Any:
        start.wait(20)
        try:
            return score(joining, rows(values))
        except FlywheelError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as callers:
        answers = list(callers.map(ask, requests))
    joining.close()
    answered: dict[str, tuple[Any, Any]] = {}
    for values, answer in zip(requests, answers, strict=True):
        if "text" in values:
            assert isinstance(answer, BadInput) and f"row {values.index('text')}:" in answer.message
        elif POISON in values:
            assert isinstance(answer, ModelError) and "poison" in answer.message
        else:
            expected = [None if value is None else 2.0 * value for value in values]
            got = [None if np.isnan(value) else value for value in answer.predictions]
            assert got == expected
            for key, value, twice in zip(answer.prediction_ids, values, expected, strict=True):
                answered[key] = (value, twice)
    logged = {
        key: (x, None if value is None or np.isnan(value) else value)
        for key, (x, value) in log.rows().items()
    }
    assert logged == answered


def test_those_who_wait_share_one_call(model: DoublingModel, log: ListLog) -> None:
    joining = batcher(model, log, max_rows=64)
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    model.open.clear()
    with ThreadPoolExecutor(5) as callers:
        first = callers.submit(score, joining, rows([1.0]))
        eventually(lambda: model.calls == [1])
        others = [
            callers.submit(score, joining, rows([float(n)], client_request_ids=[f"c{n}"])) for n in (2, 3)
        ]
        others.append(callers.submit(score, joining, rows([4.0, 5.0], event_times=[at, None])))
        eventually(lambda: joining.waiting == 3)
        model.open.set()
        assert first.result(20).predictions == [2.0]
        assert [other.result(20).predictions for other in others] == [[4.0], [6.0], [8.0, 10.0]]
    assert model.calls == [1, 4]
    table = log.batches[1].rows.sort_by("feature.x")
    assert table.column("client_request_id").to_pylist() == ["c2", "c3", None, None]
    times, asked = table.column("event_time").to_pylist(), table.column("request_time").to_pylist()
    assert times == [asked[0], asked[1], at, asked[3]]
    assert asked[0] <= asked[1] + timedelta(seconds=20) and len(set(asked)) == 3


def test_parameters_large_requests_and_other_features_are_not_joined(
    model: DoublingModel, log: ListLog
) -> None:
    joining = batcher(model, log, max_rows=4)
    assert score(joining, rows([1.0], params={"factor": 5})).predictions == [5.0]
    assert score(joining, rows([1.0] * 9)).predictions == [2.0] * 9
    with pytest.raises(BadInput, match="feature 'x' .* is missing"):
        score(joining, Rows({"city": ["Rome"]}, 1, None, None, None))
    assert model.calls == [1, 9]


def test_who_waits_too_long_is_told_so_and_is_not_in_the_log(model: DoublingModel, log: ListLog) -> None:
    stuck = threading.Event()
    joining = batcher(model, log, max_rows=64, timeout=0.2, stuck=stuck.set)
    model.open.clear()
    for values in ([1.0], [2.0]):
        with pytest.raises(TimedOut, match="timeout_seconds"):
            score(joining, rows(values))
    assert stuck.is_set()
    model.open.set()
    answer = score(joining, rows([3.0]))
    assert list(log.rows()) == answer.prediction_ids


def test_a_model_that_is_only_slow_ends_no_worker(model: DoublingModel, log: ListLog) -> None:
    stuck = threading.Event()
    joining = batcher(model, log, max_rows=64, timeout=0.2, stuck=stuck.set)
    model.open.clear()
    with pytest.raises(TimedOut):
        score(joining, rows([1.0]))
    model.open.set()
    eventually(lambda: score(joining, rows([2.0])).predictions == [4.0])
    assert not stuck.is_set()


def test_a_full_disk_is_everybodys_trouble_and_nobody_is_answered(model: DoublingModel, log: ListLog) -> None:
    joining = batcher(model, log, max_rows=64)
    log.trouble = Unavailable("the disk is full")
    with pytest.raises(Unavailable, match="the disk is full"):
        score(joining, rows([1.0]))
    log.trouble = None
    assert score(joining, rows([1.0])).predictions == [2.0]

"""A challenger beside a champion, without MLflow: who answers whom, what is logged, and that no caller pays for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from support.cores import NAME, SCHEMA
from support.waiting import eventually
from support.web import score

from mlflow_flywheel.pipelines.compatibility import check_stands_in, check_takes
from mlflow_flywheel.pipelines.config import ChallengerConfig, ModelRef, WebConfig
from mlflow_flywheel.pipelines.errors import BadInput, ModelError, Unavailable
from mlflow_flywheel.pipelines.ids import shadow_prediction_id
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.web.batcher import Batcher
from mlflow_flywheel.pipelines.web.challenger import Canary, Shadow, is_chosen
from mlflow_flywheel.pipelines.web.parsing import Rows

LATE = datetime(2024, 5, 1, tzinfo=timezone.utc)


class Model:
    """A model that adds to x, and raises or waits when it is told to."""

    def __init__(self, version: str, add: float, schema: FeatureSchema = SCHEMA) -> None:
        self.open = threading.Event()
        self.open.set()
        self.trouble: Exception | None = None
        self.calls: list[int] = []
        ref = ModelRef(name=NAME, version=version, model_id=None, path="")
        example = schema.from_records([{"x": 0.0, "city": "Rome"}])
        self.scorer = Scorer(ref, schema, self._call, None, example, "double", None)
        self.add = add

    def _call(self, frame: Any, params: Any) -> tuple[Any, Any]:
        self.open.wait(20)
        self.calls.append(len(frame))
        if self.trouble is not None or (frame["x"] == 666).any():
            raise self.trouble or ValueError("the number of the beast")
        return frame["x"].to_numpy() + self.add + (params or {}).get("more", 0), None


class Kept:
    """A log that keeps rows by variant."""

    def __init__(self) -> None:
        self.batches: list[ScoredBatch] = []

    def append(self, batch: ScoredBatch) -> None:
        self.batches.append(batch)

    def rows(self, variant: str) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.rows.to_pylist() if row["variant"] == variant]


class World:
    """Both versions with their services, one log, and the counts."""

    def __init__(self) -> None:
        self.champion, self.challenger = Model("1", 0.0), Model("2", 1000.0)
        self.log = Kept()
        self.counts: Counter[str] = Counter()
        self.first = Batcher(self.core(self.champion, "champion"), max_rows=64)

    def core(self, model: Model, variant: str) -> ScoringCore:
        return ScoringCore(model.scorer, deployment="tiny-web", mode="web", log=self.log, variant=variant)

    def count(self, outcome: str) -> None:
        self.counts[outcome] += 1

    def canary(self, percentage: float, timeout: float = 20.0) -> Canary:
        second = Batcher(self.core(self.challenger, "challenger"), max_rows=64, timeout=timeout)
        return Canary(self.first, second, percentage, who="model tiny version 2", count=self.count)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def shadow(world: World) -> Iterator[Callable[..., Shadow]]:
    made: list[Shadow] = []

    def make(**more: Any) -> Shadow:
        core = world.core(world.challenger, "challenger")
        made.append(Shadow(world.first, core, count=world.count, **{"batch_rows": 64, **more}))
        return made[-1]

    yield make
    world.challenger.open.set()
    for each in made:
        each.close()


def ask(
    *values: float, key: str | None = None, params: Any = None, times: Sequence[datetime | None] | None = None
) -> Rows:
    n = len(values)
    keys = None if key is None else [key, *(f"{key}-{i}" for i in range(1, n))]
    return Rows(
        {"x": list(values), "city": ["Rome"] * n}, n, keys, None if times is None else list(times), params
    )


# -- canary


def test_the_share_is_right_sticky_and_only_grows_with_the_percentage() -> None:
    keys = [f"order-{i}" for i in range(20_000)]
    shares = {p: {key for key in keys if is_chosen(key, p)} for p in (0.0, 0.5, 10.0, 50.0, 100.0)}
    assert shares[0.0] == set() and shares[100.0] == set(keys)
    assert shares[0.5] < shares[10.0] < shares[50.0]
    for percentage, chosen in shares.items():
        expected = len(keys) * percentage / 100
        assert abs(len(chosen) - expected) <= 5 * np.sqrt(len(keys) * 0.25)
    assert is_chosen("order-1", 10.0) == is_chosen("order-1", 10.0)


def test_a_caller_is_answered_by_the_same_version_each_time_and_a_request_by_one(world: World) -> None:
    canary = world.canary(50)
    for i in range(40):
        key = f"caller-{i}"
        answers = [score(canary, ask(1.0, 2.0, 3.0, key=key)) for _ in range(2)]
        add, version = (1000.0, "2") if is_chosen(key, 50) else (0.0, "1")
        assert [answer.predictions for answer in answers] == [[1.0 + add, 2.0 + add, 3.0 + add]] * 2
        assert {answer.version for answer in answers} == {version}
    heard = world.log.rows("challenger")
    assert {row["model_version"] for row in heard} == {"2"} and len(heard) == 3 * world.counts["answered"]
    assert len(heard) + len(world.log.rows("champion")) == 40 * 2 * 3
    ids = [row["prediction_id"] for variant in ("champion", "challenger") for row in world.log.rows(variant)]
    assert len(ids) == len(set(ids))


def test_without_a_key_chance_decides(world: World) -> None:
    canary = world.canary(50)
    versions = Counter(score(canary, ask(1.0)).version for _ in range(200))
    assert set(versions) == {"1", "2"}
    assert {score(world.canary(0), ask(1.0)).version for _ in range(50)} == {"1"}
    assert {score(world.canary(100), ask(1.0)).version for _ in range(50)} == {"2"}


def test_a_challenger_that_raises_costs_no_caller_its_answer(world: World) -> None:
    world.challenger.trouble = RuntimeError("no weights")
    answer = score(world.canary(100), ask(1.0, 2.0))
    assert (answer.predictions, answer.version) == ([1.0, 2.0], "1")
    assert world.counts == {"failed": 1}
    assert world.log.rows("challenger") == []
    assert {row["prediction_id"] for row in world.log.rows("champion")} == set(answer.prediction_ids)


def test_what_neither_version_can_answer_is_not_the_challengers_fault(world: World) -> None:
    canary = world.canary(100)
    with pytest.raises(BadInput, match="'x'"):
        score(canary, Rows({"x": ["many"], "city": ["Rome"]}, 1, None, None, None))
    with pytest.raises(ModelError, match="version 1 raised ValueError"):
        score(canary, ask(666))
    assert world.counts == {}


def test_a_challenger_that_hangs_keeps_one_caller_waiting_and_then_nobody(world: World) -> None:
    world.challenger.open.clear()
    canary = world.canary(100, timeout=0.2)
    assert [score(canary, ask(1.0)).version for _ in range(20)] == ["1"] * 20
    assert world.counts == {"failed": 1}
    world.challenger.open.set()
    assert world.log.rows("challenger") == []


# -- shadow


def test_a_shadow_repeats_the_rows_under_an_id_that_follows_from_the_answered_one(
    world: World, shadow: Callable[..., Shadow]
) -> None:
    service = shadow()
    one = score(service, ask(1.0, 2.0, key="k", times=[LATE, None]))
    other = score(service, ask(3.0, params={"more": 5}))
    assert (one.predictions, other.predictions, one.version) == ([1.0, 2.0], [8.0], "1")
    eventually(lambda: world.counts == {"shadowed": 2})
    heard = {row["prediction_id"]: row for row in world.log.rows("champion")}
    unheard = {row["prediction_id"]: row for row in world.log.rows("challenger")}
    assert set(unheard) == {shadow_prediction_id(name) for name in heard} and len(unheard) == 3
    for name, row in heard.items():
        twin = unheard[shadow_prediction_id(name)]
        assert twin["prediction"] == row["prediction"] + 1000
        assert (twin["model_version"], twin["deployment"]) == ("2", row["deployment"])
        for column in ("client_request_id", "event_time", "request_time", "feature.x", "feature.city"):
            assert twin[column] == row[column], column


def test_a_shadow_that_is_slow_is_asked_less_and_nobody_waits(
    world: World, shadow: Callable[..., Shadow]
) -> None:
    world.challenger.open.clear()
    service = shadow(waiting_rows=10)
    score(service, ask(0.0))
    eventually(lambda: not service._waiting)  # its thread has the first one and hangs in it
    for i in range(30):
        assert score(service, ask(float(i))).predictions == [float(i)]
    assert world.counts == {"dropped": 20}
    world.challenger.open.set()
    eventually(lambda: world.counts == {"dropped": 20, "shadowed": 11})
    assert max(world.challenger.calls) == 10  # what had gathered was scored together
    assert len(world.log.rows("challenger")) == 11 and len(world.log.rows("champion")) == 31


def test_one_request_that_a_shadow_cannot_score_spoils_no_other(
    world: World, shadow: Callable[..., Shadow]
) -> None:
    world.challenger.open.clear()
    service = shadow()
    score(service, ask(0.0))
    eventually(lambda: not service._waiting)
    world.champion.scorer._call = lambda frame, params: (frame["x"].to_numpy(), None)  # it minds nothing
    for value in (1.0, 666.0, 3.0):
        score(service, ask(value))
    world.challenger.open.set()
    eventually(lambda: world.counts == {"shadowed": 3, "failed": 1})
    assert sorted(row["prediction"] for row in world.log.rows("challenger")) == [1000.0, 1001.0, 1003.0]


def test_a_shadow_without_a_log_fails_no_caller(world: World, shadow: Callable[..., Shadow]) -> None:
    service = shadow()
    append = world.log.append

    def picky(batch: ScoredBatch) -> None:
        if batch.constants["variant"] == "challenger":
            raise Unavailable("the disk is full")
        append(batch)

    world.log.append = picky  # type: ignore[method-assign]
    assert score(service, ask(1.0)).predictions == [1.0]
    eventually(lambda: world.counts == {"failed": 1})


def test_a_shadow_that_ends_scores_what_waits_or_drops_it(
    world: World, shadow: Callable[..., Shadow]
) -> None:
    service = shadow()
    for _ in range(20):
        score(service, ask(1.0))
    service.close()
    assert world.counts == {"shadowed": 20}
    assert score(service, ask(1.0)).predictions == [1.0]
    assert world.counts == {"shadowed": 20, "dropped": 1}

    world.challenger.open.clear()
    hanging = shadow()
    score(hanging, ask(1.0))
    eventually(lambda: not hanging._waiting)
    score(hanging, ask(2.0))
    hanging.close(seconds=0.05)
    assert world.counts == {"shadowed": 20, "dropped": 2}


# -- who may be tried


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([], None),
        ([Feature("n", "double")], None),
        ([Feature("n", "long"), Feature("extra", "string", required=False)], None),
        ([Feature("f", "double")], None),
        ([Feature("extra", "string")], "it needs a feature 'extra'"),
        ([Feature("f", "long")], "feature 'f' is long for it, but float is sent"),
        ([Feature("n", "integer")], "feature 'n' is integer for it, but long is sent"),
        ([Feature("n", "string")], "feature 'n' is string for it, but long is sent"),
        ([Feature("o", "string")], "feature 'o' is required by it, but may be left out"),
    ],
)
def test_a_challenger_takes_whatever_the_champion_takes(features: list[Feature], said: str | None) -> None:
    wanted = FeatureSchema(
        [Feature("n", "long"), Feature("f", "float"), Feature("o", "string", required=False)]
    )
    if said is None:
        check_takes(FeatureSchema(features), wanted, "model m version 2", "model m version 1")
        return
    with pytest.raises(BadInput, match=f"model m version 2 .*{said}.*register a version"):
        check_takes(FeatureSchema(features), wanted, "model m version 2", "model m version 1")


def test_a_challenger_answers_in_the_champions_form(world: World) -> None:
    check_stands_in(world.challenger.scorer, world.champion.scorer)
    world.challenger.scorer._call = lambda frame, params: (np.zeros((len(frame), 3)), None)
    with pytest.raises(
        BadInput, match="version 2 answers 3 values for a row, but model tiny version 1 one value"
    ):
        check_stands_in(world.challenger.scorer, world.champion.scorer)
    world.challenger.trouble = RuntimeError("no")
    world.challenger.scorer._call = world.challenger._call
    with pytest.raises(ModelError, match="raised RuntimeError: no"):
        check_stands_in(world.challenger.scorer, world.champion.scorer)


def test_the_version_that_serves_is_no_challenger_to_itself() -> None:
    ref = ModelRef(name=NAME, version="1", path="")
    challenger = ChallengerConfig(model=ref)
    config = WebConfig(deployment="d", model=ref, spool="s", status_file="f", port=0, challenger=challenger)
    assert config.trial is None
    other = config.model_copy(update={"model": ModelRef(name=NAME, version="2", path="")})
    assert other.trial == challenger

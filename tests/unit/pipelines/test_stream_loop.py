"""The order of a batch's four steps, and what happens when one of them does not work."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.messages import TOPIC, received
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import ScoredBatch, ScoringCore
from mlflow_flywheel.pipelines.stream.dead_letters import (
    ORIGIN_ID,
    ORIGIN_TIME,
    ORIGIN_TOPIC,
    REASON,
    REFUSAL,
    TRUNCATED,
    DeadLetters,
)
from mlflow_flywheel.pipelines.stream.latency import quantile_ms
from mlflow_flywheel.pipelines.stream.loop import StreamLoop
from mlflow_flywheel.pipelines.stream.messages import AnswerFormat, InputFormat, JsonBodies
from mlflow_flywheel.pipelines.stream.patience import Patience, Stopped
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Received, SendFailure

START_MS = 1_600_000_000_000
SCHEMA = FeatureSchema([Feature("x", "double")])


def message(entry: int, body: Any, **fields: Any) -> Received:
    data = body if isinstance(body, (bytes, type(None))) else orjson.dumps(body)
    return received(data, entry=entry, **fields)


class Outcome:
    """What became of messages that were sent; somebody waits for it."""

    def __init__(self, failures: dict[int, SendFailure], diary: list[str], name: str) -> None:
        self._failures = failures
        self._diary = diary
        self._name = name

    def wait(self) -> dict[int, SendFailure]:
        self._diary.append(f"{self._name} stored")
        return self._failures


class Topic:
    """A topic that can be made to fail: `broken` decides about each message by its place in the call."""

    def __init__(self, diary: list[str], name: str) -> None:
        self._diary = diary
        self._name = name
        self.stored: list[Outgoing] = []
        self.broken: Callable[[int, Outgoing], SendFailure | None] = lambda place, message: None

    def start(self, messages: list[Outgoing]) -> Outcome:
        self._diary.append(self._name)
        failures = {}
        for place, outgoing in enumerate(messages):
            failure = self.broken(place, outgoing)
            if failure is None:
                self.stored.append(outgoing)
            else:
                failures[place] = failure
        return Outcome(failures, self._diary, self._name)

    def raise_for(self, failures: list[SendFailure]) -> None:
        if failures:
            raise Unavailable(failures[0].reason)


class Inbox:
    def __init__(self, diary: list[str]) -> None:
        self._diary = diary
        self.acknowledged: list[int] = []
        self.broken = False
        self.waiting: Iterator[list[Received]] = iter(())

    def receive(self, idle_ms: int) -> list[Received]:
        return next(self.waiting, [])

    def acknowledge(self, messages: list[Received]) -> None:
        self._diary.append("acknowledge")
        if self.broken:
            raise Unavailable("the broker is away")
        self.acknowledged += [message.position.entry for message in messages]


class Bench:
    """A loop whose surroundings are under the test's control; the scoring core is the real one."""

    def __init__(self, folder: Path) -> None:
        self.diary: list[str] = []
        self.stop = threading.Event()
        self.stats = StatsKeeper(folder / "stats.json")
        self.inbox, self.answers, self.letters = (
            Inbox(self.diary),
            Topic(self.diary, "answers"),
            Topic(self.diary, "letters"),
        )
        self.log_trouble: list[Exception] = []
        self.logged: list[str] = []
        self.log_breaks: Exception | None = None  # of the second batch and all later ones
        scorer = Scorer(
            ModelRef(name="m", version="4", path=""), SCHEMA, self._predict, None, None, "double", None
        )
        patience = Patience(self.stop, self.stats)
        self.loop = StreamLoop(
            ScoringCore(scorer, deployment="d", mode="stream", log=self),
            InputFormat(JsonBodies(1000)),
            AnswerFormat.of(scorer.ref),
            inbox=self.inbox,  # type: ignore[arg-type]
            answers=self.answers,  # type: ignore[arg-type]
            dead_letters=DeadLetters(self.letters, "d", patience),  # type: ignore[arg-type]
            patience=patience,
            stats=self.stats,
            stop=self.stop,
            is_due=lambda message: message.publish_ms >= START_MS,
        )

    def append(self, batch: ScoredBatch) -> None:
        self.diary.append("log")
        if self.log_trouble:
            raise self.log_trouble.pop(0)
        if self.logged and self.log_breaks is not None:
            raise self.log_breaks
        self.logged += batch.prediction_ids

    @staticmethod
    def _predict(frame: Any, params: object) -> tuple[Any, None]:
        if (frame["x"] < 0).any():
            raise ValueError("negative")
        return frame["x"] * 2, None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def answer_of(outgoing: Outgoing) -> Any:
    return orjson.loads(outgoing.data)


def test_a_batch_is_logged_published_and_only_then_acknowledged(bench: Bench) -> None:
    bench.loop.handle([message(1, {"x": 1}), message(2, {"x": -1}), message(3, b"?")])
    # the halves of the batch that failed, and their log entries, come before anything is published
    assert bench.diary == ["log", "answers", "answers stored", "letters", "letters stored", "acknowledge"]
    assert bench.inbox.acknowledged == [1, 2, 3]


def test_an_answer_keeps_key_properties_and_event_time_and_names_the_position(bench: Bench) -> None:
    bench.loop.handle([message(1, {"x": 3}, key="k", properties={"p": "q"}, event_ms=1_000)])
    (outgoing,) = bench.answers.stored
    position = f"{TOPIC}:7:1:-1"
    assert (outgoing.key, outgoing.event_ms) == ("k", 1_000)
    assert outgoing.properties == {"p": "q", "prediction_id": position}
    answer = answer_of(outgoing)
    assert (answer["prediction_id"], answer["prediction"], answer["model_version"]) == (position, 6.0, "4")
    assert answer["event_time"] == "1970-01-01T00:00:01Z"


def test_poison_of_every_kind_leaves_its_neighbours_alone(bench: Bench) -> None:
    bodies: list[Any] = [
        {"x": 1},
        b"?",
        {"x": "one"},
        {"y": 1},
        None,
        {"x": -1},
        b"x" * 2000,
        {"features": {"x": 2}},
    ]
    bench.loop.handle(
        [message(i, body, key=f"k{i}", properties={"p": str(i)}) for i, body in enumerate(bodies)]
    )
    assert [answer_of(outgoing)["prediction"] for outgoing in bench.answers.stored] == [2.0, 4.0]
    letters = {outgoing.properties["p"]: outgoing for outgoing in bench.letters.stored}
    reasons = {place: letter.properties[REASON] for place, letter in letters.items()}
    assert sorted(reasons) == ["1", "2", "3", "4", "5", "6"]
    for place, words in {
        "1": "not JSON",
        "2": "feature 'x' must be double, got str 'one'",
        "3": "feature 'x' (double) is missing",
        "4": "empty",
        "5": "negative",
        "6": "2000 bytes, more than the 1000",
    }.items():
        assert words in reasons[place]
    letter = letters["2"]
    assert (letter.data, letter.key) == (b'{"x":"one"}', "k2")
    assert letter.properties[ORIGIN_ID] == f"{TOPIC}:7:2:-1"
    assert letter.properties[ORIGIN_TOPIC] == TOPIC
    assert letter.properties[ORIGIN_TIME] == "2023-11-14T22:13:20.000+00:00"
    refusals = {
        "1": "malformed",
        "2": "wrong_type",
        "3": "missing_feature",
        "4": "malformed",
        "5": "model",
        "6": "too_large",
    }
    assert {place: letter.properties[REFUSAL] for place, letter in letters.items()} == refusals
    assert bench.stats.now.dead_letters_by == Counter(refusals.values())
    assert bench.inbox.acknowledged == list(range(8))
    assert (bench.stats.now.messages, bench.stats.now.rows, bench.stats.now.dead_letters) == (8, 2, 6)


def test_what_was_not_stored_is_published_again_alone_and_nothing_is_acknowledged_before(
    bench: Bench,
) -> None:
    tries: list[int] = []

    def away_twice(place: int, outgoing: Outgoing) -> SendFailure | None:
        tries.append(place)
        assert bench.inbox.acknowledged == []
        return SendFailure("the broker is away", False) if len(tries) in (2, 4) else None

    bench.answers.broken = away_twice
    bench.loop.handle([message(i, {"x": i}) for i in range(3)])
    assert sorted(answer_of(outgoing)["prediction"] for outgoing in bench.answers.stored) == [0.0, 2.0, 4.0]
    assert len(tries) == 5
    assert bench.stats.now.trouble is None


def test_a_log_that_cannot_be_written_holds_the_batch_until_it_can(bench: Bench) -> None:
    bench.log_trouble = [Unavailable("the disk is full"), Unavailable("the disk is full")]
    bench.loop.handle([message(1, {"x": 1})])
    assert bench.diary == ["log", "log", "log", "answers", "answers stored", "acknowledge"]


def test_told_to_stop_in_trouble_it_leaves_the_batch_unacknowledged(bench: Bench) -> None:
    bench.answers.broken = lambda place, outgoing: SendFailure("the broker is away", False)
    bench.stop.set()
    with pytest.raises(Stopped):
        bench.loop.handle([message(1, {"x": 1})])
    assert bench.inbox.acknowledged == []
    assert bench.stats.now.trouble is not None


def test_trouble_that_will_not_pass_ends_the_worker(bench: Bench) -> None:
    bench.log_trouble = [BadInput("no such topic")]
    with pytest.raises(BadInput):
        bench.loop.handle([message(1, {"x": 1})])
    assert bench.inbox.acknowledged == []


def test_an_acknowledgement_that_fails_is_no_reason_to_stop(bench: Bench) -> None:
    bench.inbox.broken = True
    bench.loop.handle([message(1, {"x": 1})])
    assert bench.stats.now.rows == 1


def test_an_answer_that_is_too_big_becomes_a_dead_letter(bench: Bench) -> None:
    bench.answers.broken = lambda place, outgoing: SendFailure("MessageTooBig", True) if place == 0 else None
    bench.loop.handle([message(1, {"x": 1}), message(2, {"x": 2})])
    assert [answer_of(outgoing)["prediction"] for outgoing in bench.answers.stored] == [4.0]
    (letter,) = bench.letters.stored
    assert "too big" in letter.properties[REASON]
    assert bench.inbox.acknowledged == [1, 2]


def test_a_dead_letter_that_is_too_big_is_cut_and_says_so(bench: Bench) -> None:
    bench.letters.broken = lambda place, letter: (
        SendFailure("MessageTooBig", True) if len(letter.data) > 70_000 else None
    )
    bench.loop.handle([message(1, b"x" * 100_000, properties={"huge": "y" * 5000, "small": "z"})])
    (letter,) = bench.letters.stored
    assert len(letter.data) == 64 * 1024
    assert letter.properties[TRUNCATED] == "100000"
    assert letter.properties["small"] == "z"
    assert "huge" not in letter.properties
    assert bench.inbox.acknowledged == [1]


def test_what_is_not_due_is_acknowledged_and_nothing_else(bench: Bench) -> None:
    early, due = message(1, b"?", publish_ms=START_MS - 1), message(2, {"x": 1}, publish_ms=START_MS)
    bench.loop.handle([early, due])
    assert [answer_of(outgoing)["prediction"] for outgoing in bench.answers.stored] == [2.0]
    assert bench.letters.stored == []
    assert bench.inbox.acknowledged == [1, 2]
    assert (bench.stats.now.messages, bench.stats.now.rows, bench.stats.now.skipped) == (2, 1, 1)


def test_the_time_from_publishing_to_the_stored_answer_is_counted(bench: Bench) -> None:
    now_ms = round(time.time() * 1000)
    bench.loop.handle([message(i, {"x": 1}, publish_ms=now_ms - 5_000) for i in range(3)])
    assert sum(bench.stats.now.latency) == 3
    latency = quantile_ms(bench.stats.now.latency, 0.5)
    assert latency is not None
    assert 5_000 <= latency < 20_000
    assert bench.stats.now.oldest_ms == now_ms - 5_000


def test_the_lag_of_a_batch_that_is_stuck_is_told(bench: Bench) -> None:
    bench.log_trouble = [BadInput("no such topic")]
    with pytest.raises(BadInput):
        bench.loop.handle([message(1, {"x": 1}, publish_ms=START_MS + 7), message(2, {"x": 1})])
    assert bench.stats.now.oldest_ms == START_MS + 7


def endless() -> Iterator[list[Received]]:
    """Yield batches of two messages for ever."""
    entry = 0
    while True:
        yield [message(entry, {"x": entry}), message(entry + 1, {"x": entry + 1})]
        entry += 2


def test_while_answers_cannot_be_stored_two_batches_are_held_and_no_more_are_taken_or_logged(
    bench: Bench,
) -> None:
    """So neither memory nor the spool grows with what waits on the input topic."""
    bench.answers.broken = lambda place, outgoing: SendFailure("the broker is away", False)
    bench.inbox.waiting = endless()
    worker = threading.Thread(target=lambda: pytest.raises(Stopped, bench.loop.run))
    worker.start()
    eventually(lambda: bench.diary.count("answers") >= 4)  # sent again and again
    assert len(bench.logged) == 4
    assert next(bench.inbox.waiting)[0].position.entry == 4
    assert bench.inbox.acknowledged == []
    bench.stop.set()
    worker.join()


def test_the_next_batch_is_scored_before_the_answers_of_the_last_are_waited_for(bench: Bench) -> None:
    bench.inbox.waiting = itertools.islice(endless(), 2)
    worker = threading.Thread(target=bench.loop.run)
    worker.start()
    eventually(lambda: len(bench.inbox.acknowledged) == 4)
    bench.stop.set()
    worker.join()
    first, second = ["log", "answers"], ["answers stored", "acknowledge"]
    assert bench.diary == first + first + second + second
    assert bench.inbox.acknowledged == [0, 1, 2, 3]


def test_a_batch_whose_successor_breaks_the_loop_is_acknowledged_all_the_same(bench: Bench) -> None:
    bench.inbox.waiting = itertools.islice(endless(), 2)
    bench.log_breaks = BadInput("no waiting helps")
    with pytest.raises(BadInput, match="no waiting helps"):
        bench.loop.run()
    assert bench.inbox.acknowledged == [0, 1]

"""Dead letters on both brokers: held until somebody decides, sent back whole and at least once, thrown away."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support.either_broker import EitherBroker, at_work, doubling_scorer
from support.messages import received
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.ids import stream_position
from mlflow_flywheel.pipelines.stream.client import OutputReader, drop_subscriptions
from mlflow_flywheel.pipelines.stream.dead_letters import DeadLetters, Refused
from mlflow_flywheel.pipelines.stream.endings import collect_unclean_endings
from mlflow_flywheel.pipelines.stream.letters import REPLAYED_FROM, LetterBox
from mlflow_flywheel.pipelines.stream.messages import Refusal
from mlflow_flywheel.pipelines.stream.patience import Patience
from mlflow_flywheel.pipelines.stream.pulsar import Connection
from mlflow_flywheel.pipelines.stream.settings import letters_subscription
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Received

SOON = timedelta(minutes=5)


@pytest.fixture
def config(either_broker: EitherBroker, tmp_path: Path) -> StreamConfig:
    """Return a deployment whose letters are held, as its worker makes sure when it starts."""
    config = either_broker.config(tmp_path)
    with Connection.of(config, quiet=True) as connection:
        connection.consumer(config.dead_letter_topic, letters_subscription(config), batch_max=1).close()
    return config


def refuse(
    config: StreamConfig, folder: Path, *refused: tuple[Received, Refusal, str], deployment: str | None = None
) -> None:
    stats = StatsKeeper(folder / "stats.json")
    with Connection.of(config, quiet=True) as connection:
        publisher = connection.publisher(config.dead_letter_topic, batched=False)
        letters = DeadLetters(publisher, deployment or config.deployment, Patience(threading.Event(), stats))
        letters.send([Refused(*one) for one in refused])
    stats.close()


def some(n: int, refusal: Refusal = "malformed") -> list[tuple[Received, Refusal, str]]:
    return [
        (received(b"%d" % i, entry=i, key=f"k{i}", properties={"p": str(i)}), refusal, f"reason {i}")
        for i in range(n)
    ]


def numbers(config: StreamConfig, refusal: str | None = None, limit: int = 100) -> list[int]:
    with LetterBox(config, refusal) as box:
        return sorted(int(letter.data) for letter in box.look(limit))


def test_letters_stay_however_often_they_are_looked_at(config: StreamConfig, tmp_path: Path) -> None:
    refuse(config, tmp_path, *some(30))
    assert numbers(config) == list(range(30))
    assert len(numbers(config, limit=7)) == 7
    with LetterBox(config) as box:
        (letter,) = [letter for letter in box.look(100) if letter.data == b"4"]
    said = letter.to_dict()
    assert said["origin_message_id"] == "persistent://public/default/in:7:4:-1"
    assert (said["refusal"], said["reason"], said["key"]) == ("malformed", "reason 4", "k4")
    assert (said["payload"], said["bytes"], said["published"][:10]) == ("4", 1, "2023-11-14")
    assert numbers(config) == list(range(30))


def test_replayed_letters_are_messages_of_their_own_and_letters_no_more(
    config: StreamConfig, tmp_path: Path
) -> None:
    refuse(config, tmp_path, *some(5), *some(3, "label"))
    with (
        OutputReader(config, config.input_topic) as events,
        OutputReader(config, config.feedback_topic) as labels,
    ):
        with LetterBox(config, "malformed") as box:
            assert box.replay(2).letters == 2
        with LetterBox(config) as box:
            assert (box.replay(100).letters, box.replay(100).letters) == (6, 0)
        messages = [m for m in iter(events.messages, [])]
        came = [message for batch in messages for message in batch]
        assert labels.collect(3, 10) == [0, 1, 2]
    assert sorted((m.data, m.key) for m in came) == [(b"%d" % i, f"k{i}") for i in range(5)]
    for message in came:
        number = int(message.data or b"")
        assert message.event_ms == 1_700_000_000_000  # when the refused message was published
        assert message.properties["p"] == str(number)
        assert message.properties[REPLAYED_FROM] == f"persistent://public/default/in:7:{number}:-1"
        assert "reason" not in message.properties
    assert numbers(config) == []


def test_a_replay_that_breaks_off_keeps_its_letters(
    config: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(config, tmp_path, *some(4))
    with LetterBox(config) as box, OutputReader(config, config.input_topic) as events:

        def gone(messages: list[Received]) -> None:
            raise Unavailable("the broker is gone")

        monkeypatch.setattr(box._inbox, "acknowledge", gone)
        with pytest.raises(Unavailable):
            box.replay(100)
        assert len(events.collect(4, 10)) == 4  # they were stored, so they come twice
    assert numbers(config) == [0, 1, 2, 3]


def test_a_letter_that_is_refused_again_is_left_alone_and_one_that_was_cut_too(
    config: StreamConfig, tmp_path: Path
) -> None:
    refuse(config, tmp_path, *some(2))
    big = received(b"9" * 80, properties={"payload_truncated_from": "8000000"})
    refuse(config, tmp_path, (big, "too_large", "too large"))
    with LetterBox(config) as box, OutputReader(config, config.input_topic) as events:
        original, rounds = box._inbox.acknowledge, []

        def refused_again(messages: list[Received]) -> None:
            original(messages)
            again = [m for m in came() if m.properties.get(REPLAYED_FROM)]
            if again:
                rounds.append(len(again))
                refuse(config, tmp_path, *((message, "malformed", "still so") for message in again))

        def came() -> list[Received]:
            found: list[Received] = []
            while len(found) < 2:
                found += events.messages()
            return found

        box._inbox.acknowledge = refused_again  # type: ignore[method-assign]
        done = box.replay(100)
    assert (done.letters, done.cut, rounds) == (2, 1, [2])
    with LetterBox(config) as box:
        assert sorted(letter.reason for letter in box.look(10)) == ["still so", "still so", "too large"]


def test_a_purge_takes_what_was_there_and_asked_for(config: StreamConfig, tmp_path: Path) -> None:
    refuse(config, tmp_path, *some(3), *some(2, "model"))
    now = datetime.now(timezone.utc)
    with LetterBox(config, "model") as box:
        assert box.purge(100, now - SOON) == 0
    with LetterBox(config, "model") as box:
        assert box.purge(100, now + SOON) == 2
    assert numbers(config) == [0, 1, 2]
    with LetterBox(config) as box:
        assert box.purge(100, now + SOON) == 3
    assert numbers(config) == []


def test_a_shared_topic_shows_each_deployment_its_own_letters(config: StreamConfig, tmp_path: Path) -> None:
    refuse(config, tmp_path, *some(3), deployment="another")
    refuse(config, tmp_path, *some(1))
    assert numbers(config) == [0]


def test_deleted_with_their_deployment(config: StreamConfig, tmp_path: Path) -> None:
    refuse(config, tmp_path, *some(3))
    drop_subscriptions(config)
    assert numbers(config) == [0, 1, 2]
    drop_subscriptions(config, letters=True)
    refuse(config, tmp_path, *some(1))  # whoever asks now has a new subscription
    with Connection.of(config, quiet=True) as connection:
        consumer = connection.consumer(
            config.dead_letter_topic, letters_subscription(config), position="latest", batch_max=10
        )
        assert consumer.receive(500) == []


def test_every_kind_of_poison_has_its_letter_and_its_neighbours_their_answers(
    either_broker: EitherBroker, tmp_path: Path
) -> None:
    def picky(x: Any) -> Any:
        if (x < 0).any():
            raise ArithmeticError("x is below zero")
        return x * 2

    config = either_broker.config(tmp_path, max_message_bytes=200, timestamp_column="at")
    poison: dict[Refusal, tuple[bytes, str]] = {
        "malformed": (b"{x: 1", "not JSON"),
        "too_large": (b'{"x": 1, "y": "%s"}' % (b"z" * 200), "more than the 200 allowed"),
        "bad_id": (b'{"x": 1, "client_request_id": []}', "got a JSON array"),
        "bad_time": (b'{"x": 1, "at": "soon"}', "'soon' is no time"),
        "missing_feature": (b'{"y": 1}', "feature 'x' (double) is missing"),
        "wrong_type": (b'{"x": "1"}', "must be double, got str '1'"),
        "model": (b'{"x": -1}', "x is below zero"),
    }
    bodies = [body for data, _ in poison.values() for body in (b'{"x": 3}', data)]
    with OutputReader(config) as answers, at_work(config, doubling_scorer(picky)) as stats:
        with Connection.of(
            config, quiet=True
        ) as connection:  # one batch of its producer, where there are such
            publisher = connection.publisher(config.input_topic)
            assert publisher.publish([Outgoing(body, key=str(i)) for i, body in enumerate(bodies)]) == {}
        assert [a["prediction"] for a in answers.collect(len(poison), 20)] == [6.0] * len(poison)
        eventually(lambda: stats.now.dead_letters_by == dict.fromkeys(poison, 1))
    with LetterBox(config) as box:
        letters = {letter.refusal: letter for letter in box.look(100)}
    assert len({letter.origin_id for letter in letters.values()}) == len(poison)
    for refusal, (data, reason) in poison.items():
        letter = letters[refusal]
        assert letter.data == data
        assert reason in letter.reason
        assert letter.message.key == str(bodies.index(data))
        assert stream_position(letter.origin_id) is not None
        assert letter.origin_id.startswith(f"persistent://public/default/{config.input_topic}:")


def test_a_command_that_is_killed_lets_go_of_its_letters(
    either_broker: EitherBroker, config: StreamConfig, tmp_path: Path
) -> None:
    refuse(config, tmp_path, *some(3))
    config.save(tmp_path / "config.json")
    code = (
        "import sys; from pathlib import Path\n"
        "from mlflow_flywheel.pipelines.config import StreamConfig, load_config\n"
        "from mlflow_flywheel.pipelines.stream.letters import LetterBox\n"
        "with LetterBox(load_config(StreamConfig, Path(sys.argv[1]))) as box:\n"
        "    print(len(list(box.look(3))), flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "3\n"
        killed.kill()
    # the embedded broker keeps what a ghost holds until it is restarted, which a worker that sees the mark asks for
    assert collect_unclean_endings(config.status_file) == (1 if either_broker.embedded else 0)
    if not either_broker.embedded:
        assert eventually(lambda: numbers(config)) == [0, 1, 2]

"""`flywheel dlq`, `replay`, `scale`, `status` and `adjust` on stream deployments of a real home."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException
from support.apache_pulsar import ApachePulsar
from support.models import ZooModel
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.generation_status import read_status
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.stream.client import EventPublisher, OutputReader
from mlflow_flywheel.pipelines.stream.letters import REPLAYED_FROM
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.home import Home

FIELDS = {"field.a": "reading.values.0", "field.b": "reading.b", "field.client_request_id": "meta.order"}


@dataclass
class World:
    home: Home
    client: BaseDeploymentClient
    model: ZooModel

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(flywheel, [*arguments, "--home", str(self.home.path)])

    def command(self, *arguments: str) -> Any:
        said = self.run(*arguments, "--json")
        assert said.exit_code == 0, said.output
        return json.loads(said.output)

    def complaint(self, *arguments: str) -> str:
        said = self.run(*arguments)
        assert said.exit_code == 1, said.output
        return str(said.output)

    def config(self, name: str) -> StreamConfig:
        return load_config(StreamConfig, self.home.config_file(name))

    def rows(self, name: str) -> list[dict[str, Any]]:
        table = InferenceTable.open(self.home.tables, self.model.ref.name)
        return table.read(deployment=name).to_pylist() if table.exists else []


@pytest.fixture(scope="module")
def world(
    zoo: Callable[[str], ZooModel], tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    home = Home(tmp_path_factory.mktemp("streams") / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    assert client is not None
    made = World(home, client, zoo("total"))
    try:
        client.create_deployment("flow", made.model.uri, config={"mode": "stream", **FIELDS})
        yield made
    finally:
        made.command("down")


def event(a: Any, order: str) -> dict[str, Any]:
    return {"reading": {"values": [a, 0], "b": 1}, "meta": {"order": order}, "a": -5, "c": 0, "d": 0}


def test_events_of_another_shape_are_answered_and_a_feature_that_is_none_is_refused(world: World) -> None:
    with OutputReader(world.config("flow")) as answers, EventPublisher(world.config("flow")) as events:
        for i in range(20):
            events.publish(event(i, f"o-{i}"))
        events.flush()
        found = answers.collect(20, 30)
    assert {a["client_request_id"]: a["prediction"] for a in found} == {f"o-{i}": i + 1.0 for i in range(20)}
    asked = world.client.predict("flow", inputs=[{"a": 1.0, "b": 2.0, "c": 0.0, "d": 0.0}])
    assert asked["predictions"] == [3.0]  # rows have features, not the shape of events
    for act in (world.client.create_deployment, world.client.update_deployment):
        with pytest.raises(
            MlflowException, match=r"field.e is no feature of the model.*name one of: a, b, c, d"
        ):
            config = {"mode": "stream", "field.e": "x"}
            act("flow" if act == world.client.update_deployment else "x", world.model.uri, config=config)
    eventually(lambda: len(world.rows("flow")) == 21, every=0.3)


def test_letters_are_listed_sent_back_and_thrown_away(world: World) -> None:
    config = world.config("flow")
    with EventPublisher(config) as events:
        events.publish(event("two", "bad-0"), key="k")
        events.publish({"meta": {"order": "bad-1"}})

    def listed(*options: str) -> list[dict[str, Any]]:
        return list(world.command("dlq", "list", "flow", *options)["letters"])

    letters = eventually(lambda: found if len(found := listed()) == 2 else None, 30, every=0.5)
    assert [(x["refusal"], x["key"]) for x in letters] == [("wrong_type", "k"), ("missing_feature", "")]
    assert "feature 'a' must be double, got str 'two'" in letters[0]["reason"]
    assert json.loads(letters[0]["payload"])["meta"] == {"order": "bad-0"}
    said = world.run("dlq", "list", "flow", "--limit", "1").output
    assert "wrong_type" in said and "flow-in" in said and "and more" in said
    assert world.command("dlq", "list", "flow", "--limit", "1")["more"]

    with OutputReader(config, config.input_topic) as inputs:
        assert world.command("dlq", "replay", "flow", "--refusal", "wrong_type") == {
            "deployment": "flow",
            "replayed": 1,
            "cut": 0,
        }
        (again,) = inputs.messages()
        assert again.properties[REPLAYED_FROM] == letters[0]["origin_message_id"]
        assert again.key == "k"
    # it is refused again, under an id of its own
    again_refused = eventually(lambda: listed("--refusal", "wrong_type"), 30, every=0.5)
    assert again_refused[0]["origin_message_id"] != letters[0]["origin_message_id"]

    assert world.run("dlq", "purge", "flow").exit_code == 1  # nobody answered the question
    assert len(listed()) == 2
    assert world.command("dlq", "purge", "flow", "--yes") == {"deployment": "flow", "purged": 2}
    assert "no dead letters of flow" in world.run("dlq", "list", "flow").output


def test_the_status_says_how_it_flows_and_the_daemon_serves_it_to_prometheus(world: World) -> None:
    def flowing() -> dict[str, Any]:
        status: dict[str, Any] = world.command("status")
        (view,) = status["deployments"]
        assert view["dead_letters"] == {"wrong_type": 2, "missing_feature": 1}, view
        assert (view["lag_seconds"], view["trouble"]) == (0.0, None)
        return status

    status = eventually(flowing, every=0.5)
    assert "flow: lag 0.0 s; " in world.run("status").output
    assert "dead letters: 1 missing_feature, 2 wrong_type" in world.run("status").output
    scraped = requests.get(status["metrics"], timeout=10).text
    assert 'flywheel_stream_rows_total{deployment="flow",model_name="zoo-total"} 21' in scraped


def test_a_span_is_replayed_once(world: World) -> None:
    before = sorted(row["prediction_id"] for row in world.rows("flow"))
    done = world.command("replay", "flow", "--from", "2020-01-01")
    assert {**done, "refused_by": 0} == {
        "deployment": "flow",
        "messages": 24,
        "answered": 0,
        "known": 21,
        "refused": 3,
        "refused_by": 0,
    }
    assert sorted(row["prediction_id"] for row in world.rows("flow")) == before
    assert "is empty; give an earlier start" in world.complaint("replay", "flow", "--from", "2040-01-01")
    assert "--to 'then' is no time" in world.complaint(
        "replay", "flow", "--from", "2020-01-01", "--to", "then"
    )


def test_the_embedded_broker_takes_one_worker_and_says_what_takes_more(world: World) -> None:
    said = world.complaint("scale", "flow", "2")
    assert "workers=2: the embedded broker takes one worker process per subscription" in said
    assert "broker=pulsar://" in said
    assert world.command("scale", "flow", "1") == {"deployment": "flow", "workers": 1}


@pytest.mark.apache
def test_scaling_under_load_loses_and_doubles_nothing(world: World, apache_pulsar: ApachePulsar) -> None:
    config = {"mode": "stream", "broker": apache_pulsar.url, "input_topic": "wide-events"}
    world.client.create_deployment("wide", world.model.uri, config=config)
    published, end = 0, Event()

    def publish() -> None:
        nonlocal published
        with EventPublisher(world.config("wide")) as events:
            while not end.wait(0.02):
                for _ in range(5):
                    events.publish({"a": published, "b": 0, "c": 0, "d": 0}, client_request_id=str(published))
                    published += 1

    load = Thread(target=publish)
    load.start()
    try:
        for workers in (2, 1):
            assert world.command("scale", "wide", str(workers))["workers"] == workers
            scraped = requests.get(world.command("status")["metrics"], timeout=10).text
            assert f'flywheel_stream_workers{{deployment="wide",model_name="zoo-total"}} {workers}' in scraped
    finally:
        end.set()
        load.join()
    expected = {str(i): 1 for i in range(published)}
    eventually(
        lambda: Counter(row["client_request_id"] for row in world.rows("wide")) == expected, 60, every=0.5
    )
    assert {float(row["client_request_id"]) - row["prediction"] for row in world.rows("wide")} == {0.0}
    world.client.delete_deployment("wide")


def test_labels_on_the_feedback_topic_adjust_the_next_answers_until_a_reset_and_over_a_killed_worker(
    world: World,
) -> None:
    assert "has no live adjustment" in world.complaint("adjust", "status", "flow")
    world.client.update_deployment("flow", config={"adjust": "bias"})
    config = world.config("flow")
    asked = 0

    def ask(n: int) -> list[dict[str, Any]]:
        nonlocal asked
        wanted = {f"adjusted-{i}" for i in range(asked, asked + n)}
        found: dict[str, dict[str, Any]] = {}
        with OutputReader(config) as answers, EventPublisher(config) as events:
            for i in range(asked, asked + n):
                events.publish(event(i, f"adjusted-{i}"))
            events.flush()
            asked += n

            def all_came() -> bool:
                """Read on; what a killed worker had answered but not acknowledged is answered again, under its id."""
                for answer in answers.receive():
                    if answer["client_request_id"] in wanted:
                        found.setdefault(answer["client_request_id"], answer)
                return len(found) == n

            eventually(all_came, 30, every=0)
            return list(found.values())

    def label(answers: list[dict[str, Any]]) -> None:
        """Say that each event was worth 9 more than its number, which is 8 more than the model thinks."""
        with EventPublisher(config, config.feedback_topic) as labels:
            for answer in answers:
                order = answer["client_request_id"]
                labels.publish({"client_request_id": order, "label": float(order.split("-")[1]) + 9})

    def status() -> dict[str, Any]:
        return dict(world.command("adjust", "flow", "status")["adjustment"] or {})

    plain: list[dict[str, Any]] = []
    for learnt in (60, 120):  # the first are learnt from, the second prove that it helps
        plain += ask(60)
        label(plain[-60:])
        eventually(lambda learnt=learnt: status()["labels"] == learnt)
    assert [answer["prediction"] for answer in plain] == [i + 1.0 for i in range(120)]
    assert all(answer["adjustment"].endswith(":off") for answer in plain)
    (adjusted,) = ask(1)
    known = status()
    shift = known["parameters"]["shift"]
    assert known["active"] and 5 < shift < 8 and known["evidence"] > 2
    assert adjusted["adjustment"] == known["id"] == f"bias:{known['id'].split(':')[1]}:120:{shift:+.5g}"
    assert adjusted["prediction"] == 121 + shift
    assert "predictions are adjusted" in world.run("adjust", "status", "flow").output

    (worker,) = serving(world)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: serving(world) not in ((), (worker,)), 60)
    (after,) = ask(1)
    assert (after["prediction"], after["adjustment"]) == (122 + shift, known["id"])

    assert world.command("adjust", "reset", "flow") == {"deployment": "flow", "reset": True}
    (reset,) = ask(1)
    assert reset["prediction"] == 123.0
    assert reset["adjustment"].endswith(":0:off") and reset["adjustment"] not in {
        a["adjustment"] for a in plain
    }

    def logged() -> dict[str, tuple[float, str]]:
        rows = {
            row["client_request_id"]: (row["prediction"], row["adjustment"]) for row in world.rows("flow")
        }
        return {
            answer["client_request_id"]: rows[answer["client_request_id"]]
            for answer in (adjusted, after, reset)
        }

    assert eventually(logged, every=0.3) == {
        answer["client_request_id"]: (answer["prediction"], answer["adjustment"])
        for answer in (adjusted, after, reset)
    }


def serving(world: World) -> tuple[int, ...]:
    status = read_status(world.home.status_file("flow"))
    return status.serving.pids if status is not None and status.serving is not None else ()

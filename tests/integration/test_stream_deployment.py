"""Stream mode end to end: a real broker, real masters and workers, real models, the real inference table."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.models import ZooModel, log_model
from support.streams import BrokerProcess, StreamDeployment
from support.waiting import eventually

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.registry import download_model, resolve_model
from mlflow_flywheel.pipelines.stream.client import (
    EventPublisher,
    OutputReader,
    drop_subscriptions,
    publish_and_wait,
)
from mlflow_flywheel.pipelines.stream.dead_letters import REASON

UTC = timezone.utc
START = datetime(2013, 2, 1, tzinfo=UTC)


class Stage:
    """One broker and two deployments on one input topic: a classifier, and a model that refuses rows."""

    def __init__(self, folder: Path, classifier: ZooModel, picky: ModelRef) -> None:
        self.folder = folder
        self.classifier = classifier
        self.broker = BrokerProcess(folder / "broker")
        url = self.broker.url
        self.first = StreamDeployment(folder, url, "first", classifier.ref, input_topic="events").start()
        self.second = StreamDeployment(folder, url, "second", picky, input_topic="events").start()
        self.first.wait_serving()
        self.second.wait_serving()

    def table(self, deployment: StreamDeployment) -> InferenceTable:
        Committer(self.folder / "spool", str(self.folder / "tables")).commit_once()
        return InferenceTable.open(str(self.folder / "tables"), deployment.config.model.name)

    def expected(self, rows: pd.DataFrame, versions: set[str]) -> list[Any]:
        """Return what MLflow itself predicts with the one version that answered."""
        (version,) = versions
        model = mlflow.pyfunc.load_model(f"models:/{self.classifier.ref.name}/{version}")
        return list(model.predict(rows).tolist())

    def rows(self, deployment: StreamDeployment, ids: list[str]) -> pa.Table:
        """Return the table's rows of these client_request_ids, once all are there."""

        def check() -> pa.Table:
            table = self.table(deployment).read(deployment=deployment.config.deployment)
            kept = table.filter(pa.compute.is_in(table["client_request_id"], pa.array(ids)))
            assert kept.num_rows >= len(ids), kept.num_rows
            return kept

        return eventually(check, 30, every=0.3)

    def close(self) -> None:
        assert self.first.stop() == 0
        assert self.second.stop() == 0
        self.broker.stop()


@pytest.fixture(scope="module")
def stage(
    zoo: Callable[[str], ZooModel], tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stream")
    stage = Stage(folder, zoo("classifier"), log_picky(tracking_uri, folder / "models"))
    yield stage
    stage.close()


def log_picky(tracking_uri: str, cache: Path) -> ModelRef:
    """Log a model that raises on rows where `a` is beyond 1000, and answers a + b."""
    from mlflow.models import infer_signature

    class Picky(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            if (model_input["a"].abs() > 1000).any():
                raise ArithmeticError("a is out of this world")
            return model_input["a"] + model_input["b"]

    frame = pd.DataFrame(np.eye(4), columns=["a", "b", "c", "d"])
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            python_model=Picky(),
            name="model",
            signature=infer_signature(frame, frame["a"]),
            input_example=frame,
            pip_requirements=["mlflow"],  # to infer them takes seconds
            registered_model_name="picky",
        )
    uri = f"models:/picky/{info.registered_model_version}"
    return download_model(resolve_model(uri, tracking_uri), cache, tracking_uri)


def publish(deployment: StreamDeployment, rows: pd.DataFrame, prefix: str) -> list[str]:
    """Publish rows as events an hour apart, keyed; return their client_request_ids."""
    ids = [f"{prefix}-{i}" for i in range(len(rows))]
    with EventPublisher(deployment.config) as publisher:
        for i, record in enumerate(rows.to_dict("records")):
            publisher.publish(
                record,
                key=f"k{i % 3}",
                event_time=START + timedelta(hours=i),
                client_request_id=ids[i],
                properties={"origin": prefix},
            )
    return ids


def test_every_event_is_answered_and_in_the_table_as_the_model_itself_predicts(stage: Stage) -> None:
    rows = stage.classifier.rows
    with OutputReader(stage.first.config) as reader:
        ids = publish(stage.first, rows, "plain")
        messages: list[Any] = []
        eventually(lambda: messages.extend(reader.messages()) or len(messages) >= len(ids), 30)
    answers = {answer["client_request_id"]: answer for answer in map(loads, messages)}
    assert len(messages) == len(ids) == len(answers)

    expected = stage.expected(rows, {answer["model_version"] for answer in answers.values()})
    assert [answers[name]["prediction"] for name in ids] == expected
    for message in messages:
        answer = loads(message)
        number = int(answer["client_request_id"].split("-")[1])
        assert message.key == f"k{number % 3}"
        assert message.properties == {"origin": "plain", "prediction_id": answer["prediction_id"]}
        assert datetime.fromisoformat(answer["event_time"].replace("Z", "+00:00")) == START + timedelta(
            hours=number
        )

    table = stage.rows(stage.first, ids).to_pandas().set_index("client_request_id").loc[ids]
    assert len(table) == len(ids)
    assert table["prediction"].tolist() == expected
    assert table["prediction_id"].tolist() == [answers[name]["prediction_id"] for name in ids]
    assert np.allclose(
        np.stack(table["prediction_proba"]), [answers[name]["prediction_proba"] for name in ids]
    )
    assert np.array_equal(table[[f"feature.{name}" for name in rows.columns]].to_numpy(), rows.to_numpy())
    assert table["event_time"].iloc[5].to_pydatetime() == START + timedelta(hours=5)
    assert set(table["mode"]) == {"stream"}


def test_each_deployment_on_the_topic_sees_every_event(stage: Stage) -> None:
    ids = publish(stage.first, stage.classifier.rows.head(40), "both")
    for deployment in (stage.first, stage.second):
        assert sorted(stage.rows(deployment, ids)["client_request_id"].to_pylist()) == sorted(ids)


def test_poison_goes_to_each_deployments_own_dead_letters_and_its_neighbours_are_answered(
    stage: Stage,
) -> None:
    good = stage.classifier.rows.head(6).to_dict("records")
    bodies: list[Any] = [
        good[0],
        {"a": 1.0},
        good[1],
        {**good[2], "a": "x"},
        good[2],
        {**good[3], "a": 5000.0},
        good[4],
    ]
    letters: dict[str, dict[str, Any]] = {"first": {}, "second": {}}
    readers = {d: OutputReader(d.config, d.config.dead_letter_topic) for d in (stage.first, stage.second)}
    with readers[stage.first], readers[stage.second], EventPublisher(stage.first.config) as publisher:
        for i, body in enumerate(bodies):
            publisher.publish(body, client_request_id=f"poison-{i}", key=f"k{i}")
        publisher.flush()

        def all_there() -> bool:
            for deployment, reader in readers.items():
                for message in reader.messages():
                    letters[deployment.config.deployment][message.key] = message
            return [len(found) for found in letters.values()] == [2, 3]

        eventually(all_there, 30)
    reasons = {
        name: {key: m.properties[REASON] for key, m in found.items()} for name, found in letters.items()
    }
    assert sorted(reasons["first"]) == ["k1", "k3"]
    assert sorted(reasons["second"]) == ["k1", "k3", "k5"]
    assert "feature 'b' (double) is missing" in reasons["first"]["k1"]
    assert "feature 'a' must be double" in reasons["second"]["k3"]
    assert "a is out of this world" in reasons["second"]["k5"]
    assert loads(letters["second"]["k5"])["a"] == 5000.0
    answered = stage.rows(stage.second, [f"poison-{i}" for i in (0, 2, 4, 6)])
    assert answered.num_rows == 4
    assert stage.rows(stage.first, ["poison-5"]).num_rows == 1
    eventually(lambda: stage.second.stats().dead_letters >= 3)


def test_labels_on_the_feedback_topic_join_their_predictions_and_bad_ones_say_why(stage: Stage) -> None:
    ids = publish(stage.first, stage.classifier.rows.head(3), "label")
    rows = stage.rows(stage.first, ids).sort_by("client_request_id").to_pylist()
    later = START + timedelta(days=9)
    config = stage.first.config
    with OutputReader(config, config.dead_letter_topic) as letters:
        with EventPublisher(config, config.feedback_topic) as labels:
            labels.publish(
                {"prediction_id": rows[0]["prediction_id"], "label": 1, "label_time": later.isoformat()}
            )
            labels.publish({"client_request_id": "label-1", "label": False}, event_time=later)
            labels.publish({"client_request_id": "label-2"})
            labels.publish({"client_request_id": "label-2", "label": "no number"})
        found: list[Any] = []
        eventually(lambda: found.extend(letters.messages()) or len(found) == 2)
    assert "label is missing" in found[0].properties[REASON]
    assert "label must be a number" in found[1].properties[REASON]

    def labelled() -> list[Any]:
        table = stage.table(stage.first).read(labelled=True).sort_by("client_request_id")
        assert table["client_request_id"].to_pylist() == ["label-0", "label-1"]
        return table.to_pylist()

    known = eventually(labelled, every=0.3)
    assert [row["label"] for row in known] == [1.0, 0.0]
    assert [row["label_time"].astimezone(UTC) for row in known] == [later, later]


def test_publish_and_wait_answers_in_order_and_says_which_rows_were_refused(stage: Stage) -> None:
    rows = stage.classifier.rows.head(50)
    answers = publish_and_wait(stage.first.config, rows.to_dict("records"), timeout=30)
    expected = stage.expected(rows, {answer["model_version"] for answer in answers})
    assert [answer["prediction"] for answer in answers] == expected
    good = rows.iloc[0].to_dict()
    with pytest.raises(BadInput, match=r"1 of 2 rows were refused: row 1: feature 'a' must be double"):
        publish_and_wait(stage.first.config, [good, {**good, "a": "x"}], timeout=30)
    with pytest.raises(BadInput, match="row 0 cannot be written as JSON"):
        publish_and_wait(stage.first.config, [{"a": object()}])
    assert publish_and_wait(stage.first.config, [], timeout=1) == []


def test_publish_and_wait_gives_up_in_time_when_nobody_answers(stage: Stage) -> None:
    nobody = stage.first.config.model_copy(update={"input_topic": "nobody-reads-this"})
    with pytest.raises(Unavailable, match=r"'first' answered 0 of 1 rows within 0.5 s"):
        publish_and_wait(nobody, [{"a": 1}], timeout=0.5)


def test_a_new_version_takes_over_under_load_and_no_event_is_lost_or_doubled(
    stage: Stage, tracking_uri: str
) -> None:
    newer = log_model("classifier", tracking_uri, stage.folder / "models", seed=1)
    old, new = stage.first.config.model.version, newer.ref.version
    config = stage.first.config
    ids: list[str] = []
    with OutputReader(config) as reader, EventPublisher(config) as publisher:
        stage.first.update(model=newer.ref)
        seen: list[Any] = []

        def taken_over() -> bool:
            for _ in range(20):
                ids.append(f"roll-{len(ids)}")
                publisher.publish(
                    stage.classifier.rows.iloc[len(ids) % 300].to_dict(), client_request_id=ids[-1]
                )
            seen.extend(reader.receive())
            return bool(seen) and seen[-1]["model_version"] == new

        eventually(taken_over, 120, every=0.02)
        publisher.flush()
        eventually(lambda: seen.extend(reader.receive()) or len(seen) >= len(ids), 30)
    stage.first.wait_serving(new)
    assert sorted(answer["client_request_id"] for answer in seen) == sorted(ids)
    assert {answer["model_version"] for answer in seen} == {old, new}
    table = stage.rows(stage.first, ids)
    assert table.num_rows == len(ids)
    assert len(set(table["prediction_id"].to_pylist())) == len(ids)


def test_what_the_embedded_broker_cannot_do_is_refused_and_the_old_generation_goes_on(stage: Stage) -> None:
    before = stage.first.wait_serving()
    workers = stage.first.config.workers
    stage.first.update(workers=3)
    failed = eventually(lambda: (status := stage.first.status()) and status.failed)
    assert "workers=3: the embedded broker takes one worker process per subscription" in failed.error
    assert stage.first.wait_serving() == before
    stage.first.update(workers=workers)
    eventually(lambda: (status := stage.first.status()) and not status.failed)


def test_a_newcomer_reads_from_the_start_and_leaves_nothing_when_it_goes(stage: Stage) -> None:
    events = stage.first.stats().messages
    late = StreamDeployment(
        stage.folder,
        stage.broker.url,
        "late",
        stage.classifier.ref,
        input_topic="events",
        feedback_topic=None,
    ).start()
    try:
        late.wait_serving()
        eventually(lambda: late.stats().messages >= events, 30)
    finally:
        assert late.stop() == 0
    status = late.status()
    assert status is not None
    assert status.serving is None
    assert not list(stage.folder.glob("late.status.subscribed-*"))
    drop_subscriptions(late.config)
    assert publish_and_wait(stage.first.config, stage.classifier.rows.head(2).to_dict("records"), timeout=30)


def test_a_version_that_cannot_load_leaves_the_old_one_at_work(stage: Stage, tmp_path: Path) -> None:
    config = stage.second.config
    folder = tmp_path / "model"
    shutil.copytree(config.model.path, folder)
    (folder / "python_model.pkl").write_bytes(b"not a pickle")
    before = stage.second.wait_serving()
    stage.second.update(model=config.model.model_copy(update={"path": str(folder), "version": "broken"}))
    failed = eventually(lambda: (status := stage.second.status()) and status.failed, 60)
    assert failed.version == "broken"
    assert "cannot be loaded" in failed.error
    assert stage.second.wait_serving() == before
    stage.second.update(model=config.model)
    assert (
        publish_and_wait(stage.second.config, [{"a": 1, "b": 2, "c": 3, "d": 4}], timeout=30)[0]["prediction"]
        == 3
    )


def loads(message: Any) -> Any:
    import orjson

    return orjson.loads(message.data)

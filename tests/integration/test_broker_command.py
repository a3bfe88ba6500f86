"""`flywheel broker`: which broker a home keeps, which one a deployment uses, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from support.models import ZooModel
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.plugin.brokers import kind_for
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.modes.stream import StreamOperations
from mlflow_flywheel.plugin.spec import StreamSpec


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    context = Context.open(Home(tmp_path / "home"))
    yield context
    context.runner.down()


def flywheel(context: Context, *arguments: str, code: int = 0) -> str:
    said = CliRunner().invoke(main, [*arguments, "--home", str(context.home.path)])
    assert said.exit_code == code, said.output
    return said.output


def answer(context: Context, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(flywheel(context, *arguments, "--json")))


def record(context: Context, name: str, **settings: Any) -> None:
    """Record a stream deployment as if it had been made."""
    context.records.add_deployment(
        name,
        model_uri="models:/m/1",
        model_name="m",
        mode="stream",
        config={"mode": "stream"},
        flavor="sklearn",
        version="1",
        status="ready",
    )
    StreamConfig(
        deployment=name,
        model=ModelRef(name="m", version="1", path=""),
        spool="",
        status_file="",
        input_topic=f"{name}-in",
        output_topic=f"{name}-out",
        dead_letter_topic=f"{name}-dlq",
        subscription=name,
        **settings,
    ).save(context.home.config_file(name))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"workers": 2},
            r"workers=2: the embedded broker takes one worker process.*broker=pulsar://.*--apache",
        ),
        (
            {"ordering": "key"},
            r"ordering=key: the embedded broker has no Key_Shared.*broker=pulsar://.*--apache",
        ),
    ],
)
def test_what_the_embedded_broker_cannot_do_is_refused_with_the_way_out(
    context: Context, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        StreamOperations().check(context, "new", StreamSpec(**keys))


def test_a_broker_that_is_used_is_not_stopped(context: Context) -> None:
    url = answer(context, "broker", "start")["url"]
    record(context, "old", broker=url, embedded=True)
    assert "serves the stream deployments old; delete them first" in flywheel(
        context, "broker", "stop", code=1
    )
    (view,) = answer(context, "broker", "status")["brokers"]
    assert (view["kind"], view["url"], view["healthy"], view["deployments"]) == (
        "embedded",
        url,
        True,
        ["old"],
    )
    context.records.delete_deployment("old")
    assert answer(context, "broker", "stop") == {"stopped": "embedded", "new_deployments_use": "embedded"}
    assert "does not keep the embedded broker" in flywheel(context, "broker", "stop", code=1)
    assert answer(context, "broker", "start")["url"] == url
    assert "Apache Pulsar; give --apache" in flywheel(context, "broker", "start", "--memory", "512", code=1)


def test_without_java_or_its_jars_apache_pulsar_leaves_nothing_behind(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAVA_HOME", "FLYWHEEL_PULSAR_HOME"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/nowhere")
            said = flywheel(context, "broker", "start", "--apache", code=1)
        assert "the embedded broker (leave out" in said and "-C broker=pulsar://host:6650" in said
        assert not context.home.apache_broker.exists()
    assert answer(context, "broker", "status") == {"brokers": [], "new_deployments_use": "embedded"}


@pytest.mark.apache
def test_a_home_keeps_an_apache_pulsar_that_new_deployments_use(
    apache_here: None, context: Context, zoo: Callable[[str], ZooModel], tracking_uri: str
) -> None:
    import mlflow

    record(context, "old", broker="pulsar://127.0.0.1:1", embedded=True)
    said = flywheel(context, "broker", "start", "--apache", "--memory", "384")
    assert "new stream deployments without broker= use Apache Pulsar" in said
    assert "old: on the embedded broker as before" in said
    assert kind_for(context, "old", StreamSpec()) == "embedded"
    assert kind_for(context, "new", StreamSpec()) == "apache"
    StreamOperations().check(context, "new", StreamSpec(workers=2, ordering="key"))
    context.records.delete_deployment("old")

    (view,) = answer(context, "broker", "status")["brokers"]
    assert (view["kind"], view["healthy"], view["memory_mb"]) == ("apache", True, 384)
    process = psutil.Process(view["pid"])
    listening = {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"::ffff:127.0.0.1"} or listening == {"127.0.0.1"}
    assert "-Xmx384m" in process.cmdline()

    mlflow.set_tracking_uri(tracking_uri)
    client = get_deploy_client(f"flywheel:{context.home.path}")
    model = zoo("total")
    client.create_deployment("new", model.uri, config={"mode": "stream", "ordering": "key"})
    config = load_config(StreamConfig, context.home.config_file("new"))
    assert (config.broker, config.embedded) == (view["url"], False)
    assert psutil.pid_exists(view["pid"]), "a home that is bound to MLflow needs no other broker"
    assert not context.home.broker.exists(), "nobody asked for the embedded broker"
    before = client.predict("new", model.rows.head(2))
    assert before["predictions"] == pytest.approx(model.labels[:2])
    assert "deployments new; delete them" in flywheel(context, "broker", "stop", "--apache", code=1)

    os.kill(view["pid"], signal.SIGKILL)
    eventually(lambda: healthy_again(context, view["pid"]), 60, every=0.3, what="Apache Pulsar again")
    after = client.predict("new", model.rows.head(2))
    assert after["predictions"] == before["predictions"]
    stores = {id_.rsplit(":", 3)[0] for id_ in before["prediction_ids"] + after["prediction_ids"]}
    assert len(stores) == 1 and "@" in stores.pop(), "the store names itself, and is the same after a crash"
    client.delete_deployment("new")
    assert answer(context, "broker", "stop", "--apache")["new_deployments_use"] == "embedded"


def healthy_again(context: Context, killed: int) -> bool:
    (view,) = answer(context, "broker", "status", "--apache")["brokers"]
    return bool(view["healthy"] and view["pid"] not in (None, killed))

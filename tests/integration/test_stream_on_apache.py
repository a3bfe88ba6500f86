"""Stream deployments on a real Apache Pulsar: several workers, order by key, batches with poison, tokens and TLS."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from support.apache_pulsar import ApachePulsar
from support.models import ZooModel
from support.stream_load import Load, body, check_everything_is_there_once, goes_on, read_until
from support.streams import StreamDeployment
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.stream.access import Access
from mlflow_flywheel.pipelines.stream.client import EventPublisher
from mlflow_flywheel.pipelines.stream.dead_letters import REASON
from mlflow_flywheel.pipelines.stream.pulsar import Connection
from mlflow_flywheel.pipelines.stream.stats import StreamStats, stats_file
from mlflow_flywheel.pipelines.stream.wire import Outgoing
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home

pytestmark = pytest.mark.apache
WORKERS = 3
VARIABLE = "FLYWHEEL_TEST_BROKER_TOKEN"


def start(
    folder: Path, broker: ApachePulsar, name: str, model: ZooModel, **settings: object
) -> StreamDeployment:
    deployment = StreamDeployment(folder, broker.url, name, model.ref, embedded=False, **settings).start()
    workers = deployment.config.workers
    eventually(lambda: len(pids(deployment)) == workers, 120, what=f"{workers} workers of {name}")
    return deployment


def pids(deployment: StreamDeployment) -> tuple[int, ...]:
    status = deployment.status()
    return status.serving.pids if status is not None and status.serving is not None else ()


def handled(deployment: StreamDeployment) -> list[int]:
    """Return how many messages each worker has handled."""
    files = [stats_file(deployment.config.status_file, worker) for worker in range(WORKERS)]
    return [StreamStats.model_validate_json(file.read_bytes()).messages for file in files]


def test_nothing_is_lost_or_doubled_over_three_workers_when_one_and_then_the_broker_is_killed(
    apache_pulsar: ApachePulsar, tmp_path: Path, zoo: Callable[[str], ZooModel]
) -> None:
    deployment = start(tmp_path, apache_pulsar, "shared", zoo("total"), workers=WORKERS)
    load = Load(deployment).start()
    eventually(lambda: all(count > 100 for count in handled(deployment)), 60, what="work for each worker")
    first, *_ = before = pids(deployment)
    os.kill(first, signal.SIGKILL)
    goes_on(deployment, deployment.stats().messages + 500)
    eventually(lambda: len(pids(deployment)) == WORKERS and first not in pids(deployment), 60)
    after = pids(deployment)
    assert len(set(before) & set(after)) == WORKERS - 1

    apache_pulsar.kill()
    apache_pulsar.start()
    goes_on(deployment, deployment.stats().messages + 500)
    check_everything_is_there_once(deployment, tmp_path, load.end())
    assert pids(deployment) == after, "a broker that is away is no reason for a worker to end"
    assert deployment.stop() == 0


def test_the_messages_of_a_key_stay_in_order_over_partitions_and_workers(
    apache_pulsar: ApachePulsar, tmp_path: Path, zoo: Callable[[str], ZooModel]
) -> None:
    apache_pulsar.admin("PUT", "persistent/public/default/keyed-in/partitions", 2)
    deployment = start(tmp_path, apache_pulsar, "keyed", zoo("total"), workers=WORKERS, ordering="key")
    keys, rounds = 40, 60
    with EventPublisher(deployment.config) as publisher:
        for number in range(rounds):
            for key in range(keys):
                event = {"a": number, "b": 0, "c": 0, "d": 0}
                publisher.publish(event, key=f"key-{key}", client_request_id=f"{key}/{number}")
            publisher.flush()
            if number == rounds // 2:
                os.kill(pids(deployment)[0], signal.SIGKILL)
    wanted = {f"{key}/{number}" for key in range(keys) for number in range(rounds)}
    answers = read_until(
        deployment,
        deployment.config.output_topic,
        lambda found: wanted <= {body(message)["client_request_id"] for message in found},
    )
    seen: dict[str, list[int]] = defaultdict(list)
    for message in answers:
        key, _, number = body(message)["client_request_id"].partition("/")
        assert message.key == f"key-{key}"
        if int(number) not in seen[key]:  # what the killed worker had not acknowledged is answered again
            seen[key].append(int(number))
    assert all(numbers == list(range(rounds)) for numbers in seen.values()), seen
    assert sorted(handled(deployment))[1] > 0, "the two that lived share the keys"
    assert "batch by key" not in deployment.log.read_text()

    with Connection(apache_pulsar.url, embedded=False, quiet=True) as connection:
        careless = connection.publisher(deployment.config.input_topic)
        assert careless.publish([Outgoing(b"{}", key=f"key-{number % 10}") for number in range(100)]) == {}
    eventually(lambda: "it must batch by key" in deployment.log.read_text(), what="the warning")
    assert deployment.stop() == 0


def test_one_poison_message_in_a_producers_batch_leaves_alone_and_once(
    apache_pulsar: ApachePulsar, tmp_path: Path, zoo: Callable[[str], ZooModel]
) -> None:
    deployment = start(tmp_path, apache_pulsar, "batched", zoo("total"))
    good = [
        json.dumps({"a": n, "b": 0, "c": 0, "d": 0, "client_request_id": str(n)}).encode() for n in range(30)
    ]
    messages = [*good[:15], b"poison", *good[15:]]
    with Connection(apache_pulsar.url, embedded=False, quiet=True) as connection:
        sent = connection.publisher(deployment.config.input_topic).publish(
            [Outgoing(data) for data in messages]
        )
    assert sent == {}
    answers = read_until(deployment, deployment.config.output_topic, lambda found: len(found) >= 30)
    letters = read_until(deployment, deployment.config.dead_letter_topic, lambda found: len(found) >= 1)
    assert Counter(body(message)["client_request_id"] for message in answers) == Counter(map(str, range(30)))
    assert [letter.data for letter in letters] == [b"poison"]
    assert "JSON" in letters[0].properties[REASON]
    published = read_until(deployment, deployment.config.input_topic, lambda found: len(found) >= 31)
    (poison,) = [message.position for message in published if message.data == b"poison"]
    neighbours = [
        m for m in published if (m.position.ledger, m.position.entry) == (poison.ledger, poison.entry)
    ]
    assert len(neighbours) > 1, "the poison was stored alone, so this has shown nothing"
    assert deployment.stop() == 0


@pytest.fixture(scope="module")
def secured(apache_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApachePulsar]:
    broker = ApachePulsar(tmp_path_factory.mktemp("secured"), secured=True)
    yield broker
    broker.stop()


def ask(url: str, **access: object) -> None:
    """Do what a deployment is checked by when it is created."""
    with Connection(
        url,
        embedded=False,
        quiet=True,
        timeout_seconds=2,
        access=Access(**access),  # type: ignore[arg-type]
    ) as connection:
        connection.check("topic")


def test_a_client_is_let_in_by_token_and_lets_itself_in_by_certificate(
    secured: ApachePulsar, tmp_path: Path
) -> None:
    token, nobody = secured.token(), secured.token("nobody")
    wrong = token[:-8] + "AAAAAAAA"
    ask(secured.tls_url, token=lambda: token, ca_file=secured.ca_file)
    said: list[str] = []
    refused = {
        "no token": (
            {"ca_file": secured.ca_file},
            Unavailable,
            r"the token \(broker_token_env, broker_token_file\)",
        ),
        "wrong token": (
            {"token": lambda: wrong, "ca_file": secured.ca_file},
            Unavailable,
            r"the token \(broker_",
        ),
        "no rights": (
            {"token": lambda: nobody, "ca_file": secured.ca_file},
            BadInput,
            "token and permissions",
        ),
        "no authority": ({"token": lambda: token}, Unavailable, "that broker_ca_file= is the authority"),
    }
    for access, kind, words in refused.values():
        with pytest.raises(kind, match=words) as caught:
            ask(secured.tls_url, **access)
        said.append(str(caught.value))
    assert not any(secret in text for text in said for secret in (token, wrong, nobody))


def test_the_host_name_in_the_certificate_must_be_the_brokers(secured: ApachePulsar) -> None:
    other_name = secured.tls_url.replace(
        "localhost", "127.1"
    )  # the same address, written as no certificate does
    with pytest.raises(Unavailable, match="the certificate is for this host name"):
        ask(other_name, token=secured.token, ca_file=secured.ca_file)


def test_an_authority_that_is_none_is_named(secured: ApachePulsar, tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_text(content)
        with pytest.raises(BadInput, match=r"broker_ca_file='.*ca.pem' cannot be used"):
            ask(secured.tls_url, ca_file=str(file))


def test_a_deployment_on_a_secured_broker_keeps_its_token_in_a_private_file_only(
    secured: ApachePulsar,
    zoo: Callable[[str], ZooModel],
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    model = zoo("total")
    mlflow.set_tracking_uri(tracking_uri)
    home = Home(tmp_path / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    config = {"mode": "stream", "broker": secured.tls_url, "broker_ca_file": secured.ca_file}
    config |= {"broker_token_env": VARIABLE, "ordering": "key"}
    try:
        monkeypatch.delenv(VARIABLE, raising=False)
        with pytest.raises(MlflowException, match=f"{VARIABLE} .broker_token_env. is not set; export it"):
            client.create_deployment("safe", model.uri, config=config)
        monkeypatch.setenv(VARIABLE, secured.token() + "x")
        with pytest.raises(MlflowException, match="check .*the token"):
            client.create_deployment("safe", model.uri, config=config)
        assert client.list_deployments() == []

        token = secured.token("scorer")
        monkeypatch.setenv(VARIABLE, token)
        with pytest.raises(MlflowException, match="check its token and permissions"):
            client.create_deployment("safe", model.uri, config=config)
        secured.admin("POST", "namespaces/public/default/permissions/scorer", ["produce", "consume"])
        client.create_deployment("safe", model.uri, config=config)
        answer = client.predict("safe", model.rows.head(2))
        assert answer["predictions"] == pytest.approx(model.labels[:2])
        monkeypatch.delenv(VARIABLE)
        client.update_deployment("safe", config={"batch_max": "500"})
        assert len(client.predict("safe", model.rows.head(1))["predictions"]) == 1

        secret = token.encode()
        holders = [file for file in home.path.rglob("*") if file.is_file() and secret in file.read_bytes()]
        assert [file.parent for file in holders] == [home.secrets("safe")]
        assert holders[0].stat().st_mode & 0o077 == 0
        client.delete_deployment("safe")
        assert not home.secrets("safe").exists()
    finally:
        Context.open(home).runner.down()

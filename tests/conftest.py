"""Fixtures that every room's tests share: a real MLflow store and the zoo of models in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from support.apache_pulsar import ApachePulsar
from support.mlflow_store import empty_store
from support.models import ZooModel, log_model

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.stream.apache_files import find_jars, find_java
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

# Files that use the session's Apache Pulsar, which takes eight seconds of the processor to start.
_ON_APACHE = {
    "tests/contract/test_broker_contract.py",
    "tests/contract/test_stream_letters.py",
    "tests/contract/test_stream_spans.py",
    "tests/contract/test_stream_trouble.py",
    "tests/integration/test_stream_commands.py",
    "tests/integration/test_stream_on_apache.py",
    "tests/integration/test_stream_schemas.py",
}

# a busy machine is no reason to fail: examples have no deadline, and are the same in every run
settings.register_profile(
    "steady", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Give all files that use the session's Apache Pulsar to one process, so that it is started once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "apache" if file in _ON_APACHE else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of an empty MLflow store (SQLite) of this test session."""
    return empty_store(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def unbound_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Return a new home that nothing tells of an MLflow; what was started in it ends."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path / "home")
    yield home
    SupervisorRunner(home).down()


@pytest.fixture(scope="session")
def zoo(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ZooModel]:
    """Return a function that logs and registers a model of a kind, once per session."""
    cache: dict[str, ZooModel] = {}
    folder = tmp_path_factory.mktemp("models")

    def get(kind: str) -> ZooModel:
        if kind not in cache:
            cache[kind] = log_model(kind, tracking_uri, folder)
        return cache[kind]

    return get


@pytest.fixture(scope="session")
def apache_here() -> Iterator[None]:
    """Skip where no Apache Pulsar can run, and fail there in CI; the tests that need it are marked `apache`."""
    with pytest.MonkeyPatch.context() as patch:
        # half the processor time until it is ready; what a broker does in minutes would need the better compiler
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        _check_apache()
        yield


def _check_apache() -> None:
    try:
        find_java()
        find_jars()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must test with Apache Pulsar: {error.message}")
        pytest.skip(f"there is no Apache Pulsar to test with: {error.message}")


@pytest.fixture(scope="session")
def apache_pulsar(apache_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApachePulsar]:
    """Return the session's Apache Pulsar, without security; a test that kills it starts it again."""
    broker = ApachePulsar(tmp_path_factory.mktemp("apache"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module", autouse=True)
def _mlflow_as_before() -> Iterator[None]:
    """Undo what a module told MLflow: `set_tracking_uri` also changes the environment of every later process."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    yield
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])  # type: ignore[arg-type]
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"])  # type: ignore[arg-type]
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a folder of its own: MLflow writes ./mlruns where nobody told it otherwise."""
    monkeypatch.chdir(tmp_path)
    yield

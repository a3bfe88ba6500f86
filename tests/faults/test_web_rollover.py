"""A web deployment changes its version, and tries another one, while 32 callers ask over connections kept alive.

Nobody may notice: no request fails, and every answer is that of exactly one version, which the answers tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlflow
import psutil
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException
from support.models import log_model, numeric_frame
from support.waiting import eventually
from support.web import Callers

from mlflow_flywheel.pipelines.generation_status import read_status
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.web.challenger import is_chosen
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.processes import marked_processes

NAME, DEPLOYMENT = "rolls", "rolls-web"
FOLLOWED = f"models:/{NAME}@champion"
ROW = {"a": 1.0, "b": 2.0, "c": 0.0, "d": 0.0}
BODY = {"dataframe_records": [ROW] * 3}
SAYS = {"1": [3.0] * 3, "2": [103.0] * 3}  # what each version answers to it


@dataclass
class World:
    """A home with one deployment of two working versions and of two that do not work."""

    home: Home
    client: BaseDeploymentClient
    broken: str
    sulking: str

    def get(self) -> dict[str, Any]:
        return dict(self.client.get_deployment(DEPLOYMENT))

    def update(self, uri: str | None = None, **config: Any) -> dict[str, Any]:
        return dict(self.client.update_deployment(DEPLOYMENT, uri, config=config or None))

    def pids(self) -> tuple[int, ...]:
        status = read_status(self.home.status_file(DEPLOYMENT))
        assert status is not None and status.serving is not None
        return status.serving.pids

    def point(self, alias: str, version: str) -> None:
        MlflowClient().set_registered_model_alias(NAME, alias, version)

    def table(self) -> InferenceTable:
        return InferenceTable.open(self.home.tables, NAME)


@pytest.fixture(scope="module")
def world(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rolls")
    for seed in (0, 100):
        log_model("total", tracking_uri, folder / "cache", name=NAME, seed=seed)
    odd = [log_odd(model) for model in (broken(), sulking())]
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    home = Home(folder / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    assert client is not None
    try:
        client.create_deployment(DEPLOYMENT, FOLLOWED, config={"mode": "web"})
        yield World(home, client, *odd)
    finally:
        CliRunner().invoke(flywheel, ["down", "--home", str(home.path)])
    assert marked_processes(home.path) == []


def broken() -> Any:
    class Broken(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            raise RuntimeError("the weights are missing")

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["a"]

    return Broken()


def sulking() -> Any:
    class Sulking(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            raise RuntimeError("not this example")

    return Sulking()


def log_odd(model: Any) -> str:
    """Register a version that has a signature and an example like the others, and is no good."""
    rows = numeric_frame(3)
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            python_model=model,
            name="model",
            signature=mlflow.models.infer_signature(rows, rows["a"]),
            input_example=rows,
            pip_requirements=["mlflow"],
            registered_model_name=NAME,
        )
    return str(info.registered_model_version)


@pytest.fixture(autouse=True)
def _the_store(world: World, tracking_uri: str) -> None:
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)


@pytest.fixture
def callers(world: World) -> Iterator[Callers]:
    """Return 32 callers that ask all the time; in the end none of them has seen a failure or a mixed answer."""
    with Callers(world.get()["url"], BODY, 32, pause=0.2) as asking:
        asking.answered(32)
        yield asking
        asking.answered(32)
    assert asking.failures == []
    assert all(answer in SAYS.values() for answer in asking.predictions)
    assert all(asking.heard.values())
    ids = [name for answer in asking.answers for name in answer]
    assert len(ids) == len(set(ids))
    eventually(lambda: logged(world) >= set(ids), every=0.3, what="every answer is in the table")


def logged(world: World) -> set[str]:
    return set(world.table().read(columns=["prediction_id"], order_by=None)["prediction_id"].to_pylist())


def test_update_alias_and_rollback_under_load(world: World, callers: Callers) -> None:
    changes: list[tuple[str, Callable[[], object]]] = [
        ("2", lambda: world.update(f"models:/{NAME}/2")),
        ("1", lambda: world.update(FOLLOWED)),  # back to the version before, and following again
        ("2", lambda: world.point("champion", "2")),
    ]
    for version, change in changes:
        old = world.pids()
        change()
        eventually(lambda v=version: world.get()["version"] == v, every=0.2, what=f"{version} serves")
        eventually(lambda gone=old: not any(map(psutil.pid_exists, gone)), what="the old workers are gone")
        before = len(callers.predictions)
        callers.answered(64)
        assert {tuple(answer) for answer in callers.predictions[before + 32 :]} == {tuple(SAYS[version])}
        assert world.get()["status"] == "ready"


def test_what_cannot_serve_or_be_tried_is_refused_under_load_and_says_why(
    world: World, callers: Callers
) -> None:
    before, pids = world.get(), world.pids()
    stranger = log_model("total", mlflow.get_tracking_uri(), world.home.path / "cache", name="stranger")
    refusals: list[tuple[str, Callable[[], object]]] = [
        ("the weights are missing", lambda: world.update(f"models:/{NAME}/{world.broken}")),
        ("not this example", lambda: world.update(f"models:/{NAME}/{world.sulking}")),
        ("challenger cannot be tried.*not this example",
         lambda: world.update(challenger=f"models:/{NAME}/{world.sulking}")),
    ]  # fmt: skip
    for said, ask in refusals:
        with pytest.raises(MlflowException, match=f"(?s){said}.*goes on with version {before['version']}"):
            ask()
        view = world.get()
        assert "stayed as it was" in view["message"] and said.split(".*")[-1] in view["message"]
        assert (view["version"], view["status"], view["config"]) == (
            before["version"],
            "ready",
            before["config"],
        )
    with pytest.raises(MlflowException, match="stranger version 1 is no version of 'rolls'"):
        world.update(challenger=stranger.uri)
    assert world.pids() == pids


def test_a_canary_and_a_shadow_under_load(world: World, callers: Callers) -> None:
    """The challenger answers its callers only, follows its alias, keeps quiet as a shadow, and becomes champion."""
    world.point("challenger", "2")
    trial = {
        "challenger": f"models:/{NAME}@challenger",
        "challenger_mode": "canary",
        "traffic_percentage": 40,
    }
    world.update(f"models:/{NAME}/1", **trial)
    shown = world.get()["challenger"]
    assert (shown["version"], shown["mode"], shown["traffic_percentage"], shown["state"]) == (
        "2", "canary", 40.0, "active")  # fmt: skip
    before = {key: len(heard) for key, heard in callers.heard.items()}
    callers.answered(5 * 32)
    for key, heard in callers.heard.items():
        version = "2" if is_chosen(key, 40) else "1"
        assert all(answer == SAYS[version] for answer in heard[before[key] + 1 :]), key

    world.update(challenger_mode="shadow")
    quiet = len(callers.answers)
    callers.answered(5 * 32)
    assert all(answer == SAYS["1"] for answer in callers.predictions[quiet + 32 :])
    said = CliRunner().invoke(flywheel, ["status", "--home", str(world.home.path)]).output
    assert "challenger version 2 is asked too, unheard (shadow)" in said

    def both_logged() -> bool:
        rows = world.table().read(columns=["prediction_id", "variant", "model_version", "prediction"])
        by_id = {row["prediction_id"]: row for row in rows.to_pylist()}
        assert {(r["variant"], r["model_version"]) for r in by_id.values() if r["prediction"] == 103.0} >= {
            ("challenger", "2")
        }
        shadows = [f"{name}:shadow" for answer in callers.answers[quiet + 32 : quiet + 96] for name in answer]
        return all(by_id[name]["prediction"] == 103.0 for name in shadows)

    eventually(both_logged, every=0.3, what="what the shadow said is in the table")

    # an alias that means a version which cannot be tried leaves the trial as it is, and says so
    world.point("challenger", world.sulking)
    eventually(lambda: "not this example" in world.get()["message"], every=0.2)
    assert world.get()["challenger"]["version"] == "2"
    # promoted: the version that was on trial serves, and is not scored twice
    world.point("challenger", "2")
    eventually(lambda: world.get()["message"] == "", every=0.2)
    world.update(f"models:/{NAME}/2")
    assert (world.get()["version"], world.get()["challenger"]["state"]) == ("2", "idle")
    assert world.table().counts().duplicates == 0

"""MLflow's door on a real home: three deployments of one registered model, from creation to the last process gone."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.deployments.cli import commands as mlflow_deployments
from mlflow.exceptions import MlflowException
from support.models import log_model, numeric_frame
from support.waiting import eventually

from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.rollout import follow_once
from mlflow_flywheel.plugin.runners.processes import marked_processes
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

NAME = "late"
FOLLOWED = f"models:/{NAME}@champion"
MODES = ("web", "stream", "batch")
ROWS = numeric_frame(5, seed=9)


@dataclass
class World:
    """A home with a client on it, and what is registered in the MLflow store that it is bound to."""

    home: Home
    client: BaseDeploymentClient
    tracking_uri: str
    expected: dict[str, list[Any]]

    def command(self, *arguments: str) -> Any:
        """Run a `flywheel` command on the home; return its JSON."""
        said = CliRunner().invoke(flywheel, [*arguments, "--json", "--home", str(self.home.path)])
        assert said.exit_code == 0, said.output
        return json.loads(said.output)

    def version(self, name: str) -> str:
        return str(self.client.get_deployment(name)["version"])

    def predict(self, name: str, rows: pd.DataFrame = ROWS) -> dict[str, Any]:
        return dict(self.client.predict(deployment_name=name, inputs=rows))

    def processes(self, name: str | None = None) -> list[int]:
        return [process.pid for process in marked_processes(self.home.path, name)]

    def left_of(self, name: str) -> list[Path]:
        """Return the files of a deployment that are in the home; the lock of its name is none of them."""
        found = [
            self.home.deployments / name,
            self.home.batch / name / "state",
            self.home.batch / name / "asked",
            self.home.batch / name / "runs",
        ]
        return [f for f in (*found, *self.home.logs.glob(f"*{name}*"), *self.home.supervisor.rglob(f"*{name}*.json"),
                            *self.home.supervisor.rglob(f"*{name}*.conf")) if f.exists()]  # fmt: skip


@pytest.fixture(scope="module")
def world(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Deploy two versions' model in all modes, at the same time; at the end `flywheel down` leaves no process."""
    folder = tmp_path_factory.mktemp("world")
    models = [
        log_model("classifier", tracking_uri, folder / "cache", name=NAME, seed=seed) for seed in (0, 1)
    ]
    expected = {m.ref.version: mlflow.pyfunc.load_model(m.uri).predict(ROWS).tolist() for m in models}
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    home = Home(folder / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    assert client is not None
    made = World(home, client, tracking_uri, expected)
    try:
        with ThreadPoolExecutor(len(MODES)) as pool:
            for view in pool.map(lambda mode: create(made, mode), MODES):
                assert (view["status"], view["version"], view["flavor"]) == ("ready", "1", "sklearn")
        yield made
        stopped = made.command("down")["stopped"]
        assert {"deployment-late-web", "deployment-late-stream", "daemon", "broker"} <= set(stopped)
    finally:
        left = made.processes()
        made.command("down")
    assert left == [], "'flywheel down' left processes behind"


def create(world: World, mode: str) -> dict[str, Any]:
    config = {"mode": mode, "id_column": "key"}
    return dict(world.client.create_deployment(f"late-{mode}", FOLLOWED, config=config))


@pytest.fixture(autouse=True)
def _the_store(world: World) -> None:
    mlflow.set_tracking_uri(world.tracking_uri)
    mlflow.set_registry_uri(world.tracking_uri)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_predicts_what_the_model_does_and_counts_it(world: World, mode: str) -> None:
    name = f"late-{mode}"
    answer = world.predict(name)
    assert answer["predictions"] == world.expected[world.version(name)]
    assert len(set(answer["prediction_ids"])) == len(ROWS)
    wait_logged(world, "prediction_id", answer["prediction_ids"])
    logged = table(world).counts().by_deployment[name]
    assert (
        logged
        <= world.client.get_deployment(name)["predictions"]
        <= table(world).counts().by_deployment[name]
    )


def test_rows_may_come_in_the_forms_that_mlflow_takes(world: World) -> None:
    answers = [
        world.client.predict(deployment_name="late-web", inputs=inputs)["predictions"]
        for inputs in (
            ROWS,
            ROWS.to_dict("records"),
            ROWS.to_dict("list"),
            {"dataframe_split": ROWS.to_dict("split")},
            {"dataframe_records": ROWS.to_dict("records")},
            pd.DataFrame(
                {"dataframe_split": ROWS.to_dict("split")}
            ),  # what `mlflow deployments predict -I` reads
        )
    ]
    assert answers == [answers[0]] * len(answers)


def test_get_and_list_show_what_runs(world: World) -> None:
    views = {view["name"]: view for view in world.client.list_deployments()}
    assert {f"late-{mode}" for mode in MODES} <= set(views)
    for mode in MODES:
        view = views[f"late-{mode}"]
        assert (view["mode"], view["model_uri"], view["model_name"]) == (mode, FOLLOWED, NAME)
        assert view["config"] == {"mode": mode, "id_column": "key"}
        seen = world.client.get_deployment(f"late-{mode}")
        assert {k: v for k, v in seen.items() if k != "predictions"} == {
            k: v for k, v in view.items() if k != "predictions"
        }
        json.dumps(view)
    assert views["late-web"]["url"].startswith("http://127.0.0.1:")
    assert (views["late-stream"]["input_topic"], views["late-stream"]["output_topic"]) == (
        "late-stream-in",
        "late-stream-out",
    )
    shown = world.command("status")
    assert {d["name"] for d in shown["deployments"]} >= set(views)
    assert shown["tracking_uri"] == world.tracking_uri


def test_an_alias_that_moves_takes_all_three_along(world: World) -> None:
    before = world.version("late-web")
    after = "2" if before == "1" else "1"
    MlflowClient().set_registered_model_alias(NAME, "champion", after)
    names = [f"late-{mode}" for mode in MODES]
    eventually(
        lambda: [world.version(name) for name in names] == [after] * 3,
        timeout=60,
        every=0.3,
        what="all deployments follow the alias",
    )
    for name in names:
        assert world.predict(name)["predictions"] == world.expected[after]
        assert world.client.get_deployment(name)["model_uri"] == FOLLOWED


def test_labels_join_by_the_callers_id_and_by_ours(world: World, tmp_path: Path) -> None:
    keys = [f"flight-{n}" for n in range(len(ROWS))]
    world.predict("late-stream", ROWS.assign(key=keys))
    ids = world.predict("late-web")["prediction_ids"]
    wait_logged(world, "client_request_id", keys)
    wait_logged(world, "prediction_id", ids)
    first = label(world, tmp_path, {"client_request_id": keys, "label": [0, 1, 0, 1, 0]})
    assert first["accepted"] == len(ROWS) and first["labelled"] >= len(ROWS)
    second = label(world, tmp_path, {"prediction_id": ids, "label": [1, 1, 1, 1, 1]})
    assert second["labelled"] == first["labelled"] + len(ROWS)
    third = label(world, tmp_path, {"client_request_id": ["nobody", "none"], "label": [1, 0]})
    assert (third["accepted"], third["labelled"]) == (2, second["labelled"])
    assert third["unmatched"] == second["unmatched"] + 2


def table(world: World) -> InferenceTable:
    return InferenceTable.open(world.home.tables, NAME)


def wait_logged(world: World, column: str, values: list[str]) -> None:
    """Return when the inference table has a row for each of these ids."""
    eventually(
        lambda: set(values) <= set(table(world).read(columns=[column]).column(column).to_pylist()),
        every=0.3,
        what="the predictions are in the table",
    )


def label(world: World, folder: Path, columns: dict[str, list[Any]]) -> dict[str, Any]:
    file = folder / "labels.csv"
    pd.DataFrame(columns).to_csv(file, index=False)
    return dict(world.command("feedback", "late-web", str(file)))


def test_labels_that_do_not_fit_are_refused_as_a_whole(world: World, tmp_path: Path) -> None:
    before = label(world, tmp_path, {"client_request_id": ["z-0"], "label": [1]})
    (tmp_path / "bad.csv").write_text("client_request_id,label\nz-1,1\nz-2,\n")
    said = CliRunner().invoke(
        flywheel, ["feedback", "late-web", str(tmp_path / "bad.csv"), "--home", str(world.home.path)]
    )
    assert (
        said.exit_code == 1
        and said.output.startswith("Error: ")
        and "line 3: label is missing" in said.output
    ), said.output
    after = label(world, tmp_path, {"client_request_id": ["z-0"], "label": [1]})
    assert after["unmatched"] == before["unmatched"]


def test_labels_that_arrive_in_a_folder_are_taken_by_the_daemon(world: World, tmp_path: Path) -> None:
    landed = tmp_path / "landed"
    landed.mkdir()
    watched = world.command("feedback", "late-web", "--watch", str(landed))
    assert watched == {"model": NAME, "folder": str(landed), "on_error": "fail", "watched": True}
    (landed / "bad.csv").write_text("client_request_id,label\nw-1,1\nw-2,perhaps\n")
    (landed / "good.csv").write_text("client_request_id,label\nw-1,1\nw-2,0\n")

    def settled() -> dict[str, Any]:
        (view,) = world.command("status")["label_folders"]
        return dict(view) if view.get("files") and view["files_set_aside"] else {}

    view = eventually(settled, 60, every=0.5, what="the daemon has looked at both files")
    assert (view["files"], view["accepted"], view["files_set_aside"]) == (1, 2, 1)
    (aside,) = view["set_aside"]
    assert aside["file"] == str(landed / "bad.csv") and "line 3: label must be a number" in aside["reason"]
    status = CliRunner().invoke(flywheel, ["status", "--home", str(world.home.path)]).output
    assert (
        f"labels of {NAME} from {landed}: 2 labels in 1 files; set aside: 0 rows and 1 whole files" in status
    )
    world.command("feedback", NAME, "--watch", str(landed), "--stop")
    assert world.command("status")["label_folders"] == []


def test_an_update_under_requests_and_a_deletion_that_leaves_nothing(world: World) -> None:
    name = "brief"
    world.client.create_deployment(name, f"models:/{NAME}/1", config={"mode": "web"})
    answers: list[list[Any]] = []
    with ThreadPoolExecutor(1) as pool:
        updating = pool.submit(
            world.client.update_deployment, name, f"models:/{NAME}/2", config={"threads": "2"}
        )
        while not updating.done() or len(answers) < 3:
            answers.append(world.predict(name)["predictions"])  # raises when one fails
            wait([updating], 0.1)
        view = updating.result()
    assert (view["version"], view["config"]) == ("2", {"mode": "web", "threads": "2"})
    assert all(answer in (world.expected["1"], world.expected["2"]) for answer in answers)
    assert world.predict(name)["predictions"] == world.expected["2"]
    assert world.command("scale", name, "2") == {"deployment": name, "workers": 2}
    assert world.client.get_deployment(name)["config"]["workers"] == "2"
    assert world.processes(f"deployment-{name}") and world.left_of(name)
    world.client.delete_deployment(name)
    assert world.processes(f"deployment-{name}") == [] and world.left_of(name) == []
    with pytest.raises(MlflowException, match="'brief' does not exist"):
        world.client.get_deployment(name)
    eventually(
        lambda: table(world).counts().by_deployment.get(name, 0) == (len(answers) + 1) * len(ROWS),
        what="its predictions are kept",
    )


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "uri", "config", "code", "said"),
    [
        ("x", FOLLOWED, {"mode": "web", "prot": 1}, "INVALID_PARAMETER_VALUE", "'prot'.*did you mean 'port'"),
        ("x", FOLLOWED, {"mode": "web", "port": "high"}, "INVALID_PARAMETER_VALUE", "port='high'.*integer"),
        ("x", FOLLOWED, {}, "INVALID_PARAMETER_VALUE", "the mode is missing: give one of mode=web"),
        ("x", FOLLOWED, {"mode": "wbe"}, "INVALID_PARAMETER_VALUE", "'wbe' does not exist.*'web'"),
        ("x", FOLLOWED, {"mode": "web", "loop.coldown": "1d"}, "INVALID_PARAMETER_VALUE", "'cooldown'"),
        ("X y", FOLLOWED, {"mode": "web"}, "INVALID_PARAMETER_VALUE", "name 'X y' is not valid: use"),
        ("late-web", FOLLOWED, {"mode": "batch"}, "RESOURCE_ALREADY_EXISTS", "'late-web' exists already; update"),
        ("x", "models:/laet/1", {"mode": "web"}, "RESOURCE_DOES_NOT_EXIST", "'laet' or its version 1 does not exist"),
        ("x", "models:/late/99", {"mode": "batch"}, "RESOURCE_DOES_NOT_EXIST", "version 99 does not exist"),
        ("x", "models:/late@best", {"mode": "stream"}, "RESOURCE_DOES_NOT_EXIST", "alias 'best' does not exist"),
        ("x", "models:/m-0", {"mode": "web"}, "RESOURCE_DOES_NOT_EXIST", "logged model 'm-0' does not exist"),
        ("x", "runs:/0/model", {"mode": "web"}, "RESOURCE_DOES_NOT_EXIST", "'runs:/0/model' leads nowhere"),
        ("x", "late", {"mode": "web"}, "INVALID_PARAMETER_VALUE", "'late' has no known form; give models:/"),
        ("x", FOLLOWED, {"mode": "web", "port": "TAKEN"}, "INVALID_PARAMETER_VALUE", "TAKEN on 127.0.0.1.*port=0"),
        ("x", FOLLOWED, {"mode": "batch", "input": ".", "output": "answers"}, "INVALID_PARAMETER_VALUE",
         "answers' is within the input .* give another folder"),
        ("x", FOLLOWED, {"mode": "stream", "broker": "pulsar://127.0.0.1:1"}, "TEMPORARILY_UNAVAILABLE",
         "no broker answers at 'pulsar://127.0.0.1:1'; check the URL"),
        ("x", FOLLOWED, {"mode": "stream", "input_topic": "late-stream-in", "subscription": "late-stream"},
         "INVALID_PARAMETER_VALUE", "'late-stream' reads 'late-stream-in'.*another subscription="),
    ],
)  # fmt: skip
def test_what_cannot_be_created_says_why_and_leaves_nothing(
    world: World, taken: int, name: str, uri: str, config: dict[str, Any], code: str, said: str
) -> None:
    config = {key: str(taken) if value == "TAKEN" else value for key, value in config.items()}
    refused(world, lambda: world.client.create_deployment(name, uri, config=config), code,
            said.replace("TAKEN", str(taken)))  # fmt: skip
    if name == "x":
        assert world.left_of("x") == []


def refused(world: World, ask: Callable[[], object], code: str, said: str) -> None:
    """Check that a request is refused clearly, and that everything is as it was."""
    before = [(d["name"], d["status"], d["version"], d["config"]) for d in world.client.list_deployments()]
    with pytest.raises(MlflowException, match=said) as caught:
        ask()
    assert caught.value.error_code == code
    after = [(d["name"], d["status"], d["version"], d["config"]) for d in world.client.list_deployments()]
    assert after == before


def test_a_port_of_another_deployment_is_refused(world: World) -> None:
    port = world.client.get_deployment("late-web")["url"].rpartition(":")[2]
    ask = lambda: world.client.create_deployment("x", FOLLOWED, config={"mode": "web", "port": port})
    refused(world, ask, "INVALID_PARAMETER_VALUE", f"port {port} belongs to deployment 'late-web'")


@pytest.mark.parametrize("mode", ["web", "batch"])
def test_a_model_that_cannot_load_leaves_nothing_half_made(world: World, mode: str) -> None:
    uri = broken_model()
    ask = lambda: world.client.create_deployment("broken", uri, config={"mode": mode})
    refused(world, ask, "INTERNAL_ERROR", "'broken' cannot serve.*the weights are missing")
    assert world.left_of("broken") == [] and world.processes("deployment-broken") == []
    update = lambda: world.client.update_deployment(f"late-{mode}", uri)
    serving = world.version(f"late-{mode}")
    refused(world, update, "INTERNAL_ERROR",
            rf"(?s)the weights are missing.*'late-{mode}' goes on with version {serving}")  # fmt: skip
    assert world.predict(f"late-{mode}")["predictions"] == world.expected[serving]


def broken_model() -> str:
    class Broken(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            raise RuntimeError("the weights are missing")

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["a"]

    return str(log(Broken(), signature=mlflow.models.infer_signature(ROWS, ROWS["a"])))


def log(model: Any, **more: Any) -> str:
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(python_model=model, name="model", pip_requirements=["mlflow"], **more)
    return str(info.model_uri)


def test_a_version_that_cannot_serve_is_refused_by_every_follower_once(world: World) -> None:
    names = [f"late-{mode}" for mode in MODES]
    before = world.version("late-web")
    broken = mlflow.register_model(broken_model(), NAME).version
    MlflowClient().set_registered_model_alias(NAME, "champion", broken)
    refused_file = {name: world.home.deployment(name) / "refused.json" for name in names}
    eventually(lambda: all(file.exists() for file in refused_file.values()), timeout=90, every=0.3,
               what="every deployment has tried the version")  # fmt: skip
    said = {name: file.read_text() for name, file in refused_file.items()}
    for name in names:
        assert "the weights are missing" in said[name]
        view = world.client.get_deployment(name)
        assert (view["version"], view["status"]) == (before, "ready")
        assert "stayed as it was" in view["message"] and "the weights are missing" in view["message"]
        assert world.predict(name)["predictions"] == world.expected[before]
    assert follow_once(world.home, Records(world.home.database_url), SupervisorRunner(world.home)) == []
    assert {name: file.read_text() for name, file in refused_file.items()} == said
    MlflowClient().set_registered_model_alias(NAME, "champion", before)
    eventually(lambda: not any(world.client.get_deployment(name)["message"] for name in names),
               what="the complaints are taken back")  # fmt: skip


@pytest.mark.parametrize("signature", ["none", "tensor"])
def test_a_model_without_named_columns_is_refused(world: World, signature: str) -> None:
    class Plain(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input

    array = np.zeros((2, 3))
    uri = log(
        Plain(), signature=mlflow.models.infer_signature(array, array) if signature == "tensor" else None
    )
    ask = lambda: world.client.create_deployment("x", uri, config={"mode": "web"})
    refused(world, ask, "INVALID_PARAMETER_VALUE", "signature")


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_do_not_fit_are_refused_by_name(world: World, mode: str) -> None:
    with pytest.raises(MlflowException, match=r"\bc\b") as caught:
        world.predict(f"late-{mode}", ROWS.drop(columns="c"))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert ".parquet" not in caught.value.message
    with pytest.raises(MlflowException, match=r"\bb\b.*(many|string)") as caught:
        world.predict(f"late-{mode}", ROWS.assign(b="many"))
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert world.predict(f"late-{mode}")["predictions"]


def test_no_rows_no_deployment_and_no_endpoints(world: World) -> None:
    client = world.client
    refused(world, lambda: client.predict("late-web", ROWS.head(0)), "INVALID_PARAMETER_VALUE", "no rows")
    refused(
        world, lambda: client.predict("late-web", 3), "INVALID_PARAMETER_VALUE", "are a int; give a DataFrame"
    )
    for ask in (
        lambda: client.get_deployment("late-wbe"),
        lambda: client.predict("late-wbe", ROWS),
        lambda: client.delete_deployment("late-wbe"),
        lambda: client.update_deployment("late-wbe", config={"threads": 2}),
    ):
        refused(world, ask, "RESOURCE_DOES_NOT_EXIST", "'late-wbe' does not exist.*did you mean 'late-web'")
    refused(world, lambda: client.create_endpoint("e"), "INVALID_PARAMETER_VALUE", "has no endpoints")
    refused(world, lambda: client.list_deployments("e"), "INVALID_PARAMETER_VALUE", "has no endpoints")
    refused(world, lambda: client.explain("late-web", ROWS), "INVALID_PARAMETER_VALUE", "SHAP")


def test_a_name_never_leads_out_of_the_home(world: World) -> None:
    victim = world.home.path / "victim"
    victim.write_text("mine")
    for ask in (world.client.delete_deployment, world.client.update_deployment, world.client.get_deployment):
        refused(world, lambda ask=ask: ask("../victim"), "RESOURCE_DOES_NOT_EXIST", "does not exist")  # type: ignore[misc]
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mode": "batch"}, "is a web deployment and stays one; create another one"),
        ({"port": "1"}, "its address cannot change while it serves|cannot be listened on"),
        ({"thread": "2"}, "'thread'.*did you mean 'threads'"),
        ({"workers": "no"}, "workers='no'"),
    ],
)
def test_an_update_that_does_not_fit_changes_nothing(world: World, config: dict[str, str], said: str) -> None:
    refused(world, lambda: world.client.update_deployment("late-web", config=config),
            "INVALID_PARAMETER_VALUE", said)  # fmt: skip
    assert world.predict("late-web")["predictions"]


def test_a_home_works_with_one_mlflow_only(world: World, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    refused(world, lambda: world.client.create_deployment("x", FOLLOWED, config={"mode": "web"}),
            "INVALID_PARAMETER_VALUE", "is bound to the MLflow server .*MLFLOW_TRACKING_URI")  # fmt: skip
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--name", "x", "-m", FOLLOWED, "-C", "mode=web", "-C", "prot=1"], "did you mean 'port'?"),
        (["delete", "--name", "late-wbe"], "did you mean 'late-web'?"),
    ],
)
def test_mlflows_command_line_says_it_in_one_line(world: World, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(mlflow_deployments, [*arguments, "-t", f"flywheel:{world.home.path}"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exc_info
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and said in errors[0], done.stderr
    assert "Traceback" not in done.output

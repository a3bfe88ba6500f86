"""Back-tests of real versions over a real table, logged to a real MLflow store, by the command."""

from __future__ import annotations

import csv
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn import metrics as sk
from support.backtests import START, LoggedRows, day
from support.browser import chromium
from support.mlflow_store import empty_store

from mlflow_flywheel.pipelines.lineage import Lineage
from mlflow_flywheel.pipelines.registry import resolve_model
from mlflow_flywheel.pipelines.training_files import LINEAGE_ARTIFACT
from mlflow_flywheel.plugin.backtest import BacktestRun
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.registration import add_version
from mlflow_flywheel.plugin.retraining import LINEAGE_TAG

MARKUP = "</script><img src=x onerror=alert(1)>"
MODEL = "shop"
ROWS, DAYS = 1400, 28


class World:
    """Version 1 takes a and b; version 2, of a retraining, a and c; half of the rows were logged by each."""

    def __init__(self, url: str, folder: Path) -> None:
        mlflow.set_tracking_uri(url)
        self.url, self.folder = url, folder
        self.home = Home(folder / "home").create()
        self.home.bind(url)
        self.client = MlflowClient(url)
        rng = np.random.default_rng(0)
        self.frame = pd.DataFrame(rng.normal(size=(ROWS, 3)), columns=["a", "b", "c"])
        signal = 2 * self.frame["a"] + self.frame["b"] + self.frame["c"]
        self.truth = np.where(rng.random(ROWS) < 1 / (1 + np.exp(-signal)), "yes", MARKUP)
        self.models = {"1": self.register(["a", "b"]), "2": self.register(["a", "c"])}
        self.client.set_registered_model_alias(MODEL, "champion", "1")
        add_version(self.client, resolve_model("models:/shop/1", url), "other", {})
        self.tag_retrained()
        logged = LoggedRows(self.home.path, "string", MODEL)
        self.times = [START + timedelta(days=DAYS * i / ROWS) for i in range(ROWS)]
        half = ROWS // 2
        for version, names, part in (("1", "ab", slice(0, half)), ("2", "ac", slice(half, ROWS))):
            features = {name: self.frame[name].to_numpy()[part] for name in names}
            labels = [None if i % 10 == 0 else y for i, y in enumerate(self.truth[part].tolist())]
            logged.log(features, labels, self.times[part], version=version)

    def register(self, features: list[str]) -> Any:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression().fit(self.frame[features][:300], self.truth[:300])
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                model,
                name="model",
                signature=infer_signature(self.frame[features], model.predict(self.frame[features])),
                input_example=self.frame[features].head(3),
                pip_requirements=["mlflow", "scikit-learn"],
                registered_model_name=MODEL,
            )
        return model

    def tag_retrained(self) -> None:
        lineage = Lineage(
            model=MODEL,
            parent_version="1",
            start=day(-1),
            as_of=day(8),
            known_at=day(8),
            holdout_start=day(6),
            features=("a", "c"),
            base_rows=0,
            train_rows=300,
            holdout_rows_found=100,
            train_hash="",
            holdout_hash="",
        )
        lineage.save(self.folder / "lineage.json")
        run = self.client.create_run("0").info.run_id
        self.client.log_artifact(run, str(self.folder / "lineage.json"), LINEAGE_ARTIFACT.rpartition("/")[0])
        self.client.set_model_version_tag(MODEL, "2", LINEAGE_TAG, f"runs:/{run}/{LINEAGE_ARTIFACT}")

    def flywheel(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["backtest", *arguments, "--home", str(self.home.path)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("backtest")
    return World(empty_store(folder / "mlflow.db"), folder)


def test_a_back_test_is_a_run_with_a_point_per_period_tables_and_a_report(
    world: World, tmp_path: Path
) -> None:
    done = world.flywheel("models:/shop/1", "--to", day(DAYS).isoformat(), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [p["labelled"] for p in said["periods"]] == [315] * 4
    assert [p["sides"][0]["scored"] for p in said["periods"]] == [315, 315, 0, 0]
    assert "version 2 did not take it" in str(said["periods"][2]["sides"][0]["unscored"])
    assert "is not known: it was registered without a training window" in said["leak"]

    run = world.client.get_run(said["run_id"])
    assert run.info.status == "FINISHED"
    assert world.client.get_experiment(run.info.experiment_id).name == "flywheel/shop"
    assert run.data.tags["flywheel.kind"] == "backtest" and run.data.tags["flywheel.version"] == "1"
    points = world.client.get_metric_history(said["run_id"], "auc")
    assert [p.timestamp for p in points] == [int(day(d).timestamp() * 1000) for d in (0, 7)]
    labelled = [i for i in range(350) if i % 10]
    proba = world.models["1"].predict_proba(world.frame[["a", "b"]])[labelled, 1]
    # scikit-learn sorts classes: "yes" is the second
    wanted = sk.roc_auc_score(world.truth[labelled] == "yes", proba)
    assert points[0].value == pytest.approx(wanted)
    coverage = world.client.get_metric_history(said["run_id"], "label_coverage")
    assert [p.value for p in coverage] == [0.9] * 4

    world.client.download_artifacts(said["run_id"], "", str(tmp_path))
    with open(tmp_path / "backtest/periods.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and float(rows[0]["auc"]) == pytest.approx(wanted)
    assert "was not logged" in (tmp_path / "backtest/unscored.csv").read_text()


def test_two_versions_are_compared_and_training_rows_are_marked(world: World) -> None:
    done = world.flywheel("models:/shop/2", "--against", "models:/shop@champion", "--every", "1w")
    assert done.exit_code == 0, done.output
    assert "could not score 630 rows" in done.output and "feature 'c' was not logged" in done.output
    assert "the lineage of its retraining" in done.output
    assert re.search(r"MLflow run \w{32}, artifact reports/backtest", done.output)
    made = BacktestRun(result=None, experiment="7", run_id="r")  # type: ignore[arg-type]
    assert made.link("http://host:5000/").startswith("http://host:5000/#/experiments/7/runs/r")


def test_a_version_that_meets_its_training_rows_says_so(world: World) -> None:
    for tag, moment in (("start", day(7)), ("end", day(14))):
        world.client.set_model_version_tag(MODEL, "1", f"flywheel.training_{tag}", moment.isoformat())
    try:
        done = world.flywheel("models:/shop/1", "--json")
    finally:
        for tag in ("start", "end"):
            world.client.delete_model_version_tag(MODEL, "1", f"flywheel.training_{tag}")
    said = json.loads(done.stdout)
    assert [p["state"] for p in said["periods"][:2]] == ["ok", "in training window"]
    assert said["periods"][1]["sides"][0]["training_rows"] == 315
    assert said["overall"]["rows"] == 315 and "315 rows in 1 period" in said["leak"]
    trained = world.client.get_metric_history(said["run_id"], "training_rows")
    assert [p.value for p in trained] == [0, 315, 0, 0]


def test_the_report_is_harmless_and_stands_alone(world: World, tmp_path: Path) -> None:
    world.client.set_model_version_tag(MODEL, "2", "flywheel.training_end", "2024-01-02")
    done = world.flywheel("models:/shop/2", "--json")
    world.client.delete_model_version_tag(MODEL, "2", "flywheel.training_end")
    run_id = json.loads(done.stdout)["run_id"]
    report = Path(world.client.download_artifacts(run_id, "reports/backtest.html", str(tmp_path)))
    asked: list[str] = []
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 1200, "height": 1000})
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(report.as_uri())
        assert tab.locator("svg").count() >= 3
        assert tab.locator("script, img").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
    assert asked == [report.as_uri()]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["models:/shop/1", "--every", "often"], "'often' is not a duration"),
        (["models:/shop/1", "--every", "1s"], "longer --every"),
        (["models:/shop/1", "--from", "yesterday"], "--from 'yesterday' is no time"),
        (["models:/shop/1", "--from", "2030-01-01", "--to", "2030-02-01"], "no logged rows in"),
        (["models:/shop/1", "--from", "2030-01-01"], "ends before it starts"),
        (["models:/shop/9"], "'models:/shop/9' leads nowhere"),
        (["models:/shop/1", "--against", "models:/other/1"], "only versions of one model"),
        (["models:/shop/1", "--against", "models:/shop@champion"], "is version 1 too"),
        (["models:/other/1"], "has no inference table in this home"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(world: World, arguments: list[str], complaint: str) -> None:
    done = world.flywheel(*arguments)
    assert done.exit_code == 1 and complaint in done.output and "Traceback" not in done.output

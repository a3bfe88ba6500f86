import csv
import json
from datetime import timedelta

import numpy as np
import pytest
from support.mlflow_store import empty_store
from support.windows_of import WINDOW, reference_of, two_classes, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.ended_run import end_deployment_run
from mlflow_flywheel.monitors.experiment_view import VIEW_TAG, saved_view
from mlflow_flywheel.monitors.performance import performance
from mlflow_flywheel.monitors.reference import load_reference
from mlflow_flywheel.monitors.reporting import (
    deployment_run,
    log_deployment_metrics,
    log_monitor_run,
    model_run,
)
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.pipelines.errors import BadInput, NotFound, Unavailable
from mlflow_flywheel.pipelines.training_files import REFERENCE_TAG, write_rows

AS_OF = WINDOW.end


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    import mlflow

    uri = empty_store(tmp_path_factory.mktemp("monitor-runs") / "mlflow.db")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield mlflow.MlflowClient(uri)


@pytest.fixture()
def version(client, tmp_path, request):
    """A registered version with a logged model behind it and a reference in an artifact of a run."""
    name = f"late {request.node.name}"[:60]
    experiment = client.create_experiment(
        f"training {request.node.name}"[:60], artifact_location=str(tmp_path)
    )
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, name="model", source_run_id=run.info.run_id)
    write_rows(rows()[1].table, tmp_path / "reference.parquet")
    client.log_artifact(run.info.run_id, str(tmp_path / "reference.parquet"), "flywheel")
    client.create_registered_model(name)
    tags = {REFERENCE_TAG: f"runs:/{run.info.run_id}/flywheel/reference.parquet"}
    made = client.create_model_version(name, f"models:/{logged.model_id}", run.info.run_id, tags=tags)
    return name, str(made.version), logged.model_id


def rows(shift=0.0, n=600):
    rng = np.random.default_rng(0)
    old, new = rng.random(n), rng.random(n)

    def own(score):
        return {
            "prediction": (score > 0.5) * 1.0,
            "prediction_proba": two_classes(score),
            "label": (rng.random(n) < score) * 1.0,
        }

    window = window_of({"=x": new + shift, "y": rng.random(n)}, **own(new))
    return window, reference_of({"=x": old, "y": rng.random(n)}, **own(old))


def judged(shift=0.0):
    window, reference = rows(shift)
    return window, [drift(window, reference, WINDOW), performance(window, reference, WINDOW)]


def log(client, version, window, verdicts, as_of=AS_OF, **more):
    name, number, model_id = version
    how = {"model_id": model_id, "rows": window, "source": "/tables/late", "table_version": 7}
    return log_monitor_run(client, name, number, as_of, verdicts, **(how | more))


def test_a_monitor_run_holds_verdict_metrics_evidence_report_and_window(client, version, tmp_path):
    window, verdicts = judged(shift=1.0)
    run_id = log(client, version, window, verdicts, html="<html><body>report</body></html>", overview="all")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["flywheel.kind"] == "monitor" and run.data.tags["flywheel.verdict"] == "alarm"
    assert (
        run.data.tags["flywheel.verdict.drift"] == "alarm"
        and run.data.tags["flywheel.verdict.performance"] == "ok"
    )
    assert run.data.tags["flywheel.window"] == f"{WINDOW.start.isoformat()}/{WINDOW.end.isoformat()}"
    assert "1 of 2 features drifted" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["drift/share"] == 0.5 and run.data.metrics["performance/auc"] > 0.7
    (point,) = client.get_metric_history(run_id, "drift/share")
    assert (point.timestamp, point.step) == (int(AS_OF.timestamp() * 1000), int(AS_OF.timestamp() // 60))
    (link,) = run.inputs.dataset_inputs
    assert [(t.key, t.value) for t in link.tags] == [("mlflow.data.context", "monitoring")]
    assert json.loads(link.dataset.source)["delta_table_version"] == 7
    assert json.loads(link.dataset.profile) == {"num_rows": 600}
    assert run.inputs.model_inputs[0].model_id == version[2]
    on_model = {m.key: m for m in client.get_logged_model(version[2]).metrics}
    assert on_model["performance/auc"].dataset_name == link.dataset.name
    folder = client.download_artifacts(run_id, "", str(tmp_path))
    assert (tmp_path / "reports/drift.html").read_text() == "<html><body>report</body></html>"
    assert (tmp_path / "reports/overview.html").read_text() == "all"
    assert [Verdict.from_dict(v) for v in json.loads((tmp_path / "verdicts.json").read_text())] == verdicts
    with open(f"{folder}/evidence/drift.csv") as file:
        table = {row["column"]: row for row in csv.DictReader(file)}
    assert table["'=x"]["drifted"] == "True"
    assert (tmp_path / "evidence/performance.csv").exists()


def test_the_version_says_the_newest_verdicts_beside_what_people_wrote(client, version):
    name, number, _ = version
    client.update_model_version(name, number, "Ours since **2013**.\n\nDo not touch.")
    window, calm = judged()
    first = log(client, version, window, calm, html="x")
    _, worse = judged(shift=1.0)
    second = log(client, version, window, worse, AS_OF + timedelta(days=1), html="x")
    found = client.get_model_version(name, number)
    assert (
        found.tags["flywheel.verdict.drift"] == "alarm" and found.tags["flywheel.verdict.performance"] == "ok"
    )
    assert found.tags["flywheel.last_report"].endswith(
        f"/runs/{second}/artifacts/reports/drift.html?workflowType=machine_learning"
    )
    assert found.description.startswith(
        "Ours since **2013**.\n\nDo not touch.\n\n**flywheel** as of 2013-03-02"
    )
    assert found.description.count("flywheel") == 1 and first not in found.description
    assert f"runs/{second}/artifacts/reports/drift.html?workflowType=machine_learning)" in found.description


def test_series_grow_in_event_time_on_the_models_run_and_monitor_runs_are_nested_in_it(client, version):
    window, verdicts = judged()
    days = [AS_OF + timedelta(days=day) for day in range(3)]
    runs = [log(client, version, window, verdicts, day) for day in days]
    parent = model_run(client, version[0])
    assert {client.get_run(r).data.tags["mlflow.parentRunId"] for r in runs} == {parent}
    history = client.get_metric_history(parent, "drift/share")
    assert [p.timestamp for p in history] == [int(day.timestamp() * 1000) for day in days]
    assert sorted({p.step for p in history}) == [p.step for p in history]
    assert runs[-1] in client.get_run(parent).data.tags["mlflow.note.content"]
    assert client.get_run(parent).info.status == "RUNNING"


def test_logging_a_moment_again_writes_the_same_point(client, version):
    window, verdicts = judged()
    for _ in range(2):
        log(client, version, window, verdicts)
    history = client.get_metric_history(model_run(client, version[0]), "drift/share")
    assert len({(p.step, p.timestamp, p.value) for p in history}) == 1


def test_a_deployment_has_one_run_until_it_ends(client, version):
    name = version[0]
    run_id = deployment_run(client, name, "late-web", "web")
    assert deployment_run(client, name, "late-web", "web") == run_id
    other = deployment_run(client, name, "late-stream", "stream")
    assert other != run_id
    for hour in range(3):
        log_deployment_metrics(client, run_id, {"predictions": hour}, AS_OF + timedelta(hours=hour))
    assert [p.value for p in client.get_metric_history(run_id, "predictions")] == [0, 1, 2]
    end_deployment_run(client, run_id, "FINISHED", AS_OF)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert deployment_run(client, name, "late-web", "web") not in (run_id, other)


def test_many_metrics_and_odd_verdicts_are_logged(client, version):
    nothing = Verdict(
        "drift", "unknown", "[a](javascript:alert(1)) | `x`", WINDOW, {f"m{i}": i for i in range(1500)}
    )
    run = client.get_run(log_monitor_run(client, version[0], "", AS_OF, [nothing]))
    assert len(run.data.metrics) == 1500 and run.data.tags["flywheel.verdict"] == "unknown"
    assert "\\[a\\](javascript" in run.data.tags["mlflow.note.content"]
    assert not client.get_model_version(version[0], version[1]).description


def test_the_reference_of_a_version_is_read_through_its_tag(client, version):
    name, number, _ = version
    reference = load_reference(name, number, client.tracking_uri)
    assert reference.feature_names == ("=x", "y") and len(reference) == 600
    assert set(reference.outcomes().column_names) == {"prediction", "prediction_proba", "label"}
    assert list(reference.frame.columns) == ["=x", "y"]
    assert load_reference(name, number, client.tracking_uri) is reference
    client.delete_model_version_tag(name, number, REFERENCE_TAG)
    assert load_reference(name, number, client.tracking_uri) is None
    client.set_model_version_tag(name, number, REFERENCE_TAG, "runs:/0123/nothing.parquet")
    with pytest.raises(Unavailable, match="nothing.parquet"):
        load_reference(name, number, client.tracking_uri)
    with pytest.raises(NotFound, match="no version '99'"):
        load_reference(name, "99", client.tracking_uri)


def test_the_profile_of_a_reference_is_made_once_and_kept_beside_it(client, version, monkeypatch):
    from mlflow_flywheel.monitors import reference as module

    name, number, _ = version
    uri = client.get_model_version(name, number).tags[REFERENCE_TAG]
    module._read.cache_clear()
    first = load_reference(name, number, client.tracking_uri)
    run_id = uri.split("/")[1]
    kept = {file.path for file in client.list_artifacts(run_id, "flywheel")}
    assert kept == {"flywheel/reference.parquet", "flywheel/reference-profile.parquet"}
    monkeypatch.setattr(module, "make_profile", None)  # nothing is summarised again
    module._read.cache_clear()
    again = load_reference(name, number, client.tracking_uri)
    window, _ = rows(shift=1.0)
    assert drift(window, again, WINDOW) == drift(window, first, WINDOW)


def test_a_deleted_experiment_is_named_with_the_remedy(client):
    client.delete_experiment(client.create_experiment("flywheel/gone"))
    with pytest.raises(BadInput, match="mlflow experiments restore"):
        model_run(client, "gone")


def test_a_failed_execution_leaves_a_failed_run(client, version):
    window, verdicts = judged()
    with pytest.raises(Unavailable):
        log(client, version, window, verdicts, model_id="m-" + "0" * 32)
    experiment = client.get_experiment_by_name(f"flywheel/{version[0]}")
    runs = client.search_runs([experiment.experiment_id], "tags.`flywheel.kind` = 'monitor'")
    assert [r.info.status for r in runs] == ["FAILED"]
    assert experiment.tags[VIEW_TAG] == saved_view()

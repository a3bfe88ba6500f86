"""The loop on a real MLflow store: registered once, watched, retrained by a real project run, gated, promoted."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.loops import LoopWorld, day

from mlflow_flywheel.monitors.all import NAMES
from mlflow_flywheel.monitors.quality import QualityMonitor
from mlflow_flywheel.monitors.reference import load_reference
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.plugin import approvals, probation
from mlflow_flywheel.plugin.answer_records import Counter, Server
from mlflow_flywheel.plugin.champion import PARENT_TAG, ROLLED_BACK_TAG, Registry
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.database import utc_now
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.loop import run_monitors, run_retraining
from mlflow_flywheel.plugin.release import AS_OF_TAG, GATE_TAG
from mlflow_flywheel.plugin.reproduction import reproduce
from mlflow_flywheel.plugin.usage_records import SLOT

QUICK = {
    "window": "20d",
    "min_rows": 100,
    "min_labels": 200,
    "consecutive": 1,
    "retrain_on": "performance",
    "report": "never",
    "monitors": "-latency",  # the tests' own times say nothing
}


# everything about the rows that can be asked for: what is learned from them must come out the same again
CAREFUL = {
    "training_windows": "20d,all",
    "recency_half_life": "20d",
    "class_balance": "weights",
    "max_rows": "1500",
    "rows_kept": "random",
    "training_seed": "7",
}
CALM = [
    ("drift", "ok"),
    ("performance", "ok"),
    ("estimation", "ok"),
    ("quality", "ok"),
    ("multivariate", "ok"),
]


@pytest.fixture
def world(tmp_path: Path, tracking_uri: str) -> Iterator[LoopWorld]:
    home = Home(tmp_path / "home").create()
    home.bind(tracking_uri)
    made = LoopWorld(home, f"shop-{uuid.uuid4().hex[:8]}")
    yield made
    made.close()


def champion_of(world: LoopWorld, alias: str = "champion") -> str:
    return str(MlflowClient(world.home.tracking_uri).get_model_version_by_alias(world.name, alias).version)


def test_a_model_that_lost_its_touch_is_replaced_by_one_that_was_shown_to_be_better(
    world: LoopWorld,
) -> None:
    home, records, model = world.home, world.records, world.name
    assert world.register_classifier() == "1"
    world.deploy("shop-web", "shop-app")
    records.set_policy(model, QUICK | CAREFUL)
    world.serve(range(20), 30, deployments=("shop-web", "shop-app"))
    calm = run_monitors(home, records, model, day(20))
    assert [(v["monitor"], v["status"]) for v in calm["verdicts"]] == CALM, calm["verdicts"]
    assert calm["action"] == "none" and records.actions(model) == []

    world.serve(range(20, 60), 30, turned=True, deployments=("shop-web", "shop-app"))
    alarm = run_monitors(home, records, model, day(60))
    assert alarm["action"] == "retrain", alarm
    again = run_monitors(home, records, model, day(60))
    assert again["action"] == "none"
    (action,) = records.actions(model)
    assert action.status == "queued" and action.evidence["monitor_run_id"] == alarm["run_id"]
    assert len(records.verdicts(model)) == 2 * len(CALM)
    (task,) = records.tasks(kind="retrain")
    assert task.payload["action_id"] == action.id and task.id == alarm["retrain_task"]

    done = run_retraining(home, records, model, action.reason, day(60), action.id)
    assert done["status"] == "promoted", done["reason"]
    gate = done["gate"]
    assert gate["low"] > 0 and gate["challenger"]["auc"] > gate["champion"]["auc"]
    client = MlflowClient(home.tracking_uri)
    assert champion_of(world) == done["version"] == "2"
    version = client.get_model_version_by_alias(model, "champion")
    assert version.run_id == done["run_id"]
    assert version.tags[AS_OF_TAG] == day(60).isoformat()
    assert version.tags[PARENT_TAG] == "1" and version.tags["flywheel.label"] == "y"
    run = client.get_run(done["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.project.backend"] == "local"
    assert client.get_experiment(run.info.experiment_id).name == f"flywheel/{model}"
    assert run.data.metrics["challenger_log_loss"] == pytest.approx(run.data.metrics["holdout_log_loss"])
    promoted, finished = records.actions(model)
    assert finished.status == "promoted" and finished.run_id == done["run_id"]
    assert finished.result is not None and finished.result["gate"] == done["gate"]
    assert (promoted.kind, promoted.status, promoted.as_of) == ("promote", "done", day(60))
    assert (promoted.evidence["before"], promoted.evidence["after"]) == ("1", "2")
    assert promoted.evidence["requested_by"] == "policy"

    assert run_retraining(home, records, model, action.reason, day(60), action.id) == done
    assert len(client.search_model_versions(f"name='{model}'")) == 2
    assert len(records.actions(model)) == 2

    context = Context.open(home)
    same = reproduce(context, done["run_id"])
    context.records.close()
    assert same.equal and "holdout_log_loss" in same.metrics, same.metrics
    assert client.get_run(same.again).data.tags["flywheel.kind"] == "reproduction"
    assert same.window == ("20d", "20d") and same.lineage.chosen_window == "20d"
    assert {"validation_log_loss_20d", "validation_log_loss_all"} < set(same.metrics)
    assert same.lineage.train_rows == 1500 and int(run.data.params["fitted_rows"]) < 1500
    assert len(client.search_model_versions(f"name='{model}'")) == 2
    lineage = same.lineage
    reference = load_reference(model, "2", home.tracking_uri)
    assert reference is not None and len(reference) == lineage.holdout_rows_found

    # back to what was before; the gate does not promote the version that was left again
    registry = Registry(client)
    back = approvals.rollback(records, registry, model, "ada", day(61), reason="customers complain")
    assert (back.kind, back.status, back.evidence["requested_by"]) == ("rollback", "done", "ada")
    assert champion_of(world) == "1"
    again = run_retraining(home, records, model, action.reason, day(60), action.id)
    assert again["status"] == "refused" and "was rolled back" in again["reason"], again
    assert "customers complain" in again["reason"] and champion_of(world) == "1"

    # a person may promote it; the alias set by hand in MLflow is a move like any other
    approvals.promote(records, registry, model, "2", "ada", day(62))
    assert ROLLED_BACK_TAG not in client.get_model_version(model, "2").tags
    client.set_registered_model_alias(model, "champion", "1")
    records.set_policy(model, {"approval": "manual"})
    waiting = run_retraining(home, records, model, action.reason, day(60), action.id)
    assert waiting["status"] == "waiting" and "approval" in waiting["reason"]
    assert (champion_of(world), champion_of(world, "challenger")) == ("1", "2")
    approvals.promote(records, registry, model, None, "bob", day(63))
    assert champion_of(world) == "2" and "challenger" not in client.get_registered_model(model).aliases
    settled = records.actions(model, kinds=("retrain",))[0]
    assert settled.status == "promoted" and settled.result["decided_by"] == "bob"  # type: ignore[index]
    story = [
        (a.kind, a.evidence["before"], a.evidence["after"], a.evidence["requested_by"])
        for a in records.moves(model)
    ]
    assert story[::-1] == [
        ("promote", "1", "2", "policy"),
        ("rollback", "2", "1", "ada"),
        ("promote", "1", "2", "ada"),
        ("rollback", "2", "1", "MLflow"),
        ("promote", "1", "2", "bob"),
    ]

    # asked for, a trial comes first: a shadow that nobody hears, and then it takes over by itself
    approvals.rollback(records, registry, model, "ada", day(63), to="1")
    registry.tag(model, "2", ROLLED_BACK_TAG, None)
    records.set_policy(model, QUICK | {"trial": "3d", "monitors": "performance"})
    tried = run_retraining(home, records, model, action.reason, day(60), action.id)
    assert tried["status"] == "waiting" and "tried beside version 1 until 2024-03-04" in tried["reason"]
    assert (champion_of(world), champion_of(world, "challenger")) == ("1", "2")
    world.serve(range(60, 63), 50, turned=True, challenger_shadows="2")
    assert run_monitors(home, records, model, day(62))["action"] != "promote"
    taken = run_monitors(home, records, model, day(63.5))
    assert taken["action"] == "promote" and "on trial it was not surely worse: log loss" in taken["reason"]
    assert champion_of(world) == taken["champion"] == "2"
    assert [a.status for a in records.actions(model, kinds=("retrain",)) if a.id == action.id] == ["promoted"]


def test_a_bad_version_that_was_forced_is_rolled_back_and_a_good_one_passes_its_probation(
    world: LoopWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels were flipped for the second version; the third is as good as the first. Windows are five days long."""
    home, records, model = world.home, world.records, world.name
    for flipped, alias in ((False, "champion"), (True, None), (False, None)):
        world.register_classifier(flipped=flipped, alias=alias)
    world.deploy("shop-web")
    records.set_policy(model, QUICK | {"window": "5d", "retrain_on": "", "monitors": "performance"})
    client = MlflowClient(home.tracking_uri)
    registry = Registry(client)
    client.set_model_version_tag(
        model, "2", GATE_TAG, '{"promote": false, "reason": "the challenger is worse"}'
    )
    world.serve(range(5), 40)
    with pytest.raises(BadInput, match=r"refused by the gate \(the challenger is worse\); --force"):
        approvals.promote(records, registry, model, "2", "ada", day(5))
    approvals.promote(records, registry, model, "2", "ada", day(5), force=True)
    world.serve(range(5, 10), 40)
    assert records.pause(model, "ada", "a holiday", day(9))
    held = run_monitors(home, records, model, day(9))
    assert held["action"] == "alert" and champion_of(world) == "2"
    (warned,) = [a for a in records.actions(model, kinds=("alert",)) if "no rollback" in a.reason]
    assert "the loop is paused by ada" in warned.reason and "a holiday" in warned.reason
    assert records.resume(model, "ada", "", day(9))

    undone = run_monitors(home, records, model, day(10))
    assert undone["action"] == "rollback", undone
    assert "version 2 on probation: it is surely worse: log loss" in undone["reason"]
    assert champion_of(world) == "1" and ROLLED_BACK_TAG in client.get_model_version(model, "2").tags
    (back,) = records.actions(model, kinds=("rollback",))
    assert back.evidence["comparison"]["paired"] and back.evidence["comparison"]["high"] < 0
    assert (back.evidence["requested_by"], back.as_of) == ("policy", day(10))

    approvals.promote(records, registry, model, "3", "ada", day(10))
    world.serve(range(10, 18), 40)
    assert run_monitors(home, records, model, day(14))["action"] != "rollback"
    assert records.actions(model, kinds=("probation",)) == []
    for _ in range(2):
        run_monitors(home, records, model, day(18))
    (ended,) = records.actions(model, kinds=("probation",))
    assert ended.status == "passed" and "version 3 is not surely worse" in ended.reason
    assert champion_of(world) == "3" and len(records.actions(model, kinds=("rollback",))) == 1

    # a version that fails all that it is asked answers nothing, and goes all the same
    approvals.promote(records, registry, model, "2", "ada", day(18), force=True)
    deployed = records.deployment("shop-web").created
    for version, answered, failed in (("3", 900, 0), ("2", 0, 40)):
        server = Server("shop-web", deployed, model, version)
        for slot in range(2):
            counter = Counter(f"{version} {slot}", "", server, answered, failed)
            records.add_answers([counter], utc_now() + slot * SLOT)
    monkeypatch.setattr(probation, "utc_now", lambda: utc_now() + 2 * SLOT)
    failing = run_monitors(home, records, model, day(400))
    assert (failing["rows"], failing["action"]) == (0, "rollback"), failing
    assert "version 2 on probation: it fails more often: shop-web: the model failed" in failing["reason"]
    assert champion_of(world) == "3"


def test_a_retraining_that_fails_leaves_the_champion_and_its_last_words(
    world: LoopWorld, tmp_path: Path
) -> None:
    """Here by the user's own project, which is given the training rows alone."""
    home, records, model = world.home, world.records, world.name
    world.register_classifier()
    client = MlflowClient(home.tracking_uri)
    world.serve(range(10), 40)
    cases = (
        ("ls $(dirname {training_set}); exit 3", "90s", "FAILED", "it said:\nlineage.json\ntrain.parquet"),
        (
            "test -s {training_set} && echo {seed}",
            "90s",
            "FAILED",
            "finished without logging a model in its run",
        ),
        ("sleep 600", "1s", "KILLED", "was killed after 1 s; the champion serves on"),
    )
    for number, (command, timeout, status, said) in enumerate(cases):
        entry = {"parameters": {"training_set": "path", "seed": "float"}, "command": command}
        (tmp_path / "MLproject").write_text(json.dumps({"entry_points": {"retrain": entry}}))
        records.set_policy(model, QUICK | {"retrain_with": str(tmp_path), "retrain_timeout": timeout})
        action = records.add_action(model, "retrain", "a test", {}, day(10), f"key {number}")
        failed = run_retraining(home, records, model, "a test", day(10), action)
        assert failed["status"] == "failed" and not failed["promoted"]
        assert said in failed["reason"]
        run = client.get_run(failed["run_id"])
        assert run.info.status == status and run.data.tags["mlflow.source.name"] == str(tmp_path)
        assert {d.tags[0].value for d in run.inputs.dataset_inputs} == {"training", "holdout"}
        assert records.actions(model)[0].status == "failed"
        assert not (home.path / "retraining" / failed["run_id"]).exists()
    assert champion_of(world) == "1"


@pytest.mark.parametrize("trial", [{"challenger_shadows": True}, {"challenger_answers": 20}])
def test_what_a_challenger_said_is_not_the_champions(world: LoopWorld, trial: dict[str, int]) -> None:
    """Monitors, the labels that a retraining waits for, and its training set see the champion's rows alone."""
    home, records, model = world.home, world.records, world.name
    world.register_classifier()
    world.deploy("shop-web")
    own = 30 - trial.get("challenger_answers", 0)
    # one label more than the champion's own rows have: a shadow's, or a canary's, would start a retraining
    records.set_policy(model, QUICK | {"retrain_on": "labels", "new_labels": 10 * own + 1, "min_labels": 100})
    world.serve(range(10), 30, **trial)  # type: ignore[arg-type]
    rows = world.table().read()
    assert (
        rows.num_rows == 300 * (2 if "challenger_shadows" in trial else 1) and rows["label"].null_count == 0
    )
    calm = run_monitors(home, records, model, day(11))
    assert calm["rows"] == 10 * own
    performed = calm["verdicts"][1]["metrics"]
    assert performed["label_rows"] == 10 * own and performed["label_coverage"] == 1.0
    assert calm["action"] == "none", calm["reason"]
    world.serve([10], 30, **trial)  # type: ignore[arg-type]
    ready = run_monitors(home, records, model, day(12))
    assert (ready["rows"], ready["action"]) == (11 * own, "retrain")


def test_a_feature_that_is_kept_out_of_the_table_is_no_drift_and_no_training_data(world: LoopWorld) -> None:
    home, records, model = world.home, world.records, world.name
    world.register_classifier()
    world.deploy("shop-web", log_exclude="b")
    records.set_policy(model, QUICK)
    world.serve(range(20), 30, log_exclude=["b"])
    verdicts = run_monitors(home, records, model, day(20))["verdicts"]
    assert [(v["monitor"], v["status"]) for v in verdicts] == CALM, verdicts
    assert verdicts[0]["metrics"]["tested_columns"] == 2
    action = records.add_action(model, "retrain", "a test", {}, day(20), "key")
    failed = run_retraining(home, records, model, "a test", day(20), action)
    assert (failed["status"], failed["run_id"]) == ("failed", None)
    assert "'shop-web' keeps feature 'b' out of the inference table (log_exclude)" in failed["reason"]
    assert records.actions(model)[0].status == "failed"


def test_every_monitor_looks_at_the_table_the_deployments_and_the_model(
    world: LoopWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly run was missed, and one monitor fails: the others say what they see, also when no row comes any more."""
    home, records, model = world.home, world.records, world.name
    world.register_classifier()
    world.deploy("shop-web")
    world.deploy("shop-night", mode="batch", input=str(tmp_path / "in"), schedule="0 2 * * *")
    (tmp_path / "in").mkdir()
    (late := tmp_path / "in" / "orders.csv").write_text("a,b,c\n1,2,3\n")
    os.utime(late, times=(day(17).timestamp(),) * 2)
    records.set_policy(model, QUICK | {"monitors": "all", "retrain_on": "", "slices": "a>0, b"})
    world.serve(range(20), 30)
    world.serve([18], 60, deployments=["shop-night"], mode="batch")
    monkeypatch.setattr(QualityMonitor, "look", _fail)
    seen = run_monitors(home, records, model, day(20))
    said = {v["monitor"]: v for v in seen["verdicts"]}
    assert tuple(said) == NAMES
    assert (said["quality"]["status"], said["quality"]["summary"]) == ("unknown", "failed: ValueError: a bug")
    relevance, freshness = said["relevance"], said["freshness"]
    assert (relevance["status"], relevance["metrics"]["compared"]) == ("ok", 60), relevance
    assert relevance["metrics"]["changed_share"] == 0
    assert freshness["summary"] == "shop-night: 1 input file waits for 3d (at most 2d)"
    assert (seen["action"], seen["reason"]) == ("alert", freshness["summary"])
    client = MlflowClient(home.tracking_uri)
    looked = client.get_run(seen["run_id"]).data.metrics
    assert looked["slices/a above 0/rows"] > looked["slices/compared_slices"] == 5
    assert looked["estimation/realised_auc"] == pytest.approx(looked["performance/auc"])
    series = client.get_run(str(records.deployment("shop-night").run_id)).data.metrics
    assert series["changed_answers_share"] == 0 and series["input_waiting_hours"] == 72
    assert series["scoring_p99_ms"] >= series["scoring_p50_ms"] > 0

    records.set_policy(model, QUICK | {"max_age": "5d"})
    silent = run_monitors(home, records, model, day(400))
    assert (silent["rows"], silent["action"]) == (0, "none"), "its alarm was told already"
    assert records.verdicts(model, monitor="freshness")[0].verdict == "alarm"


def _fail(*_: object) -> None:
    raise ValueError("a\nbug")


def test_without_rows_nothing_is_said(world: LoopWorld) -> None:
    world.register_classifier()
    world.serve(range(2), 10)
    said = run_monitors(world.home, world.records, world.name, day(400))
    assert said["action"] == "none" and said["run_id"] is None
    assert world.records.policy_state(world.name) == {} and world.records.verdicts(world.name) == []

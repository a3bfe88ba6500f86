"""The records: what several processes may do to them at once, and what they say about what is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy.exc import StatementError

from mlflow_flywheel.pipelines.errors import AlreadyExists, BadInput, MissingExtra, NotFound, Unavailable
from mlflow_flywheel.plugin.record_types import NewAction
from mlflow_flywheel.plugin.records import DeploymentRecord, Records

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/records.db"


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    opened = Records(url)
    yield opened
    opened.close()


def add(records: Records, name: str, mode: str = "web", model: str = "flight-late") -> DeploymentRecord:
    return records.add_deployment(
        name,
        model_uri=f"models:/{model}@champion",
        model_name=model,
        mode=mode,
        config={"mode": mode},
        flavor="sklearn",
    )


def test_a_deployment_comes_back_as_it_was_recorded(records: Records, url: str) -> None:
    added = add(records, "late-web")
    assert (added.status, added.version, added.model_id, added.url) == ("starting", "", None, None)
    assert added.created.tzinfo is not None and added.created == added.updated
    changed = records.update_deployment(
        "late-web", status="ready", url="http://127.0.0.1:1", version="3", config={"mode": "web", "port": "1"}
    )
    assert changed.created == added.created and changed.updated >= added.updated
    other = Records(url)
    assert other.deployment("late-web") == changed
    other.close()
    records.delete_deployment("late-web")
    assert records.deployments() == []


def test_deployments_by_model_and_mode(records: Records) -> None:
    add(records, "b"), add(records, "a", "batch"), add(records, "c", model="other")
    assert [d.name for d in records.deployments()] == ["a", "b", "c"]
    assert [d.name for d in records.deployments(model_name="flight-late")] == ["a", "b"]
    assert [d.name for d in records.deployments(model_name="flight-late", mode="batch")] == ["a"]


def test_a_taken_name_is_refused(records: Records) -> None:
    first = add(records, "late-web")
    with pytest.raises(AlreadyExists, match="'late-web' exists already; update it, delete it first"):
        add(records, "late-web", "batch")
    assert records.deployment("late-web") == first


def test_what_does_not_exist_is_told_with_the_nearest(records: Records) -> None:
    add(records, "late-web")
    for ask in (records.deployment, records.delete_deployment, records.update_deployment):
        with pytest.raises(NotFound, match=r"'late-wbe' does not exist \(did you mean 'late-web'\?\)"):
            ask("late-wbe")
    with pytest.raises(NotFound, match="'xyz' does not exist; 'flywheel status' lists the deployments"):
        records.deployment("xyz")
    with pytest.raises(NotFound, match="task 7 does not exist"):
        records.task(7)
    with pytest.raises(NotFound, match="action 7 does not exist"):
        records.update_action(7, "done")
    with pytest.raises(BadInput, match=r"no field \['colour'\]; known: "):
        records.update_deployment("late-web", colour="red")


def test_a_task_from_queue_to_result(records: Records) -> None:
    task_id = records.enqueue("monitor", "flight-late", {"as_of": "2024-05-01"}, "cli")
    with pytest.raises(NotFound, match="is queued, not running; it cannot be marked done"):
        records.finish(task_id, {})
    assert records.claim(["retrain"], "me") is None
    task = records.claim(["monitor", "retrain"], "me")
    assert task is not None and task.id == task_id
    assert (task.status, task.worker, task.attempts, task.payload) == (
        "running",
        "me",
        1,
        {"as_of": "2024-05-01"},
    )
    with pytest.raises(
        Unavailable, match=r"task \d+ \(monitor of 'flight-late'\) is still running after 0 s"
    ):
        records.wait(task_id, 0)
    records.finish(task_id, {"rows": 3})
    done = records.wait(task_id, 0)
    assert (done.status, done.result, done.error) == ("done", {"rows": 3}, None)
    assert done.finished is not None and done.started is not None and done.finished >= done.started
    with pytest.raises(NotFound, match="is done, not running; it cannot be marked failed"):
        records.fail(task_id, "too late")


def test_the_oldest_task_first_and_one_per_subject(records: Records) -> None:
    first = records.enqueue("batch_run", "a", {}, "cli")
    second = records.enqueue("batch_run", "a", {}, "cli")
    other = records.enqueue("batch_run", "b", {}, "cli")
    claimed = [records.claim(["batch_run"], "me") for _ in range(3)]
    assert [task.id if task else None for task in claimed] == [first, other, None]
    records.fail(first, "no")
    last = records.claim(["batch_run"], "me")
    assert last is not None and last.id == second
    assert [task.id for task in records.tasks(subject="a")] == [second, first]
    assert [task.id for task in records.tasks(status="failed")] == [first]


_CLAIMER = """
import json, sys
from mlflow_flywheel.plugin.record_types import NewAction
from mlflow_flywheel.plugin.records import Records
records, kind, worker = Records(sys.argv[1]), sys.argv[2], sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
mine = []
if kind == "enqueue":
    mine = [records.enqueue("monitor", "m", {}, worker, f"key-{n}") for n in range(40)]
else:
    while (task := records.claim(["monitor"], worker)) is not None:
        mine.append(task.id)
        records.finish(task.id, {"by": worker})
print(json.dumps(mine))
"""


def at_once(url: str, what: str) -> list[list[int]]:
    """Let two processes do the same at the same moment; return what each of them got."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIMER, url, what, f"worker-{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    return [json.loads(answer) for answer in answers]


def test_two_processes_never_get_the_same_task(records: Records, url: str) -> None:
    for attempt in range(
        10
    ):  # until both got some: on a busy machine one may be done before the other begins
        ids = [records.enqueue("monitor", f"model-{attempt}-{n}", {}, "cli") for n in range(60)]
        first, second = at_once(url, "claim")
        assert sorted(first + second) == ids
        if first and second:
            break
    assert first and second, "one process did everything: the test shows nothing"
    for worker, mine in (("worker-0", first), ("worker-1", second)):
        for task_id in mine:
            task = records.task(task_id)
            assert (task.status, task.worker, task.attempts, task.result) == (
                "done",
                worker,
                1,
                {"by": worker},
            )


def test_two_processes_with_the_same_keys_make_one_task_each(records: Records, url: str) -> None:
    first, second = at_once(url, "enqueue")
    assert first == second
    assert len(records.tasks(limit=1000)) == len(set(first)) == 40


def test_a_key_is_used_once_also_when_its_task_is_over(records: Records) -> None:
    first = records.enqueue("monitor", "m", {"n": 1}, "schedule", "monitor:m:12:00")
    assert records.enqueue("monitor", "m", {"n": 2}, "cli", "monitor:m:12:00") == first
    assert records.claim(["monitor"], "me") is not None
    records.finish(first, {})
    assert records.enqueue("monitor", "m", {}, "schedule", "monitor:m:12:00") == first
    assert records.task(first).payload == {"n": 1}
    assert records.enqueue("monitor", "m", {}, "cli") != records.enqueue("monitor", "m", {}, "cli")


def test_what_a_dead_worker_left_is_queued_again_three_times_at_most(records: Records) -> None:
    lost = records.enqueue("retrain", "m", {}, "cli")
    kept = records.enqueue("retrain", "n", {}, "cli")
    for attempt in (1, 2, 3):
        task = records.claim(["retrain"], f"dead-{attempt}")
        assert task is not None and (task.id, task.attempts) == (lost, attempt)
        if attempt == 1:
            alive = records.claim(["retrain"], "alive")
            assert alive is not None and alive.id == kept
        again = records.requeue_abandoned(lambda worker: worker == "alive")
        assert again == ([lost] if attempt < 3 else [])
    failed = records.task(lost)
    assert failed.status == "failed" and failed.finished is not None
    assert failed.error is not None and "died in each of 3 attempts" in failed.error
    assert records.task(kept).status == "running"
    with pytest.raises(NotFound, match="is failed, not running"):
        records.finish(lost, {})


def test_verdicts_and_actions_newest_first(records: Records) -> None:
    start = NOON - timedelta(days=1)
    for n in range(3):
        records.add_verdict("m", "drift", start, NOON, "ok", {"n": n}, run_id=f"run-{n}")
    records.add_verdict("other", "drift", start, NOON, "alarm", {})
    assert [v.summary["n"] for v in records.verdicts("m", limit=2)] == [2, 1]
    assert records.verdicts("m")[0].window_end == NOON
    assert len(records.verdicts()) == 4

    first = records.add_action("m", "retrain", "worse", {"auc": 0.6}, NOON, "retrain:m:1")
    assert records.add_action("m", "retrain", "again", {}, NOON, "retrain:m:1") == first
    ended = records.update_action(first, "done", {"version": "2"}, run_id="run-9")
    assert (ended.reason, ended.status, ended.result, ended.run_id) == (
        "worse",
        "done",
        {"version": "2"},
        "run-9",
    )
    assert records.update_action(first, "released").result == {"version": "2"}
    assert [a.id for a in records.actions("m")] == [first] and records.actions("other") == []


def test_a_policy_comes_back_as_it_was_set(records: Records) -> None:
    assert records.policy("m") == {} and records.policy_state("m") == {}
    policy = {"retrain_on": ["labels"], "cooldown": "7d", "min_rows": 200, "floor": []}
    records.set_policy("m", policy)
    assert records.policy("m") == policy and records.policies() == {"m": policy}
    records.set_policy("m", {"min_rows": 300})
    assert records.policy("m") == {"min_rows": 300}
    records.set_policy("m", {})
    assert records.policy("m") == {} and records.policies() == {}


def test_a_decision_is_written_with_all_that_follows_or_not_at_all(records: Records) -> None:
    retrain = NewAction("retrain", "worse", {"auc": 0.6}, "retrain:m:1", "queued", "retrain")
    alert = NewAction("alert", "drift", {}, "alert:m:1")
    first = {"decided_at": "noon"}
    found = records.commit_decision("m", {}, first, [retrain, alert], NOON)
    assert found is not None and found["alert:m:1"][1] is None
    action, task = found["retrain:m:1"]
    assert task is not None and records.task(task).payload["action_id"] == action
    assert records.policy_state("m") == first
    # what was decided from an old memory counts for nothing
    late = NewAction("alert", "late", {}, "alert:m:2")
    assert records.commit_decision("m", {}, {"decided_at": "late"}, [late], NOON) is None
    assert records.policy_state("m") == first and len(records.actions("m")) == 2
    # a key that is known is that action, with the work that it queued
    assert records.commit_decision("m", first, {"decided_at": "one"}, [retrain], NOON) == {
        "retrain:m:1": (action, task)
    }
    assert len(records.actions("m")) == 2 and len(records.tasks(subject="m")) == 1


def test_times_are_utc_whatever_they_were_given_in(records: Records) -> None:
    berlin = NOON.astimezone(timezone(timedelta(hours=2)))
    records.add_verdict("m", "drift", berlin, berlin, "ok", {})
    got = records.verdicts("m")[0].window_start
    assert got == NOON and got.utcoffset() == timedelta(0)
    with pytest.raises(StatementError, match="has no time zone; give it in UTC"):
        records.add_verdict("m", "drift", NOON.replace(tzinfo=None), NOON, "ok", {})


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        ("sqlite://", BadInput, "must be a file: several processes share it"),
        ("sqlite:///:memory:", BadInput, "must be a file"),
        ("records.db", BadInput, r"FLYWHEEL_DATABASE_URL is not a database URL .*sqlite:///path"),
        ("mysql://db/records", BadInput, "only sqlite and postgresql URLs work"),
        ("postgresql+nodriver://db/records", BadInput, "not a database URL"),
    ],
)
def test_databases_that_cannot_be(bad: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Records(bad)


def test_a_postgresql_without_its_driver_or_server() -> None:
    with pytest.raises((MissingExtra, Unavailable), match="pip install|does not answer") as caught:
        Records("postgresql+psycopg://ada:s3cret@127.0.0.1:1/records")
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_text("this is not a database, and long enough to be looked at" * 20)
    with pytest.raises(Unavailable, match=r"records\.db does not answer: file is not a database"):
        Records(f"sqlite:///{tmp_path}/records.db")


def test_a_database_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="FLYWHEEL_DATABASE_URL to a file that you can write"):
        Records(f"sqlite:///{tmp_path}/file/records.db")

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_flywheel.pipelines.batch.inputs import InputFile
from mlflow_flywheel.pipelines.batch.state import DoneFile, JobState, Journal, SeenInputs, locked
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable

A = InputFile("/in/a.csv", "a.csv", "csv", 10, 5)
B = InputFile("/in/b.csv", "b.csv", "csv", 10, 5)


def test_a_journal_is_whole_whatever_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    journal = Journal(path)
    journal.append({"a": 1}, [2])
    journal.close()
    whole = path.read_bytes()
    for torn in range(1, 8):
        path.write_bytes(whole + b'{"b": "never finished"'[:torn])
        again = Journal(path)
        assert again.entries == [{"a": 1}, [2]]
        again.append("next")
        again.close()
        assert Journal(path).entries == [{"a": 1}, [2], "next"]


def test_a_job_remembers_its_plan_and_its_progress(tmp_path: Path) -> None:
    job = JobState(tmp_path, "night 1/2", {"model": "m 1"})
    assert not job.is_planned
    job.plan([A, B])
    job.finish(DoneFile(0, 100, 2, "/out/a"))
    job.close()
    again = JobState(tmp_path, "night 1/2", {"model": "m 1"})
    assert again.is_planned
    assert again.files == (A, B)
    assert again.done == {0: DoneFile(0, 100, 2, "/out/a")}
    assert again.started == job.started
    assert not JobState(tmp_path, "night 1", {"model": "m 1"}).is_planned


def test_a_job_id_cannot_mean_two_things(tmp_path: Path) -> None:
    JobState(tmp_path, "j", {"model": "m 1", "input": "a"}).plan([A])
    with pytest.raises(BadInput, match=r"'j' was started with model='m 1'.*'m 2'.*new job_id"):
        JobState(tmp_path, "j", {"model": "m 2", "input": "a"})
    JobState(tmp_path, "k", {"on_error": "fail"}).plan([A])
    JobState(tmp_path, "k", {"on_error": "skip"})  # what stopped it is set aside
    JobState(tmp_path, "l", {"on_error": "skip"}).plan([A])
    with pytest.raises(BadInput, match="on_error='skip'"):
        JobState(tmp_path, "l", {"on_error": "fail"})


def test_seen_inputs_are_told_by_path_size_and_time(tmp_path: Path) -> None:
    seen = SeenInputs(tmp_path)
    seen.add(A)
    seen.add(A)
    seen.close()
    again = SeenInputs(tmp_path)
    assert A in again
    assert B not in again
    assert InputFile("/in/a.csv", "a.csv", "csv", 10, 6) not in again
    assert (tmp_path / "seen.jsonl").read_bytes().count(b"\n") == 1


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    lock = tmp_path / "x" / "lock"
    with locked(lock, "job 'j'"), pytest.raises(Unavailable, match="job 'j' is running already"):
        locked(lock, "job 'j'").__enter__()
    with locked(lock, "job 'j'"):
        pass

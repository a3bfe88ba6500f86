"""The master's protocol, with real processes: a scripted worker that behaves as its version's name says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import ModelRef, WebConfig, digest_of
from mlflow_flywheel.pipelines.generation_status import GenerationStatus, read_status

SUPPORT = Path(__file__).parents[1] / "support"


class Master:
    """One master process over a configuration that the test rewrites."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "late.json"
        self.diary = folder / "diary"
        self.status_file = folder / "late.status.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: set[int] = set()

    def configure(self, version: str, workers: int = 1) -> str:
        model = ModelRef(name="late", version=version, path=str(self.diary))
        WebConfig(
            deployment="late",
            model=model,
            spool="spool",
            status_file=str(self.status_file),
            port=0,
            workers=workers,
        ).save(self.config)
        return digest_of(self.config)

    def start(self, handover: str = "overlap", drain: float = 10.0, prepare: float = 30.0) -> None:
        command = [sys.executable, str(SUPPORT / "scripted_master.py"), str(self.config)]
        self.process = subprocess.Popen([*command, handover, str(drain), str(prepare)])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(20)

    def status(self) -> GenerationStatus:
        status = read_status(self.status_file)
        assert status is not None
        if status.serving is not None:
            self.seen.update(status.serving.pids)
        return status

    def serves(self, digest: str, workers: int = 1) -> GenerationStatus:
        def ready() -> GenerationStatus | None:
            status = self.status()
            there = status.serving is not None and status.serving.digest == digest and status.pending is None
            return status if there and status.serving and len(status.serving.pids) == workers else None

        return eventually(ready)

    def entries(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()] if self.diary.exists() else []

    def told(self, version: str, what: str) -> list[int]:
        return [int(pid) for name, pid, said in self.entries() if (name, said) == (version, what)]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path)
    yield master
    assert master.process is not None
    if master.process.poll() is None:
        children = psutil.Process(master.process.pid).children()
        master.process.kill()
        master.process.wait()
        for child in children:
            child.kill()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_workers_prepare_serve_and_drain_on_sigterm(master: Master) -> None:
    digest = master.configure("good-1", workers=3)
    master.start()
    status = master.serves(digest, workers=3)
    assert status.failed is None and status.serving is not None and status.serving.version == "good-1"
    assert sorted(status.serving.pids) == sorted(master.told("good-1", "serving"))
    master.signal(signal.SIGTERM)
    assert master.wait() == 0
    assert sorted(master.told("good-1", "leaves")) == sorted(status.serving.pids)
    assert master.status().serving is None
    assert not list(master.status_file.parent.glob("*generation-*"))


def test_sighup_without_a_change_does_nothing(master: Master) -> None:
    digest = master.configure("good-1")
    master.start()
    before = master.serves(digest)
    master.signal(signal.SIGHUP)
    master.signal(signal.SIGTERM)
    assert master.wait() == 0
    assert master.told("good-1", "prepared") == list(before.serving.pids if before.serving else ())


def test_overlap_serves_with_the_new_before_the_old_leaves(master: Master) -> None:
    first = master.configure("good-1", workers=2)
    master.start("overlap")
    old = master.serves(first, workers=2).serving
    second = master.configure("good-2", workers=3)
    master.signal(signal.SIGHUP)
    new = master.serves(second, workers=3).serving
    assert old and new and not set(old.pids) & set(new.pids) and new.version == "good-2"
    said = [(version, what) for version, _, what in master.entries()]
    last_start = max(i for i, entry in enumerate(said) if entry == ("good-2", "serving"))
    first_end = min(i for i, entry in enumerate(said) if entry == ("good-1", "leaves"))
    assert last_start < first_end
    assert all(gone(pid) for pid in old.pids)


def test_exclusive_lets_the_old_leave_before_the_new_begins(master: Master) -> None:
    first = master.configure("good-1", workers=2)
    master.start("exclusive")
    master.serves(first, workers=2)
    second = master.configure("good-2", workers=2)
    master.signal(signal.SIGHUP)
    master.serves(second, workers=2)
    said = [(version, what) for version, _, what in master.entries()]
    last_prepared = max(i for i, entry in enumerate(said) if entry == ("good-2", "prepared"))
    last_end = max(i for i, entry in enumerate(said) if entry == ("good-1", "leaves"))
    first_start = min(i for i, entry in enumerate(said) if entry == ("good-2", "serving"))
    assert last_prepared < last_end < first_start


@pytest.mark.parametrize(
    ("handover", "version", "reason"),
    [
        ("overlap", "unloadable", "the file of this model is not a model"),
        ("exclusive", "unloadable", "the file of this model is not a model"),
        ("overlap", "crashing", "SIGKILL"),
        ("exclusive", "hanging", "did not load its model within 1 s"),
    ],
)
def test_a_generation_that_cannot_be_prepared_leaves_the_old_one_serving(
    master: Master, handover: str, version: str, reason: str
) -> None:
    digest = master.configure("good-1")
    master.start(handover, prepare=1)
    old = master.serves(digest).serving
    bad = master.configure(version, workers=2)
    master.signal(signal.SIGHUP)
    failed = eventually(lambda: master.status().failed)
    assert failed.digest == bad and failed.version == version and reason in failed.error
    after = master.status()
    assert after.serving == old and after.pending is None
    assert master.told("good-1", "leaves") == []
    back = master.configure("good-3")
    master.signal(signal.SIGHUP)
    assert master.serves(back).failed is None


@pytest.mark.parametrize("version", ["unloadable", "crashing"])
def test_a_first_generation_that_cannot_load_ends_the_master(master: Master, version: str) -> None:
    digest = master.configure(version, workers=2)
    master.start()
    assert master.wait() == 1
    status = master.status()
    assert status.failed is not None and status.failed.digest == digest and status.serving is None


def test_a_configuration_that_is_not_valid_is_refused_while_serving(master: Master) -> None:
    digest = master.configure("good-1")
    master.start()
    master.serves(digest)
    master.config.write_text('{"deployment": "late", "colour": "red"}')
    master.signal(signal.SIGHUP)
    failed = eventually(lambda: master.status().failed)
    assert "colour" in failed.error and failed.digest == digest_of(master.config)
    assert master.serves(digest)


def test_a_killed_worker_is_replaced_from_its_own_configuration(master: Master) -> None:
    digest = master.configure("good-1", workers=2)
    master.start()
    serving = master.serves(digest, workers=2).serving
    assert serving is not None
    master.configure("good-2", workers=2)  # on disk, but nobody has asked for it
    os.kill(serving.pids[0], signal.SIGKILL)
    eventually(lambda: len(master.told("good-1", "serving")) == 3)
    after = master.serves(digest, workers=2).serving
    assert after and serving.pids[1] in after.pids and serving.pids[0] not in after.pids
    assert master.told("good-2", "prepared") == []


def test_a_worker_that_does_not_drain_is_killed(master: Master) -> None:
    first = master.configure("stubborn-1")
    master.start("exclusive", drain=0.5)
    old = master.serves(first).serving
    second = master.configure("good-2")
    master.signal(signal.SIGHUP)
    master.serves(second)
    assert old is not None and master.told("stubborn-1", "ignores") and gone(old.pids[0])


def test_the_newest_configuration_wins_over_one_still_preparing(master: Master) -> None:
    first = master.configure("good-1")
    master.start()
    master.serves(first)
    master.configure("hanging")
    master.signal(signal.SIGHUP)
    eventually(lambda: master.status().pending)
    third = master.configure("good-3")
    master.signal(signal.SIGHUP)
    assert master.serves(third).failed is None


def test_returning_to_the_serving_configuration_calls_off_the_pending_one(master: Master) -> None:
    first = master.configure("good-1")
    master.start()
    old = master.serves(first).serving
    master.configure("hanging")
    master.signal(signal.SIGHUP)
    eventually(lambda: master.status().pending)
    master.configure("good-1")
    master.signal(signal.SIGHUP)
    eventually(lambda: master.status().pending is None)
    assert master.status().serving == old


def test_a_committed_generation_keeps_trying_to_serve(master: Master) -> None:
    first = master.configure("good-1")
    master.start("exclusive")
    master.serves(first)
    away = Path(f"{master.diary}.broker-is-away")
    away.touch()
    second = master.configure("unservable-2")
    master.signal(signal.SIGHUP)
    assert "broker is away" in eventually(lambda: master.status().failed).error
    away.unlink()
    assert master.serves(second).failed is None


@pytest.mark.parametrize("version", ["good-1", "stubborn-1"])
def test_workers_end_when_the_master_is_killed(master: Master, version: str) -> None:
    digest = master.configure(version, workers=2)
    master.start(drain=0.5)
    serving = master.serves(digest, workers=2).serving
    assert serving is not None
    master.signal(signal.SIGKILL)
    master.wait()
    eventually(lambda: all(gone(pid) for pid in serving.pids))
    if version == "good-1":
        assert sorted(master.told("good-1", "leaves")) == sorted(serving.pids)

"""Web workers are killed, replaced and rolled over while callers ask: what was answered is in the table once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.models import ZooModel, log_model
from support.waiting import eventually
from support.web import Callers, WebService, running_web, web_config

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.inference_table import InferenceTable

BODY = {"dataframe_records": [{"a": 1.0, "b": 2.0, "c": 0.0, "d": 0.0}] * 3}


@pytest.fixture(scope="module")
def versions(tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> list[ZooModel]:
    """Return two versions of one model that answer differently: their predictions tell who answered."""
    folder = tmp_path_factory.mktemp("versions")
    return [log_model("total", tracking_uri, folder, name="web-faults", seed=seed) for seed in (0, 100)]


def _table_ids(service: WebService) -> list[str]:
    """Return what is in the table after everything in the spool is committed."""
    tables = str(service.folder / "tables")
    committer = Committer(service.folder / "spool", tables)

    def empty() -> bool:
        committer.commit_once()
        return not [
            path for kind in ("seg", "open") for path in (service.folder / "spool").rglob(f"*.{kind}")
        ]

    eventually(empty)
    table = InferenceTable.open(tables, "web-faults")
    return [str(name) for name in table.read(columns=["prediction_id"]).column("prediction_id").to_pylist()]


def test_a_killed_worker_is_back_and_every_answer_is_in_the_table(
    versions: list[ZooModel], tmp_path: Path
) -> None:
    with running_web(web_config(tmp_path, versions[0].ref, workers=2), tmp_path) as service:
        service.wait_serving("1", 2)
        with Callers(service.url, BODY, 8, pause=0.01) as callers:
            for _ in range(2):
                callers.answered(100)
                serving = service.status().serving
                assert serving is not None
                os.kill(serving.pids[0], signal.SIGKILL)
                eventually(lambda gone=serving.pids[0]: gone not in service.status().serving.pids)  # type: ignore[union-attr]
                callers.answered(50)  # the other worker goes on meanwhile
                service.wait_serving("1", 2)
        # only the callers whose very request was in the killed worker may have seen it
        assert len(callers.failures) <= 2 * callers.count
        assert not [
            failure for failure in callers.failures if failure.startswith("KeyError")
        ]  # refused, not cut off
    logged = _table_ids(service)
    assert len(logged) == len(set(logged))
    assert {name for answer in callers.answers for name in answer} <= set(logged)


def test_a_version_takes_over_without_a_failed_request(versions: list[ZooModel], tmp_path: Path) -> None:
    config = web_config(tmp_path, versions[0].ref, workers=2)
    with running_web(config, tmp_path) as service:
        service.wait_serving("1", 2)
        with Callers(service.url, BODY, 16, pause=0.1) as callers:  # the new workers need the processors too
            for version in (2, 1):
                callers.answered(100)
                old = service.status().serving
                config.model_copy(update={"model": versions[version - 1].ref}).save(service.config_file)
                service.process.send_signal(signal.SIGHUP)
                service.wait_serving(str(version), 2)
                assert old is not None
                eventually(lambda gone=old.pids: not any(psutil.pid_exists(pid) for pid in gone))
            callers.answered(100)
        assert callers.failures == []
        answered = {tuple(predictions) for predictions in callers.predictions}
        assert answered == {(3.0, 3.0, 3.0), (103.0, 103.0, 103.0)}  # both versions, never mixed
    logged = _table_ids(service)
    assert len(logged) == len(set(logged)) == 3 * len(callers.answers)


def test_workers_end_when_their_master_is_killed(
    zoo: Callable[[str], ZooModel], versions: list[ZooModel], tmp_path: Path
) -> None:
    with running_web(web_config(tmp_path, versions[0].ref, workers=2), tmp_path) as service:
        pids = service.wait_serving("1", 2).serving.pids  # type: ignore[union-attr]
        service.process.kill()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), timeout=60)

"""Writers and committers are killed at random points; what was acknowledged is in the table exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.cores import NAME, SCHEMA
from support.waiting import eventually

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.inference_table import InferenceTable

TESTS = Path(__file__).parents[1]
WRITER = """
import sys
from support.cores import NAME, SCHEMA, tiny_core, tiny_request
from mlflow_flywheel.pipelines.ids import stream_prediction_id
from mlflow_flywheel.pipelines.spool import SpoolLog
root, name, mode, durability = sys.argv[1:5]
log = SpoolLog(root, NAME, SCHEMA, "double", durability, segment_seconds=0.05)
core = tiny_core(log, deployment=name, mode=mode)
for entry in range(1_000_000):
    ids = [stream_prediction_id(name, 1, entry, -1)] if mode == "stream" else [f"{name}-{entry}"]
    core.score(tiny_request(1, ids))
    sys.stdout.write(ids[0] + "\\n")
    sys.stdout.flush()
"""
COMMITTER = """
import sys
from mlflow_flywheel.pipelines.committer import Committer
committer = Committer(sys.argv[1], sys.argv[2])
while True:
    committer.commit_once()
"""


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, env=environment, text=True
    )


class _Acknowledged:
    """Collects what a writer says it has acknowledged, while it lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.ids: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.ids.append(line.strip())

    def kill(self) -> list[str]:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._thread.join()
        return self.ids


@pytest.mark.parametrize(("mode", "durability"), [("web", "process"), ("stream", "power")])
def test_acknowledged_rows_are_in_the_table_exactly_once(tmp_path: Path, mode: str, durability: str) -> None:
    spool, tables = str(tmp_path / "spool"), str(tmp_path / "tables")
    rng = random.Random(7)
    acknowledged: set[str] = set()
    committer = _start(COMMITTER, spool, tables)
    try:
        for round_number in range(3):
            # stream writers start over: everything before is delivered again, as after a crash before the ack
            names = [f"{mode}{i}" if mode == "stream" else f"{mode}{i}-{round_number}" for i in range(2)]
            writers = [_Acknowledged(_start(WRITER, spool, name, mode, durability)) for name in names]
            enough = rng.randrange(50, 400)
            eventually(lambda w=writers, n=enough: all(len(one.ids) > n for one in w), what="writers write")
            committer.send_signal(signal.SIGKILL)
            committer.wait()
            committer = _start(COMMITTER, spool, tables)
            for writer in writers:
                acknowledged.update(writer.kill())
    finally:
        committer.kill()
        committer.wait()
    final = Committer(spool, tables)
    while final.commit_once().segments:
        pass
    table = InferenceTable.open(tables, NAME)
    ids = table.read(columns=["prediction_id"]).column("prediction_id").to_pylist()
    assert len(ids) == len(set(ids))
    assert acknowledged <= set(ids)
    assert len(acknowledged) > 300
    assert not list((tmp_path / "spool").rglob("*.seg")) + list((tmp_path / "spool").rglob("*.open"))
    assert [f.name for f in table.features().features] == [f.name for f in SCHEMA.features]

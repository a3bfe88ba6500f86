"""A watch over label folders that is killed while it takes a file, or before it remembers that it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.plugin import label_folders
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.label_folders import FolderWatch, watch_folder

TESTS = Path(__file__).parent.parent
ROWS = 200_000


def test_each_label_once_whenever_the_watch_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_folders, "_SHARE", 1e9)  # look again at once
    home = Home(tmp_path / "home").create()
    table = InferenceTable.open(home.tables, "shop")
    table.ensure(FeatureSchema([Feature("a", "double")]), "double")
    landed = tmp_path / "landed"
    landed.mkdir()
    watch_folder(home, "shop", str(landed), "fail")
    (landed / "a.csv").write_text("prediction_id,label\n" + "".join(f"{i},1\n" for i in range(ROWS)))
    for point, taken in (("reading", 0), ("committed", ROWS)):
        command = [sys.executable, "-m", "support.killed_labels", str(home.path), point]
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert table.feedback.dataset().count_rows() == taken
    watch = FolderWatch(home)
    for _ in range(2):
        watch.look()
    assert watch.views()[0]["files"] == 1
    ids = table.feedback.dataset().to_table()["prediction_id"].to_pylist()
    assert len(ids) == len(set(ids)) == ROWS
    assert len(list(Path(table.feedback.uri).rglob("*.parquet"))) == 1, "the try that died left a file behind"

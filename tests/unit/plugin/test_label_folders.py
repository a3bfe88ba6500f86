"""Folders in which labels arrive: what is taken, when, and what becomes of what does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.plugin import label_folders
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.label_folders import FolderWatch, stop_watching, watch_folder, watched_folders

MODEL = "shop one"


@pytest.fixture(autouse=True)
def _without_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_folders, "_SHARE", 1e9)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home").create()
    table_of(made).ensure(FeatureSchema([Feature("a", "double")]), "double")
    return made


@pytest.fixture
def landed(tmp_path: Path) -> Path:
    folder = tmp_path / "landed"
    folder.mkdir()
    return folder


def table_of(home: Home) -> InferenceTable:
    return InferenceTable.open(home.tables, MODEL)


def labels(home: Home) -> list[str]:
    return sorted(table_of(home).feedback.dataset().to_table()["prediction_id"].to_pylist())


def give(folder: Path, name: str, *ids: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("prediction_id,label\n" + "".join(f"{each},1\n" for each in ids))
    return path


def test_what_is_complete_is_taken_once_also_by_the_next_daemon(home: Home, landed: Path) -> None:
    watch_folder(home, MODEL, str(landed), "fail")
    give(landed, "a.csv", "a")
    give(landed, "2024/b.csv", "b")
    for name in (
        ".hidden.csv",
        "_unfinished.csv",
        "c.csv.tmp",
        "c.csv.part",
        "_temporary/c.csv",
        "notes.txt",
    ):
        give(landed, name, "never")
    watch = FolderWatch(home)
    watch.look()
    assert labels(home) == []  # whether they still grow shows at the second look
    with (landed / "a.csv").open("a") as writer:
        writer.write("a2,1\n")
    watch.look()
    assert labels(home) == ["b"]
    watch.look()
    assert labels(home) == ["a", "a2", "b"]
    (view,) = watch.views()
    assert (view["files"], view["accepted"], view["files_set_aside"]) == (2, 3, 0)
    later = FolderWatch(home)
    (landed / "a.csv").rename(landed / "moved.csv")  # the same bytes under another name
    later.look()
    later.look()
    assert labels(home) == ["a", "a2", "b"]
    assert (later.views()[0]["files"], later.views()[0]["accepted"]) == (3, 3)


def test_a_file_that_does_not_fit_stops_no_other_and_is_tried_again_when_it_changes(
    home: Home, landed: Path
) -> None:
    watch_folder(home, MODEL, str(landed), "fail")
    bad = landed / "a.csv"
    bad.write_text("prediction_id,label\na,perhaps\n")
    (landed / "b.parquet").write_text("no Parquet")
    give(landed, "c.csv", "c")
    watch = FolderWatch(home)
    for _ in range(3):
        watch.look()
    assert labels(home) == ["c"]
    (view,) = watch.views()
    assert view["files_set_aside"] == 2
    reasons = {Path(each["file"]).name: each["reason"] for each in view["set_aside"]}
    assert "line 2: label must be a number" in reasons["a.csv"] and "cannot be read" in reasons["b.parquet"]
    give(landed, "a.csv", "a")
    os.utime(bad, ns=(0, 0))
    for _ in range(2):
        watch.look()
    assert labels(home) == ["a", "c"]
    assert watch.views()[0]["files_set_aside"] == 1


def test_rows_that_are_none_are_set_aside_where_that_is_asked_for(home: Home, landed: Path) -> None:
    watch_folder(home, MODEL, str(landed), "fail")
    watch_folder(home, MODEL, str(landed), "skip")  # the later word counts
    give(landed, "a.csv", "a", "")
    watch = FolderWatch(home)
    for _ in range(2):
        watch.look()
    assert labels(home) == ["a"]
    (view,) = watch.views()
    (aside,) = view["set_aside"]
    assert (view["rejected"], aside["reason"]) == (1, None)
    assert "give prediction_id or client_request_id" in Path(aside["rejects"]).read_text()


def test_what_may_pass_is_tried_again(home: Home, landed: Path) -> None:
    """A table that is away, and a folder that is, keep no other folder waiting."""
    other = landed.parent / "other"
    other.mkdir()
    watch_folder(home, MODEL, str(other), "fail")
    watch_folder(home, MODEL, str(landed), "fail")
    other.rename(landed.parent / "gone")
    give(landed, "a.csv", "a")
    table = Path(table_of(home).feedback.uri)
    table.rename(table.with_name("away"))
    watch = FolderWatch(home)
    for _ in range(3):
        with pytest.raises(FlywheelError, match="does not exist"):
            watch.look()
    table.with_name("away").rename(table)
    (landed.parent / "gone").rename(other)
    watch.look()
    assert labels(home) == ["a"]


def test_a_folder_is_watched_until_it_is_not(home: Home, landed: Path) -> None:
    watch_folder(home, MODEL, f"{landed}/", "fail")
    watch = FolderWatch(home)
    watch.look()
    assert [each.folder for each in watched_folders(home)] == [str(landed)]
    with pytest.raises(NotFound, match=f"watched: {landed}"):
        stop_watching(home, MODEL, str(landed.parent))
    stop_watching(home, MODEL, str(landed))
    give(landed, "a.csv", "a")
    for _ in range(3):
        watch.look()
    assert watch.views() == [] and labels(home) == []


@pytest.mark.parametrize("folder", ["nowhere", "s3://bucket/labels"])
def test_only_folders_of_this_machine_are_watched(home: Home, folder: str) -> None:
    with pytest.raises(BadInput, match=folder):
        watch_folder(home, MODEL, folder, "fail")
    assert watched_folders(home) == []

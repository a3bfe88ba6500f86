"""Somebody's own retraining code: what of it is run, with which parameters, and whether it is what it was."""

from __future__ import annotations

from pathlib import Path

import git
import pytest

from mlflow_flywheel.pipelines.code_hash import code_hash
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.pipelines.own_code import ProjectSpec
from mlflow_flywheel.plugin.own_project import OUR_PROJECT, find_code

PROJECT = """
name: late
entry_points:
  retrain:
    parameters:
      training_set: path
      seed: float
      epochs: {type: float, default: 1}
    command: "python train.py {training_set} {seed} {epochs}"
  blind:
    parameters: {data: path}
    command: "true"
"""
GIVEN = {"training_set": "/data/train.parquet", "champion": "/models/1", "seed": "0", "model": "m"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "us" / "late"
    folder.mkdir(parents=True)
    (folder / "MLproject").write_text(PROJECT)
    (folder / "train.py").write_text("print('first')\n")
    return folder


def committed(project: Path) -> git.Repo:
    """Make a repository of the folder above the project, with one commit."""
    repository = git.Repo.init(project.parent)
    with repository.config_writer() as config:
        config.set_value("user", "name", "us").set_value("user", "email", "us@example.org")
    repository.git.add(".")
    repository.git.commit("-m", "first")
    return repository


def test_a_project_gets_what_its_entry_point_declares_and_runs_where_it_is(
    project: Path, tmp_path: Path
) -> None:
    spec = ProjectSpec(uri=str(project), parameters={"epochs": "20"})
    found = find_code(spec, GIVEN, tmp_path / "work")
    assert (found.launch.uri, found.launch.entry_point, found.launch.env_manager) == (
        str(project),
        "retrain",
        "local",
    )
    assert found.launch.parameters == {"training_set": "/data/train.parquet", "seed": "0", "epochs": "20"}
    assert found.spec.version == "" and found.spec.code_hash == code_hash(project)
    script = find_code(ProjectSpec(uri=str(project), entry_point="train.py"), GIVEN, tmp_path / "work")
    assert script.launch.parameters == {"training_set": "/data/train.parquet"}


def test_committed_code_is_checked_out_again_and_the_folder_stays_as_it_is(
    project: Path, tmp_path: Path
) -> None:
    repository = committed(project)
    first = find_code(ProjectSpec(uri=str(project)), GIVEN, tmp_path / "work").spec
    assert first.version == repository.head.commit.hexsha and first.code_hash
    (project / "train.py").write_text("print('second')\n")
    changed = find_code(ProjectSpec(uri=str(project)), GIVEN, tmp_path / "work").spec
    assert changed.version == "" and changed.code_hash not in ("", first.code_hash)
    repository.git.commit("-am", "second")
    again = find_code(first, GIVEN, tmp_path / "again")
    assert again.spec == first and Path(again.launch.uri).is_relative_to(tmp_path / "again")
    assert (Path(again.launch.uri) / "train.py").read_text() == "print('first')\n"
    assert (project / "train.py").read_text() == "print('second')\n"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"uri": "/nowhere"}, NotFound, "the project folder '/nowhere' does not exist"),
        ({"entry_point": "retrian"}, BadInput, "set loop.retrain_entry_point"),
        (
            {"entry_point": "blind"},
            BadInput,
            "has no parameter 'training_set'; declare it in MLproject; it has: data",
        ),
        ({"parameters": {"epoch": "2"}}, BadInput, "has no parameter 'epoch' (did you mean 'epochs'?)"),
        ({"version": "v2"}, BadInput, "is in no git repository, so it has no version 'v2'"),
        ({"environment": "uv"}, BadInput, "retrain_environment=uv needs the program 'uv'"),
        ({"environment": "virtualenv"}, BadInput, "needs the program 'pyenv'"),
        ({"uri": "no_such_package.late:refit"}, NotFound, "there is no module 'no_such_package'"),
    ],
)
def test_code_that_cannot_be_run_is_an_error_in_words(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    error: type[FlywheelError],
    said: str,
) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(error) as raised:
        find_code(ProjectSpec.model_validate({"uri": str(project), **changes}), GIVEN, tmp_path / "work")
    assert said in raised.value.message


def test_a_function_is_told_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shop_models"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('looking does not import')")
    (package / "late.py").write_text("def refit(training_set): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ProjectSpec(uri="shop_models.late:refit", parameters={"depth": "3"})
    found = find_code(spec, GIVEN, tmp_path / "work")
    assert (found.launch.uri, found.launch.entry_point) == (OUR_PROJECT, "function")
    assert (
        found.launch.parameters["function"] == spec.uri and '"depth": "3"' in found.launch.parameters["given"]
    )
    (package / "late.py").write_text("def refit(training_set): return 1")
    assert find_code(spec, GIVEN, tmp_path / "work").spec.code_hash not in ("", found.spec.code_hash)

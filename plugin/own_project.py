"""Somebody's own retraining code: brought here, looked at before it is run, and told from other code by its hash.

The one import of GitPython, which MLflow fetches projects with.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow_flywheel.pipelines
from mlflow_flywheel.pipelines.code_hash import code_hash
from mlflow_flywheel.pipelines.errors import BadInput, NotFound, nearest
from mlflow_flywheel.pipelines.own_code import ProjectSpec

from .project_run import Launch

if TYPE_CHECKING:
    from git import Repo
    from mlflow.projects._project_spec import EntryPoint

OUR_PROJECT = str(Path(mlflow_flywheel.pipelines.__file__).parent)
TRAINING_SET = "training_set"
_PROGRAMS = {
    "uv": ("uv", "pip install uv"),
    "virtualenv": ("pyenv", "see https://github.com/pyenv/pyenv, or use uv"),
}
_SCRIPTS = (".py", ".sh")


@dataclass(frozen=True)
class FoundCode:
    """Code that is here and can be run; `spec` says which it is, by commit and hash, as far as anybody can."""

    launch: Launch
    spec: ProjectSpec


def find_code(spec: ProjectSpec, given: Mapping[str, str], work: Path) -> FoundCode:
    """Bring a project or function here, in a folder under `work` when it is elsewhere, and say how to run it.

    Of what is `given` it gets what it takes; it must take `training_set`. Raises NotFound for code that is not there,
    BadInput for a project that cannot be run like this.
    """
    if spec.is_function:
        return _function(spec, given)
    program, remedy = _PROGRAMS.get(spec.environment, ("", ""))
    if program and shutil.which(program) is None:
        raise BadInput(
            f"retrain_environment={spec.environment} needs the program {program!r}, which is not on PATH; {remedy}"
        )
    folder = _fetched(spec, work)
    entry = _entry_point(spec, folder)
    version, digest = _state(folder)
    launch = Launch(str(folder), _taken_by(entry, spec, given), spec.entry_point, spec.environment)
    return FoundCode(launch, spec.model_copy(update={"version": version, "code_hash": digest}))


def _function(spec: ProjectSpec, given: Mapping[str, str]) -> FoundCode:
    package = spec.uri.partition(":")[0].partition(".")[0]
    importlib.invalidate_caches()
    found = importlib.util.find_spec(package)
    if found is None:
        raise NotFound(
            f"there is no module {package!r} of {spec.uri!r}; install it beside mlflow-flywheel, where the daemon runs"
        )
    place = next(iter(found.submodule_search_locations or ()), found.origin if found.has_location else None)
    digest = code_hash(Path(place)) if place is not None else ""
    arguments = json.dumps({"given": dict(given), "own": spec.parameters})
    launch = Launch(OUR_PROJECT, {"function": spec.uri, "given": arguments}, "function")
    return FoundCode(launch, spec.model_copy(update={"code_hash": digest}))


def _fetched(spec: ProjectSpec, work: Path) -> Path:
    """Return the project's folder: a local one where it is, but for a version of it, which is cloned."""
    import git
    from mlflow.exceptions import MlflowException
    from mlflow.projects.utils import _fetch_project

    place, _, inside = spec.uri.removeprefix("file://").partition("#")
    local = place.startswith("/") and not place.endswith(".zip")
    if local and not Path(place).is_dir():
        raise NotFound(f"the project folder {place!r} does not exist")
    try:
        if local and spec.version:
            return _cloned(Path(place), spec.version, work) / inside
        with _temporary_files_in(work):
            fetched = _fetch_project(spec.uri, spec.version or None)  # type: ignore[no-untyped-call]
    except (MlflowException, git.exc.GitError, OSError) as error:
        said = getattr(error, "message", "") or str(error)
        raise BadInput(f"the project {spec.uri!r} cannot be used: {said}") from error
    return Path(fetched)


def _cloned(folder: Path, version: str, work: Path) -> Path:
    """Clone the repository that a folder is in, to leave the folder itself as it is, and check a version out."""
    from git import Repo

    repository = _repository(folder)
    if repository is None:
        raise BadInput(
            f"the project folder {str(folder)!r} is in no git repository, so it has no version {version!r}; set "
            "loop.retrain_version="
        )
    root = Path(str(repository.working_tree_dir))
    copy = Repo.clone_from(str(root), work / "project")
    copy.git.checkout(version)
    copy.git.submodule("update", "--init", "--recursive")
    return Path(str(copy.working_tree_dir)) / folder.resolve().relative_to(root.resolve())


def _entry_point(spec: ProjectSpec, folder: Path) -> EntryPoint:
    from mlflow.exceptions import MlflowException
    from mlflow.projects.utils import load_project

    try:
        project = load_project(folder)  # type: ignore[no-untyped-call]
        entry: EntryPoint = project.get_entry_point(spec.entry_point)
    except MlflowException as error:
        raise BadInput(
            f"the project {spec.uri!r} cannot be used: {error.message}; set loop.retrain_entry_point"
        ) from error
    if project.docker_env:
        raise BadInput(
            f"the project {spec.uri!r} runs in Docker (docker_env), where the training set's file is not; give it a "
            "python_env"
        )
    return entry


def _taken_by(entry: EntryPoint, spec: ProjectSpec, given: Mapping[str, str]) -> dict[str, str]:
    """Return an entry point's parameters; what it does not declare would be put behind its command."""
    declared = entry.parameters
    if not declared and spec.entry_point.endswith(_SCRIPTS):
        return {TRAINING_SET: given[TRAINING_SET], **spec.parameters}
    for name in (TRAINING_SET, *spec.parameters):
        if name not in declared:
            raise BadInput(
                f"entry point {spec.entry_point!r} of {spec.uri!r} has no parameter {name!r}{nearest(name, declared)}; "
                f"declare it in MLproject; it has: {', '.join(declared) or 'none'}"
            )
    return {name: value for name, value in given.items() if name in declared} | spec.parameters


def _state(folder: Path) -> tuple[str, str]:
    """Return the commit that a folder is at, when it is as committed, and the hash of its files.

    Of a repository these are the ones that git knows: a run may have left others.
    """
    repository = _repository(folder)
    if repository is None:
        return "", code_hash(folder)
    root = Path(str(repository.working_tree_dir))
    names = repository.git.ls_files("-z", "--", str(folder)).split("\0")
    files = [root / name for name in sorted(filter(None, names)) if (root / name).is_file()]
    if not files:
        return "", code_hash(folder)
    dirty = repository.is_dirty(untracked_files=True, path=str(folder))
    return "" if dirty else repository.head.commit.hexsha, code_hash(root, files)


def _repository(folder: Path) -> Repo | None:
    import git

    try:
        repository = git.Repo(folder, search_parent_directories=True)
    except git.exc.GitError:
        return None
    return repository if repository.head.is_valid() else None


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let MLflow clone into this folder, which goes with the attempt: it makes temporary ones and leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before

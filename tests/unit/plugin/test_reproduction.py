"""When a retraining that was done again counts as the same, and what an attempt that was killed left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_flywheel.pipelines.lineage import Lineage
from mlflow_flywheel.pipelines.own_code import ProjectSpec
from mlflow_flywheel.plugin.release import GATE_TAG
from mlflow_flywheel.plugin.reproduction import Reproduction
from mlflow_flywheel.plugin.retraining import fail_run, made_before
from mlflow_flywheel.plugin.training import versions


def again(
    project: ProjectSpec | None = None, environment: dict[str, str] | None = None, **found: Any
) -> Reproduction:
    lineage = Lineage.model_construct(project=project, environment=environment or {})
    values = {"metrics": {"holdout_log_loss": (0.5, 0.5 + 1e-12)}, **found}
    return Reproduction("then", "now", lineage, **values)


def test_it_is_the_same_with_the_same_metrics_and_the_same_window() -> None:
    assert again().equal
    assert again(window=("30d", "30d")).equal and not again(window=("30d", "all")).equal
    for metrics in ({}, {"holdout_auc": (0.5, None)}, {"holdout_auc": (0.5, 0.501)}):
        assert not again(metrics=metrics).equal


@pytest.mark.parametrize(
    ("code", "other"), [(("a1", "a1"), False), (("a1", "b2"), True), (("", ""), True), (("a1", ""), True)]
)
def test_other_code_of_the_users_own_is_told(code: tuple[str, str], other: bool) -> None:
    assert again(ProjectSpec(uri="/srv/late"), code=code).other_code is other
    assert not again(code=code).other_code, "ours comes with the package"


def test_other_versions_of_what_trains_are_told() -> None:
    now = versions()
    then = {**now, "numpy": "1.0"}
    assert again(environment=then).other_versions == {"numpy": ("1.0", now["numpy"])}
    assert again(environment=now).other_versions == {} == again().other_versions


class Client:
    """Knows one run, and the versions that came out of it."""

    def __init__(self, status: str, *versions: SimpleNamespace) -> None:
        self.status = status
        self._versions = versions

    def search_model_versions(self, query: str) -> list[SimpleNamespace]:
        return list(self._versions)

    def get_model_version(self, name: str, version: str) -> SimpleNamespace:
        return next(v for v in self._versions if (v.name, v.version) == (name, version))

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(status=self.status))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


def test_only_a_version_that_the_gate_saw_is_taken_up_again() -> None:
    """What somebody's own code registered by itself before it was killed is none."""
    bare = SimpleNamespace(name="m", version="4", tags={})
    other = SimpleNamespace(name="n", version="1", tags={GATE_TAG: "{}"})
    judged = SimpleNamespace(name="m", version="5", tags={GATE_TAG: "{}"})
    cut = Client("RUNNING", bare, other)
    assert made_before(cut, "m", "run") is None and cut.status == "KILLED"  # type: ignore[arg-type]
    done = Client("FINISHED", bare, other, judged)
    assert made_before(done, "m", "run") is judged and done.status == "FINISHED"  # type: ignore[arg-type,comparison-overlap]


@pytest.mark.parametrize(
    ("before", "after"), [("FINISHED", "FAILED"), ("RUNNING", "FAILED"), ("KILLED", "KILLED")]
)
def test_a_run_that_brought_nothing_is_failed_unless_it_was_killed(before: str, after: str) -> None:
    client = Client(before)
    fail_run(client, "run")  # type: ignore[arg-type]
    assert client.status == after

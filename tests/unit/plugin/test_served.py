"""A master that is started anew comes back as it was when it cannot serve what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.web import web_config

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.modes.served import restart_master
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.runners.base import ProcessSpec, ProcessStatus
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner


@dataclass
class DiesAtOnce(SupervisorRunner):
    """A runner whose processes end by themselves; it notes which configuration each was started with."""

    home: Home
    done: list[str] = field(default_factory=list)

    def start(self, spec: ProcessSpec) -> None:
        self.done.append(Path(spec.command[-1]).read_text())

    def stop(self, name: str) -> None:
        self.done.append(f"stop {name}")

    def status(self, name: str | None = None) -> list[ProcessStatus]:
        return [ProcessStatus(str(name), "exited" if self.done else "running", None, 0.0, None)]


def test_the_old_configuration_is_started_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    runner = DiesAtOnce(home)
    context = Context(home, Records(home.database_url), runner)
    old, new = (web_config(tmp_path, ModelRef(name="m", version=version, path="")) for version in "12")
    file = home.config_file(old.deployment)
    old.save(file)
    before = file.read_text()
    with pytest.raises(ModelError, match="ended by itself"):
        restart_master(context, new, "module", 1.0)
    stop, started, again, restored = runner.done
    assert stop == again == f"stop deployment-{old.deployment}"
    assert (restored, file.read_text()) == (before, before) and started != before
    context.records.close()

"""Deployments that come, change and go on a topic under load: the first one on it is none the wiser."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.compute
from click.testing import CliRunner
from mlflow.deployments import get_deploy_client
from support.models import ZooModel, log_model
from support.stream_load import Load, goes_on, handled, tally_of
from support.waiting import eventually

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.generation_status import read_status
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.plugin.cli import main as flywheel
from mlflow_flywheel.plugin.home import Home

RATE = 500
TOPIC = {"mode": "stream", "input_topic": "events"}


class Neighbour:
    """The deployment that was there first, and the load on its topic."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.config = load_config(StreamConfig, home.config_file("first"))
        self.load = Load(self, RATE)

    def processes(self) -> list[int]:
        """Return the pids of its worker and of the broker."""
        status = read_status(self.home.status_file("first"))
        assert status is not None and status.serving is not None
        said = CliRunner().invoke(flywheel, ["status", "--json", "--home", str(self.home.path)])
        pids = {process["name"]: process["pid"] for process in json.loads(said.output)["processes"]}
        return [*status.serving.pids, pids["broker"]]

    @contextmanager
    def undisturbed(self) -> Iterator[int]:
        """Check that it answers as the load comes while something else is done; gives what was handled before."""
        before, sent = handled(self), self.load.sent
        yield before
        # its own statistics are up to a second old
        assert handled(self) - before > (self.load.sent - sent) / 3 - RATE
        goes_on(self, self.load.sent)

    def leave_a_ghost(self) -> None:
        """Kill its worker with messages unread on its socket: the embedded broker keeps them for it until a restart."""
        worker = self.processes()[0]
        os.kill(worker, signal.SIGSTOP)
        sent = self.load.sent
        eventually(lambda: self.load.sent > sent + RATE)
        os.kill(worker, signal.SIGKILL)

    def events_of(self, name: str, model: ZooModel) -> pa.Table:
        """Return the rows of another deployment, by the number of their event."""
        table = InferenceTable.open(self.home.tables, model.ref.name).read(deployment=name)
        numbers = pa.compute.cast(table["client_request_id"], pa.int64())
        return table.select(["model_version"]).append_column("number", numbers).sort_by("number")


def test_deployments_come_change_and_go_while_the_first_answers(
    zoo: Callable[[str], ZooModel], tracking_uri: str, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    home = Home(tmp_path / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    assert client is not None
    other = log_model("regressor", tracking_uri, tmp_path / "models", name="many")
    newer = log_model("regressor", tracking_uri, tmp_path / "models", name="many", seed=1)
    try:
        client.create_deployment("first", zoo("total").uri, config=TOPIC)
        first = Neighbour(home)
        first.load.start()
        try:
            goes_on(first, RATE)
            processes = first.processes()
            with first.undisturbed() as before_latest:
                client.create_deployment("second", other.uri, config={**TOPIC, "start_position": "latest"})
            with first.undisturbed():
                client.create_deployment("third", zoo("classifier").uri, config=TOPIC)
            with first.undisturbed():
                client.update_deployment("second", newer.uri)
            with first.undisturbed():
                client.delete_deployment("second")
                client.delete_deployment("third")
            assert first.processes() == processes
            first.leave_a_ghost()
            # nobody but the daemon is there to restart the broker
            eventually(lambda: not set(first.processes()) & set(processes), 30, every=0.3)
            goes_on(first, first.load.sent)
        finally:
            confirmed = first.load.end()
        tally = tally_of(first, home.path, confirmed)
        assert tally.is_complete, tally

        second = eventually(lambda: first.events_of("second", other), 30)
        numbers = second["number"].to_pylist()
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[0] >= before_latest
        versions = second["model_version"].to_pylist()
        assert versions == sorted(versions) and set(versions) == {other.ref.version, newer.ref.version}
        third = first.events_of("third", zoo("classifier"))["number"].to_pylist()
        assert third == list(range(len(third))) and len(third) > numbers[0]
    finally:
        said = CliRunner().invoke(flywheel, ["down", "--home", str(home.path)])
        assert said.exit_code == 0, said.output

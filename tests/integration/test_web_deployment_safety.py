"""A protected web deployment by MLflow's door: its token is given by the shell, and is nowhere but in its private file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException
from support.certificates import make_certificate
from support.models import ZooModel

from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.operations import Operations

VARIABLE = "FLYWHEEL_TEST_TOKEN"
FIRST, SECOND = "first-token-8d1f0c", "second-token-77ab02"


@dataclass
class World:
    home: Home
    client: BaseDeploymentClient
    model: ZooModel

    def create(self, **config: Any) -> dict[str, Any]:
        return dict(self.client.create_deployment("safe", self.model.uri, config={"mode": "web", **config}))

    def update(self, **config: Any) -> dict[str, Any]:
        return dict(self.client.update_deployment("safe", config=config))

    def predictions(self) -> list[Any]:
        return list(self.client.predict("safe", self.model.rows.head(2))["predictions"])

    def config(self) -> WebConfig:
        return load_config(WebConfig, self.home.config_file("safe"))

    def status(self, token: str) -> int:
        url = self.client.get_deployment("safe")["url"]
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(
            f"{url}/metrics", headers=headers, verify=self.config().tls_cert, timeout=30
        ).status_code

    def holders(self, token: str) -> list[Path]:
        """Return the files of the home that hold the token."""
        files = [file for file in self.home.path.rglob("*") if file.is_file()]
        assert len(files) > 10
        return [file for file in files if token.encode() in file.read_bytes()]


@pytest.fixture
def world(
    zoo: Callable[[str], ZooModel], tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    import mlflow

    model = zoo("mixed")
    mlflow.set_tracking_uri(tracking_uri)
    monkeypatch.delenv(VARIABLE, raising=False)
    home = Home(tmp_path / "home")
    client = get_deploy_client(f"flywheel:{home.path}")
    assert client is not None
    try:
        yield World(home, client, model)
    finally:
        Context.open(home).runner.down()


def test_a_token_lives_in_its_private_file_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, _ = make_certificate(tmp_path)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"host": "0.0.0.0"}, "host=0.0.0.0 lets other machines ask.*auth_token_env=NAME.*insecure=true"),
        ({"auth_token_env": VARIABLE}, f"{VARIABLE} .*is not set; export it"),
        ({"auth_token_file": str(tmp_path / "none")}, "cannot be read: No such file"),
        ({"log_exclude": "carier"}, "log_exclude='carier' is no feature.*did you mean 'carrier'"),
        ({"tls_cert": cert}, "tls_cert needs tls_key too"),
    ]
    for config, said in refusals:
        with pytest.raises(MlflowException, match=said) as caught:
            world.create(**config)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
        assert world.client.list_deployments() == [] and not world.home.deployment("safe").exists()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, FIRST)
    safe = {
        "host": "0.0.0.0",
        "auth_token_env": VARIABLE,
        "tls_cert": "service.pem",
        "tls_key": "service.key",
    }
    view = world.create(**safe, access_log="true", log_exclude="temp")
    monkeypatch.delenv(VARIABLE)
    assert view["url"].startswith("https://127.0.0.1:") and view["auth"] == "token"
    assert FIRST not in str(view)
    assert len(world.predictions()) == 2
    assert [world.status(FIRST), world.status(SECOND)] == [200, 401]
    (file,) = world.holders(FIRST)
    assert file.parent == world.home.secrets("safe")
    modes = [stat.S_IMODE(os.stat(place).st_mode) for place in (file, file.parent, file.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]

    # another shell, without the variable and in another folder, changes something else
    monkeypatch.chdir("/")
    world.update(threads=2)
    assert len(world.predictions()) == 2 and world.holders(FIRST) == [file]

    # what the daemon has in its environment is not what a user says now
    monkeypatch.setenv(VARIABLE, SECOND)
    monkeypatch.setenv("FLYWHEEL_PROCESS", "daemon")
    operations = Operations.open(world.home)
    record = operations.context.records.update_deployment("safe", version="0")
    operations.roll_over(record.name, world.model.ref.version)
    assert world.status(FIRST) == 200
    monkeypatch.delenv("FLYWHEEL_PROCESS")

    # a new token, and at the same time a renewed certificate
    make_certificate(tmp_path)
    world.update(auth_token_env=VARIABLE)
    assert [world.status(FIRST), world.status(SECOND)] == [401, 200]
    assert len(world.predictions()) == 2
    assert world.holders(FIRST) == [] and len(world.holders(SECOND)) == 1

    # what fails changes nothing
    with pytest.raises(MlflowException, match="host=0.0.0.0 lets other machines ask"):
        world.update(auth_token_env="")
    assert world.status(SECOND) == 200

    # the one change that its listener must be started anew for
    port = world.client.get_deployment("safe")["url"].rpartition(":")[2]
    world.update(tls_cert="", tls_key="")
    view = world.client.get_deployment("safe")
    assert view["url"] == f"http://127.0.0.1:{port}" and "answered nothing meanwhile" in view["message"]
    assert [world.status(FIRST), world.status(SECOND)] == [401, 200]

    world.client.delete_deployment("safe")
    assert world.holders(SECOND) == [] and not world.home.secrets("safe").exists()

"""The home: which folder a target means, what it is bound to, and that nothing is mixed silently."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.plugin.home import Home, absolute_uri, without_password


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLYWHEEL_HOME", "FLYWHEEL_DATABASE_URL", "FLYWHEEL_TABLES"):
        monkeypatch.delenv(name, raising=False)


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Home.from_target(f"flywheel:{tmp_path}/home").path == tmp_path / "home"
    assert Home.from_target("flywheel:here").path == tmp_path / "here"  # the test runs in tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.from_target("flywheel").path == tmp_path / ".flywheel"
    assert Home.from_target("flywheel:").path == tmp_path / ".flywheel"
    assert Home.from_target("flywheel:~/mine").path == tmp_path / "mine"
    monkeypatch.setenv("FLYWHEEL_HOME", str(tmp_path / "set"))
    assert Home.from_target("flywheel").path == tmp_path / "set"
    assert Home.from_target(f"flywheel:{tmp_path}/home").path == tmp_path / "home"


@pytest.mark.parametrize("target", ["flywheel://host/x", "flywheel:///x", "sagemaker", "flywheels:/x", ""])
def test_targets_that_are_not_ours(target: str) -> None:
    with pytest.raises(
        BadInput, match=r"not one of ours; use 'flywheel' .* or 'flywheel:/some/folder'"
    ) as caught:
        Home.from_target(target)
    assert repr(target) in caught.value.message


def test_looking_at_a_home_makes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.tracking_uri is None and home.database_url and home.tables
    assert home.config_file("late-web").name == "config.json"
    assert not home.path.exists()


def test_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    home.create()
    for path in (home.path, home.logs, home.supervisor, home.deployments, home.path / "home.json"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="FLYWHEEL_HOME to a folder that you can write") as caught:
        Home(tmp_path / "file" / "home").create()
    assert str(tmp_path / "file" / "home") in caught.value.message


def test_a_home_is_bound_to_one_mlflow(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.bind("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert home.bind("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert Home(home.path).tracking_uri == "http://127.0.0.1:5000"
    with pytest.raises(BadInput) as caught:
        home.bind("http://other:5000")
    said = caught.value.message
    assert str(home.path) in said and "'http://127.0.0.1:5000'" in said and "'http://other:5000'" in said
    assert "MLFLOW_TRACKING_URI" in said and "flywheel up --tracking-uri http://other:5000" in said
    assert home.tracking_uri == "http://127.0.0.1:5000"
    assert home.bind("http://other:5000", rebind=True) == "http://other:5000"
    assert home.tracking_uri == "http://other:5000"


def test_no_password_in_messages(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.bind("https://ada:s3cret@mlflow.example")
    with pytest.raises(BadInput) as caught:
        home.bind("https://ada:0ther@mlflow.example/x")
    assert "s3cret" not in caught.value.message and "0ther" not in caught.value.message
    assert without_password("https://ada:s3cret@host:1/x") == "https://ada:***@host:1/x"
    assert without_password("https://ada@host/x") == "https://ada@host/x"


def test_tracking_uris_mean_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("sqlite:////var/mlflow.db") == "sqlite:////var/mlflow.db"
    assert absolute_uri("sqlite:///mlflow.db?timeout=5") == f"sqlite:///{tmp_path}/mlflow.db?timeout=5"
    assert absolute_uri("mlruns") == f"{tmp_path}/mlruns"
    assert absolute_uri("~/mlruns") == f"{tmp_path}/me/mlruns"
    assert absolute_uri("file:mlruns") == f"file://{tmp_path}/mlruns"
    assert absolute_uri("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert absolute_uri("databricks") == "databricks"


def test_database_and_tables_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_DATABASE_URL", "postgresql+psycopg://ada:s3cret@db/records")
    monkeypatch.setenv("FLYWHEEL_TABLES", "s3://bucket/tables")
    home = Home(tmp_path / "home").create()
    monkeypatch.delenv("FLYWHEEL_DATABASE_URL")
    monkeypatch.delenv("FLYWHEEL_TABLES")
    again = Home(home.path)
    assert again.database_url == "postgresql+psycopg://ada:s3cret@db/records"
    assert again.tables == "s3://bucket/tables"
    monkeypatch.setenv("FLYWHEEL_DATABASE_URL", "postgresql+psycopg://ada:0ther@elsewhere/records")
    with pytest.raises(BadInput, match="unset FLYWHEEL_DATABASE_URL or use another home") as caught:
        Home(home.path)
    assert "s3cret" not in caught.value.message and "0ther" not in caught.value.message


def test_a_home_without_settings_refuses_later_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home").create()
    assert home.database_url == f"sqlite:///{home.path}/flywheel.db"
    assert home.tables == str(home.path / "tables")
    monkeypatch.setenv("FLYWHEEL_TABLES", "/elsewhere")
    with pytest.raises(
        BadInput, match="keeps its tables in 'its own folder', but FLYWHEEL_TABLES is '/elsewhere'"
    ):
        Home(home.path)


def test_relative_settings_mean_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_DATABASE_URL", "sqlite:///records.db")
    monkeypatch.setenv("FLYWHEEL_TABLES", "tables")
    home = Home(tmp_path / "home").create()
    (tmp_path / "elsewhere").mkdir()
    assert Home(home.path).database_url == f"sqlite:///{tmp_path}/records.db"  # the same shell, again
    monkeypatch.delenv("FLYWHEEL_DATABASE_URL")
    monkeypatch.delenv("FLYWHEEL_TABLES")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Home(home.path).database_url == f"sqlite:///{tmp_path}/records.db"
    assert Home(home.path).tables == str(tmp_path / "tables")


def test_a_damaged_memory_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    (home.path / "home.json").write_text("{")
    with pytest.raises(BadInput, match=r"home\.json' is not valid JSON .*flywheel up --tracking-uri"):
        Home(home.path)


def test_a_binding_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TABLES", "/data/tables")
    home = Home(tmp_path / "home")
    home.bind("http://127.0.0.1:5000")
    memory = json.loads((home.path / "home.json").read_text())
    assert memory == {"database_url": None, "tables": "/data/tables", "tracking_uri": "http://127.0.0.1:5000"}


@pytest.fixture
def short() -> Iterator[Path]:
    """Return a temporary folder whose path leaves room for a socket's; pytest's own are long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_long_temporary_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 100)))
    assert Home(tmp_path / ("x" * 100)).socket().parent.parent == Path("/tmp")


def test_the_socket_is_in_the_home_or_in_a_private_folder(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short))
    near = Home("/h")
    assert near.socket() == Path("/h/supervisor/supervisor.sock")
    far, farther = Home(tmp_path / ("x" * 100)).create(), Home(tmp_path / ("y" * 100)).create()
    socket = far.make_socket_folder()
    assert socket == far.socket() != farther.socket()
    assert not farther.socket().parent.exists(), "a look makes nothing"
    assert len(os.fsencode(socket)) <= 92
    assert socket.parent.parent == short and stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    socket.parent.chmod(0o755)
    with pytest.raises(Unavailable, match="not a private folder of yours.*home with a shorter path"):
        far.socket()
    socket.parent.rmdir()
    socket.parent.symlink_to(tmp_path)
    with pytest.raises(Unavailable, match="not a private folder"):
        far.socket()


def test_a_shell_with_another_temporary_folder_finds_the_socket(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short))
    home = Home(tmp_path / ("x" * 100)).create()
    socket = home.make_socket_folder()
    socket.touch()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert home.socket() == socket
    home.remove_socket()
    assert not socket.parent.exists()
    home.remove_socket()

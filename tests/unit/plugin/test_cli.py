"""The command line: every command is there, and what goes wrong is one line and exit code 1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.records import Records

COMMANDS = [
    "up",
    "down",
    "status",
    "logs",
    "broker",
    "feedback",
    "monitor",
    "retrain",
    "promote",
    "reject",
    "rollback",
    "pause",
    "resume",
    "backtest",
    "reproduce",
    "batch",
    "loop",
    "scale",
    "replay",
    "dlq",
    "adjust",
    "cost",
    "doctor",
    "alerts",
    "webhook",
    "demo",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("FLYWHEEL_DATABASE_URL", "FLYWHEEL_TABLES", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLYWHEEL_HOME", str(tmp_path / "home"))
    return Home.default()


def flywheel(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def complaint(*arguments: str, code: int = 1) -> str:
    """Return the one line that a command ends with when it goes wrong."""
    result = flywheel(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    if code == 1:
        assert result.output.splitlines() == [line]
    return line


def deploy(home: Home, name: str, mode: str = "web") -> None:
    """Record a deployment as if it were served."""
    records = Records(home.create().database_url)
    records.add_deployment(
        name,
        model_uri="models:/flight-late@champion",
        model_name="flight-late",
        mode=mode,
        config={"mode": mode},
        flavor="sklearn",
        version="1",
        status="ready",
    )
    records.close()


def test_the_help_lists_every_command() -> None:
    said = flywheel("--help")
    assert said.exit_code == 0
    listed = re.findall(r"^  (\w+)  +\S", said.output.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS
    assert flywheel().exit_code in (0, 2)


@pytest.mark.parametrize(
    "name",
    [
        *COMMANDS,
        "batch run",
        "loop show",
        "loop set",
        "broker start",
        "broker stop",
        "broker status",
        "dlq list",
        "dlq replay",
        "dlq purge",
        "adjust status",
        "adjust reset",
        "alerts add",
        "alerts list",
        "alerts remove",
        "alerts test",
        "webhook create",
        "webhook status",
        "webhook delete",
    ],
)
def test_every_command_has_its_own_help(name: str) -> None:
    said = flywheel(*name.split(), "--help")
    assert said.exit_code == 0
    assert f"Usage: main {name}" in said.output
    if name not in ("batch", "loop", "broker", "dlq", "adjust", "alerts", "webhook", "demo"):
        assert "--json" in said.output and "--home DIR" in said.output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("statsu", "status"), ("feedbak", "feedback"), ("montior", "monitor"), ("dwon", "down")],
)
def test_a_mistyped_command_is_told_the_nearest(typed: str, meant: str) -> None:
    assert f"no command {typed!r} (did you mean {meant!r}?); known: up, " in complaint(typed, code=2)


def test_an_unknown_command_is_told_all() -> None:
    assert "no command 'xyzzy'; known: up, down, status" in complaint("xyzzy", code=2)


def test_status_of_an_empty_home(home: Home) -> None:
    said = flywheel("status", "--json")
    assert said.exit_code == 0
    assert json.loads(said.output) == {
        "home": str(home.path),
        "tracking_uri": None,
        "metrics": None,
        "broker_disk": None,
        "label_folders": [],
        "trouble": {},
        "paused": {},
        "deployments": [],
        "processes": [],
    }
    assert "no deployments yet" in flywheel("status").output


def test_the_home_is_the_one_that_is_named(home: Home, tmp_path: Path) -> None:
    said = flywheel("status", "--json", "--home", str(tmp_path / "other"))
    assert json.loads(said.output)["home"] == str(tmp_path / "other")
    assert not home.path.exists()


def test_status_of_a_deployment_that_does_not_run(home: Home) -> None:
    deploy(home, "late-web")
    (found,) = json.loads(flywheel("status", "--json").output)["deployments"]
    assert (found["name"], found["mode"], found["version"], found["status"], found["predictions"]) == (
        "late-web",
        "web",
        "1",
        "stopped",
        0,
    )
    shown = flywheel("status").output
    assert re.search(r"late-web +web +flight-late@champion +1 +stopped +0", shown), shown


def test_down_of_a_home_where_nothing_runs() -> None:
    assert json.loads(flywheel("down", "--json").output)["stopped"] == []
    assert "nothing was running" in flywheel("down").output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("logs late-wbe", r"no log of 'late-wbe' \(did you mean 'late-web'\?\); known: late-web"),
        ("batch run late-wbe", r"'late-wbe' does not exist \(did you mean 'late-web'\?\)"),
        ("batch run late-web", r"'late-web' is a web deployment; only batch deployments have runs"),
        ("monitor fligth-late", r"'fligth-late' is neither a deployment .*did you mean 'flight-late'"),
        (
            "retrain xyzzy",
            r"'xyzzy' is neither a deployment nor a deployed model .*; known: flight-late, late-web",
        ),
        (
            "monitor flight-late --as-of yesterday",
            r"--as-of 'yesterday' is no time; give ISO 8601, such as 2013",
        ),
        ("feedback late-wbe labels.csv", r"did you mean 'late-web'"),
        ("feedback late-web labels.csv", r"model 'flight-late' has no inference table yet; deploy it first"),
        ("feedback late-web --watch nowhere", r"model 'flight-late' has no inference table yet"),
        ("feedback late-web --watch nowhere --stop", r"'.*nowhere' is not watched .*; watched: none"),
        ("loop show late-wbe", r"did you mean 'late-web'"),
        ("loop set late-web coldown=7d", r"'coldown' \(did you mean 'cooldown'\?\); known: "),
        ("loop set late-web cooldown=soon", r"cooldown='soon'"),
        ("loop set late-web cooldown", r"setting 'cooldown' has no value; write it as cooldown=value"),
    ],
)
def test_what_goes_wrong_is_one_line(home: Home, command: str, said: str) -> None:
    deploy(home, "late-web")
    assert re.search(said, complaint(*command.split()))


@pytest.mark.parametrize("options", ["", "labels.csv --watch folder", "labels.csv --stop"])
def test_labels_come_from_files_or_from_a_folder(options: str) -> None:
    assert "give FILEs, or --watch FOLDER" in complaint("feedback", "late-web", *options.split(), code=2)


def test_a_log_that_is_empty_and_one_with_lines(home: Home) -> None:
    deploy(home, "late-web")
    assert "is empty" in flywheel("logs", "late-web").output
    home.log_file("deployment-late-web").write_text("one\ntwo\nthree\n")
    assert flywheel("logs", "late-web", "-n", "2").output == "two\nthree\n"
    assert json.loads(flywheel("logs", "late-web", "--json").output)["lines"] == ["one", "two", "three"]
    assert complaint("logs", "late-web", "-n", "0", code=2)


def test_the_policy_is_set_key_by_key(home: Home) -> None:
    deploy(home, "late-web")
    said = flywheel("loop", "set", "late-web", "cooldown=12h", "retrain_on=labels", "--json")
    assert said.exit_code == 0, said.output
    shown = json.loads(said.output)
    assert shown["model"] == "flight-late"
    assert (shown["policy"]["cooldown"], shown["policy"]["retrain_on"]) == ("12h", ["labels"])
    assert flywheel("loop", "set", "flight-late", "min_rows=300").exit_code == 0
    policy = json.loads(flywheel("loop", "show", "flight-late", "--json").output)["policy"]
    assert (policy["cooldown"], policy["min_rows"]) == ("12h", 300)
    assert complaint("loop", "set", "flight-late", "min_rows=400", "coldown=1d")
    assert json.loads(flywheel("loop", "show", "flight-late", "--json").output)["policy"] == policy
    assert "no retraining within this time" in flywheel("loop", "show", "late-web").output


def test_a_home_of_another_database_is_one_line_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.create()
    monkeypatch.setenv("FLYWHEEL_DATABASE_URL", "sqlite:////elsewhere/records.db")
    assert "unset FLYWHEEL_DATABASE_URL or use another home" in complaint("status")


def test_a_home_that_cannot_be_made_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in complaint("status", "--home", str(tmp_path / "file" / "home"))


def test_what_a_stream_deployment_can_do_is_refused_for_others(home: Home) -> None:
    deploy(home, "late-web")
    deploy(home, "late-batch", "batch")
    assert "only stream deployments read messages" in complaint("dlq", "list", "late-web")
    assert "only stream deployments read messages" in complaint("dlq", "late-web", "purge")
    assert "only stream deployments read messages" in complaint("adjust", "late-web", "status")
    assert "only stream deployments read messages" in complaint("replay", "late-web", "--from", "2026-01-01")
    assert "batch deployment: its runs use all cores" in complaint("scale", "late-batch", "2")
    assert "did you mean 'late-web'?" in complaint("dlq", "replay", "late-wev")

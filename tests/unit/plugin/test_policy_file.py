"""A policy as a file: what is written is read back, and what does not fit is said with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.policy_file import read_policy_file, write_policy
from mlflow_flywheel.plugin.records import Records

ODD = {
    "retrain_on": "drift,labels",
    "floor": "auc>=0.6,log_loss<=0.7",
    "quiet_hours": "22:00-06:00,12:00-13:00",
    "timezone": "Europe/Berlin",
    "monitor_schedule": "*/5 * * * *",
    "probation": "0d",
    "monitors": "-drift",
    "training_windows": "30d,all",
    "recency_half_life": "14d",
    "retrain_parameters": "epochs=20,depth=3",
}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    monkeypatch.setenv("FLYWHEEL_HOME", str(tmp_path / "home"))
    opened = Records(Home.default().create().database_url)
    opened.add_deployment(
        "late-web",
        model_uri="models:/flight-late@champion",
        model_name="flight-late",
        mode="web",
        config={"mode": "web"},
        flavor="sklearn",
    )
    yield opened
    opened.close()


def flywheel(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("settings", [{}, ODD])
def test_what_is_written_is_read_back(tmp_path: Path, settings: dict[str, str]) -> None:
    file = tmp_path / "loop.yaml"
    policy = PolicySpec.parse(settings)
    file.write_text(write_policy('a "strange": name', policy), encoding="utf-8")
    again = read_policy_file(file)
    assert (again.model, again.policy) == ('a "strange": name', policy)


def test_a_file_is_shown_tried_and_applied(tmp_path: Path, records: Records) -> None:
    file = tmp_path / "loop.yaml"
    records.set_policy("flight-late", {"cooldown": "3d"})
    file.write_text("model: late-web\npolicy:\n  window: 14d\n  retrain_on: [drift]\n")
    tried = flywheel("loop", "apply", str(file), "--dry-run", "--json")
    assert tried.exit_code == 0, tried.output
    assert json.loads(tried.output) == {
        "model": "flight-late",
        "applied": False,
        "changes": {
            "window": {"before": "30d", "after": "14d"},
            "retrain_on": {"before": ["performance"], "after": ["drift"]},
            "cooldown": {"before": "3d", "after": "7d"},  # not in the file: its default
        },
    }
    assert records.policy("flight-late") == {"cooldown": "3d"}
    said = flywheel("loop", "apply", str(file)).output
    assert "window" in said and "14d" in said and "cooldown" in said and "min_rows" not in said
    assert records.policy("flight-late")["window"] == "14d"
    (action,) = records.actions("flight-late", kinds=("policy",))
    assert action.evidence["changes"]["window"] == {"before": "30d", "after": "14d"}
    assert (
        action.reason.startswith("window: 30d → 14d; ")
        and "(command line)" in action.evidence["requested_by"]
    )
    assert "nothing changes" in flywheel("loop", "apply", str(file)).output
    file.write_text(flywheel("loop", "show", "late-web", "--yaml").output)
    assert "nothing changes" in flywheel("loop", "apply", str(file)).output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m\npolicy:\n  windw: 3d\n", "unknown loop setting 'windw' (did you mean 'window'?)"),
        ("model: m\npolicy:\n  window: 30\n", "window='30': '30' is not a duration"),
        ("model: m\npolicy:\n  window: {days: 3}\n", "{'days': 3} is no value of a setting"),
        ("model: m\npolciy: {}\n", "unknown key 'polciy' (did you mean 'policy'?)"),
        ("model: m\ncooldown: 3d\n", "unknown key 'cooldown' (it belongs under policy:)"),
        ("model: m\npolicy:\n  window: 3d\n  window: 4d\n", "'window' stands there twice"),
        ("policy: {}\n", "must name its model"),
        ("model: m\npolicy: [a]\n", "settings under policy:"),
        ("model: [unclosed\n", "cannot be read"),
        ("", "it needs model: and policy:"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        read_policy_file(file)
    assert said in error.value.message and str(file) in error.value.message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="'flywheel loop show MODEL --yaml' writes one"):
        read_policy_file(Path("nowhere.yaml"))

"""A challenger on trial: what it did beside the champion decides, once its time is over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from support.versions import answered, classifier
from support.windows_of import START

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin import trial_period
from mlflow_flywheel.plugin.answer_records import Counter, Server
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.release import TRIAL_UNTIL
from mlflow_flywheel.plugin.trial_period import TrialEnd, trial_end
from mlflow_flywheel.plugin.usage_records import SLOT

UNTIL = START + timedelta(days=7)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(f"sqlite:///{tmp_path}/records.db")
    action = opened.add_action("m", "retrain", "labels", {}, START, "key")
    waiting = {"version": "2", "parent": "1", "status": "waiting", TRIAL_UNTIL: UNTIL.isoformat()}
    opened.update_action(action, "waiting", waiting)
    yield opened
    opened.close()


def ended(
    records: Records,
    challenger: Scorer | None,
    monkeypatch: pytest.MonkeyPatch,
    *,
    days: float = 7,
    in_force: str = "1",
    labels: int = 1000,
) -> TrialEnd | None:
    said = answered(challenger or classifier(2.0), 1000 if challenger is not None else 0)
    known = [*said["label"].to_pylist()[:labels], *[None] * (len(said) - labels)]
    said = said.set_column(said.column_names.index("label"), "label", pa.array(known, pa.float64()))
    monkeypatch.setattr(trial_period, "load_version", lambda home, model, version: challenger)
    monkeypatch.setattr(trial_period, "utc_now", lambda: utc_now() + timedelta(hours=1))
    look = SimpleNamespace(version=in_force, policy=PolicySpec.parse({}), load=lambda: classifier(2.0))
    table = SimpleNamespace(read=lambda **_: said)
    turn: Any = SimpleNamespace(
        home=None, records=records, model="m", as_of=START + timedelta(days=days), look=look, table=table
    )
    return trial_end(turn)


@pytest.mark.parametrize(("slope", "kind"), [(2.0, "promote"), (1.9, "promote"), (-2.0, "refuse")])
def test_labelled_rows_of_the_trial_decide(
    records: Records, monkeypatch: pytest.MonkeyPatch, slope: float, kind: str
) -> None:
    assert ended(records, classifier(slope), monkeypatch, days=6.9) is None
    found = ended(records, classifier(slope), monkeypatch)
    assert found is not None and (found.kind, found.version) == (kind, "2")
    assert "log loss" in found.reason and found.evidence["comparison"]["rows"] == 1000
    assert TRIAL_UNTIL not in found.outcome and found.outcome["trial"]["rows"] == 1000


def test_a_challenger_that_fails_is_refused(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, answers, failures in (("1", 900, 0), ("2", 0, 40)):
        for slot in range(2):
            counter = Counter(f"{version} {slot}", "", Server("web", START, "m", version), answers, failures)
            records.add_answers([counter], utc_now() + slot * SLOT)
    found = ended(records, classifier(2.0), monkeypatch)
    assert found is not None and found.kind == "refuse" and "the model failed 80 of 80 times" in found.reason


def test_where_nobody_tried_it_or_another_took_over_a_person_decides(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ended(records, None, monkeypatch)
    assert found is not None and found.kind == "wait" and "nobody tried version 2" in found.reason
    found = ended(records, classifier(2.0), monkeypatch, in_force="3")
    assert found is not None and "version 3 became champion meanwhile" in found.reason
    assert found.outcome["status"] == "waiting"


def test_without_labels_enough_the_gates_word_stands(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ended(records, classifier(2.0), monkeypatch, labels=199)
    assert (
        found is not None and found.kind == "promote" and "199 of them with a label: too few" in found.reason
    )

"""A version on probation goes for four reasons, each said in words and with its evidence; else it passes with all four."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.versions import answered, classifier
from support.windows_of import START

from mlflow_flywheel.monitors.decisions import Probation, Seen
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.pipelines.training_files import EVENT_TIME
from mlflow_flywheel.plugin import probation
from mlflow_flywheel.plugin.answer_records import Counter, Server
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.probation import Watch, watch
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.usage_records import SLOT

MONTH = timedelta(days=28)
POLICY = {"probation": "20d", "min_rows": "200"}


class Table:
    """An inference table in memory: what version 1 answered before START, and version 2 since."""

    model_name = "m"

    def __init__(self, versions: dict[str, pa.Table]) -> None:
        self._versions = versions

    def read(
        self, *, start: datetime, end: datetime, version: str, labelled: bool | None = None,
        columns: list[str] | None = None, **_: object,
    ) -> pa.Table:  # fmt: skip
        rows = self._versions[version]
        at = rows["event_time"]
        rows = rows.filter(
            pc.and_(pc.greater_equal(at, pa.scalar(start, at.type)), pc.less(at, pa.scalar(end, at.type)))
        )
        if labelled:
            rows = rows.filter(pc.is_valid(rows["label"]))
        return rows if columns is None else rows.select(columns)


@dataclass
class World:
    """Version 2 took over from version 1 at START; both are as good, quick and reliable, unless a test says otherwise."""

    records: Records
    home: Home
    new: Scorer = field(default_factory=lambda: classifier(2.0))
    old: Scorer = field(default_factory=lambda: classifier(2.0))
    labelled: bool = True
    took_us: int = 2000

    def rows(self, version: str) -> pa.Table:
        by, n = (self.old, 500) if version == "1" else (self.new, 2000)
        rows = answered(by, n, seed=5)
        if version == "1":
            rows = rows.set_column(0, "event_time", pc.subtract(rows["event_time"], pa.scalar(MONTH)))
        elif not self.labelled:
            rows = rows.set_column(rows.column_names.index("label"), "label", pa.nulls(n, pa.float64()))
        took = 2000 if version == "1" else self.took_us
        return rows.append_column("deployment", pa.array(["web"] * n)).append_column(
            "execution_duration_us", pa.array([took] * n, pa.int64())
        )

    def fails(self, version: str, answers: int, failures: int, at: datetime) -> None:
        server = Server("web", START, "m", version)
        for slot in range(2):
            counter = Counter(f"{version} {slot}", "", server, answers // 2, failures // 2)
            self.records.add_answers([counter], at + slot * SLOT)

    def look(self, days: float = 14, seen: Probation | None = None, **policy: str) -> Watch | None:
        client: Any = SimpleNamespace(get_model_version=lambda *_: SimpleNamespace(tags={}))
        table: Any = Table({version: self.rows(version) for version in ("1", "2")})
        spec = PolicySpec.parse(POLICY | policy)
        as_of = START + timedelta(days=days)
        return watch(self.home, self.records, client, spec, table, "2", lambda: self.new, seen, as_of)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    records = Records(f"sqlite:///{tmp_path}/records.db")
    records.add_move("promote", "m", "1", "2", "better", {"requested_by": "ada"}, START, "done")
    made = World(records, Home(tmp_path / "home"))
    names = {"feature.x": "x", "event_time": EVENT_TIME}

    def reference(*_: object) -> Reference:
        rows = answered(made.new, 1000, seed=99)
        return Reference(rows.rename_columns([names.get(name, name) for name in rows.column_names]))

    monkeypatch.setattr(probation, "load_reference", reference)
    monkeypatch.setattr(probation, "utc_now", lambda: utc_now() + timedelta(hours=1))
    monkeypatch.setattr(probation, "load_version", lambda home, model, version: made.old)
    yield made
    records.close()


def worse(watched: Watch | None) -> tuple[str, dict[str, Any]]:
    assert watched is not None and watched.kind == "worse" and watched.before == "1", watched
    assert watched.evidence is not None
    return watched.reason, watched.evidence


def test_a_version_that_loses_more_on_labelled_rows_goes(world: World) -> None:
    world.new = classifier(-2.0)
    reason, evidence = worse(world.look())
    assert reason.startswith("it is surely worse: log loss")
    assert evidence["comparison"]["worse"] and evidence["labelled_rows"] == 1000


def test_a_version_that_probably_loses_more_goes_before_labels_come(world: World) -> None:
    world.new, world.labelled = classifier(-2.0), False
    reason, evidence = worse(world.look())
    assert reason.startswith("it is probably worse: estimated log loss") and "1,000 rows" in reason
    assert evidence["estimate"]["high"] < -evidence["estimate"]["margin"] < 0
    # with labels enough these decide alone
    world.new, world.labelled = classifier(2.0), True
    watched = world.look()
    assert watched is not None and watched.kind == "goes_on" and watched.state.estimates.looks == 0


def test_a_version_that_fails_more_often_goes_also_when_it_answers_nothing(world: World) -> None:
    now = utc_now()
    world.fails("1", 5000, 10, now - timedelta(days=2))
    world.fails("2", 0, 40, now)
    world.labelled = False
    reason, evidence = worse(world.look(days=0.5))
    assert reason == (
        "it fails more often: web: the model failed 40 of 40 times (100.00%), the version before 10 of 5,010 (0.20%)"
    )
    assert evidence["failures"][0]["now"] == {"answered": 0, "failed": 40, "failing_slots": 2}
    off = PolicySpec.parse(POLICY | {"probation_errors": "1"})
    assert probation.is_failing(world.records, PolicySpec.parse(POLICY), "m", "2")
    assert not probation.is_failing(world.records, off, "m", "2")
    watched = world.look(days=0.5, probation_errors="1")
    assert watched is not None and watched.kind == "goes_on"


def test_a_version_that_takes_much_longer_goes(world: World) -> None:
    quick = world.new

    def slow(frame: pd.DataFrame, params: object) -> Any:
        np.linalg.svd(np.ones((150, 150)))
        return quick._call(frame, {})

    world.new = Scorer(quick.ref, quick.schema, slow, quick.classes, None, "double", None)
    assert world.look() is not None and world.look().kind == "goes_on"  # type: ignore[union-attr]
    world.took_us = 9000
    reason, evidence = worse(world.look())
    assert reason.startswith("its predictions are slow: web: 9.0 ms per prediction (median) against 2.0 ms; ")
    assert evidence["latency"] in reason


def test_a_version_that_is_as_good_passes_and_all_that_was_asked_is_said(world: World) -> None:
    now = utc_now()
    world.fails("1", 5000, 10, now - timedelta(days=2))
    world.fails("2", 3000, 6, now)
    going = world.look(days=10)
    assert going is not None and going.kind == "goes_on" and going.state.looks == 1
    ended = world.look(days=21, seen=going.state)
    assert ended is not None and ended.kind == "passed" and ended.evidence is not None
    for words in (
        "version 2 is not surely worse: log loss",
        "web: the model failed 6 of 3,006 times (0.20%)",
        "web: 2.0 ms per prediction (median) against 2.0 ms",
    ):
        assert words in ended.reason
    assert set(ended.evidence) >= {"comparison", "failures", "latency"}
    assert ended.state.failures == going.state.failures != Seen(), "no failure more than at the last look"


def test_without_labels_it_ends_unjudged_with_what_was_estimated(world: World) -> None:
    world.labelled = False
    watched = world.look(days=61)
    assert watched is not None and watched.kind == "unjudged"
    assert "it ended with 0 labelled rows" in watched.reason and "; estimated log loss" in watched.reason
    again = world.look(days=10, seen=Probation(promotion=1, estimates=Seen(looks=1, rows=700)))
    assert again is not None and again.state.estimates.looks == 1, "hardly more rows than at the last look"

"""What processes used: measured on real processes, counted once, whichever daemon read it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from mlflow_flywheel.plugin.metering import read_process
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.usage_records import SLOT, Reading, Usage, slot_of
from mlflow_flywheel.plugin.usage_rows import UsedRow

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
LONG_AGO, DAY = NOON - timedelta(days=30), timedelta(days=1)
BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(f"sqlite:///{tmp_path}/records.db")
    yield opened
    opened.close()


def reading(
    minutes: float, cpu: float, incarnation: str = "7:1", started: float = 0, gb: float = 1
) -> Reading:
    at, began = (NOON + timedelta(minutes=m) for m in (minutes, started))
    return Reading(incarnation, began, at, cpu, int(gb * 1e9))


def total(records: Records, process: str = "p") -> Usage:
    found = records.usage(NOON - DAY, NOON + DAY)
    return sum((used for (name, _), used in found.items() if name == process), Usage())


def test_what_was_used_between_two_readings_is_counted_once(records: Records) -> None:
    for minutes, cpu in (
        (1, 6.0),
        (2, 9.0),
        (2, 9.0),
    ):  # the last again: a second daemon, or the same once more
        records.add_reading("p", LONG_AGO, reading(minutes, cpu))
    assert total(records) == Usage(9.0, 120.0, 120.0)
    records.add_reading("p", LONG_AGO, reading(3, 1.0, "8:2", started=2.5))  # it was killed and is back
    assert total(records) == Usage(10.0, 150.0, 150.0)


def test_a_long_absence_is_spread_over_its_slots(records: Records) -> None:
    records.add_reading("p", LONG_AGO, reading(0.0001, 0.0))
    records.add_reading("p", LONG_AGO, reading(35, 70.0, gb=2))
    slots = records.usage_slots("p", LONG_AGO, NOON, NOON + DAY)
    assert [round(slot.cpu_seconds) for slot in slots] == [20, 20, 20, 10]
    assert [round(slot.up_seconds) for slot in slots] == [600, 600, 600, 300]
    assert sum(slot.gb_seconds for slot in slots) == pytest.approx(2 * 35 * 60, rel=1e-3)
    (inside,) = records.usage(NOON + SLOT, NOON + 2 * SLOT).values()
    assert inside.cpu_seconds == pytest.approx(20, rel=1e-3)


def test_a_namesake_that_was_deployed_anew_has_an_account_of_its_own(records: Records) -> None:
    records.add_reading("p", LONG_AGO, reading(1, 5.0))
    records.add_reading("p", NOON, reading(2, 3.0, "9:9", started=1.5))
    found = records.usage(NOON - DAY, NOON + DAY)
    assert {deployed: used.cpu_seconds for (_, deployed), used in found.items()} == {LONG_AGO: 5.0, NOON: 3.0}


def test_old_usage_is_forgotten(records: Records) -> None:
    records.add_reading("p", LONG_AGO, reading(1, 5.0))
    records.forget_old_usage(NOON + timedelta(days=399))
    assert total(records).cpu_seconds == 5.0
    assert records.used() == {("p", LONG_AGO): Usage(5.0, 60.0, 60.0)}
    records.add_reading("q", LONG_AGO, reading(1, 5.0))
    records.add_reading("q", LONG_AGO, reading(2 * 24 * 60, 6.0))
    records.forget_old_usage(NOON + timedelta(days=401))
    assert total(records) == Usage()
    ((kept, used),) = records.used().items()
    assert (kept, used.cpu_seconds) == (("q", LONG_AGO), 6.0), "what is counted never shrinks"


def test_the_sum_of_a_process_begins_with_what_was_counted_before_there_were_sums(records: Records) -> None:
    records.add_reading("p", LONG_AGO, reading(15, 5.0))
    with records._database.write() as session:
        session.execute(delete(UsedRow))
    records.add_reading("p", LONG_AGO, reading(16, 6.0))
    assert records.used() == {("p", LONG_AGO): Usage(6.0, 16 * 60.0, 16 * 60.0)}


@pytest.fixture(scope="module")
def shared_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    opened = Records(f"sqlite:///{tmp_path_factory.mktemp('usage')}/records.db")
    yield opened
    opened.close()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 50)), min_size=1, max_size=5))
def test_the_slots_add_up_to_what_was_read(shared_records: Records, steps: list[tuple[float, float]]) -> None:
    process = f"process-{uuid4()}"
    minutes = cpu = 0.0
    for pause, more in steps:
        minutes, cpu = minutes + pause, cpu + more
        shared_records.add_reading(process, LONG_AGO, reading(minutes, cpu))
    found, used = total(shared_records, process), shared_records.used()[process, LONG_AGO]
    assert vars(used) == pytest.approx(vars(found))
    assert found.cpu_seconds == pytest.approx(cpu)
    assert found.up_seconds == pytest.approx(minutes * 60)


def test_slots_begin_every_ten_minutes() -> None:
    assert slot_of(NOON + timedelta(minutes=19, seconds=59)) == NOON + timedelta(minutes=10)


def test_a_process_is_read_with_all_that_it_started() -> None:
    child = BURN.format(seconds=0.2)
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
        "print('waited', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"waited\n"
        found = read_process(process.pid)
        again = read_process(process.pid)
        process.stdin.close()
    assert found is not None and again is not None
    assert found.cpu_seconds >= 0.2  # of a child that has gone
    assert found.memory_bytes > 1_000_000
    assert found.started < found.read_at
    assert (again.incarnation, again.started) == (found.incarnation, found.started)
    assert again.cpu_seconds >= found.cpu_seconds
    assert read_process(process.pid) is None
    assert time.time() - found.started.timestamp() < 60

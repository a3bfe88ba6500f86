"""What waits in a batch deployment's input, seen from outside of its runs."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa

from mlflow_flywheel.pipelines.batch.inputs import find_inputs
from mlflow_flywheel.pipelines.batch.state import SeenInputs
from mlflow_flywheel.pipelines.batch.waiting import InputState, input_state
from mlflow_flywheel.pipelines.batch.watermark import Watermarks, to_json
from mlflow_flywheel.pipelines.delta import DeltaLog
from mlflow_flywheel.pipelines.times import utc_now

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


def put(folder: Path, name: str, written: datetime) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("a\n1\n")
    os.utime(path, (written.timestamp(), written.timestamp()))
    return path


def test_files_wait_until_a_run_has_scored_them(tmp_path: Path) -> None:
    folder, state = tmp_path / "in", tmp_path / "state"
    put(folder, "a.csv", NOON - 5 * HOUR)
    put(folder, "b.csv", NOON - 3 * HOUR)
    assert input_state(str(folder), state, NOON) == (found := input_state(f"{folder}/*.csv", state, NOON))
    assert found == InputState(NOON - 3 * HOUR, 2, NOON - 5 * HOUR)
    with closing(SeenInputs(state)) as seen:
        seen.add(find_inputs(str(folder / "a.csv"))[0])
        # a run is in the middle of its next line: nothing of it is touched
        with (state / "seen.jsonl").open("ab") as torn:
            torn.write(b'["/half')
        found = input_state(str(folder), state, NOON)
    assert found == InputState(NOON - 3 * HOUR, 1, NOON - 3 * HOUR)
    assert (state / "seen.jsonl").read_bytes().endswith(b'["/half')
    put(folder, "a.csv", NOON - HOUR)  # written again: another input
    assert input_state(str(folder), state, NOON) == InputState(NOON - HOUR, 2, NOON - 3 * HOUR)


def test_what_was_not_there_yet_and_input_that_is_gone_do_not_count(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.csv", NOON)
    found = input_state(str(tmp_path / "in"), tmp_path / "state", NOON - HOUR)
    assert (
        found
        == input_state(str(tmp_path / "none.csv"), tmp_path / "state", NOON)
        == InputState(None, 0, None)
    )
    log = DeltaLog(str(tmp_path / "table"), "day", ())
    log.ensure(pa.schema([("day", pa.date32()), ("x", pa.float64())]))
    now = utc_now()
    found = input_state(log.uri, tmp_path, now)
    assert found.waiting is None and found.newest is not None and now - HOUR < found.newest <= now
    assert input_state(log.uri, tmp_path, NOON).newest is None


def test_what_a_watermark_chooses_from_only_a_run_can_count(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.csv", NOON - HOUR)
    assert input_state(str(tmp_path / "in"), tmp_path, NOON, "at") == InputState(NOON - HOUR)
    with closing(Watermarks(tmp_path, "at")) as marks:
        for hours in (5, 2):
            marks.advance(f"job {hours}", to_json(NOON - hours * HOUR, "at"))
    with closing(Watermarks(tmp_path, "id")) as marks:
        marks.advance("job", 7)
    for column, newest in (("at", NOON - 2 * HOUR), ("id", None), ("other", None), (None, None)):
        assert input_state("sqlite:///x", tmp_path, NOON, column, is_query=True) == InputState(newest)
    assert input_state("sqlite:///x", tmp_path, NOON - 3 * HOUR, "at", is_query=True) == InputState(None)

"""Predictions and labels through the real spool and real Delta tables."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from support.cores import NAME, SCHEMA, DirectLog, tiny_core, tiny_request, tiny_scorer

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.errors import BadInput, Unavailable
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.ids import shadow_prediction_id, stream_prediction_id
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.pipelines.scoring import ScoringCore
from mlflow_flywheel.pipelines.spool import SpoolLog, model_spool

DAY = datetime(2013, 2, 1, tzinfo=timezone.utc)


@pytest.fixture
def table(tmp_path: Path) -> InferenceTable:
    made = InferenceTable.open(str(tmp_path / "tables"), NAME)
    made.ensure(SCHEMA, "double")
    return made


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    return Committer(tmp_path / "spool", str(tmp_path / "tables"))


def _spool(tmp_path: Path) -> SpoolLog:
    return SpoolLog(tmp_path / "spool", NAME, SCHEMA, "double")


def _labels(tmp_path: Path, *rows: dict[str, object]) -> None:
    log = FeedbackLog(tmp_path / "spool", NAME, "double", source="test")
    log.submit(rows)
    log.close()


def test_spooled_and_direct_rows_are_the_same_rows(tmp_path: Path, committer: Committer) -> None:
    times = [DAY + timedelta(hours=i) for i in range(6)]
    ids = [f"id-{i}" for i in range(6)]
    log = _spool(tmp_path)
    tiny_core(log).score(tiny_request(6, ids, ["c"] * 6, times))
    log.close()
    assert committer.commit_once().rows == 6
    table = InferenceTable.open(str(tmp_path / "tables"), NAME)
    spooled = table.read().to_pylist()
    direct = InferenceTable.open(str(tmp_path / "direct"), NAME)
    direct.ensure(SCHEMA, "double")
    tiny_core(DirectLog(direct, "job")).score(tiny_request(6, ids, ["c"] * 6, times))
    varying = {"request_time", "execution_duration_us"}
    for one, other in zip(spooled, direct.read().to_pylist(), strict=True):
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
    assert spooled[4]["feature.city"] == "city-1"
    assert spooled[0]["event_date"] == DAY.date()


def test_the_latest_label_wins_by_either_id_and_waits_for_its_prediction(
    tmp_path: Path, committer: Committer, table: InferenceTable
) -> None:
    _labels(
        tmp_path,
        {"prediction_id": "a", "label": 0, "label_time": "2013-02-02T00:00:00Z"},
        {"prediction_id": "a", "label": 1, "label_time": "2013-02-03T00:00:00Z"},
        {"client_request_id": "B", "label": 0, "label_time": "2013-02-02T00:00:00Z"},
        {"prediction_id": "b", "label": 1, "label_time": "2013-02-01T00:00:00Z"},
        {"prediction_id": "nobody", "label": 1},
    )
    committer.commit_once()
    assert table.unmatched_feedback() == 4
    tiny_core(DirectLog(table, "job")).score(tiny_request(3, ["a", "b", "c"], ["A", "B", "C"], [DAY] * 3))
    labels = {row["prediction_id"]: row["label"] for row in table.read().to_pylist()}
    assert labels == {"a": 1.0, "b": 0.0, "c": None}
    early = table.read(known_before=DAY + timedelta(days=1, hours=1), labelled=True).to_pylist()
    assert {row["prediction_id"]: row["label"] for row in early} == {"a": 0.0, "b": 0.0}
    asked = table.read(requests=["B", "C", "nobody"], labelled=True, known_before=DAY + timedelta(days=9))
    assert asked["prediction_id"].to_pylist() == ["b"]
    assert table.read(requests=[], columns=["prediction_id"]).num_rows == 0
    assert table.counts().labelled == 2
    assert table.unmatched_feedback() == 1


@pytest.mark.parametrize("name", ["it's 100% ü", "a+b", "x%20y"])
def test_odd_names_of_models_and_folders(tmp_path: Path, name: str) -> None:
    table = InferenceTable.open(str(tmp_path / "ü's folder"), name)
    table.ensure(SCHEMA, "double")
    tiny_core(DirectLog(table, "job")).score(tiny_request(2, ["a", "b"], event_times=[DAY] * 2))
    labels = {"prediction_id": ["a"], "label": [1.0], "label_time": [DAY], "received_time": [DAY]}
    table.append_feedback(pa.table(labels), {"test": 0})
    assert table.read(columns=["prediction_id", "label"]).to_pylist() == [
        {"prediction_id": "a", "label": 1.0},
        {"prediction_id": "b", "label": None},
    ]


def test_a_pinned_table_stays_as_it_was(tmp_path: Path, committer: Committer, table: InferenceTable) -> None:
    tiny_core(DirectLog(table, "job")).score(tiny_request(2, ["a", "b"]))
    pinned = table.pinned()
    tiny_core(DirectLog(table, "job", 1)).score(tiny_request(1, ["c"]))
    _labels(tmp_path, {"prediction_id": "a", "label": 1})
    committer.commit_once()
    assert pinned.read(columns=["prediction_id", "label"], order_by="prediction_id").to_pylist() == [
        {"prediction_id": "a", "label": None},
        {"prediction_id": "b", "label": None},
    ]
    assert (table.counts().rows, table.counts().labelled, table.answered()) == (3, 1, {"tiny-web": 3})


def test_windows_are_half_open_in_event_time(table: InferenceTable) -> None:
    times = [DAY + timedelta(hours=12 * i) for i in range(6)]
    tiny_core(DirectLog(table, "job")).score(tiny_request(6, event_times=times))
    window = table.read(start=times[1], end=times[4], columns=["event_time"]).column("event_time").to_pylist()
    assert window == times[1:4]
    assert table.watermark() == times[-1]


def test_a_redelivered_stream_message_is_in_the_table_once(tmp_path: Path, committer: Committer) -> None:
    ids = [stream_prediction_id("persistent://public/default/t", 3, entry, -1) for entry in range(10)]
    log = _spool(tmp_path)
    core = tiny_core(log, deployment="s", mode="stream")
    core.score(tiny_request(6, ids[:6]))
    log.close()
    assert committer.commit_once().rows == 6
    log = _spool(tmp_path)
    core = tiny_core(log, deployment="s", mode="stream")
    core.score(tiny_request(6, ids[4:]))
    core.score(tiny_request(6, ids[4:]))
    tiny_core(log, deployment="other", mode="stream").score(tiny_request(10, ids))
    log.close()
    report = Committer(tmp_path / "spool", str(tmp_path / "tables")).commit_once()
    assert (report.rows, report.duplicates) == (4 + 10, 2 + 6)
    counts = InferenceTable.open(str(tmp_path / "tables"), NAME).counts()
    assert (counts.by_deployment, counts.duplicates) == ({"other": 10, "s": 10}, 0)


def test_a_label_of_an_event_is_true_of_what_each_deployment_said_of_it(
    tmp_path: Path, committer: Committer, table: InferenceTable
) -> None:
    ids = [stream_prediction_id("persistent://public/default/t@5eed", 3, entry, -1) for entry in range(3)]
    log = _spool(tmp_path)
    for deployment in ("s", "other"):
        tiny_core(log, deployment=deployment, mode="stream").score(tiny_request(3, ids))
    log.close()
    _labels(tmp_path, {"prediction_id": ids[1], "label": 1, "label_time": "2013-02-02T00:00:00Z"})
    committer.commit_once()
    for deployment in ("s", "other"):
        rows = {row["prediction_id"]: row["label"] for row in table.read(deployment=deployment).to_pylist()}
        assert rows == {ids[0]: None, ids[1]: 1.0, ids[2]: None}


def test_segments_that_a_crash_left_after_their_commit_change_nothing(
    tmp_path: Path, committer: Committer
) -> None:
    ids = [stream_prediction_id("t", 1, entry, -1) for entry in range(5)]
    log = _spool(tmp_path)
    tiny_core(log, deployment="s", mode="stream").score(tiny_request(5, ids))
    log.close()
    folder = model_spool(tmp_path / "spool", NAME) / "predictions"
    kept = {path: path.read_bytes() for path in folder.rglob("*.seg")}
    assert committer.commit_once().rows == 5
    for path, content in kept.items():
        path.write_bytes(content)
    (folder.parent / "positions.json").unlink()  # the crash came before it was saved
    again = Committer(tmp_path / "spool", str(tmp_path / "tables"))
    assert again.commit_once().rows == 0
    assert not list(folder.rglob("*.seg"))
    log = _spool(tmp_path)
    tiny_core(log, deployment="s", mode="stream").score(tiny_request(5, ids))
    log.close()
    assert again.commit_once().duplicates == 5


def test_a_repeated_transaction_is_refused(table: InferenceTable) -> None:
    for _ in range(2):
        tiny_core(DirectLog(table, "job", next_version=4)).score(tiny_request(3))
    assert table.counts().rows == 3


def test_a_new_feature_is_a_new_column_and_a_changed_type_is_refused(table: InferenceTable) -> None:
    table.ensure(FeatureSchema([*SCHEMA.features, Feature("y", "long")]), "double")
    tiny_core(DirectLog(table, "job")).score(tiny_request(2))
    assert table.read().column("feature.y").null_count == 2
    assert [feature.name for feature in table.features().features] == ["x", "city", "y"]
    with pytest.raises(BadInput, match="feature.x.*rename the feature"):
        table.ensure(FeatureSchema([Feature("x", "string")]), "double")
    with pytest.raises(BadInput, match="prediction"):
        table.ensure(SCHEMA, "string")


def test_compaction_keeps_every_row(table: InferenceTable) -> None:
    for number in range(26):  # a file for each day
        days = [DAY + timedelta(days=i) for i in (0, 0, 1, 2, 3)]
        tiny_core(DirectLog(table, "job", number)).score(tiny_request(5, event_times=days))
    before = len(table.predictions.dataset().files)
    assert table.maintain()
    assert len(table.predictions.dataset().files) < before / 10
    assert table.counts().rows == 130
    assert not table.maintain()


def test_a_table_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not exist yet; deploy the model first"):
        InferenceTable.open(str(tmp_path), "none").read()


def test_a_damaged_line_is_kept_aside_and_its_neighbours_are_committed(
    tmp_path: Path, committer: Committer
) -> None:
    log = _spool(tmp_path)
    tiny_core(log).score(tiny_request(2))
    tiny_core(log).score(tiny_request(3))
    log.close()
    segment = next(tmp_path.rglob("*.seg"))
    segment.write_bytes(segment.read_bytes().replace(b'{"k"', b'\x00"k"', 1))
    assert committer.commit_once().rows == 3
    assert list(tmp_path.rglob("*.damaged"))


def test_a_label_joins_the_answered_row_and_its_shadow_and_counts_once(
    tmp_path: Path, committer: Committer, table: InferenceTable
) -> None:
    ids, clients = ["a", "b", "c", "d"], ["order-a", "order-b", None, None]
    log = _spool(tmp_path)
    tiny_core(log).score(tiny_request(4, ids, clients))
    challenger = ScoringCore(
        tiny_scorer("2"), deployment="tiny-web", mode="web", log=log, variant="challenger"
    )
    challenger.score(tiny_request(4, [shadow_prediction_id(name) for name in ids], clients))
    log.close()
    _labels(
        tmp_path,
        {"prediction_id": "a", "label": 1, "label_time": "2013-02-02T00:00:00Z"},
        {"client_request_id": "order-b", "label": 0, "label_time": "2013-02-02T00:00:00Z"},
        {"prediction_id": "c", "label": 1, "label_time": "2013-02-02T00:00:00Z"},
        {"prediction_id": "c", "label": 0, "label_time": "2013-02-03T00:00:00Z"},
    )
    committer.commit_once()
    for variant, version, named in (
        ("champion", "1", ids),
        ("challenger", "2", [shadow_prediction_id(name) for name in ids]),
    ):
        rows = {row["prediction_id"]: row for row in table.read(variant=variant).to_pylist()}
        assert [rows[name]["label"] for name in named] == [1.0, 0.0, 0.0, None], variant
        assert {row["model_version"] for row in rows.values()} == {version}
        assert "answered_id" not in next(iter(rows.values()))
    counts = table.counts()
    assert (counts.rows, counts.answered, counts.shadow, counts.labelled) == (8, 4, 4, 3)
    assert (counts.by_deployment, counts.duplicates) == ({"tiny-web": 4}, 0)
    assert table.unmatched_feedback() == 0


def test_what_batch_jobs_committed_is_compacted_like_the_rest(table: InferenceTable) -> None:
    log = DirectLog(table, "job")
    days = [DAY + timedelta(days=i) for i in range(5)]
    for i in range(20):  # a file for each day
        tiny_core(log).score(tiny_request(5, [f"{i}-{name}" for name in "abcde"], list("abcde"), days))
    before = table.read()
    assert table.maintain()
    assert len(DeltaTable(table.predictions.uri).file_uris()) == 5
    assert table.read().equals(before)
    assert table.read(start=days[1]).num_rows == 80

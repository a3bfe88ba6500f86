"""The same rows through every mode are answered as MLflow itself would answer them, and logged alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.messages import received
from support.models import KINDS, ZooModel
from support.streams import BrokerProcess, StreamDeployment
from support.waiting import eventually

from mlflow_flywheel.pipelines.batch import run_batch
from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.ids import stream_prediction_id
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore
from mlflow_flywheel.pipelines.spool import SpoolLog
from mlflow_flywheel.pipelines.stream.client import publish_and_wait
from mlflow_flywheel.pipelines.stream.messages import AnswerFormat, InputFormat, JsonBodies
from mlflow_flywheel.pipelines.web.app import create_app
from mlflow_flywheel.pipelines.web.batcher import Batcher
from mlflow_flywheel.pipelines.web.gate import Gate
from mlflow_flywheel.pipelines.web.metrics import WebMetrics
from mlflow_flywheel.pipelines.web.parsing import Parser

ROWS = 60
NOON = 1_357_041_600_000
PROBABLE = ("classifier", "multiclass", "mixed")


@dataclass
class Case:
    """One model, its rows in three forms, and what MLflow answers."""

    model: ZooModel
    scorer: Scorer
    folder: Path

    @cached_property
    def frame(self) -> pd.DataFrame:
        return self.model.rows.head(ROWS)

    @cached_property
    def table(self) -> pa.Table:
        return pa.Table.from_pandas(self.frame, preserve_index=False).append_column(
            "key", pa.array([f"row-{i:03}" for i in range(ROWS)])
        )

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The rows as JSON carries them, missing values as null."""
        plain = self.table.drop_columns(["key"]).to_pylist()
        return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in plain]

    @cached_property
    def expected(self) -> list[Any]:
        import mlflow.pyfunc

        answer = mlflow.pyfunc.load_model(self.model.ref.path).predict(self.frame)
        return list(np.asarray(answer).tolist())

    @property
    def tables(self) -> str:
        return str(self.folder / "tables")

    def check(self, predictions: list[Any], what: str) -> None:
        """Compare answers: equal, and for real numbers equal but for the order of additions."""
        assert len(predictions) == ROWS, what
        if isinstance(self.expected[0], float):
            np.testing.assert_allclose(predictions, self.expected, rtol=1e-12, err_msg=what)
        else:
            assert predictions == self.expected, what


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest, zoo: Callable[[str], ZooModel], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    model = zoo(request.param)
    return Case(model, load_scorer(model.ref), tmp_path_factory.mktemp(model.kind))


def ask_batch(case: Case, suffix: str) -> pa.Table:
    """Score the rows from a file of this format."""
    source = case.folder / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(case.table, source)
    elif suffix.startswith(".csv"):
        case.frame.assign(key=case.table["key"].to_pylist()).to_csv(source, index=False)
    else:
        keyed = [{**row, "key": f"row-{i:03}"} for i, row in enumerate(case.records)]
        source.write_text("".join(json.dumps(row) + "\n" for row in keyed))
    output = case.folder / f"answers{suffix}.parquet"
    config = BatchConfig(
        deployment=f"batch{suffix}",
        model=case.model.ref,
        tables=case.tables,
        state_dir=str(case.folder / "state"),
        job_id=f"job{suffix}",
        input=str(source),
        output=str(output),
        id_column="key",
        chunk_rows=17,
    )
    run_batch(config, case.scorer)
    return pq.read_table(output)


def ask_stream(case: Case) -> list[dict[str, Any]]:
    """Take the rows through everything that a stream worker does to a message but the broker."""
    log = SpoolLog(case.folder / "spool", case.model.ref.name, case.scorer.schema, case.scorer.kind)
    core = ScoringCore(case.scorer, deployment="stream", mode="stream", log=log)
    incoming, outgoing = InputFormat(JsonBodies(2**20)), AnswerFormat.of(case.model.ref)
    messages = [
        json.dumps({"features": row, "client_request_id": f"row-{i:03}"})
        for i, row in enumerate(case.records)
    ]
    events = [incoming.parse(received(message.encode(), event_ms=NOON)) for message in messages]
    features, kept, refused = case.scorer.schema.split_valid([event.features for event in events])
    assert (len(kept), refused) == (ROWS, {})
    ids = [stream_prediction_id("topic", 1, i, -1) for i in range(ROWS)]
    scored = core.score(Request(features, ids, [event.client_request_id for event in events]))
    log.close()
    proba = scored.predictions.proba.to_pylist() if scored.predictions.proba is not None else [None] * ROWS
    answers = [
        outgoing.encode(event, ids[i], scored.predictions.native[i], proba[i])
        for i, event in enumerate(events)
    ]
    return [json.loads(answer) for answer in answers]


def ask_web(case: Case, bodies: Mapping[str, tuple[bytes, str]]) -> dict[str, list[Any]]:
    """Send each body to the web worker's app; return the predictions by the body's name."""
    log = SpoolLog(case.folder / "spool", case.model.ref.name, case.scorer.schema, case.scorer.kind)
    labels = FeedbackLog(case.folder / "spool", case.model.ref.name, case.scorer.kind, source="web")
    core = ScoringCore(case.scorer, deployment="web", mode="web", log=log)
    app = create_app(
        core,
        Batcher(core, max_rows=ROWS),
        Parser(case.scorer.schema, max_rows=ROWS),
        labels=labels,
        gate=Gate(1, 1),
        metrics=WebMetrics(
            str(case.folder / "status.json"), "web", case.model.ref.name, case.model.ref.version
        ),
        max_body_bytes=2**20,
    )
    answers = {}
    with app.test_client() as client:
        for name, (body, content_type) in bodies.items():
            answer = client.post("/invocations", data=body, content_type=content_type)
            assert answer.status_code == 200, (name, answer.text)
            assert answer.json is not None and len(set(answer.json["prediction_ids"])) == ROWS
            answers[name] = answer.json["predictions"]
    labels.close()
    log.close()
    return answers


def web_bodies(case: Case) -> dict[str, tuple[bytes, str]]:
    """Return the rows in every form that a caller may send them in."""
    names = list(case.frame.columns)
    rows = [[row[name] for name in names] for row in case.records]
    columns = {name: [row[name] for row in case.records] for name in names}
    forms: dict[str, Any] = {
        "dataframe_split": {"columns": names, "data": rows},
        "dataframe_records": case.records,
        "instances": case.records,
        "inputs": columns,
    }
    json_type = "application/json"
    bodies = {name: (json.dumps({name: form}).encode(), json_type) for name, form in forms.items()}
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(case.frame, preserve_index=False), parquet)
    bodies["csv"] = (case.frame.to_csv(index=False).encode(), "text/csv")
    bodies["parquet"] = (parquet.getvalue().to_pybytes(), "application/x-parquet")
    return bodies


def test_the_web_service_answers_what_mlflow_answers_to_every_body(case: Case) -> None:
    for name, predictions in ask_web(case, web_bodies(case)).items():
        case.check(predictions, name)


def test_batch_answers_what_mlflow_answers_from_every_format(case: Case) -> None:
    for suffix in (".parquet", ".csv", ".csv.gz", ".jsonl"):
        found = ask_batch(case, suffix)
        assert found["key"].to_pylist() == case.table["key"].to_pylist()
        case.check(found["prediction"].to_pylist(), suffix)
        assert ("prediction_proba" in found.column_names) == (case.model.kind in PROBABLE)


def test_a_message_is_answered_as_mlflow_answers(case: Case) -> None:
    answers = ask_stream(case)
    case.check([answer["prediction"] for answer in answers], "stream")
    assert ("prediction_proba" in answers[0]) == (case.model.kind in PROBABLE)


def test_every_mode_logs_the_same(case: Case) -> None:
    """What monitors and retraining will read of a row does not tell through which door it came."""
    ask_batch(case, ".parquet")
    ask_batch(case, ".jsonl")
    ask_stream(case)
    keyed = {"dataframe_records": case.records, "client_request_id": case.table["key"].to_pylist()}
    ask_web(case, {"keyed": (json.dumps(keyed).encode(), "application/json")})
    Committer(case.folder / "spool", case.tables).commit_once()
    table = InferenceTable.open(case.tables, case.model.ref.name)
    columns = ["client_request_id", "prediction", "prediction_proba"]
    columns += [f"feature.{name}" for name in case.scorer.schema.names]
    by_mode = {
        deployment: table.read(deployment=deployment, columns=columns, order_by="client_request_id")
        for deployment in ("batch.parquet", "batch.jsonl", "stream", "web")
    }
    # the other test asked the web service too, without keys of its own
    keys = by_mode["web"]["client_request_id"]
    by_mode["web"] = by_mode["web"].filter(pc.is_valid(keys))
    for deployment, rows in by_mode.items():
        assert rows.num_rows == ROWS, deployment
        assert same(rows, by_mode["batch.parquet"]), deployment


def same(rows: pa.Table, others: pa.Table) -> bool:
    """Compare tables; probabilities and real predictions but for the order of additions."""
    for name in rows.column_names:
        left, right = rows[name].to_pylist(), others[name].to_pylist()
        if name.startswith("prediction") and not isinstance(left[0], (str, type(None))):
            np.testing.assert_allclose(left, right, rtol=1e-12)
        elif left != right:
            return False
    return True


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp("broker"))
    yield running
    running.stop()


def test_a_real_worker_behind_a_real_broker_answers_the_same(
    zoo: Callable[[str], ZooModel], broker: BrokerProcess, tmp_path: Path
) -> None:
    model = zoo("mixed")
    case = Case(model, load_scorer(model.ref), tmp_path)
    deployment = StreamDeployment(tmp_path, broker.url, "mixed", model.ref).start()
    try:
        deployment.wait_serving()
        answers = publish_and_wait(deployment.config, case.records)
    finally:
        assert deployment.stop() == 0
    case.check([answer["prediction"] for answer in answers], "worker")
    Committer(tmp_path / "spool", case.tables).commit_once()
    table = InferenceTable.open(case.tables, model.ref.name)
    logged = eventually(lambda: table.read(deployment="mixed", order_by="prediction_id"))
    assert sorted(logged["prediction_id"].to_pylist()) == sorted(a["prediction_id"] for a in answers)

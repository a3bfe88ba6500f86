"""A model URI becomes a scorer that answers what MLflow's own pyfunc answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.models import KINDS, ZooModel

from mlflow_flywheel.pipelines import model
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput, ModelError, NotFound
from mlflow_flywheel.pipelines.model import load_scorer
from mlflow_flywheel.pipelines.plain_model import plain_model
from mlflow_flywheel.pipelines.registry import download_model, resolve_model

Zoo = Callable[[str], ZooModel]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scorer_answers_what_pyfunc_answers(zoo: Zoo, kind: str) -> None:
    import mlflow.pyfunc

    zoo_model = zoo(kind)
    scorer = load_scorer(zoo_model.ref)
    features = scorer.schema.from_table(pa.Table.from_pandas(zoo_model.rows, preserve_index=False))
    predictions = scorer.predict(features)
    expected = mlflow.pyfunc.load_model(zoo_model.ref.path).predict(zoo_model.rows)
    assert predictions.native == np.asarray(expected).tolist()
    assert scorer.kind == ("string" if kind == "multiclass" else "double")
    if kind in ("classifier", "multiclass", "mixed"):
        assert predictions.proba is not None and scorer.classes is not None
        matrix = np.array(predictions.proba.to_pylist())
        np.testing.assert_allclose(matrix.sum(axis=1), 1)
        said = [scorer.classes[i] for i in matrix.argmax(axis=1)]
        assert said == [str(value) for value in predictions.native]
    else:
        assert predictions.proba is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_opened_without_mlflow_is_the_same(
    zoo: Zoo, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_model = zoo(kind)
    assert (plain_model(Path(zoo_model.ref.path)) is None) == (kind == "pyfunc")
    ours = load_scorer(zoo_model.ref)
    monkeypatch.setattr(model, "plain_model", lambda folder: None)
    mlflows = load_scorer(zoo_model.ref)
    rows = ours.schema.from_table(pa.Table.from_pandas(zoo_model.rows, preserve_index=False))
    assert ours.schema.features == mlflows.schema.features
    assert (ours.kind, ours.classes) == (mlflows.kind, mlflows.classes)
    assert type(ours.raw_model) is type(mlflows.raw_model)
    assert ours.input_example is not None and ours.input_example.equals(mlflows.input_example)
    assert ours.predict(rows) == mlflows.predict(rows)
    assert ours.predict(rows).native == mlflows.predict(rows).native
    assert ours.predict(rows, {"more": 1}).native == mlflows.predict(rows, {"more": 1}).native


def test_rows_from_json_score_as_rows_from_a_table(zoo: Zoo) -> None:
    model = zoo("mixed")
    scorer = load_scorer(model.ref)
    table = scorer.schema.from_table(pa.Table.from_pandas(model.rows, preserve_index=False))
    records = scorer.schema.from_records(table.to_pylist())
    assert scorer.predict(records).proba == scorer.predict(table).proba


def test_every_form_of_uri_leads_to_the_version(zoo: Zoo, tracking_uri: str) -> None:
    from mlflow import MlflowClient

    model = zoo("classifier")
    client = MlflowClient(tracking_uri)
    client.set_registered_model_alias("zoo-classifier", "champion", "1")
    version = client.get_model_version("zoo-classifier", "1")
    forms = [
        model.uri,
        "models:/zoo-classifier@champion",
        "models:/zoo-classifier/latest",
        f"runs:/{version.run_id}/model",
        f"models:/{model.ref.model_id}",
    ]
    for uri in forms:
        resolved = resolve_model(uri, tracking_uri)
        assert (resolved.name, resolved.version, resolved.model_id) == (
            "zoo-classifier",
            "1",
            model.ref.model_id,
        ), uri


@pytest.mark.parametrize(
    ("uri", "kind", "complaint"),
    [
        ("models:/nobody/1", NotFound, "model 'nobody' or its version 1 does not exist"),
        ("models:/zoo-classifier@nobody", NotFound, "alias 'nobody'"),
        ("models:/zoo-classifier/99", NotFound, "version 99"),
        ("runs:/0123456789abcdef0123456789abcdef/model", NotFound, "leads nowhere"),
        ("zoo-classifier", BadInput, "has no known form; give models:/"),
        ("models:/zoo-classifier", BadInput, "names no version"),
    ],
)
def test_a_uri_that_leads_nowhere_says_so(
    zoo: Zoo, tracking_uri: str, uri: str, kind: type[Exception], complaint: str
) -> None:
    zoo("classifier")
    with pytest.raises(kind) as caught:
        resolve_model(uri, tracking_uri)
    assert complaint in str(caught.value)


def test_a_download_is_made_once(zoo: Zoo, tracking_uri: str, tmp_path: Path) -> None:
    resolved = resolve_model(zoo("regressor").uri, tracking_uri)
    first = download_model(resolved, tmp_path, tracking_uri)
    marker = Path(first.path) / "marker"
    marker.touch()
    assert download_model(resolved, tmp_path, tracking_uri) == first
    assert marker.exists()


def test_models_that_cannot_be_served_say_why(tracking_uri: str, tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    mlflow.set_tracking_uri(tracking_uri)
    x = np.zeros((3, 2))
    model = LinearRegression().fit(x, [0, 0, 0])
    known = {"pip_requirements": ["mlflow", "scikit-learn"]}  # to infer them takes seconds
    mlflow.sklearn.save_model(model, tmp_path / "bare", **known)
    with pytest.raises(BadInput, match="has no signature.*infer_signature"):
        load_scorer(ModelRef(name="bare", version="", model_id=None, path=str(tmp_path / "bare")))
    tensor = infer_signature(x, model.predict(x))
    mlflow.sklearn.save_model(model, tmp_path / "tensor", signature=tensor, **known)
    with pytest.raises(BadInput, match="takes a tensor"):
        load_scorer(ModelRef(name="tensor", version="", model_id=None, path=str(tmp_path / "tensor")))
    (tmp_path / "tensor" / "MLmodel").write_text("nonsense: [")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_scorer(ModelRef(name="broken", version="4", model_id=None, path=str(tmp_path / "tensor")))

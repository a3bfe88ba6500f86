"""Registering once: a version with a reference and an alias, or a clear refusal that leaves nothing behind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo
from sklearn.linear_model import LogisticRegression

from mlflow_flywheel.monitors.reference import load_reference
from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.pipelines.training_files import EVENT_TIME
from mlflow_flywheel.plugin.registration import register

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
LATE = FRAME["a"] > 0
REFERENCE = FRAME.assign(late=LATE, when=pd.date_range("2024-01-01", periods=200, freq="h"))


@pytest.fixture
def name(tracking_uri: str) -> Iterator[str]:
    """Return a model name that nobody has used, with MLflow pointed at the store."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    yield f"late-{uuid.uuid4().hex[:8]}"


def log(frame: pd.DataFrame = FRAME, **changes: Any) -> ModelInfo:
    model = LogisticRegression().fit(frame, LATE)
    options = {
        "signature": infer_signature(frame, model.predict(frame)),
        "input_example": frame.head(2),
        "pip_requirements": ["mlflow", "scikit-learn"],
    }
    with mlflow.start_run():
        info: ModelInfo = mlflow.sklearn.log_model(model, name="model", **{**options, **changes})
    return info


def no_version(name: str) -> bool:
    try:
        return not MlflowClient().search_model_versions(f"name='{name}'")
    except MlflowException:
        return True


def test_a_version_has_its_reference_its_label_and_the_alias(name: str) -> None:
    info = log()
    window = ("2013-01-01", datetime(2013, 2, 1, 5, tzinfo=timezone.utc))
    made = register(info, name, REFERENCE, "late", timestamp="when", training_window=window, max_rows=150)
    assert made == "1"
    version = MlflowClient().get_model_version_by_alias(name, "champion")
    assert version.tags["flywheel.training_start"] == "2013-01-01T00:00:00+00:00"
    assert version.tags["flywheel.training_end"] == "2013-02-01T05:00:00+00:00"
    assert version.tags["flywheel.label"] == "late"
    assert version.tags["flywheel.reference"] == f"runs:/{info.run_id}/flywheel/reference.parquet"
    reference = load_reference(name, "1")
    assert reference is not None and len(reference) == 150
    table = reference.table
    assert reference.feature_names == ("a", "b")
    assert table["label"].to_pylist() == [float(x > 0) for x in table["a"].to_pylist()]
    assert (
        np.argmax(np.stack(table["prediction_proba"].to_numpy()), axis=1) == table["prediction"].to_numpy()
    ).all()
    assert table[EVENT_TIME].to_pylist() == sorted(table[EVENT_TIME].to_pylist())


def test_the_same_sample_is_drawn_again_with_the_same_seed(name: str) -> None:
    info = log()
    register(info, name, REFERENCE, "late", max_rows=20)
    register(log(), name, REFERENCE, "late", max_rows=20)
    register(log(), name, REFERENCE, "late", max_rows=20, seed=1)
    first, second, third = (load_reference(name, number) for number in "123")
    assert first is not None and second is not None and third is not None
    assert first.features == second.features != third.features


def test_a_version_that_exists_is_completed_not_doubled(name: str) -> None:
    info = log(registered_model_name=name)
    assert register(f"models:/{name}/1", name, REFERENCE, "late") == "1"
    assert register(info.model_uri, name, REFERENCE.head(50), "late", alias=None) == "1"
    reference = load_reference(name, "1")
    assert reference is not None and len(reference) == 50  # the older file stays as it was, the tag moved on
    assert len(MlflowClient().search_model_versions(f"name='{name}'")) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"signature": False, "input_example": None}, "signature"),
        ({"input_example": None}, "input example"),
    ],
)
def test_a_model_that_could_not_be_served_is_refused(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        register(log(**changes), name, REFERENCE, "late")
    assert no_version(name)


@pytest.mark.parametrize(
    ("reference", "options", "says"),
    [
        (REFERENCE.drop(columns="b"), {}, "'b'"),
        (REFERENCE.rename(columns={"late": "lat"}), {}, "did you mean 'lat'"),
        (REFERENCE.assign(a="x"), {}, "'a' must be double"),
        (REFERENCE.assign(late=None), {}, "no row with a label"),
        (REFERENCE.assign(late="yes"), {}, "predicts numbers"),
        (REFERENCE, {"timestamp": "wen"}, "did you mean 'when'"),
        (REFERENCE, {"training_window": ("January", "2013-02-01")}, "does not hold two times"),
        (REFERENCE, {"training_window": ("2013-02-01", "2013-01-01")}, "ends before it starts"),
        (REFERENCE.assign(when="soon"), {"timestamp": "when"}, "does not hold times"),
        (REFERENCE, {"label": "a"}, "cannot be its label"),
        (REFERENCE.assign(late=[1, "x"] * 100), {}, "mixed types"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    name: str, reference: pd.DataFrame, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        register(_shared(), name, reference, **{"label": "late", **options})
    assert no_version(name)


def test_reserved_feature_names_are_refused(name: str) -> None:
    frame = FRAME.rename(columns={"a": "label"})
    with pytest.raises(BadInput, match="'label', a name that"):
        register(log(frame), name, frame.assign(late=LATE), "late")


def test_a_uri_that_leads_nowhere(name: str) -> None:
    with pytest.raises(NotFound, match="models:/nobody/1"):
        register("models:/nobody/1", name, REFERENCE, "late")


_cache: dict[str, ModelInfo] = {}


def _shared() -> ModelInfo:
    """Return one logged model for the tests that refuse something else."""
    uri = mlflow.get_tracking_uri()
    if uri not in _cache:
        _cache[uri] = log()
    return _cache[uri]

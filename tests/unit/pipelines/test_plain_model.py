"""Which models are read without MLflow, and which are left to it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import yaml

from mlflow_flywheel.pipelines.plain_model import plain_model

COLUMN = {"type": "double", "name": "x", "required": True}
EXAMPLE = {"artifact_path": "input_example.json", "pandas_orient": "split", "type": "dataframe"}


def save(folder: Path, change: Callable[[Any], object] = lambda said: None, requirements: str = "") -> Path:
    said: dict[str, Any] = {
        "flavors": {
            "python_function": {
                "loader_module": "mlflow.sklearn",
                "model_path": "model.pkl",
                "predict_fn": "predict",
                "python_version": platform.python_version(),
            },
            "sklearn": {
                "code": None,
                "pickled_model": "model.pkl",
                "serialization_format": "cloudpickle",
                "skops_trusted_types": None,
            },
        },
        "saved_input_example_info": dict(EXAMPLE),
        "signature": {"inputs": json.dumps([COLUMN]), "outputs": None, "params": None},
    }
    change(said)
    (folder / "MLmodel").write_text(yaml.safe_dump(said))
    (folder / "model.pkl").write_bytes(cloudpickle.dumps({"an": "estimator"}))
    (folder / "requirements.txt").write_text(requirements)
    (folder / "input_example.json").write_text(
        json.dumps({"columns": ["x"], "data": [[1.5], [float("nan")]]})
    )
    return folder


def test_a_plain_model_is_read(tmp_path: Path) -> None:
    model = plain_model(save(tmp_path, requirements=f"numpy=={version('numpy')}\nscikit-learn\n"))
    assert model is not None
    assert (model.inputs, model.outputs, model.example) == ([COLUMN], None, {"x": [1.5, None]})
    assert model.load() == {"an": "estimator"}


UNUSUAL: dict[str, Callable[[Any], object]] = {
    "another flavour": lambda said: said["flavors"].pop("sklearn"),
    "another loader": lambda said: said["flavors"]["python_function"].update(loader_module="mine"),
    "another call": lambda said: said["flavors"]["python_function"].update(predict_fn="predict_proba"),
    "another Python": lambda said: said["flavors"]["python_function"].update(python_version="2.7.18"),
    "code beside it": lambda said: said["flavors"]["python_function"].update(code="code"),
    "code of the flavour": lambda said: said["flavors"]["sklearn"].update(code="code"),
    "another serialization": lambda said: said["flavors"]["sklearn"].update(serialization_format="onnx"),
    "metadata": lambda said: said.update(metadata={"external": True}),
    "params": lambda said: said["signature"].update(params="[]"),
    "no signature": lambda said: said.pop("signature"),
    "an example of another kind": lambda said: said["saved_input_example_info"].update(type="ndarray"),
    "an example with params": lambda said: said["saved_input_example_info"].update(params="true"),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_unusual_is_left_to_mlflow(tmp_path: Path, change: Callable[[Any], object]) -> None:
    assert plain_model(save(tmp_path, change)) is None


@pytest.mark.parametrize(
    "line", ["numpy==0.1", "no-such-package", "numpy>=1", "numpy[extra]", "-r more.txt", "./a.whl"]
)
def test_packages_that_may_not_be_what_the_model_wants_are_left_to_mlflow(tmp_path: Path, line: str) -> None:
    assert plain_model(save(tmp_path, requirements=line)) is None


def test_where_pickles_are_forbidden_mlflow_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    assert plain_model(save(tmp_path)) is None


def test_a_folder_that_is_no_model_or_a_broken_one_is_left_to_mlflow(tmp_path: Path) -> None:
    assert plain_model(tmp_path) is None
    save(tmp_path)
    (tmp_path / "MLmodel").write_text("nonsense: [")
    assert plain_model(tmp_path) is None

"""What a retraining's processes do before and around the fit: where weights go, and somebody's own function."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from mlflow.models import Model, infer_signature
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_flywheel.pipelines import retrain_function
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.lineage import Lineage
from mlflow_flywheel.pipelines.retrain import Refit, weight_key
from mlflow_flywheel.pipelines.training_files import LABEL

MODULE = """
def refit(training_set, seed, depth):
    print("got", training_set, seed, depth)

def greedy(training_set, **more):
    print("got", *sorted(more))

def deaf(data):
    raise AssertionError("it is not called")

number = 3
"""
GIVEN = {"training_set": "/tmp/train.parquet", "champion": "/tmp/parent", "seed": "0", "model": "m"}


def test_weights_go_to_the_last_step_of_a_pipeline() -> None:
    inner = make_pipeline(StandardScaler(), LogisticRegression())
    assert weight_key(LogisticRegression()) == "sample_weight"
    assert weight_key(make_pipeline(StandardScaler(), inner)) == "pipeline__logisticregression__sample_weight"
    for estimator in (KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())):
        with pytest.raises(BadInput, match=r"KNeighborsClassifier takes no sample_weight.*recency_half_life"):
            weight_key(estimator)


def test_rows_that_cannot_be_fitted_are_an_error_in_the_estimators_words() -> None:
    """Two classes were known, and only one is in these rows."""
    x = np.arange(100.0)
    before = LogisticRegression().fit(pd.DataFrame({"x": x}), x > 50)
    metadata = Model(signature=infer_signature(pd.DataFrame({"x": x})))
    lineage = Lineage.model_construct(half_life=None, class_balance="none")
    rows = pa.table({"x": x, LABEL: np.ones(100)})
    with pytest.raises(
        ModelError, match="LogisticRegression cannot be fitted to 100 rows: .* at least 2 classes"
    ):
        Refit(before, metadata, lineage, 0).fit(rows)
    with pytest.raises(ModelError, match="10 rows are left to fit to, fewer than 50"):
        Refit(before, metadata, lineage, 0).fit(rows.slice(0, 10))


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_late.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(mlflow, "start_run", lambda: nullcontext(print("begun")))


@pytest.mark.parametrize(
    ("function", "own", "got"),
    [
        ("shop_late:refit", {"depth": "3"}, "/tmp/train.parquet 0 3"),
        ("shop_late:greedy", {"depth": "3"}, "champion depth model seed"),
    ],
)
def test_a_function_gets_what_it_takes_in_the_run(function: str, own: dict[str, str], got: str) -> None:
    arguments = json.dumps({"given": GIVEN, "own": own})
    done = CliRunner().invoke(retrain_function.main, ["--function", function, "--given", arguments])
    assert (done.exit_code, done.output) == (0, f"begun\ngot {got}\n")


@pytest.mark.parametrize(
    ("function", "own", "said"),
    [
        ("shop_lat:refit", {}, "No module named 'shop_lat'; install it beside mlflow-flywheel"),
        ("shop_late:refti", {}, "module 'shop_late' has no 'refti' (did you mean 'refit'?)"),
        ("shop_late:number", {}, "is a int, no function"),
        ("shop_late:deaf", {}, "takes no parameter 'training_set'; it takes: data"),
        ("shop_late:refit", {"dept": "3"}, "takes no parameter 'dept' (did you mean 'depth'?)"),
    ],
)
def test_a_function_that_cannot_be_called_is_an_error_in_words(
    function: str, own: dict[str, str], said: str
) -> None:
    arguments = json.dumps({"given": GIVEN, "own": own})
    done = CliRunner().invoke(retrain_function.main, ["--function", function, "--given", arguments])
    assert done.exit_code == 1 and said in done.output, done.output

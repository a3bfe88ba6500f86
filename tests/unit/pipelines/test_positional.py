"""Which estimators may be given a bare matrix, and that they answer the same for it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlflow_flywheel.pipelines.positional import order_for, without_names

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(3)
FRAME = pd.DataFrame(RNG.normal(size=(200, 3)), columns=list(NAMES))
LABEL = (FRAME["a"] > FRAME["b"]).astype(int)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        RandomForestClassifier(n_estimators=5, random_state=0),
        HistGradientBoostingClassifier(max_iter=5),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_by_position_means_the_same_answer_without_a_warning(estimator: Any) -> None:
    estimator.fit(FRAME, LABEL)
    plain = without_names(estimator, NAMES)
    assert plain is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = plain.predict_proba(FRAME.to_numpy())
    assert np.array_equal(bare, estimator.predict_proba(FRAME))
    assert list(estimator.feature_names_in_) == list(NAMES)


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(ColumnTransformer([("scaled", StandardScaler(), ["b"])]), LogisticRegression()),
        make_pipeline(FunctionTransformer(lambda frame: frame[["c"]]), LogisticRegression()),
        make_pipeline(StandardScaler().set_output(transform="pandas"), LogisticRegression()),
    ],
)
def test_whoever_may_ask_for_a_name_keeps_the_frame(estimator: Any) -> None:
    assert without_names(estimator.fit(FRAME, LABEL), NAMES) is None


def test_other_columns_or_none_keep_the_frame() -> None:
    assert without_names(LogisticRegression().fit(FRAME, LABEL), ("a", "c", "b")) is None
    assert without_names(LogisticRegression().fit(FRAME.to_numpy(), LABEL), NAMES) is None


def test_histogram_boosting_gets_its_rows_by_row() -> None:
    assert order_for(HistGradientBoostingClassifier()) == "C"
    assert order_for(LogisticRegression()) == "F"

"""Which adjustment suits which model, why another does not, and when one is trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.either_broker import doubling_scorer
from support.prequential import scorer_of

from mlflow_flywheel.pipelines.adjust.choice import choose
from mlflow_flywheel.pipelines.adjust.outputs import Classes, Numbers, with_number
from mlflow_flywheel.pipelines.adjust.trust import LEAST_ROWS, ROWS, Trust
from mlflow_flywheel.pipelines.config import AdjustKind
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.model import Predictions, Scorer
from mlflow_flywheel.pipelines.stream.settings import check_adjust

X = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
TWO = (X["a"] > 0).astype(int)


def fitted(model: Any, y: Any, kind: str = "double") -> Scorer:
    return scorer_of(model.fit(X, y), list(X.columns), kind)


@pytest.mark.parametrize(
    ("kind", "scorer", "complaint"),
    [
        ("bias", fitted(LogisticRegression(), TWO), "answers classes.*take adjust=recalibrate"),
        ("bias", fitted(SGDClassifier(), TWO.map(str), "string"), "answers classes"),
        (
            "recalibrate",
            fitted(LinearRegression(), X["a"]),
            "no probabilities of classes.*adjust=bias for a regressor",
        ),
        ("recalibrate", doubling_scorer(), "no probabilities"),
        ("recalibrate", fitted(GaussianNB(), range(200)), "knows 200 classes, and 2 to 20 can be"),
        (
            "partial_fit",
            fitted(LogisticRegression(), TWO),
            "ends with LogisticRegression, which cannot learn",
        ),
        ("partial_fit", doubling_scorer(), "is no scikit-learn model, which cannot"),
    ],
)
def test_what_cannot_be_adjusted_is_refused_with_what_can(
    kind: AdjustKind, scorer: Scorer, complaint: str
) -> None:
    with pytest.raises(BadInput, match=rf"(?s)^adjust={kind}: model m version 1 .*{complaint}"):
        choose(kind, scorer)


def test_a_learner_without_probabilities_is_refused() -> None:
    model = make_pipeline(StandardScaler(), SGDClassifier()).fit(X, TWO)  # a hinge loss
    scorer = scorer_of(LogisticRegression().fit(X, TWO), list(X.columns), "double")
    scorer.raw_model, scorer.classes = model, None
    with pytest.raises(BadInput, match="SGDClassifier gives no probabilities"):
        choose("partial_fit", scorer)


def test_what_suits_is_taken() -> None:
    assert isinstance(choose("bias", doubling_scorer())[1], Numbers)
    assert isinstance(choose("recalibrate", fitted(LogisticRegression(), TWO))[1], Classes)
    learner = make_pipeline(StandardScaler(), SGDRegressor())
    assert isinstance(choose("partial_fit", fitted(learner, X["a"]))[1], Numbers)


@pytest.mark.parametrize(
    ("adjust", "workers", "excluded", "complaint"),
    [
        ("bias", 2, (), "adjust=bias needs workers=1, got workers=2: each worker would learn"),
        ("partial_fit", 1, ("a",), "adjust=partial_fit keeps the features"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    adjust: str, workers: int, excluded: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(BadInput, match=complaint):
        check_adjust(adjust, workers, excluded)
    check_adjust("off", 4, ("a",))


def test_a_class_changes_only_where_another_is_the_most_probable_now() -> None:
    import pyarrow as pa

    outputs = Classes({"no": 0, "yes": 1}, ["no", "yes"])
    raw = np.array([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    answers = np.array([[0.55, 0.45], [0.3, 0.7], [0.1, 0.9]])
    said = Predictions(
        pa.array(["no", "no", "no"]), pa.array(raw.tolist()), ["no", "no", "no"]
    )  # a threshold of 0.9
    written = outputs.written(said, raw, answers)
    assert written.native == written.values.to_pylist() == ["no", "yes", "no"]
    assert written.proba is not None and written.proba.to_pylist() == answers.tolist()


def test_a_number_is_put_where_the_model_has_one() -> None:
    assert [with_number(said, 2.5) for said in (1, 1.0, [1.0], {"y": 1})] == [2.5, 2.5, [2.5], {"y": 2.5}]
    for said in (True, "x", [1, 2], {}, None):
        with pytest.raises(ModelError, match="has no one number"):
            with_number(said, 2.5)


def test_trust_needs_evidence_and_ends_with_it() -> None:
    noise = np.random.default_rng(1).normal(size=ROWS)
    noise -= noise.mean()
    better, a_little, worse = noise + 0.3, noise + 0.1, noise + 0.05
    assert not Trust().judged(better[: LEAST_ROWS - 1]).open
    trusted = Trust().judged(better)
    assert trusted.open and trusted.evidence > 2
    assert not Trust().judged(a_little).open
    assert trusted.judged(a_little).open  # it goes on while it is better at all
    assert not trusted.judged(worse).open
    assert not Trust().judged(np.zeros(ROWS)).open
    assert not trusted.judged(np.zeros(ROWS)).open
    assert trusted.judged(np.concatenate([-100 + 0 * noise, better])).open  # what is long ago does not count

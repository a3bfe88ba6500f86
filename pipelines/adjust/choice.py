"""Which adjustment suits which model, and why another one does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_flywheel.pipelines.config import AdjustKind
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.model import Scorer, describe

from .bias import Bias
from .methods import Method
from .outputs import Classes, Numbers, Outputs, with_number
from .partial_fit import PartialFit
from .recalibrate import Recalibrate

MOST_CLASSES = 20


def choose(kind: AdjustKind, scorer: Scorer) -> tuple[Method, Outputs]:
    """Return how to adjust a model. Raises BadInput, with what would do instead, when it cannot be done so."""
    if kind == "bias":
        return Bias(), _numbers(kind, scorer)
    if kind == "recalibrate":
        classes = _classes(kind, scorer)
        return Recalibrate(len(classes.native)), classes
    return _partial_fit(kind, scorer)


def _numbers(kind: str, scorer: Scorer) -> Numbers:
    if scorer.kind != "double" or hasattr(scorer.raw_model, "classes_"):
        raise BadInput(
            f"adjust={kind}: {describe(scorer.ref)} answers classes, and their mean error says nothing; take "
            "adjust=recalibrate if it gives probabilities, or adjust=off"
        )
    if scorer.input_example is not None:
        (said, *_) = scorer.predict(scorer.input_example).native
        try:
            with_number(said, 0.0)
        except ModelError as error:
            raise BadInput(
                f"adjust={kind}: {describe(scorer.ref)} does not answer one number a row: {error.message}; take adjust=off"
            ) from None
    return Numbers()


def _classes(kind: str, scorer: Scorer) -> Classes:
    if scorer.classes is None:
        raise BadInput(
            f"adjust={kind}: {describe(scorer.ref)} gives no probabilities of classes (a scikit-learn classifier with "
            "predict_proba does); take adjust=bias for a regressor, or adjust=off"
        )
    if not 2 <= len(scorer.classes) <= MOST_CLASSES:
        raise BadInput(
            f"adjust={kind}: {describe(scorer.ref)} knows {len(scorer.classes)} classes, and 2 to {MOST_CLASSES} can be "
            "adjusted; take adjust=off"
        )
    native = np.asarray(scorer.raw_model.classes_).tolist()
    labels = [str(each) if scorer.kind == "string" else float(each) for each in native]
    return Classes({label: place for place, label in enumerate(labels)}, native)


def _partial_fit(kind: str, scorer: Scorer) -> tuple[Method, Outputs]:
    estimator = scorer.raw_model
    steps: Any = getattr(estimator, "steps", None)
    last = steps[-1][1] if steps else estimator
    if not hasattr(last, "partial_fit"):
        what = "is no scikit-learn model" if estimator is None else f"ends with {type(last).__name__}"
        raise BadInput(
            f"adjust={kind}: {describe(scorer.ref)} {what}, which cannot learn from a label at a time; take an estimator "
            "with partial_fit (SGDClassifier, SGDRegressor, naive Bayes) as the last step, or adjust=bias or recalibrate"
        )
    if hasattr(last, "classes_") and scorer.classes is None:
        raise BadInput(
            f"adjust={kind}: {type(last).__name__} gives no probabilities, by which its adjustment could be bounded; take "
            "one with predict_proba (SGDClassifier(loss='log_loss'), naive Bayes), or adjust=off"
        )
    outputs: Outputs = _classes(kind, scorer) if scorer.classes is not None else _numbers(kind, scorer)
    method = PartialFit(estimator, scorer.schema, outputs.native if isinstance(outputs, Classes) else None)
    if scorer.input_example is not None:
        said = outputs.matrix(scorer.predict(scorer.input_example))
        if not np.allclose(method.predicted(scorer.input_example), said, rtol=1e-6, equal_nan=True):
            raise BadInput(
                f"adjust={kind}: the steps of {describe(scorer.ref)} do not answer what the model does as a whole; take "
                "adjust=bias, recalibrate or off"
            )
    return method, outputs

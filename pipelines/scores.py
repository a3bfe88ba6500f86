"""How a model does on labelled rows: a proper score per row, and the summary metrics of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput
from .model import Predictions, Scorer

Kind = Literal["classifier", "regressor"]
Floats = npt.NDArray[np.float64]

# A probability this close to 0 or 1 is as sure as one row may make a model: beyond it a single surprise would outweigh
# thousands of rows in the mean log loss.
PROBABILITY_FLOOR = 1e-6


@dataclass(frozen=True)
class Scores:
    """How one model does on labelled rows: a loss per row, the name of that loss, and summary metrics."""

    metric: str
    losses: Floats
    metrics: dict[str, float]


def kind_of(scorer: Scorer) -> Kind:
    """Tell a classifier from a regressor by what it predicts, and by the estimator inside it where there is one."""
    by_answer = scorer.classes is not None or scorer.kind == "string"
    return "classifier" if by_answer or hasattr(scorer.raw_model, "classes_") else "regressor"


def score(predictions: Predictions, classes: tuple[str, ...] | None, labels: pa.Array, kind: Kind) -> Scores:
    """Return the per-row proper score and the summary metrics of predictions against known labels."""
    if kind == "regressor":
        return _regression_scores(_numbers(predictions.values), _numbers(labels))
    codes = class_codes(labels, classes) if classes is not None else None
    if predictions.proba is None or classes is None or codes is None:
        wrong = _texts(predictions.values) != _texts(labels)
        losses = wrong.astype(np.float64)
        return Scores("error_rate", losses, {"error_rate": mean(losses), "accuracy": 1.0 - mean(losses)})
    flat = predictions.proba.flatten().to_numpy(zero_copy_only=False)
    proba = np.asarray(flat, dtype=np.float64).reshape(len(codes), len(classes))
    return _probability_scores(proba, codes)


def class_codes(labels: pa.Array, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return the position of each label among the model's classes; -1 for a label that the model does not know."""
    known = {_class_text(name): position for position, name in enumerate(classes)}
    distinct, inverse = np.unique(_texts(labels), return_inverse=True)
    positions = np.array([known.get(text, -1) for text in distinct], dtype=np.int64)
    return positions[inverse]


def auc(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Return the area under the ROC curve (Mann-Whitney, ties count half); NaN when only one class is present."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative))


def _probability_scores(proba: Floats, codes: npt.NDArray[np.int64]) -> Scores:
    known = codes >= 0
    of_truth = np.where(known, proba[np.arange(len(codes)), np.maximum(codes, 0)], 0.0)
    losses = -np.log(np.clip(of_truth, PROBABILITY_FLOOR, 1.0))
    truth = np.zeros_like(proba)
    truth[np.nonzero(known)[0], codes[known]] = 1.0
    if proba.shape[1] == 2:
        area = auc(codes == 1, proba[:, 1])
        brier = mean((proba[:, 1] - truth[:, 1]) ** 2)
    else:
        areas = [auc(codes == position, proba[:, position]) for position in range(proba.shape[1])]
        present = [value for value in areas if not math.isnan(value)]
        area = float(np.mean(present)) if present else math.nan
        brier = mean(((proba - truth) ** 2).sum(axis=1))
    accuracy = mean((proba.argmax(axis=1) == codes).astype(np.float64))
    metrics = {"log_loss": mean(losses), "auc": area, "brier": brier, "accuracy": accuracy}
    return Scores(
        "log_loss", losses, {name: value for name, value in metrics.items() if not math.isnan(value)}
    )


def _regression_scores(predicted: Floats, truth: Floats) -> Scores:
    errors = predicted - truth
    losses = np.abs(errors)
    metrics = {"mae": mean(losses), "rmse": math.sqrt(mean(errors**2)), "bias": mean(errors)}
    spread = float(np.sum((truth - truth.mean()) ** 2)) if len(truth) else 0.0
    if spread > 0:
        metrics["r2"] = 1.0 - float(np.sum(errors**2)) / spread
    return Scores("mae", losses, metrics)


def _numbers(values: pa.Array) -> Floats:
    try:
        return np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowInvalid as error:
        raise BadInput(f"a label or prediction of a regressor is not a number: {error}") from None


def _texts(values: pa.Array) -> npt.NDArray[np.str_]:
    """Return labels as texts that compare across types: 1, 1.0, true and "1" are the same class."""
    distinct = values.dictionary_encode() if not pa.types.is_dictionary(values.type) else values
    texts = np.array([_class_text(value) for value in distinct.dictionary.to_pylist()], dtype=np.str_)
    return (
        texts[distinct.indices.to_numpy(zero_copy_only=False)] if len(texts) else np.array([], dtype=np.str_)
    )


def _class_text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    text = str(value)
    if text in ("True", "False", "true", "false"):
        return str(int(text.lower() == "true"))
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def mean(values: Floats) -> float:
    """Return the mean; NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan

"""Streams with and without drift, played as they would come: predict, wait, hear the label, learn (Dawid 1984).

Each stream is a function of its seed. Its model was trained on rows from before it, and is a real scikit-learn one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_flywheel.pipelines.adjust.choice import choose
from mlflow_flywheel.pipelines.adjust.rows import Answered, Label
from mlflow_flywheel.pipelines.adjust.state import AdjustmentState
from mlflow_flywheel.pipelines.config import AdjustKind, ModelRef
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

Floats = npt.NDArray[np.float64]
ROWS, TRAINED_ON, BATCH, DELAY = 4000, 2000, 20, 100
_WEIGHTS = np.array([1.0, -0.7, 0.5])
_OTHER_WEIGHTS = np.array([-0.2, -0.7, 1.2])
DRIFTS: dict[str, Callable[[Floats], Floats]] = {
    "stationary": lambda t: 0 * t,
    "outdated": lambda t: 1.5 + 0 * t,  # the model was wrong before the stream began
    "abrupt": lambda t: 1.0 * (t > 0.4),
    "gradual": lambda t: 1.5 * t,
    "recurring": lambda t: np.sin(4 * np.pi * t),
    "concept": lambda t: 0 * t,  # the weights of the features change, half way
}


@dataclass(frozen=True)
class Stream:
    """Rows in the order in which they are answered: features, what the model said, truths, and when these come.

    The label of row i is known before row `known[i]` is answered.
    """

    scorer: Scorer
    features: pa.RecordBatch
    raw: Floats
    labels: Sequence[float | str]
    known: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Played:
    """Mean losses over a stream: of the model alone, and of what was answered; and how often the latter differed."""

    unadjusted: float
    adjusted: float
    active: float
    state: AdjustmentState

    @property
    def ratio(self) -> float:
        return self.adjusted / self.unadjusted


def new_state(
    kind: AdjustKind, scorer: Scorer, *, window: int = 500, waiting: int = 100_000, bound: float = 2.0
) -> AdjustmentState:
    """Return an adjustment of a model at its beginning, with the defaults of a deployment."""
    method, outputs = choose(kind, scorer)
    return AdjustmentState(method, outputs, window=window, waiting=waiting, bound=bound)


def play(stream: Stream, kind: AdjustKind, batch: int = BATCH) -> Played:
    """Answer a stream batch by batch, each after the labels that are known by then."""
    state = new_state(kind, stream.scorer)
    answers, active = stream.raw.copy(), 0
    by_time = np.argsort(stream.known, kind="stable")
    arrivals, heard = stream.known[by_time], 0
    columns = stream.scorer.schema.to_lists(stream.features) if state.method.needs_features else []
    features: list[Any] = list(zip(*columns, strict=True)) if columns else [None] * len(answers)
    for start in range(0, len(answers), batch):
        until = int(np.searchsorted(arrivals, start, side="right"))
        state.labelled([Label(str(i), None, stream.labels[i], 0) for i in by_time[heard:until].tolist()])
        heard = until
        here = slice(start, start + batch)
        proposals = state.proposed(stream.raw[here], stream.features.slice(start, batch))
        if state.trust.open:
            answers[here] = proposals
            active += len(proposals)
        said, proposed, adjustment = stream.raw[here].tolist(), proposals.tolist(), state.id
        state.answered(
            [
                Answered(
                    start + i,
                    str(start + i),
                    None,
                    tuple(said[i]),
                    tuple(proposed[i]),
                    adjustment,
                    features[start + i],
                )
                for i in range(len(said))
            ]
        )
    truths = np.array([state.outputs.truth(label) for label in stream.labels], np.float64)
    before, after = (float(state.outputs.losses(each, truths).mean()) for each in (stream.raw, answers))
    return Played(before, after, active / len(answers), state)


def regression(drift: str, seed: int, rows: int = ROWS) -> Stream:
    """Return a linear regressor's stream; the drift moves the labels by as much as their noise."""
    rng = np.random.default_rng(seed)
    x, shift, weights = _moving(drift, rng, rows)
    y = (x * weights).sum(axis=1) + shift + rng.normal(size=len(x))
    return _stream(SGDRegressor(random_state=seed), x, y, None)


def classification(drift: str, seed: int, rows: int = ROWS) -> Stream:
    """Return a logistic classifier's stream; the drift moves the log-odds."""
    rng = np.random.default_rng(seed)
    x, shift, weights = _moving(drift, rng, rows)
    odds = (x * weights).sum(axis=1) - 0.8 + shift
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    model = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=seed))
    return _stream(model, x, y, "double")


def three_classes(drift: str, seed: int, rows: int = ROWS) -> Stream:
    """Return the stream of a classifier of three classes; the drift moves the log-odds of one of them."""
    rng = np.random.default_rng(seed)
    x, shift, weights = _moving(drift, rng, rows)
    scores = np.stack([(x * weights).sum(axis=1), x[:, 1] + shift, 0.3 * x[:, 2]], axis=1)
    y = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    model = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=seed))
    return _stream(model, x, np.array(["a", "b", "c"])[y], "string")


def scorer_of(model: Any, names: Sequence[str], kind: str) -> Scorer:
    """Return a scorer around a fitted scikit-learn model of numbers, without a file behind it."""
    classes = getattr(model, "classes_", None)

    def call(frame: Any, params: object) -> tuple[Any, Any]:
        return model.predict(frame), None if classes is None else model.predict_proba(frame)

    return Scorer(
        ModelRef(name="m", version="1", path=""),
        FeatureSchema([Feature(name, "double") for name in names]),
        call,
        None if classes is None else tuple(map(str, classes)),
        None,
        kind,
        model,
    )


def _moving(drift: str, rng: np.random.Generator, rows: int) -> tuple[Floats, Floats, Floats]:
    """Return features, shifts and weights of the rows that the model is trained on, and of the stream after them."""
    x = rng.normal(size=(TRAINED_ON + rows, len(_WEIGHTS)))
    time = np.arange(rows) / rows
    shift = np.concatenate([np.zeros(TRAINED_ON), DRIFTS[drift](time)])
    weights = np.tile(_WEIGHTS, (len(x), 1))
    if drift == "concept":
        weights[TRAINED_ON + rows // 2 :] = _OTHER_WEIGHTS
    return x, shift, weights


def _stream(model: Any, x: Floats, y: Any, kind: str | None) -> Stream:
    import pandas as pd

    names = [f"x{i}" for i in range(x.shape[1])]
    frame = pd.DataFrame(x, columns=names)
    model.fit(frame[:TRAINED_ON], y[:TRAINED_ON])
    later = frame[TRAINED_ON:]
    raw = model.predict(later).reshape(-1, 1) if kind is None else model.predict_proba(later)
    labels = y[TRAINED_ON:].tolist() if kind == "string" else y[TRAINED_ON:].astype(np.float64).tolist()
    return Stream(
        scorer_of(model, names, kind or "double"),
        pa.RecordBatch.from_pandas(later, preserve_index=False),
        raw,
        labels,
        np.arange(len(later)) + DELAY,
    )

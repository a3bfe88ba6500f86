"""A small zoo of real models, logged to a real MLflow store: one of each kind that a deployment must score alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.registry import download_model, resolve_model


@dataclass(frozen=True)
class ZooModel:
    """A registered version, its files on this machine, and rows that it takes."""

    kind: str
    uri: str
    ref: ModelRef
    rows: pd.DataFrame
    labels: list[Any]


def numeric_frame(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.normal(size=(n, 4)), columns=["a", "b", "c", "d"])


def mixed_frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Strings, integers, booleans and missing values, as a table read from a database would have them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "carrier": rng.choice(["AA", "UA", "DL"], n),
            "distance": rng.integers(100, 3000, n),
            "temp": rng.normal(50, 10, n),
            "holiday": rng.random(n) < 0.2,
        }
    )
    frame.loc[rng.random(n) < 0.1, "temp"] = np.nan
    frame.loc[rng.random(n) < 0.1, "carrier"] = None
    return frame


# Of each kind of model one; "total" is another regressor, for deployments under load.
KINDS = ("classifier", "regressor", "multiclass", "mixed", "pyfunc")


def log_model(
    kind: str, tracking_uri: str, cache: Path, *, name: str | None = None, seed: int = 0
) -> ZooModel:
    """Train, log and register one model of the zoo; a second call with another seed makes a second version."""
    import mlflow
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    model, frame, labels, log = _BUILDERS[kind](seed)
    with mlflow.start_run():
        info = log(
            model,
            name="model",
            signature=infer_signature(
                frame, model.predict(frame) if hasattr(model, "fit") else model.predict(None, frame)
            ),
            input_example=frame.head(3),
            pip_requirements=["mlflow", "scikit-learn"],  # to infer them takes seconds
            registered_model_name=name or f"zoo-{kind}",
        )
    uri = f"models:/{name or f'zoo-{kind}'}/{info.registered_model_version}"
    ref = download_model(resolve_model(uri, tracking_uri), cache, tracking_uri)
    return ZooModel(kind, uri, ref, frame, list(labels))


def _sklearn_logger(**options: Any) -> Callable[..., Any]:
    import mlflow.sklearn

    return lambda model, **kwargs: mlflow.sklearn.log_model(model, **options, **kwargs)


def _classifier(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    frame = numeric_frame(300, seed)
    labels = (frame["a"] + frame["b"] > 0).astype(int)
    return LogisticRegression().fit(frame, labels), frame, labels, _sklearn_logger()


def _regressor(seed: int) -> Any:
    from sklearn.linear_model import Ridge

    frame = numeric_frame(300, seed)
    labels = frame["a"] * 2 - frame["c"]
    return Ridge().fit(frame, labels), frame, labels, _sklearn_logger()


def _total(seed: int) -> Any:
    """a + b + seed, exactly; its workers start in a third of the time of a pyfunc's, as they need no MLflow."""
    from sklearn.linear_model import LinearRegression

    frame = numeric_frame(300, seed)
    labels = frame["a"] + frame["b"] + seed
    model = LinearRegression().fit(frame, labels)
    model.coef_, model.intercept_ = np.array([1.0, 1.0, 0.0, 0.0]), float(seed)
    return model, frame, labels, _sklearn_logger()


def _multiclass(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    frame = numeric_frame(300, seed)
    labels = pd.cut(frame["a"], [-np.inf, -0.5, 0.5, np.inf], labels=["low", "mid", "high"]).astype(str)
    return LogisticRegression().fit(frame, labels), frame, labels, _sklearn_logger()


def _mixed(seed: int) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    frame = mixed_frame(400, seed)
    labels = ((frame["carrier"] == "AA") | (frame["distance"] > 1500)).astype(int)
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    pipeline = make_pipeline(
        make_column_transformer((encoder, ["carrier"]), remainder="passthrough"),
        HistGradientBoostingClassifier(max_iter=20, random_state=seed),
    )
    return pipeline.fit(frame, labels), frame, labels, _sklearn_logger(serialization_format="cloudpickle")


def _pyfunc(seed: int) -> Any:
    import mlflow.pyfunc

    class Total(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input[["a", "b"]].sum(axis=1) + seed

    frame = numeric_frame(300, seed)

    def log(model: Any, **kwargs: Any) -> Any:
        return mlflow.pyfunc.log_model(python_model=model, **kwargs)

    return Total(), frame, frame["a"] + frame["b"], log


_BUILDERS: dict[str, Callable[[int], Any]] = {
    "classifier": _classifier,
    "regressor": _regressor,
    "total": _total,
    "multiclass": _multiclass,
    "mixed": _mixed,
    "pyfunc": _pyfunc,
}

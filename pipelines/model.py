"""A model version on this machine, ready to predict: the one place that calls MLflow's models.

`Scorer` answers exactly what `mlflow.pyfunc.load_model(...).predict` would, and, where the model has them, the class
probabilities that monitors and gates need. Scikit-learn models are called directly: pyfunc's own signature check is
about half of its cost per row, and `FeatureSchema` has already made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .config import ModelRef
from .errors import BadInput, ModelError
from .plain_model import plain_model
from .positional import Order, order_for, without_names
from .schema import FeatureSchema

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Predictions:
    """What a model said about n rows.

    `values` is double or string, `proba` a list<double> per row in the order of `Scorer.classes` (None when the model
    has none), `answer` what the model itself returned, an entry or a row of it for each.
    """

    values: pa.Array
    proba: pa.Array | None
    answer: list[Any] | np.ndarray[Any, Any] = field(compare=False)

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def native(self) -> list[Any]:
        """Return what the model itself returned, as Python values for JSON: batch, which has many rows, never asks."""
        return self.answer if isinstance(self.answer, list) else self.answer.tolist()

    def take(self, rows: Sequence[int]) -> Predictions:
        """Return the rows at these positions."""
        chosen = pa.array(rows, pa.int64())
        proba = None if self.proba is None else self.proba.take(chosen)
        return Predictions(self.values.take(chosen), proba, [self.native[i] for i in rows])


class Scorer:
    """One loaded model version. Safe to call from several threads at once."""

    def __init__(
        self,
        ref: ModelRef,
        schema: FeatureSchema,
        call: Callable[[Any, Mapping[str, Any] | None], tuple[Any, Any]],
        classes: tuple[str, ...] | None,
        input_example: pa.RecordBatch | None,
        kind: str | None,
        raw: Any,
        matrix: Order | None = None,
    ) -> None:
        self.ref = ref
        self.schema = schema
        self.classes = classes
        self.input_example = input_example
        self.raw_model = raw
        self._call = call
        self._kind = kind
        self._matrix = matrix

    @property
    def kind(self) -> str:
        """Return the type of a prediction in the inference table: "double" or "string"."""
        if self._kind is None:
            raise BadInput(
                f"{describe(self.ref)} says nowhere what it predicts; log it with an input_example, or with a "
                "signature that has outputs"
            )
        return self._kind

    def predict(
        self, features: pa.RecordBatch | pa.Table, params: Mapping[str, Any] | None = None
    ) -> Predictions:
        """Predict rows that fit the schema.

        Raises ModelError, with the model's own words, when the model raises or answers another number of rows.
        """
        try:
            if self._matrix is not None and not params:
                answer, proba = self._call(self.schema.to_matrix(features, self._matrix), None)
            else:
                answer, proba = self._call(self.schema.to_frame(features), params)
        except Exception as error:
            raise ModelError(f"{describe(self.ref)} raised {type(error).__name__}: {error}") from error
        values, shown = _one_column(answer, self.ref)
        if len(values) != features.num_rows:
            raise ModelError(f"{describe(self.ref)} answered {len(values)} rows for {features.num_rows}")
        if proba is None and values.ndim == 2:
            proba, values = values, values.argmax(axis=1)
        return Predictions(_to_arrow(values, self._kind), _proba_to_arrow(proba), shown)


def load_scorer(ref: ModelRef) -> Scorer:
    """Load a model version and let it predict its own input example.

    Raises ModelError when it cannot be loaded or fails its example, BadInput when its signature cannot be served.
    """
    return open_model(ref).load()


@dataclass(frozen=True)
class OpenedModel:
    """A model version of which is known what it takes, before the libraries behind it are there."""

    ref: ModelRef
    schema: FeatureSchema
    kind: str | None
    """See `Scorer.kind`; None when only the loaded model can tell."""
    _example: Callable[[], pa.RecordBatch | None]
    _flavors: Mapping[str, Any]
    _raw: Callable[[], Any]
    _pyfunc: Any

    def load(self) -> Scorer:
        """Load it and let it predict its own input example; raises as `load_scorer` says."""
        try:
            example = self._example()
        except BadInput:  # MLflow understands more examples than JSON that fits
            return _opened_by_mlflow(self.ref).load()
        with _loading(self.ref):
            raw = self._raw()
        call, classes, matrix = _caller(self._flavors, raw, self._pyfunc, self.schema)

        def scorer(kind: str | None) -> Scorer:
            return Scorer(self.ref, self.schema, call, classes, example, kind, raw, matrix)

        if example is None:
            return scorer(self.kind)
        values = scorer(self.kind).predict(example).values
        return scorer(self.kind or ("string" if pa.types.is_string(values.type) else "double"))


def open_model(ref: ModelRef) -> OpenedModel:
    """Read what a model version takes; one that is no plain scikit-learn model is loaded for that, by MLflow.

    Raises as `load_scorer` says.
    """
    plain = plain_model(Path(ref.path))
    if plain is None:
        return _opened_by_mlflow(ref)
    schema, columns = FeatureSchema.from_inputs(plain.inputs, describe(ref)), plain.example

    def example() -> pa.RecordBatch | None:
        # not before it is needed: Arrow imports pandas for its first array
        return None if columns is None else schema.from_columns(columns, len(next(iter(columns.values()))))

    return OpenedModel(ref, schema, _kind_of(plain.outputs), example, plain.flavors, plain.load, None)


def _opened_by_mlflow(ref: ModelRef) -> OpenedModel:
    with _loading(ref):
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(ref.path)
    signature, flavors = model.metadata.signature, model.metadata.flavors
    schema = FeatureSchema.from_signature(signature, describe(ref))
    raw = model.get_raw_model() if "sklearn" in flavors else None
    example = _input_example(model, schema, ref)
    return OpenedModel(ref, schema, prediction_kind(signature), lambda: example, flavors, lambda: raw, model)


@contextmanager
def _loading(ref: ModelRef) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"{describe(ref)} cannot be loaded from {ref.path}: {type(error).__name__}: {error}"
        ) from error


def describe(ref: ModelRef) -> str:
    """Return a name for messages, such as "model flight-late version 3"."""
    return f"model {ref.name} version {ref.version}" if ref.version else f"model {ref.name}"


_Call = Callable[[Any, Mapping[str, Any] | None], tuple[Any, Any]]


def _caller(
    flavors: Mapping[str, Any], raw: Any, pyfunc: Any, schema: FeatureSchema
) -> tuple[_Call, tuple[str, ...] | None, Order | None]:
    """Choose how to call a model: the scikit-learn estimator inside it, or pyfunc itself, which a plain model has not.

    Returns the call, the classes, and the order of the matrix that the call takes when there are no params; None when it
    takes a frame.
    """
    is_asked = flavors.get("python_function", {}).get("predict_fn", "predict") == "predict"
    estimator = raw if pyfunc is None or (is_asked and hasattr(raw, "predict")) else None
    if estimator is None:
        return (
            (lambda frame, params: (pyfunc.predict(frame, params=dict(params) if params else None), None)),
            None,
            None,
        )

    import sklearn

    classes = np.asarray(getattr(estimator, "classes_", ()))
    with_proba = hasattr(estimator, "predict_proba") and classes.ndim == 1 and len(classes) > 0
    fused = with_proba and _predict_is_argmax(estimator)

    plain = without_names(estimator, schema.names) if schema.one_numpy_type is not None else None
    asked = estimator if plain is None else plain

    def call(data: Any, params: Mapping[str, Any] | None) -> tuple[Any, Any]:
        if params and pyfunc is not None:
            return pyfunc.predict(data, params=dict(params)), None
        with sklearn.config_context(skip_parameter_validation=True):
            one = estimator if params else asked  # with params, which mean nothing here, comes a frame
            if not with_proba:
                return one.predict(data), None
            proba = one.predict_proba(data)
            return (classes[proba.argmax(axis=1)] if fused else one.predict(data)), proba

    names = tuple(str(c) for c in classes) if with_proba else None
    return call, names, None if plain is None else order_for(plain)


def _predict_is_argmax(estimator: Any) -> bool:
    """Tell whether `predict` is the most probable class, so that one call gives both.

    True by construction for these families; others (SVC's Platt scaling, tuned thresholds, one-vs-rest wrappers) may
    disagree with their own probabilities and are asked twice.
    """
    steps = getattr(estimator, "steps", None)
    final = steps[-1][1] if steps else estimator
    families = ("sklearn.ensemble.", "sklearn.tree.", "sklearn.naive_bayes", "sklearn.linear_model._logistic")
    return type(final).__module__.startswith(families) and "Voting" not in type(final).__name__


def _one_column(answer: Any, ref: ModelRef) -> tuple[np.ndarray[Any, Any], list[Any] | np.ndarray[Any, Any]]:
    """Reduce what a model returned to one value per row, and to what JSON shows of it."""
    if isinstance(answer, np.ndarray):
        values = answer
    else:
        import pandas as pd

        if isinstance(answer, pd.DataFrame):
            return _one_column_of_frame(answer, ref)
        values = answer.to_numpy() if isinstance(answer, pd.Series) else np.asarray(answer)
    if values.ndim not in (1, 2):
        raise ModelError(
            f"{describe(ref)} answers an array of shape {values.shape}; one value per row can be served"
        )
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values, values


def _one_column_of_frame(answer: pd.DataFrame, ref: ModelRef) -> tuple[np.ndarray[Any, Any], list[Any]]:
    import pandas as pd

    native: list[Any] = answer.to_dict(orient="records")
    if "prediction" in answer.columns:
        return answer["prediction"].to_numpy(), native
    if answer.shape[1] == 1:
        return answer.iloc[:, 0].to_numpy(), native
    if all(pd.api.types.is_numeric_dtype(kind) for kind in answer.dtypes):
        return answer.to_numpy(dtype=np.float64), native
    raise ModelError(
        f"{describe(ref)} answers the columns {list(answer.columns)}; name one of them 'prediction' to serve it"
    )


def _to_arrow(values: np.ndarray[Any, Any], kind: str | None) -> pa.Array:
    if values.dtype == object or values.dtype.kind in "UST":
        try:
            if kind == "double":
                return pa.array(values.astype(np.float64))
        except (TypeError, ValueError):
            pass
        return pa.array([None if _is_missing(value) else str(value) for value in values], pa.string())
    if kind == "string":
        return pa.array([str(value) for value in values.tolist()], pa.string())
    return pa.array(values.astype(np.float64))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _proba_to_arrow(proba: Any) -> pa.Array | None:
    if proba is None:
        return None
    matrix = np.ascontiguousarray(proba, dtype=np.float64)
    offsets = np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.ravel()))


def prediction_kind(signature: Any) -> str | None:
    """Return the type of a prediction that a signature tells, "double" or "string", or None when it tells none."""
    outputs = getattr(signature, "outputs", None)
    return _kind_of(None if outputs is None else outputs.to_dict())


def _kind_of(outputs: Sequence[Mapping[str, Any]] | None) -> str | None:
    if outputs is None or len(outputs) != 1:
        return None
    kind = outputs[0]["type"]
    if kind == "tensor":
        return "string" if np.dtype(outputs[0]["tensor-spec"]["dtype"]).kind in "USO" else "double"
    return "string" if kind == "string" else "double"


def _input_example(model: Any, schema: FeatureSchema, ref: ModelRef) -> pa.RecordBatch | None:
    import pandas as pd

    if model.metadata.saved_input_example_info is None:
        return None
    example = model.metadata.load_input_example(str(Path(ref.path)))
    if not isinstance(example, pd.DataFrame):
        return None
    table = pa.Table.from_pandas(example, preserve_index=False)
    return schema.from_table(table).combine_chunks().to_batches()[0]

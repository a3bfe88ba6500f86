"""The default retraining project: refit a clone of the champion's estimator on a training set.

Entry point of `MLproject`, a fresh process each time, so it imports little. The run that it continues belongs to
whoever started the project. It logs one model, in the parent's flavor, format, signature and requirements.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .config import ModelRef
from .errors import BadInput, FlywheelError, ModelError
from .lineage import Lineage, TrainingSet
from .model import Scorer
from .reference_file import to_native
from .schema import FeatureSchema
from .scores import Scores, kind_of, score
from .training_files import LABEL
from .training_rows import MIN_ROWS, since, thinned, weights
from .window_search import WindowChoice, choose_window

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow.models import Model

MODEL_NAME = "model"
# How the run says which window was chosen, and why: parameter, metrics and tag.
CHOSEN_WINDOW = "chosen_window"
VALIDATION = "validation_"
WINDOW_TAG = "flywheel.training_window"
_TAG_LENGTH = 4000


def check_refittable(parent: Path) -> None:
    """Raise BadInput, with the remedy, when the model in this folder is none that can be cloned and refitted."""
    from mlflow.models import Model

    flavors = Model.load(str(parent)).flavors
    if "sklearn" not in flavors:
        kinds = ", ".join(sorted(set(flavors) - {"python_function"})) or "python_function"
        raise BadInput(
            f"the champion is a {kinds} model, and only scikit-learn models can be cloned and refitted; give a "
            "project of your own (loop.retrain_with), set loop.retrain_on= (nothing retrains it), or log it as a "
            "scikit-learn estimator with mlflow.sklearn.log_model"
        )


def retrain(training_set: Path, parent: Path, seed: int) -> str:
    """Refit and log in the active MLflow run; return the logged model's id.

    `training_set` is a folder with the training rows and their lineage: what is held out is not for us to see.
    """
    import mlflow
    import mlflow.sklearn
    from mlflow.models import Model

    check_refittable(parent)
    data = TrainingSet(training_set)
    metadata = Model.load(str(parent))
    refit = Refit(mlflow.sklearn.load_model(str(parent)), metadata, data.lineage, seed)
    rows, lineage = data.train(), data.lineage
    if lineage.windows:
        choice = choose_window(rows, lineage.windows, lineage.holdout_start, refit.attempt)
        _log_choice(choice)
        rows = since(rows, lineage.windows[choice.name], lineage.holdout_start)
    estimator, fitted = refit.fit(rows)
    mlflow.log_params(
        {
            "estimator": type(estimator).__name__,
            "parent_version": lineage.parent_version,
            "as_of": lineage.as_of.isoformat(),
            "train_rows": lineage.train_rows,
            "fitted_rows": fitted,
            "holdout_rows": lineage.holdout_rows_found,
        }
    )
    info = mlflow.sklearn.log_model(
        estimator, name=MODEL_NAME, signature=metadata.signature, **_as_parent(metadata, parent)
    )
    return str(info.model_id)


class Refit:
    """Fits clones of the champion's estimator, as its training set's recipe says."""

    def __init__(self, before: Any, metadata: Model, lineage: Lineage, seed: int) -> None:
        self._before = before
        self._schema = FeatureSchema.from_signature(metadata.signature)
        self._lineage = lineage
        self._seed = seed

    def fit(self, rows: pa.Table) -> tuple[Any, int]:
        """Return a fitted clone, and how many rows were left for it when the classes were balanced.

        Raises ModelError in the estimator's own words, BadInput when rows are to be weighed and it cannot.
        """
        from sklearn.base import clone

        estimator = clone(self._before)
        _set_seed(estimator, self._seed)
        rows = thinned(rows, self._lineage)
        if rows.num_rows < MIN_ROWS:
            raise ModelError(f"{rows.num_rows} rows are left to fit to, fewer than {MIN_ROWS}")
        weight = weights(rows, self._lineage)
        options = {} if weight is None else {weight_key(estimator): weight}
        try:
            estimator.fit(
                self._schema.to_frame(self._schema.from_table(rows)),
                to_native(rows[LABEL], getattr(self._before, "classes_", None)),
                **options,
            )
        except Exception as error:
            raise ModelError(
                f"{type(estimator).__name__} cannot be fitted to {rows.num_rows} rows: {type(error).__name__}: {error}"
            ) from error
        return estimator, rows.num_rows

    def attempt(self, rows: pa.Table, later: pa.Table) -> Scores:
        """Fit to rows and score later ones, as the gate does."""
        scorer = _scorer(self.fit(rows)[0], self._schema)
        labels = later[LABEL].combine_chunks()
        return score(scorer.predict(later), scorer.classes, labels, kind_of(scorer))


def weight_key(estimator: Any) -> str:
    """Return the name under which an estimator's `fit` takes what each row counts; of a Pipeline its last step's.

    Raises BadInput, with the remedy, when it takes none.
    """
    from sklearn.utils.validation import has_fit_parameter

    steps = getattr(estimator, "steps", None)
    if steps:
        name, last = steps[-1]
        return f"{name}__{weight_key(last)}"
    if has_fit_parameter(estimator, "sample_weight"):
        return "sample_weight"
    raise BadInput(
        f"{type(estimator).__name__} takes no sample_weight, so its rows cannot count differently "
        "(loop.recency_half_life, loop.class_balance=weights); what needs no weights is loop.training_windows and "
        "loop.class_balance=downsample"
    )


def _log_choice(choice: WindowChoice) -> None:
    import mlflow

    mlflow.log_params({"windows": ",".join([*choice.losses, *choice.left_out]), CHOSEN_WINDOW: choice.name})
    mlflow.log_metrics({f"{VALIDATION}{choice.metric}_{name}": loss for name, loss in choice.losses.items()})
    mlflow.set_tag(WINDOW_TAG, str(choice)[:_TAG_LENGTH])


def _as_parent(metadata: Model, parent: Path) -> dict[str, Any]:
    """Return how the parent was logged, for `mlflow.sklearn.log_model`."""
    sklearn_flavor, pyfunc_flavor = metadata.flavors["sklearn"], metadata.flavors.get("python_function", {})
    options: dict[str, Any] = {
        "serialization_format": sklearn_flavor["serialization_format"],
        "input_example": metadata.load_input_example(str(parent)),
        "metadata": metadata.metadata,
        "pyfunc_predict_fn": pyfunc_flavor.get("predict_fn", "predict"),
    }
    if sklearn_flavor.get("skops_trusted_types"):
        options["skops_trusted_types"] = sklearn_flavor["skops_trusted_types"]
    # Inferring requirements loads the model in another process; the parent's are known to serve it.
    if (parent / "requirements.txt").exists():
        options["pip_requirements"] = str(parent / "requirements.txt")
    if pyfunc_flavor.get("code"):
        options["code_paths"] = [str(path) for path in sorted((parent / pyfunc_flavor["code"]).iterdir())]
    return options


def _scorer(estimator: Any, schema: FeatureSchema) -> Scorer:
    """Wrap the fitted estimator, so that its loss is counted as the gate counts it."""
    classes = getattr(estimator, "classes_", None)
    with_proba = classes is not None and hasattr(estimator, "predict_proba")

    def call(frame: Any, params: object) -> tuple[Any, Any]:
        return estimator.predict(frame), estimator.predict_proba(frame) if with_proba else None

    return Scorer(
        ModelRef(name="challenger", version="", path=""),
        schema,
        call,
        tuple(str(name) for name in classes) if classes is not None and with_proba else None,
        None,
        "string" if classes is not None and classes.dtype.kind in "OUS" else "double",
        estimator,
    )


def _set_seed(estimator: Any, seed: int) -> None:
    """Fix what the champion's author left to chance, so that the same training set gives the same model."""
    open_seeds = {
        name: seed
        for name, value in estimator.get_params(deep=True).items()
        if value is None and name.rpartition("__")[2] == "random_state"
    }
    estimator.set_params(**open_seeds)


@click.command()
@click.option("--training-set", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--parent", type=click.Path(path_type=Path, exists=True), required=True, help="the champion's files"
)
@click.option("--seed", type=float, default=0, help="for estimators whose random_state was left open")
def main(training_set: Path, parent: Path, seed: float) -> None:
    """Refit the model in PARENT on TRAINING_SET, in the MLflow run of the environment."""
    import mlflow

    try:
        with mlflow.start_run():
            model_id = retrain(training_set, parent, int(seed))
    except FlywheelError as error:
        raise click.ClickException(error.message) from error
    click.echo(f"logged {model_id}")


if __name__ == "__main__":
    main()

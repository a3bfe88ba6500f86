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
from .lineage import TrainingSet
from .model import Scorer
from .reference_file import to_native
from .schema import FeatureSchema
from .scores import kind_of, score
from .training_files import LABEL

if TYPE_CHECKING:
    from mlflow.models import Model

MODEL_NAME = "model"


def check_refittable(parent: Path) -> None:
    """Raise BadInput, with the remedy, when the model in this folder is none that can be cloned and refitted."""
    from mlflow.models import Model

    flavors = Model.load(str(parent)).flavors
    if "sklearn" not in flavors:
        kinds = ", ".join(sorted(set(flavors) - {"python_function"})) or "python_function"
        raise BadInput(
            f"the champion is a {kinds} model, and only scikit-learn models can be cloned and refitted; set "
            "loop.retrain_on= (nothing retrains it) or log it as a scikit-learn estimator with mlflow.sklearn.log_model"
        )


def retrain(training_set: Path, parent: Path, seed: int) -> str:
    """Refit and log in the active MLflow run; return the logged model's id."""
    import mlflow
    import mlflow.sklearn
    from mlflow.models import Model
    from sklearn.base import clone

    check_refittable(parent)
    data = TrainingSet(training_set)
    metadata = Model.load(str(parent))
    schema = FeatureSchema.from_signature(metadata.signature)
    before = mlflow.sklearn.load_model(str(parent))
    estimator = clone(before)
    _set_seed(estimator, seed)
    train = data.train()
    try:
        estimator.fit(
            schema.to_frame(schema.from_table(train)),
            to_native(train[LABEL], getattr(before, "classes_", None)),
        )
    except Exception as error:
        raise ModelError(
            f"{type(estimator).__name__} cannot be fitted to {train.num_rows} rows: {type(error).__name__}: {error}"
        ) from error
    holdout = data.holdout()
    scorer = _scorer(estimator, schema)
    metrics = score(
        scorer.predict(holdout), scorer.classes, holdout[LABEL].combine_chunks(), kind_of(scorer)
    ).metrics
    lineage = data.lineage
    mlflow.log_params(
        {
            "estimator": type(estimator).__name__,
            "parent_version": lineage.parent_version,
            "as_of": lineage.as_of.isoformat(),
            "train_rows": lineage.train_rows,
            "holdout_rows": lineage.holdout_rows_found,
        }
    )
    info = mlflow.sklearn.log_model(
        estimator, name=MODEL_NAME, signature=metadata.signature, **_as_parent(metadata, parent)
    )
    mlflow.log_metrics({f"holdout_{name}": value for name, value in metrics.items()}, model_id=info.model_id)
    return str(info.model_id)


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
    """Wrap the fitted estimator, so that its metrics are counted as the gate counts them."""
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

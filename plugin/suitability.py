"""Whether every deployment that follows the alias could serve a challenger: what they are asked, it must take."""

from __future__ import annotations

from mlflow_flywheel.pipelines.compatibility import check_takes
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.registry import model_signature, resolve_model
from mlflow_flywheel.pipelines.schema import FeatureSchema

from .champion import CHAMPION
from .home import Home
from .records import Records


def unsuitable(home: Home, records: Records, model: str, challenger: Scorer) -> str | None:
    """Say which deployment could not go over to the challenger, and why; None when all can.

    A deployment may lag behind the champion: what counts is what its callers send to the version that it serves.
    """
    followers = [
        d for d in records.deployments(model_name=model) if d.model_uri == f"models:/{model}@{CHAMPION}"
    ]
    for version in sorted({d.version for d in followers if d.version}):
        names = ", ".join(repr(d.name) for d in followers if d.version == version)
        try:
            resolved = resolve_model(f"models:/{model}/{version}", home.tracking_uri)
            wanted = FeatureSchema.from_signature(model_signature(resolved, home.tracking_uri))
        except FlywheelError:
            continue  # deleted: it says nothing about its callers any more
        try:
            check_takes(
                challenger.schema, wanted, f"deployment {names} cannot take it: it", f"version {version}"
            )
        except BadInput as error:
            return error.message
    return None

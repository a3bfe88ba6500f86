"""A model on its way into a deployment: resolved, downloaded once, and looked at without running it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlflow_flywheel.pipelines.compatibility import check_takes
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer, describe, load_scorer, prediction_kind
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, resolve_model
from mlflow_flywheel.pipelines.schema import FeatureSchema

from .context import Context
from .home import Home
from .record_types import DeploymentRecord


@dataclass(frozen=True)
class FetchedModel:
    """A model version whose files are here; `kind` of its predictions is None when only a loaded model can tell.

    `challenger` is the version that is to be tried beside it.
    """

    ref: ModelRef
    schema: FeatureSchema
    kind: str | None
    flavors: tuple[str, ...]
    challenger: FetchedModel | None = None

    def beside(self, challenger: FetchedModel) -> FetchedModel:
        """Return this version with a challenger; raises BadInput for one that could not answer in its place."""
        if challenger.ref.name != self.ref.name:
            raise BadInput(
                f"challenger {describe(challenger.ref)} is no version of {self.ref.name!r}, the model that is deployed; "
                f"give models:/{self.ref.name}@challenger or models:/{self.ref.name}/VERSION"
            )
        check_takes(
            challenger.schema, self.schema, f"the challenger, {describe(challenger.ref)},", describe(self.ref)
        )
        return replace(self, challenger=challenger)

    def flavor(self, wanted: str | None) -> str:
        """Return the flavour to record; raises BadInput for one that the model does not have."""
        if wanted is not None and wanted not in self.flavors:
            raise BadInput(
                f"{describe(self.ref)} has no flavor {wanted!r}{nearest(wanted, self.flavors)}; it has: "
                f"{', '.join(self.flavors)}"
            )
        return wanted or next((f for f in self.flavors if f != "python_function"), "python_function")

    def ensure_table(self, context: Context) -> None:
        """Make the model's inference table ready for this version; raises BadInput when its types do not fit."""
        kind = self.kind or load_scorer(self.ref).kind
        InferenceTable.open(context.home.tables, self.ref.name).ensure(self.schema, kind)
        if self.challenger is not None:
            self.challenger.ensure_table(context)

    def check_table(self, context: Context) -> None:
        """Raise BadInput when this version does not fit the inference table that the model has already."""
        table = InferenceTable.open(context.home.tables, self.ref.name)
        if self.kind is not None and table.exists:
            table.ensure(self.schema, self.kind)
        if self.challenger is not None:
            self.challenger.check_table(context)


def fetch_model(context: Context, uri: str) -> FetchedModel:
    """Resolve and download a model, and read its signature.

    Raises NotFound for a URI that leads nowhere, BadInput for a model without a usable signature.
    """
    return _look_at(context, resolve_model(uri, context.tracking_uri))


def load_version(home: Home, model: str, version: str) -> Scorer:
    """Load a version of a registered model. Raises FlywheelError when it is gone or cannot be loaded."""
    resolved = resolve_model(f"models:/{model}/{version}", home.tracking_uri)
    return load_scorer(download_model(resolved, home.models, home.tracking_uri))


def model_in_force(context: Context, record: DeploymentRecord) -> ModelRef:
    """Return the files of the version that a deployment serves, downloading them again when they are gone."""
    uri = f"models:/{record.model_name}/{record.version}" if record.version else record.model_uri
    resolved = ResolvedModel(uri, record.model_name, record.version, record.model_id)
    return download_model(resolved, context.home.models, context.tracking_uri)


def _look_at(context: Context, resolved: ResolvedModel) -> FetchedModel:
    from mlflow.models import Model

    ref = download_model(resolved, context.home.models, context.tracking_uri)
    model = Model.load(ref.path)
    schema = FeatureSchema.from_signature(model.signature, describe(ref))
    return FetchedModel(ref, schema, prediction_kind(model.signature), tuple(model.flavors))

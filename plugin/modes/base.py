"""What a mode is to the control plane, as an interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import Spec

if TYPE_CHECKING:
    import pandas as pd

S_contra = TypeVar("S_contra", bound=Spec, contravariant=True)


@dataclass(frozen=True)
class Answers:
    """Predictions in the order of the rows, each with the id that its label will name."""

    predictions: list[Any]
    prediction_ids: list[str]


class ModeOperations(Protocol[S_contra]):
    """How deployments of one mode are made, changed, asked and ended.

    The caller holds the deployment alone (`Context.changing`) and keeps its record; these methods look after files
    and processes.
    """

    def check(self, context: Context, name: str, spec: S_contra) -> None:
        """Raise BadInput, NotFound or Unavailable for what could not work, before anything is made."""

    def absolute_paths(self, spec: S_contra) -> dict[str, str]:
        """Return the keys of the spec that are paths, made absolute: the daemon works in another folder than the caller."""

    def start(
        self, context: Context, name: str, spec: S_contra, model: FetchedModel, timeout: float
    ) -> str | None:
        """Start serving, and return the URL (if it has one) as soon as a prediction can be made.

        Raises ModelError, with the worker's own words, or Unavailable; what was made then is for `stop` to clean up.
        """

    def swap(
        self, context: Context, record: DeploymentRecord, spec: S_contra, model: FetchedModel, timeout: float
    ) -> str | None:
        """Go over to another version or configuration without failing a request, and return the URL.

        On failure the old one goes on as if nothing had been, and the error says why.
        """

    def stop(self, context: Context, name: str, forget: S_contra | None = None) -> None:
        """Stop serving and remove the deployment's files; what is not there is no error.

        With `forget`, its spec, also what it left elsewhere goes: it is deleted for good, not just cleaned up.
        """

    def predict(
        self, context: Context, record: DeploymentRecord, spec: S_contra, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        """Score rows. Raises BadInput for rows that do not fit, Unavailable without an answer in `timeout` seconds."""

    def state(self, context: Context, record: DeploymentRecord) -> str:
        """Return what the deployment does now: ready, starting, stopped, failing."""

    def places(self, context: Context, record: DeploymentRecord, spec: S_contra) -> Mapping[str, Any]:
        """Return where its rows come from and go to, and how it does, for people."""

"""The MLflow entry point: `mlflow deployments ... -t flywheel` and `mlflow.deployments.get_deploy_client("flywheel")`.

MLflow wants exactly one client class in this module's namespace, with `run_local` and `target_help` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse

from mlflow_flywheel.pipelines.errors import BadInput

from .errors import at_mlflows_door
from .help import help_text
from .home import Home
from .local_run import run_in_foreground
from .operations import Operations
from .views import deployment_view, deployment_views


class FlywheelClient(BaseDeploymentClient):
    """Deployments of one home; errors are MlflowExceptions with MLflow's error codes.

    Keys of `config` and their meaning: `mlflow deployments help -t flywheel`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        with at_mlflows_door():
            self._home = Home.from_target(target_uri)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a model; returns the deployment when a prediction can be made."""
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            record = self._operations.create(name, model_uri, config, flavor)
            return deployment_view(self._operations.context, record)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Change a deployment's model or keys without failing a request; on an error it goes on as it was."""
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            record = self._operations.update(name, model_uri, config, flavor)
            return deployment_view(self._operations.context, record)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Stop a deployment and remove it; its rows in the inference table stay."""
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            if config:
                raise BadInput(f"delete takes no configuration keys, got {', '.join(map(repr, config))}")
            self._operations.delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Return every deployment."""
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            context = self._operations.context
            return deployment_views(context, context.records.deployments())

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Return one deployment."""
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            context = self._operations.context
            return deployment_view(context, context.records.deployment(name))

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> PredictionsResponse:
        """Score rows; returns `predictions` and `prediction_ids`, in the order of the rows.

        `inputs` is a DataFrame, a list of records, or a dict of columns or as the scoring server takes it.
        """
        with at_mlflows_door():
            _refuse_endpoint(endpoint)
            if deployment_name is None:
                raise BadInput("name the deployment to predict with (--name, or deployment_name=)")
            answers = self._operations.predict(deployment_name, frame_of(inputs))
            return PredictionsResponse(
                {"predictions": answers.predictions, "prediction_ids": answers.prediction_ids}
            )

    def explain(
        self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None
    ) -> NoReturn:
        """Refuse: predictions are not explained by this target."""
        with at_mlflows_door():
            raise BadInput(
                "the flywheel target does not explain predictions; load the model and use SHAP on it"
            )

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> NoReturn:
        """Refuse: there are no endpoints."""
        _no_endpoints()

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> NoReturn:
        """Refuse: there are no endpoints."""
        _no_endpoints()

    def delete_endpoint(self, endpoint: str) -> NoReturn:
        """Refuse: there are no endpoints."""
        _no_endpoints()

    def list_endpoints(self) -> NoReturn:
        """Refuse: there are no endpoints."""
        _no_endpoints()

    def get_endpoint(self, endpoint: str) -> NoReturn:
        """Refuse: there are no endpoints."""
        _no_endpoints()

    @property
    def _operations(self) -> Operations:
        return Operations.open(self._home)


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Serve a model in the foreground, in a temporary home, until Ctrl-C; a batch deployment runs once."""
    with at_mlflows_door():
        run_in_foreground(name, model_uri, flavor, config)


def target_help() -> str:
    """Return every configuration key by mode, with examples."""
    return help_text()


def frame_of(inputs: Any) -> pd.DataFrame:
    """Return the rows that a caller gave in any of the usual forms; raises BadInput for other ones.

    MLflow's command line reads a `dataframe_split` wrapper as a DataFrame with one column of that name.
    """
    if isinstance(inputs, pd.DataFrame):
        wrapped = [
            name for name in ("dataframe_split", "dataframe_records") if list(inputs.columns) == [name]
        ]
        if not wrapped:
            return inputs
        inner = inputs[wrapped[0]]
        inputs = {wrapped[0]: inner.to_dict() if wrapped[0] == "dataframe_split" else inner.to_list()}
    try:
        if isinstance(inputs, Mapping) and "dataframe_split" in inputs:
            split = inputs["dataframe_split"]
            return pd.DataFrame(split["data"], columns=split.get("columns"))
        if isinstance(inputs, Mapping) and "dataframe_records" in inputs:
            return pd.DataFrame.from_records(inputs["dataframe_records"])
        if isinstance(inputs, Mapping | list):
            return pd.DataFrame(inputs)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the rows to predict cannot be read: {type(error).__name__}: {error}") from None
    raise BadInput(
        f"the rows to predict are a {type(inputs).__name__}; give a DataFrame, a list of records or a dict of columns"
    )


def _refuse_endpoint(endpoint: str | None) -> None:
    if endpoint is not None:
        raise BadInput(
            f"endpoint {endpoint!r}: the flywheel target has no endpoints; name a deployment instead"
        )


def _no_endpoints() -> NoReturn:
    with at_mlflows_door():
        raise BadInput("the flywheel target has no endpoints; every web deployment has a URL of its own")
    raise AssertionError("unreachable")

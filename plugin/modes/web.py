"""Web deployments: a master process with its own port, asked by HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import requests

from mlflow_flywheel.pipelines.config import ChallengerConfig, WebConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, ModelError, NotFound, Unavailable
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import WebSpec
from mlflow_flywheel.plugin.trials import challenger_in_force

from .base import Answers
from .served import master_state, start_master, stop_master, swap_master, wait_for

if TYPE_CHECKING:
    import pandas as pd

_MODULE = "mlflow_flywheel.pipelines.web"
_ANSWER_SECONDS = 30.0


class WebOperations:
    """See ModeOperations."""

    def check(self, context: Context, name: str, spec: WebSpec) -> None:
        if spec.port == 0:
            return
        for other, config in _configs(context):
            if other != name and config.port == spec.port:
                raise BadInput(
                    f"port {spec.port} belongs to deployment {other!r}; choose another one, or port=0 for any free one"
                )
        if not self._has(context, name, spec):
            _bind(spec.host, spec.port)

    def start(
        self, context: Context, name: str, spec: WebSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        port = spec.port or _bind(spec.host, 0)
        status = start_master(context, _config(context, name, spec, model, port), _MODULE, timeout)
        url = status.url or _url(spec.host, port)
        wait_for(
            lambda: _answers(url),
            _ANSWER_SECONDS,
            lambda: Unavailable(f"{url} does not answer although it is served"),
        )
        return url

    def swap(
        self, context: Context, record: DeploymentRecord, spec: WebSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        present = load_config(WebConfig, context.home.config_file(record.name))
        if spec.host != present.host or spec.port not in (0, present.port):
            raise BadInput(
                f"deployment {record.name!r} listens on {present.host}:{present.port}, and its address cannot change "
                "while it serves; delete it and create it with the new one"
            )
        config = _config(context, record.name, spec, model, present.port)
        swap_master(context, config, timeout)
        return record.url

    def stop(self, context: Context, name: str, forget: WebSpec | None = None) -> None:
        stop_master(context, name)

    def predict(
        self, context: Context, record: DeploymentRecord, spec: WebSpec, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        body = f'{{"dataframe_split": {rows.to_json(orient="split", index=False, date_format="iso", date_unit="us")}}}'
        try:
            response = requests.post(
                f"{record.url}/invocations",
                data=body.encode(),
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            )
        except requests.RequestException as error:
            raise Unavailable(
                f"deployment {record.name!r} does not answer at {record.url}: {type(error).__name__}; "
                f"see 'flywheel status' and 'flywheel logs {record.name}'"
            ) from error
        if response.status_code != 200:
            raise _refusal(record, response)
        answer = response.json()
        return Answers(answer["predictions"], answer.get("prediction_ids", []))

    def state(self, context: Context, record: DeploymentRecord) -> str:
        return master_state(context, record.name)

    def places(self, context: Context, record: DeploymentRecord, spec: WebSpec) -> Mapping[str, Any]:
        return {"url": record.url} | _trial(context, record, spec)

    def _has(self, context: Context, name: str, spec: WebSpec) -> bool:
        """Tell whether the port is in use because this deployment itself listens on it."""
        return any(
            other == name and (config.host, config.port) == (spec.host, spec.port)
            for other, config in _configs(context)
        )


def _config(context: Context, name: str, spec: WebSpec, model: FetchedModel, port: int) -> WebConfig:
    return WebConfig(
        deployment=name,
        model=model.ref,
        variant=spec.variant,
        spool=str(context.home.spool),
        durability=spec.durability,
        log=spec.log == "all",
        id_column=spec.id_column,
        timestamp_column=spec.timestamp_column,
        status_file=str(context.home.status_file(name)),
        host=spec.host,
        port=port,
        workers=spec.workers,
        threads=spec.threads,
        max_body_bytes=spec.max_body_bytes,
        max_rows=spec.max_rows,
        max_queue=spec.max_queue,
        max_batch_size=spec.max_batch_size,
        batch_wait_ms=spec.batch_wait_ms,
        timeout_seconds=spec.timeout_seconds,
        challenger=None
        if model.challenger is None
        else ChallengerConfig(
            model=model.challenger.ref,
            mode=spec.challenger_mode,
            traffic_percentage=spec.traffic_percentage,
        ),
    )


def _trial(context: Context, record: DeploymentRecord, spec: WebSpec) -> dict[str, Any]:
    """Say which version is tried beside the model and how: `active`, `idle` when it serves anyway, or `refused`."""
    if spec.challenger is None:
        return {}
    version = challenger_in_force(context, record.name)
    state = "refused" if version is None else "idle" if version == record.version else "active"
    trial: dict[str, Any] = {
        "model_uri": spec.challenger,
        "version": version,
        "mode": spec.challenger_mode,
        "state": state,
    }
    if spec.challenger_mode == "canary":
        trial["traffic_percentage"] = spec.traffic_percentage
    return {"challenger": trial}


def _configs(context: Context) -> Iterator[tuple[str, WebConfig]]:
    """Yield the web deployments whose files are in the home, also those that are stopped now."""
    for record in context.records.deployments(mode="web"):
        try:
            yield record.name, load_config(WebConfig, context.home.config_file(record.name))
        except NotFound:
            continue  # being made or deleted right now


def _bind(host: str, port: int) -> int:
    """Return the port when it can be listened on (0: a free one); raises BadInput when it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise BadInput(
                f"port {port} on {host} cannot be listened on: {error.strerror or error}; choose another port, or "
                "port=0 for any free one"
            ) from None
        return int(probe.getsockname()[1])


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _refusal(record: DeploymentRecord, response: requests.Response) -> FlywheelError:
    try:
        said = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text[:500]
    if response.status_code in (429, 503):
        return Unavailable(f"deployment {record.name!r} is busy: {said}")
    if response.status_code < 500:
        return BadInput(said)
    return ModelError(f"deployment {record.name!r} answered {response.status_code}: {said}")

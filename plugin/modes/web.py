"""Web deployments: a master process with its own port, asked by HTTP."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from mlflow_flywheel.pipelines.config import ChallengerConfig, WebConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, ModelError, Unavailable
from mlflow_flywheel.pipelines.log_filters import check_excluded
from mlflow_flywheel.pipelines.web.exposure import check_certificate, check_exposed
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import WebSpec
from mlflow_flywheel.plugin.tokens import check_token, forget_tokens, has_token, keep_token, kept_token
from mlflow_flywheel.plugin.trials import challenger_in_force
from mlflow_flywheel.plugin.worker_configs import worker_configs

from .asking import session_for
from .base import Answers
from .served import master_state, restart_master, start_master, stop_master, swap_master, wait_for

if TYPE_CHECKING:
    import pandas as pd

_MODULE = "mlflow_flywheel.pipelines.web"
_ANSWER_SECONDS = 30.0


class WebOperations:
    """See ModeOperations."""

    def check(self, context: Context, name: str, spec: WebSpec) -> None:
        check_exposed(spec.host, has_token(spec), spec.insecure)
        check_token(spec, kept_token(context, name, spec))
        if spec.tls_cert is not None:
            check_certificate(spec.tls_cert, spec.tls_key)
        if spec.port == 0:
            return
        for other, config in worker_configs(context, "web", WebConfig):
            if other != name and config.port == spec.port:
                raise BadInput(
                    f"port {spec.port} belongs to deployment {other!r}; choose another one, or port=0 for any free one"
                )
        if not self._has(context, name, spec):
            _bind(spec.host, spec.port)

    def absolute_paths(self, spec: WebSpec) -> dict[str, str]:
        paths = {key: getattr(spec, key) for key in ("auth_token_file", "tls_cert", "tls_key")}
        return {key: path for key, path in paths.items() if path is not None}  # the spec made them absolute

    def start(
        self, context: Context, name: str, spec: WebSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        check_excluded(spec.log_exclude, model.schema)
        port = spec.port or _bind(spec.host, 0)
        config = _config(context, name, spec, model, port, keep_token(context.home, name, spec))
        status = start_master(context, config, _MODULE, timeout)
        url = status.url or _url(spec, port)
        wait_for(
            lambda: _answers(config, url),
            _ANSWER_SECONDS,
            lambda: Unavailable(f"{url} does not answer although it is served"),
        )
        return url

    def swap(
        self, context: Context, record: DeploymentRecord, spec: WebSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        check_excluded(spec.log_exclude, model.schema)
        present = load_config(WebConfig, context.home.config_file(record.name))
        if spec.host != present.host or spec.port not in (0, present.port):
            raise BadInput(
                f"deployment {record.name!r} listens on {present.host}:{present.port}, and its address cannot change "
                "while it serves; delete it and create it with the new one"
            )
        kept = kept_token(context, record.name, spec)
        token = keep_token(context.home, record.name, spec, kept)
        try:
            config = _config(context, record.name, spec, model, present.port, token)
            if (config.tls_cert is None) == (present.tls_cert is None):
                swap_master(context, config, timeout)
            else:
                restart_master(context, config, _MODULE, timeout)
        except BaseException:
            forget_tokens(context.home, record.name, but=_token_of(present))
            raise
        forget_tokens(context.home, record.name, but=token)
        return _url(spec, present.port)

    def stop(self, context: Context, name: str, forget: WebSpec | None = None) -> None:
        stop_master(context, name)
        forget_tokens(context.home, name)

    def predict(
        self, context: Context, record: DeploymentRecord, spec: WebSpec, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        body = f'{{"dataframe_split": {rows.to_json(orient="split", index=False, date_format="iso", date_unit="us")}}}'
        config = load_config(WebConfig, context.home.config_file(record.name))
        try:
            with session_for(config) as session:
                response = session.post(
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
        auth = {"auth": "token" if has_token(spec) else "none"}
        return {"url": record.url} | auth | _trial(context, record, spec)

    def _has(self, context: Context, name: str, spec: WebSpec) -> bool:
        """Tell whether the port is in use because this deployment itself listens on it."""
        return any(
            other == name and (config.host, config.port) == (spec.host, spec.port)
            for other, config in worker_configs(context, "web", WebConfig)
        )


def _config(
    context: Context, name: str, spec: WebSpec, model: FetchedModel, port: int, token_file: Path | None
) -> WebConfig:
    sha256 = None if spec.tls_cert is None else check_certificate(spec.tls_cert, spec.tls_key)
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
        auth_token_file=None if token_file is None else str(token_file),
        insecure=spec.insecure,
        tls_cert=spec.tls_cert,
        tls_key=spec.tls_key,
        tls_cert_sha256=sha256,
        cors_origins=spec.cors_origins,
        access_log=spec.access_log,
        log_exclude=spec.log_exclude,
        log_sample=spec.log_sample,
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


def _token_of(config: WebConfig) -> Path | None:
    return None if config.auth_token_file is None else Path(config.auth_token_file)


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


def _url(spec: WebSpec, port: int) -> str:
    host = spec.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'http' if spec.tls_cert is None else 'https'}://{shown}:{port}"


def _answers(config: WebConfig, url: str) -> bool:
    try:
        with session_for(config) as session:
            return session.get(f"{url}/ping", timeout=5).status_code == 200
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

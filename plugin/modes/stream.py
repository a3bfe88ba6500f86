"""Stream deployments: consumers of a topic, asked by publishing to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound, Unavailable
from mlflow_flywheel.pipelines.log_filters import check_excluded
from mlflow_flywheel.pipelines.stream import broker as embedded
from mlflow_flywheel.pipelines.stream.fields import check_fields
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.embedded_broker import broker_exists, ensure_broker, forget_broker
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import StreamSpec

from .base import Answers
from .served import master_state, start_master, stop_master, swap_master

if TYPE_CHECKING:
    import pandas as pd

_MODULE = "mlflow_flywheel.pipelines.stream"
_REACH_SECONDS = 5.0
_logger = logging.getLogger(__name__)


class StreamOperations:
    """See ModeOperations."""

    def check(self, context: Context, name: str, spec: StreamSpec) -> None:
        if spec.broker is None:
            embedded.find_binary()
        else:
            _reach(spec.broker)
        topics = _topics(name, spec)
        if len(set(topics.values())) < len(topics):
            said = ", ".join(f"{key}={topic}" for key, topic in topics.items())
            raise BadInput(f"the topics of deployment {name!r} must differ from each other: {said}")
        for other, config in _configs(context):
            same = (config.input_topic, config.subscription) == (
                topics["input_topic"],
                spec.subscription or name,
            )
            if other != name and same and config.embedded == (spec.broker is None):
                raise BadInput(
                    f"deployment {other!r} reads {config.input_topic!r} with subscription {config.subscription!r} "
                    "already, and the two would share its messages; give another subscription="
                )

    def absolute_paths(self, spec: StreamSpec) -> dict[str, str]:
        return {}

    def start(
        self, context: Context, name: str, spec: StreamSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        check_excluded(spec.log_exclude, model.schema)
        check_fields(spec.field, model.schema)
        fresh = spec.broker is None and not broker_exists(context)
        try:
            broker = spec.broker or ensure_broker(context)
            start_master(context, _config(context, name, spec, model, broker), _MODULE, timeout)
        except BaseException:
            if fresh:
                forget_broker(context)
            raise
        return broker

    def swap(
        self,
        context: Context,
        record: DeploymentRecord,
        spec: StreamSpec,
        model: FetchedModel,
        timeout: float,
    ) -> str | None:
        check_excluded(spec.log_exclude, model.schema)
        check_fields(spec.field, model.schema)
        before = load_config(StreamConfig, context.home.config_file(record.name))
        broker = spec.broker or ensure_broker(context)
        config = _config(context, record.name, spec, model, broker)
        swap_master(context, config, timeout)
        if _place(before) != _place(config) and before.subscription == record.name:
            _drop_subscriptions(before)
        return broker

    def stop(self, context: Context, name: str, forget: StreamSpec | None = None) -> None:
        try:
            config = load_config(StreamConfig, context.home.config_file(name))
        except NotFound:
            config = None
        stop_master(context, name)
        if config is not None and forget is not None and forget.subscription is None:
            _drop_subscriptions(config)  # one that the user named is the user's, with what waits in it

    def predict(
        self, context: Context, record: DeploymentRecord, spec: StreamSpec, rows: pd.DataFrame, timeout: float
    ) -> Answers:
        from mlflow_flywheel.pipelines.stream.client import publish_and_wait

        config = load_config(StreamConfig, context.home.config_file(record.name))
        answers = publish_and_wait(config, _records(rows), timeout)
        return Answers([a["prediction"] for a in answers], [a["prediction_id"] for a in answers])

    def state(self, context: Context, record: DeploymentRecord) -> str:
        return master_state(context, record.name)

    def places(self, context: Context, record: DeploymentRecord, spec: StreamSpec) -> Mapping[str, Any]:
        return {
            "broker": record.url,
            "subscription": spec.subscription or record.name,
            **_topics(record.name, spec),
        }


def _config(context: Context, name: str, spec: StreamSpec, model: FetchedModel, broker: str) -> StreamConfig:
    return StreamConfig(
        deployment=name,
        model=model.ref,
        variant=spec.variant,
        spool=str(context.home.spool),
        durability=spec.durability,
        log=spec.log == "all",
        id_column=spec.id_column,
        timestamp_column=spec.timestamp_column,
        status_file=str(context.home.status_file(name)),
        log_exclude=spec.log_exclude,
        log_sample=spec.log_sample,
        broker=broker,
        embedded=spec.broker is None,
        subscription=spec.subscription or name,
        start_position=spec.start_position,
        batch_max=spec.batch_max,
        batch_wait_ms=spec.batch_wait_ms,
        max_message_bytes=spec.max_message_bytes,
        workers=spec.workers,
        fields=dict(spec.field),
        properties=spec.properties,
        **_topics(name, spec),
    )


def _topics(name: str, spec: StreamSpec) -> dict[str, str]:
    input_topic = spec.input_topic or f"{name}-in"
    return {
        "input_topic": input_topic,
        "output_topic": spec.output_topic or f"{name}-out",
        "feedback_topic": spec.feedback_topic or f"{name}-feedback",
        "dead_letter_topic": spec.dead_letter_topic or f"{input_topic}-{spec.subscription or name}-DLQ",
    }


def _configs(context: Context) -> Iterator[tuple[str, StreamConfig]]:
    """Yield the stream deployments whose files are in the home, also those that are stopped now."""
    for record in context.records.deployments(mode="stream"):
        try:
            yield record.name, load_config(StreamConfig, context.home.config_file(record.name))
        except NotFound:
            continue  # being made or deleted right now


def _place(config: StreamConfig) -> tuple[str, str, str]:
    return config.broker, config.input_topic, config.subscription


def _drop_subscriptions(config: StreamConfig) -> None:
    """Tell the broker to keep no more messages for this deployment, where it can be reached: else it keeps them."""
    from mlflow_flywheel.pipelines.stream.client import drop_subscriptions

    try:
        _reach(config.broker)
        drop_subscriptions(config)
    except FlywheelError as error:
        _logger.warning("subscription %r stays on the broker: %s", config.subscription, error.message)


def _reach(broker: str) -> None:
    """Raise Unavailable unless one of the broker's hosts accepts connections."""
    hosts = broker.partition("://")[2].split("/")[0].split(",")
    secure = broker.startswith("pulsar+ssl:")
    for host in hosts:
        parts = urlsplit(f"//{host}")
        if embedded.is_ready(parts.hostname or "", parts.port or (6651 if secure else 6650), _REACH_SECONDS):
            return
    raise Unavailable(
        f"no broker answers at {broker!r}; check the URL, or leave out broker= for the embedded one"
    )


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON-ready objects: missing values are None, times are ISO 8601 text."""
    return list(json.loads(rows.to_json(orient="records", date_format="iso", date_unit="us")))

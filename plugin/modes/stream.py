"""Stream deployments: consumers of a topic, asked by publishing to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from mlflow_flywheel.pipelines.config import StartPosition, StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound, Unavailable
from mlflow_flywheel.pipelines.log_filters import check_excluded
from mlflow_flywheel.pipelines.stream import broker as embedded
from mlflow_flywheel.pipelines.stream.access import Access
from mlflow_flywheel.pipelines.stream.fields import check_fields
from mlflow_flywheel.pipelines.stream.settings import check_adjust, check_format, check_scale
from mlflow_flywheel.pipelines.stream.stats import read_stats
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.brokers import BrokerKind, ensure, kind_for, kind_of, store_file, stream_configs
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.embedded_broker import broker_exists, forget_broker
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.record_types import DeploymentRecord
from mlflow_flywheel.plugin.spec import StreamSpec
from mlflow_flywheel.plugin.tokens import check_token, forget_tokens, keep_token, kept_token

from .base import Answers
from .served import master_state, start_master, stop_master, swap_master

if TYPE_CHECKING:
    import pandas as pd

_MODULE = "mlflow_flywheel.pipelines.stream"
_REACH_SECONDS = 5
_logger = logging.getLogger(__name__)


class StreamOperations:
    """See ModeOperations."""

    def check(self, context: Context, name: str, spec: StreamSpec) -> None:
        kind = kind_for(context, name, spec)
        check_scale(kind == "embedded", spec.workers, spec.ordering)
        check_format(kind == "embedded", spec.input_format)
        check_adjust(spec.adjust, spec.workers, spec.log_exclude)
        topics = _topics(name, spec)
        if kind == "embedded":
            embedded.find_binary()
        token = check_token(spec, kept_token(context, name, spec))
        if spec.broker is not None:
            access = Access(None if token is None else lambda: token, spec.broker_ca_file)
            _check_broker(spec.broker, access, topics["input_topic"])
        if len(set(topics.values())) < len(topics):
            said = ", ".join(f"{key}={topic}" for key, topic in topics.items())
            raise BadInput(f"the topics of deployment {name!r} must differ from each other: {said}")
        for other, config in stream_configs(context):
            same = (config.input_topic, config.subscription) == (
                topics["input_topic"],
                spec.subscription or name,
            )
            if other != name and same and kind_of(context, config) == kind:
                raise BadInput(
                    f"deployment {other!r} reads {config.input_topic!r} with subscription {config.subscription!r} "
                    "already, and the two would share its messages; give another subscription="
                )

    def absolute_paths(self, spec: StreamSpec) -> dict[str, str]:
        paths = {key: getattr(spec, key) for key in ("broker_token_file", "broker_ca_file")}
        return {key: path for key, path in paths.items() if path is not None}  # the spec made them absolute

    def start(
        self, context: Context, name: str, spec: StreamSpec, model: FetchedModel, timeout: float
    ) -> str | None:
        check_excluded(spec.log_exclude, model.schema)
        check_fields(spec.field, model.schema)
        kind = kind_for(context, name, spec)
        fresh = kind == "embedded" and not broker_exists(context)
        try:
            config = _config(context, name, spec, model, kind, _token_file(context, name, spec))
            _begin(config)
            start_master(context, config, _MODULE, timeout)
        except BaseException:
            if fresh:
                forget_broker(context)
            raise
        return config.broker

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
        kind = kind_for(context, record.name, spec)
        kept = kept_token(context, record.name, spec)
        token = _token_file(context, record.name, spec, kept)
        try:
            config = _config(context, record.name, spec, model, kind, token)
            if _place(before) != _place(config):
                _begin(config)
            swap_master(context, config, timeout)
        except BaseException:
            forget_tokens(context.home, record.name, but=_path(before.broker_token_file))
            raise
        if _place(before) != _place(config) and before.subscription == record.name:
            _drop_subscriptions(before)
        forget_tokens(context.home, record.name, but=token)
        return config.broker

    def stop(self, context: Context, name: str, forget: StreamSpec | None = None) -> None:
        try:
            config = load_config(StreamConfig, context.home.config_file(name))
        except NotFound:
            config = None
        stop_master(context, name)
        if config is not None and forget is not None and forget.subscription is None:
            # one that the user named is the user's, with what waits in it
            _drop_subscriptions(config, letters=True)
        forget_tokens(context.home, name)

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
            **_doing(context, record.name),
        }


def _doing(context: Context, name: str) -> dict[str, Any]:
    """Say how a deployment does, as far as its workers have said anything yet."""
    stats = read_stats(context.home.status_file(name))
    if stats is None:
        return {}
    return {
        **stats.present(utc_now()),
        "dead_letters": dict(stats.dead_letters_by),
        "trouble": stats.trouble,
        **({} if stats.adjustment is None else {"adjustment": stats.adjustment.id}),
    }


def _config(
    context: Context,
    name: str,
    spec: StreamSpec,
    model: FetchedModel,
    kind: BrokerKind | None,
    token_file: Path | None,
) -> StreamConfig:
    broker = spec.broker if kind is None else ensure(context, kind)
    assert broker is not None
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
        embedded=kind == "embedded",
        broker_store_file=None if kind is None else str(store_file(context, kind)),
        subscription=spec.subscription or name,
        start_position=TypeAdapter(StartPosition).validate_python(spec.start_position),
        batch_max=spec.batch_max,
        batch_wait_ms=spec.batch_wait_ms,
        max_message_bytes=spec.max_message_bytes,
        workers=spec.workers,
        ordering=spec.ordering,
        broker_token_file=None if token_file is None else str(token_file),
        broker_ca_file=spec.broker_ca_file,
        input_format=spec.input_format,
        fields=dict(spec.field),
        properties=spec.properties,
        adjust=spec.adjust,
        adjust_window=spec.adjust_window,
        adjust_bound=spec.adjust_bound,
        adjust_memory=spec.adjust_memory,
        **_topics(name, spec),
    )


def _begin(config: StreamConfig) -> None:
    """Let a deployment's own subscription begin at its start time; one that the user named may be at work already."""
    if config.subscription == config.deployment:
        from mlflow_flywheel.pipelines.stream.client import begin_at_start_time

        begin_at_start_time(config)


def _topics(name: str, spec: StreamSpec) -> dict[str, str]:
    input_topic = spec.input_topic or f"{name}-in"
    return {
        "input_topic": input_topic,
        "output_topic": spec.output_topic or f"{name}-out",
        "feedback_topic": spec.feedback_topic or f"{name}-feedback",
        "dead_letter_topic": spec.dead_letter_topic or f"{input_topic}-{spec.subscription or name}-DLQ",
    }


def _token_file(context: Context, name: str, spec: StreamSpec, kept: Path | None = None) -> Path | None:
    """Return the file with the broker's token: the user's own, or ours when it came from the environment."""
    if spec.broker_token_file is not None:
        return Path(spec.broker_token_file)
    return keep_token(context.home, name, spec, kept)


def _path(file: str | None) -> Path | None:
    return None if file is None else Path(file)


def _place(config: StreamConfig) -> tuple[str, str, str]:
    return config.broker, config.input_topic, config.subscription


def _drop_subscriptions(config: StreamConfig, *, letters: bool = False) -> None:
    """Tell the broker to keep no more messages for this deployment, where it can be reached: else it keeps them."""
    from mlflow_flywheel.pipelines.stream.client import drop_subscriptions

    try:
        _reach(config.broker)
        drop_subscriptions(config, letters=letters)
    except FlywheelError as error:
        _logger.warning("subscription %r stays on the broker: %s", config.subscription, error.message)


def _check_broker(broker: str, access: Access, topic: str) -> None:
    """Raise Unavailable or BadInput when a deployment could not use the topic there."""
    from mlflow_flywheel.pipelines.stream.pulsar import Connection

    _reach(broker)
    with Connection(
        broker, embedded=False, quiet=True, access=access, timeout_seconds=_REACH_SECONDS
    ) as connection:
        connection.check(topic)


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

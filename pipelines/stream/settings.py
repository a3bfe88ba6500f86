"""What a stream configuration must satisfy beyond its types, and the names that derive from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput

from .avro import AvroBodies, check_fastavro
from .messages import Bodies, JsonBodies


def load_stream_config(path: Path) -> StreamConfig:
    """Read a configuration. Raises BadInput when its broker cannot do what it asks."""
    config = load_config(StreamConfig, path)
    check_scale(config.embedded, config.workers, config.ordering)
    check_format(config.embedded, config.input_format)
    check_adjust(config.adjust, config.workers, config.log_exclude)
    topics = [config.input_topic, config.output_topic, config.dead_letter_topic]
    topics += [config.feedback_topic] if config.feedback_topic is not None else []
    if len(set(topics)) < len(topics):
        raise BadInput(f"the topics of a stream deployment must differ, got {', '.join(topics)}")
    if config.adjust != "off" and config.feedback_topic is None:
        raise BadInput(f"adjust={config.adjust} needs a feedback_topic to learn from")
    return config


def check_format(embedded: bool, input_format: str) -> None:
    """Raise BadInput or MissingExtra, with the way out, for messages that cannot be read here."""
    if input_format == "avro":
        if embedded:
            raise BadInput(
                "input_format=avro: the embedded broker keeps no schemas; use Apache Pulsar (broker=pulsar://host:6650)"
            )
        check_fastavro()


def bodies_of(config: StreamConfig, schema_of: Callable[[str, int], str]) -> Bodies:
    """Return how a deployment reads its messages; `schema_of` gives a topic's schema by version."""
    if config.input_format == "avro":
        return AvroBodies(schema_of, config.max_message_bytes)
    return JsonBodies(config.max_message_bytes)


def start_ms(config: StreamConfig) -> int:
    """Return the first publish time (milliseconds since 1970) that a deployment answers; 0 for any."""
    start = config.start_position
    return round(1000 * start.timestamp()) if isinstance(start, datetime) else 0


def check_scale(embedded: bool, workers: int, ordering: str) -> None:
    """Raise BadInput, with the way out, for what the embedded broker cannot do."""
    way_out = (
        "Apache Pulsar, either your own (broker=pulsar://host:6650) or one that is kept here ('flywheel broker start "
        "--apache', then make the deployment anew)"
    )
    if embedded and workers > 1:
        raise BadInput(
            f"workers={workers}: the embedded broker takes one worker process per subscription; use workers=1, or "
            f"{way_out}"
        )
    if embedded and ordering == "key":
        raise BadInput(
            "ordering=key: the embedded broker has no Key_Shared subscriptions; leave it out (its one worker reads in "
            f"order anyway), or use {way_out}"
        )


def check_adjust(adjust: str, workers: int, log_exclude: Sequence[str]) -> None:
    """Raise BadInput, with the way out, for a live adjustment that could not be what it should."""
    if adjust != "off" and workers > 1:
        raise BadInput(
            f"adjust={adjust} needs workers=1, got workers={workers}: each worker would learn from the labels of its own "
            "rows only, and answer the same event differently; use one worker, or adjust=off"
        )
    if adjust == "partial_fit" and log_exclude:
        raise BadInput(
            "adjust=partial_fit keeps the features of rows that wait for their labels on disk, those of log_exclude= too; "
            "use adjust=bias or recalibrate, which need none, or adjust=off"
        )


def feedback_subscription(config: StreamConfig) -> str:
    """Return the name of the subscription under which a deployment reads its feedback topic."""
    return f"{config.subscription}-feedback"


def letters_subscription(config: StreamConfig) -> str:
    """Return the name of the subscription that holds a deployment's dead letters until somebody decides about them."""
    return f"{config.subscription}-letters"

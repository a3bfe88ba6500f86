"""What a stream configuration must satisfy beyond its types, and the names that derive from it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput


def load_stream_config(path: Path) -> StreamConfig:
    """Read a configuration. Raises BadInput when its broker cannot do what it asks."""
    config = load_config(StreamConfig, path)
    if config.embedded and config.workers > 1:
        raise BadInput(
            f"workers={config.workers}: the embedded broker takes one worker process per subscription; use workers=1, "
            "or Apache Pulsar with broker=pulsar://host:6650"
        )
    topics = [config.input_topic, config.output_topic, config.dead_letter_topic]
    topics += [config.feedback_topic] if config.feedback_topic is not None else []
    if len(set(topics)) < len(topics):
        raise BadInput(f"the topics of a stream deployment must differ, got {', '.join(topics)}")
    return config


def start_ms(config: StreamConfig) -> int:
    """Return the first publish time (milliseconds since 1970) that a deployment answers; 0 for any."""
    start = config.start_position
    return round(1000 * start.timestamp()) if isinstance(start, datetime) else 0


def feedback_subscription(config: StreamConfig) -> str:
    """Return the name of the subscription under which a deployment reads its feedback topic."""
    return f"{config.subscription}-feedback"


def letters_subscription(config: StreamConfig) -> str:
    """Return the name of the subscription that holds a deployment's dead letters until somebody decides about them."""
    return f"{config.subscription}-letters"

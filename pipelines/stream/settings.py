"""What a stream configuration must satisfy beyond its types, and the names that derive from it."""

from __future__ import annotations

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


def feedback_subscription(config: StreamConfig) -> str:
    """Return the name of the subscription under which a deployment reads its feedback topic."""
    return f"{config.subscription}-feedback"

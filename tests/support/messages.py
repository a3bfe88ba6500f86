"""Messages as they would come from a broker."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_flywheel.pipelines.stream.wire import Position, Received

TOPIC = "persistent://public/default/in"
PUBLISHED_MS = 1_700_000_000_000


def received(
    data: bytes | None,
    *,
    entry: int = 0,
    topic: str = TOPIC,
    properties: Mapping[str, str] | None = None,
    key: str = "",
    event_ms: int = 0,
    publish_ms: int = PUBLISHED_MS,
    schema_version: int | None = None,
) -> Received:
    """Return a message of ledger 7 that was not batched by its producer."""
    position = Position(topic, 7, entry, -1, -1)
    return Received(data, properties or {}, key, event_ms, publish_ms, position, None, schema_version)

"""The brokers of a home: the embedded one, an Apache Pulsar, or both, and which of them a deployment uses.

A stream deployment without `broker=` uses the Apache Pulsar where the home keeps one when it is made, else the embedded
broker. It stays on that one: its topics, and what waits in them, are there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.pipelines.stream.broker import HOST, is_ready

from .apache_broker import (
    apache_healthy,
    apache_kept,
    apache_settings,
    apache_store_file,
    apache_url,
    ensure_apache,
    stop_apache,
)
from .context import Context
from .embedded_broker import broker_exists, embedded_store_file, embedded_url, ensure_broker, stop_broker
from .runners.base import APACHE_BROKER, BROKER
from .spec import StreamSpec
from .worker_configs import worker_configs

BrokerKind = Literal["embedded", "apache"]
PROCESSES: dict[BrokerKind, str] = {"embedded": BROKER, "apache": APACHE_BROKER}
TITLES: dict[BrokerKind, str] = {"embedded": "the embedded broker", "apache": "Apache Pulsar"}


@dataclass(frozen=True)
class BrokerView:
    """One broker of the home as people and machines see it."""

    kind: BrokerKind
    url: str
    state: str
    healthy: bool
    pid: int | None
    memory_mb: int | None
    deployments: tuple[str, ...]


def kind_for(context: Context, name: str, spec: StreamSpec) -> BrokerKind | None:
    """Return which broker of the home a deployment uses or will use; None when it names another one."""
    if spec.broker is not None:
        return None
    return _present_kind(context, name) or default_kind(context)


def default_kind(context: Context) -> BrokerKind:
    """Return the broker that new deployments of this home use."""
    return "apache" if apache_kept(context) else "embedded"


def ensure(context: Context, kind: BrokerKind) -> str:
    """Keep a broker of the home running and return its URL when it can be used."""
    return ensure_apache(context).url if kind == "apache" else ensure_broker(context)


def store_file(context: Context, kind: BrokerKind) -> Path:
    """Return the file that names the store of a broker of the home: it begins its ledgers again in a fresh one."""
    return apache_store_file(context) if kind == "apache" else embedded_store_file(context)


def stop(context: Context, kind: BrokerKind) -> None:
    """Stop a broker and keep it no longer; what is stored on it stays.

    Raises BadInput while deployments use it, NotFound when it is not kept.
    """
    users = deployments_on(context, kind)
    if users:
        raise BadInput(
            f"{TITLES[kind]} serves the stream deployments {', '.join(users)}; delete them first, or stop everything "
            "with 'flywheel down'"
        )
    try:
        (stop_apache if kind == "apache" else stop_broker)(context)
    except NotFound:
        raise NotFound(f"home {str(context.home.path)!r} does not keep {TITLES[kind]} running") from None


def views(context: Context) -> list[BrokerView]:
    """Return the brokers that this home keeps or has kept."""
    found = []
    if broker_exists(context):
        url = embedded_url(context)
        port = int(url.rpartition(":")[2])
        found.append(_view(context, "embedded", url, is_ready(HOST, port), None))
    settings = apache_settings(context)
    if settings is not None:
        url = str(apache_url(context))
        found.append(_view(context, "apache", url, apache_healthy(context, settings), settings.memory_mb))
    return found


def deployments_on(context: Context, kind: BrokerKind) -> list[str]:
    """Return the stream deployments that use a broker of the home, by name."""
    return sorted(name for name, config in stream_configs(context) if kind_of(context, config) == kind)


def kind_of(context: Context, config: StreamConfig) -> BrokerKind | None:
    """Return which broker of the home a configuration points to; None for another one."""
    if config.embedded:
        return "embedded"
    return "apache" if config.broker == apache_url(context) else None


def stream_configs(context: Context) -> Iterator[tuple[str, StreamConfig]]:
    """Yield the stream deployments of the home."""
    return worker_configs(context, "stream", StreamConfig)


def _present_kind(context: Context, name: str) -> BrokerKind | None:
    return next(
        (kind_of(context, config) for other, config in stream_configs(context) if other == name), None
    )


def _view(context: Context, kind: BrokerKind, url: str, healthy: bool, memory_mb: int | None) -> BrokerView:
    process = next((p for p in context.runner.status() if p.name == PROCESSES[kind]), None)
    users = tuple(deployments_on(context, kind))
    if process is None:
        return BrokerView(kind, url, "not kept", healthy, None, memory_mb, users)
    return BrokerView(kind, url, process.state, healthy, process.pid, memory_mb, users)

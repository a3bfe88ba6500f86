"""The Apache Pulsar of a home: one Java process on one folder, kept when somebody asks for it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pydantic import Field

from mlflow_flywheel.pipelines.config import Frozen, load_config
from mlflow_flywheel.pipelines.errors import NotFound, Unavailable
from mlflow_flywheel.pipelines.stream import apache_broker as apache
from mlflow_flywheel.pipelines.stream.apache_broker import ApacheBroker
from mlflow_flywheel.pipelines.stream.broker import free_port

from .context import Context, log_tail
from .runners.base import APACHE_BROKER

MEMORY_MB = 512
_READY_SECONDS = 120.0


class ApacheSettings(Frozen):
    """What is chosen at the first start and kept: deployments and their clients remember the URL."""

    port: int
    web_port: int
    memory_mb: int = Field(ge=apache.LEAST_MEMORY_MB)


def ensure_apache(context: Context, memory_mb: int | None = None) -> ApacheBroker:
    """Keep the broker running from now on and return it when it is healthy; idempotent.

    Another `memory_mb` than before restarts it. Raises Unavailable, with the ways out, without Java or the jars; with
    its last words when it does not start, and then nothing is kept that was not kept before.
    """
    with context.changing("apache broker"):
        known = apache_kept(context)
        fresh = not context.home.apache_broker.exists()
        try:
            settings = _chosen(context, memory_mb)
            broker = _described(context, settings)
            process = context.process(APACHE_BROKER, broker.command, apache.STOP_SECONDS, asks_mlflow=False)
            settings.save(_settings_file(context))
            broker.prepare()
            context.runner.start(process)
            _wait_healthy(context, broker)
        except BaseException:
            if not known:
                _stop(context)
            if fresh:
                shutil.rmtree(context.home.apache_broker, ignore_errors=True)
            raise
        return broker


def apache_kept(context: Context) -> bool:
    """Return whether this home keeps an Apache Pulsar: new stream deployments use it then."""
    return any(process.name == APACHE_BROKER for process in context.runner.status())


def apache_url(context: Context) -> str | None:
    """Return the URL of this home's Apache Pulsar, also while it is stopped; None when there never was one."""
    settings = apache_settings(context)
    return None if settings is None else _described(context, settings).url


def apache_store_file(context: Context) -> Path:
    """Return the file that names the broker's store."""
    return apache.store_file(context.home.apache_broker)


def apache_settings(context: Context) -> ApacheSettings | None:
    """Return what was chosen at the first start; None when there was none."""
    try:
        return load_config(ApacheSettings, _settings_file(context))
    except NotFound:
        return None


def apache_healthy(context: Context, settings: ApacheSettings) -> bool:
    """Ask the broker itself."""
    return apache.is_healthy(_described(context, settings))


def stop_apache(context: Context) -> None:
    """Stop the broker and forget the process; its topics stay in their folder. Raises NotFound when it is not kept."""
    with context.changing("apache broker"):
        context.runner.stop(APACHE_BROKER)


def _chosen(context: Context, memory_mb: int | None) -> ApacheSettings:
    settings = apache_settings(context)
    if settings is None:
        settings = ApacheSettings(port=free_port(), web_port=free_port(), memory_mb=memory_mb or MEMORY_MB)
    elif memory_mb is not None:
        settings = settings.model_copy(update={"memory_mb": memory_mb})
    return settings


def _described(context: Context, settings: ApacheSettings) -> ApacheBroker:
    return ApacheBroker(context.home.apache_broker, settings.port, settings.web_port, settings.memory_mb)


def _settings_file(context: Context) -> Path:
    return context.home.apache_broker / "broker.json"


def _wait_healthy(context: Context, broker: ApacheBroker) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not apache.is_healthy(broker):
        (process,) = context.runner.status(APACHE_BROKER)
        if process.state in ("backoff", "fatal") or time.monotonic() > deadline:
            said = log_tail(context.home.log_file(APACHE_BROKER)) or "nothing"
            raise Unavailable(
                f"Apache Pulsar did not become healthy at {broker.url} (its process: {process.state}); it said:\n{said}"
            )
        time.sleep(0.1)


def _stop(context: Context) -> None:
    try:
        context.runner.stop(APACHE_BROKER)
    except NotFound:
        pass  # it never came so far

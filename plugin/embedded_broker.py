"""The embedded broker of a home: one process on one folder, started when the first stream deployment needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlflow_flywheel.pipelines.errors import NotFound, Unavailable
from mlflow_flywheel.pipelines.stream import broker as embedded

from .context import Context, log_tail
from .runners.base import BROKER

_READY_SECONDS = 20.0


def ensure_broker(context: Context) -> str:
    """Keep the broker running from now on and return its URL when it accepts connections; idempotent.

    Its port is chosen once and kept, since deployments and their clients remember the URL. Raises Unavailable where
    the broker does not exist for this platform, or when it does not start.
    """
    with context.changing("embedded broker"):
        broker = embedded.embedded_broker(context.home.broker, _port(context))
        context.runner.start(
            context.process(BROKER, broker.command, embedded.STOP_SECONDS, asks_mlflow=False)
        )
        try:
            embedded.wait_ready(embedded.HOST, broker.port, _READY_SECONDS)
        except Unavailable as error:
            said = log_tail(context.home.log_file(BROKER)) or "nothing"
            raise Unavailable(f"the embedded broker did not start: {error.message}: {said}") from None
        return broker.url


def broker_exists(context: Context) -> bool:
    """Return whether this home has ever had a broker."""
    return (context.home.broker / "port").exists()


def embedded_url(context: Context) -> str:
    """Return the broker's URL, which it also has while it is stopped."""
    return embedded.EmbeddedBroker(context.home.broker, _port(context)).url


def embedded_store_file(context: Context) -> Path:
    """Return the file that names the broker's store."""
    return embedded.EmbeddedBroker(context.home.broker, _port(context)).store_file


def stop_broker(context: Context) -> None:
    """Stop the broker and forget the process; its topics stay in their folder. Raises NotFound when it is not kept."""
    with context.changing("embedded broker"):
        context.runner.stop(BROKER)


def forget_broker(context: Context) -> None:
    """Stop the broker and remove it with its topics; to undo what `ensure_broker` has just made."""
    try:
        context.runner.stop(BROKER)
    except NotFound:
        pass  # it never came so far
    shutil.rmtree(context.home.broker, ignore_errors=True)
    context.home.log_file(BROKER).unlink(missing_ok=True)


def _port(context: Context) -> int:
    file = context.home.broker / "port"
    if not file.exists():
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_text(str(embedded.free_port()))
    return int(file.read_text())

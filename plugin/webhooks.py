"""A webhook at the MLflow server that tells the daemon of every alias that is set: made, tried, looked at, removed.

It saves the time until the daemon's next look, which goes on all the same: an alias that is set past the server, in
its database, is told by nobody.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound, Unavailable
from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .home import without_password
from .webhook_file import Webhook, keep_webhook, kept_webhook
from .webhook_inbox import EVENTS, PATH

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NAME = "flywheel"
_DAEMON_SECONDS = 60.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ALLOW = "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
_TRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
NEEDS_KEY = f"MLflow reads the secret after a restart, and in each of its processes, only when {_KEY} is set in its environment"


@dataclass(frozen=True)
class Trial:
    """Whether a delivery that MLflow was asked for arrived, and what stood in its way."""

    arrived: bool
    why: str = ""


@dataclass(frozen=True)
class WebhookState:
    """The home's webhook: what MLflow says of it, a trial of the way, and what the daemon has heard."""

    webhook: Webhook
    at_mlflow: str
    trial: Trial
    daemon: dict[str, Any]


def create_webhook(context: Context, url: str | None) -> Webhook:
    """Make the home's webhook and prove that deliveries arrive; it takes the place of one from before.

    `url` is where MLflow reaches the daemon, by a proxy; without it MLflow must be on this machine. Raises BadInput when
    MLflow refuses such a webhook, Unavailable when nothing arrives: then all is as it was.
    """
    server, before = context.tracking_uri, kept_webhook(context.home)
    _check_server(server, url)
    context.ensure_daemon()
    where = url or _daemon_url(context)
    secret = secrets.token_urlsafe(32)
    client = _client(server)
    events: list[Any] = list(EVENTS)
    with _mlflow_errors(server, where):
        made = client.create_webhook(_NAME, where, events, "tells a flywheel of aliases that are set", secret)
    webhook = Webhook(str(made.webhook_id), server, where, utc_now().isoformat(), secret)
    keep_webhook(context.home, webhook)
    trial = _tried(client, webhook)
    if not trial.arrived:
        keep_webhook(context.home, before)
        _drop(client, webhook)
        raise Unavailable(f"MLflow's deliveries to {where} do not arrive: {trial.why}. Nothing was changed")
    if before is not None:
        _drop(_client(before.server), before)
    return webhook


def webhook_state(context: Context) -> WebhookState | None:
    """Look at the home's webhook, and let MLflow send a delivery; None when the home has none."""
    from .daemon import read_status

    webhook = kept_webhook(context.home)
    if webhook is None:
        return None
    daemon = read_status(context.home.path)
    heard = (daemon or {}).get("webhook") or {}
    client = _client(webhook.server)
    try:
        with _mlflow_errors(webhook.server, webhook.url):
            at_mlflow = str(client.get_webhook(webhook.id).status).lower()
    except FlywheelError as error:
        return WebhookState(webhook, "unknown", Trial(False, error.message), heard)
    if daemon is None:
        return WebhookState(
            webhook, at_mlflow, Trial(False, "no daemon runs; 'flywheel up' starts it"), heard
        )
    return WebhookState(webhook, at_mlflow, _tried(client, webhook), heard)


def delete_webhook(context: Context) -> Webhook:
    """Hear no deliveries any more, and remove the webhook at MLflow. Raises NotFound when the home has none.

    Raises Unavailable when MLflow keeps it; nothing that it sends is heard from then on.
    """
    webhook = kept_webhook(context.home)
    if webhook is None:
        raise NotFound("this home has no webhook")
    keep_webhook(context.home, None)
    try:
        with (
            suppress(NotFound),
            _mlflow_errors(webhook.server, webhook.url),
        ):  # somebody may have removed it there
            _client(webhook.server).delete_webhook(webhook.id)
    except FlywheelError as error:
        raise Unavailable(
            f"deliveries are not heard any more, but MLflow still has the webhook {webhook.id}: {error.message}"
        ) from error
    return webhook


def _check_server(server: str, url: str | None) -> None:
    """Refuse what cannot work, before anything is made."""
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https"):
        raise BadInput(
            f"the home is bound to {without_password(server)!r}, which is no MLflow server: nobody would send anything; the "
            "daemon looks every second where aliases point"
        )
    if url is not None and urlsplit(url).scheme not in ("http", "https"):
        raise BadInput(f"--url {url!r} is no http:// or https:// address")
    if url is None and parts.hostname not in _LOOPBACK:
        raise BadInput(
            f"MLflow is on {parts.hostname!r}, and the daemon listens on loopback only; put a proxy in front of it (path "
            f"{PATH}, the port is that of the metrics in 'flywheel status') and give its address: --url https://..."
        )


def _daemon_url(context: Context) -> str:
    """Return where the daemon takes deliveries, as soon as it is there. Raises Unavailable."""
    from .daemon import read_status

    deadline = time.monotonic() + _DAEMON_SECONDS
    while time.monotonic() < deadline:
        found = (read_status(context.home.path) or {}).get("webhook") or {}
        if found.get("url"):
            return str(found["url"])
        time.sleep(0.1)
    raise Unavailable("the daemon does not start; 'flywheel logs daemon' says more")


def _client(server: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(server, server)


def _tried(client: MlflowClient, webhook: Webhook) -> Trial:
    """Let MLflow send a delivery now."""
    try:
        with _mlflow_errors(webhook.server, webhook.url):
            client.list_webhooks()  # as for each event: one whose secret it cannot read stops them all
            result = client.test_webhook(webhook.id)
    except FlywheelError as error:
        return Trial(False, error.message)
    if result.success:
        return Trial(True)
    answered = f"status {result.response_status}: {str(result.response_body)[:300]}"
    return Trial(False, str(result.error_message)[:500] if result.error_message else answered)


def _drop(client: MlflowClient, webhook: Webhook) -> None:
    """Remove a webhook that is not heard any more; one that MLflow keeps does no harm."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException), _few_tries():
        client.delete_webhook(webhook.id)


@contextmanager
def _mlflow_errors(server: str, url: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        with _few_tries():
            yield
    except MlflowException as error:
        name = f"MLflow at {without_password(server)}"
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFound(
                f"{name} has this webhook no more; 'flywheel webhook create' makes another"
            ) from error
        if error.error_code == "INVALID_PARAMETER_VALUE":
            remedy = (
                f"start it with {_ALLOW}"
                if urlsplit(url).hostname in _LOOPBACK
                else (
                    "give it an https address that its server may reach (--url), or allow this one where it is started: "
                    f"{_ALLOW}"
                )
            )
            raise BadInput(f"{name} sends nothing to {url}: {error.message} To allow it, {remedy}") from error
        raise Unavailable(
            f"{name} does not do this: {error.message}. Webhooks need MLflow 3.3 or later with a database as its store. "
            f"{NEEDS_KEY}; with another key than a webhook was made with it delivers none"
        ) from error


@contextmanager
def _few_tries() -> Iterator[None]:
    """Let MLflow's client try twice: a server that cannot read its webhooks' secrets fails each time, for minutes."""
    before = os.environ.get(_TRIES)
    os.environ[_TRIES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TRIES]
        else:
            os.environ[_TRIES] = before

"""What MLflow's webhooks say to this home: heard when it is signed, fresh and new, and refused otherwise.

A delivery is only a nudge: whatever it says, the registry is asked. So a forged one could do no more than a look that
comes a moment early, and one that is lost is made up for by the next look.

MLflow signs `delivery id.timestamp.body` with HMAC-SHA256 under a secret that it shares with us (mlflow/webhooks/delivery.py).
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

from .home import Home
from .webhook_file import kept_webhook

_log = logging.getLogger(__name__)

PATH = "/webhooks/mlflow"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
MOST_BYTES = 64 * 1024
# Clocks differ and MLflow tries again; what is older was held back by somebody.
_TOLERANCE_SECONDS = 300
_LONGEST_ID = 200
_SAY_AGAIN_SECONDS = 60.0


class Headers(Protocol):
    """The headers of a request, whatever their case."""

    def get(self, name: str, /) -> str | None: ...


class Refused(Exception):
    """A delivery that is not heard: the status of the answer, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class WebhookInbox:
    """Calls `heard` for each delivery that counts. Safe to use from several threads.

    What was heard is remembered as long as it is fresh; what was sent before this inbox was opened is stale, since the
    one before may have heard it.
    """

    def __init__(self, home: Home, heard: Callable[[], None], clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._heard = heard
        self._clock = clock
        self._opened = int(clock())  # MLflow's timestamps are whole seconds
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}  # delivery id -> timestamp
        self._counts = {"heard": 0, "refused": 0}
        self._last: str | None = None
        self._refusal: str | None = None
        self._silent_until = 0.0

    def take(self, headers: Headers, body: bytes) -> None:
        """Hear a delivery. Raises Refused."""
        try:
            said = self._checked(headers, body)
        except Refused as refused:
            self._refuse(refused)
            raise
        with self._lock:
            self._counts["heard"] += 1
            self._last = datetime.fromtimestamp(self._clock(), timezone.utc).isoformat()
        _log.info("MLflow says: %s", said)
        self._heard()

    def status(self) -> dict[str, Any]:
        """Return what came so far, ready for JSON."""
        with self._lock:
            return {**self._counts, "last_heard": self._last, "last_refusal": self._refusal}

    def _checked(self, headers: Headers, body: bytes) -> str:
        """Return what a delivery says, in words."""
        webhook = kept_webhook(self._home)
        if webhook is None:
            raise Refused(404, "no webhook is set up here; 'flywheel webhook create' does it")
        if len(body) > MOST_BYTES:
            raise Refused(413, f"the body has more than {MOST_BYTES} bytes")
        delivery, timestamp = headers.get(DELIVERY) or "", headers.get(TIMESTAMP) or ""
        given = headers.get(SIGNATURE) or ""
        signed = (
            bool(given) and 0 < len(delivery) <= _LONGEST_ID and timestamp.isascii() and timestamp.isdigit()
        )
        if not signed or len(timestamp) > 12:
            raise Refused(
                401, f"the delivery is not signed: {SIGNATURE}, {TIMESTAMP} and {DELIVERY} are needed"
            )
        if not hmac.compare_digest(
            given.encode(), signature_of(webhook.secret, delivery, timestamp, body).encode()
        ):
            raise Refused(401, "the signature is not that of this webhook's secret")
        self._check_time(delivery, int(timestamp))
        return _event(body)

    def _check_time(self, delivery: str, sent: int) -> None:
        """Refuse what is stale, what comes from the future, and what was here before."""
        now = self._clock()
        if sent < self._opened or abs(now - sent) > _TOLERANCE_SECONDS:
            raise Refused(
                401, "the delivery is not fresh; is the clock right, here and at the MLflow server?"
            )
        with self._lock:
            if delivery in self._seen:
                raise Refused(409, "the delivery was heard before")
            self._seen = {name: at for name, at in self._seen.items() if now - at <= _TOLERANCE_SECONDS} | {
                delivery: sent
            }

    def _refuse(self, refused: Refused) -> None:
        """Count a refusal; log it unless one was logged a moment ago, or a stranger could fill the disk."""
        with self._lock:
            self._counts["refused"] += 1
            self._refusal = str(refused)
            now = self._clock()
            if now < self._silent_until:
                return
            self._silent_until = now + _SAY_AGAIN_SECONDS
        _log.warning("a webhook delivery was refused: %s", refused)


def signature_of(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """Return the signature that MLflow gives a delivery."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(secret.encode(), signed, 'sha256')).decode()}"


def _event(body: bytes) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(said, dict) or not isinstance(said.get("data"), dict):
        raise Refused(400, "the body is no JSON object with data about an event")
    event = f"{said.get('entity')}.{said.get('action')}"
    if event not in EVENTS:
        raise Refused(422, f"only {' and '.join(EVENTS)} are heard")
    data = said["data"]
    return f"{event}: {str(data.get('alias'))[:100]!r} of {str(data.get('name'))[:100]!r}"

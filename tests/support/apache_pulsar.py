"""A real Apache Pulsar for tests: the standalone broker that `make pulsar` fetched, open or secured."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import signal
import subprocess
from pathlib import Path
from typing import final

import requests
from support.certificates import make_certificate
from support.waiting import eventually

from mlflow_flywheel.pipelines.stream.apache_broker import apache_broker, is_healthy
from mlflow_flywheel.pipelines.stream.broker import free_port

START_SECONDS = 90.0
_ADMIN = "admin"


@final
class ApachePulsar:
    """One broker on a folder, on ports of its own; it is started, and `start` brings it back after `stop` or `kill`.

    A `secured` one speaks TLS at `tls_url` (its certificate is its own authority, `ca_file`) and wants a token
    everywhere; `token()` may do everything, another subject's what it is granted.
    """

    def __init__(self, folder: Path, *, secured: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "pulsar.log"
        self._key = secrets.token_bytes(32)
        self._secured = secured
        tls_port = free_port()
        self.tls_url = f"pulsar+ssl://localhost:{tls_port}"
        self.ca_file, key_file = make_certificate(folder, "pulsar", names=("localhost",))
        settings = self._security(tls_port, key_file) if secured else {}
        self._broker = apache_broker(folder / "broker", free_port(), free_port(), 384, settings)
        self.start()

    @property
    def url(self) -> str:
        return self._broker.url

    @property
    def admin_url(self) -> str:
        return self._broker.admin_url

    def token(self, subject: str = _ADMIN) -> str:
        """Return a JSON web token that this broker's key has signed."""
        parts = [_base64url(json.dumps(part).encode()) for part in ({"alg": "HS256"}, {"sub": subject})]
        signature = hmac.digest(self._key, ".".join(parts).encode(), "sha256")
        return ".".join([*parts, _base64url(signature)])

    def admin(self, method: str, path: str, body: object) -> None:
        """Ask the admin API, such as `PUT persistent/public/default/TOPIC/partitions` with their number."""
        answer = requests.request(
            method,
            f"{self.admin_url}/admin/v2/{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.token()}"} if self._secured else {},
            timeout=30,
        )
        assert answer.ok, answer.text

    def start(self) -> None:
        """Start it and return when it can be used."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._broker.command, stdout=log, stderr=subprocess.STDOUT)
        token = self.token() if self._secured else None
        eventually(lambda: is_healthy(self._broker, token), START_SECONDS, what="a healthy Apache Pulsar")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(how)
        self._process.wait(60)

    def kill(self) -> None:
        """End it without a warning, as a power cut would."""
        self.stop(signal.SIGKILL)

    def _security(self, tls_port: int, key_file: str) -> dict[str, str]:
        return {
            "brokerServicePortTls": str(tls_port),
            "tlsCertificateFilePath": self.ca_file,
            "tlsKeyFilePath": key_file,
            "advertisedAddress": "localhost",
            "authenticationEnabled": "true",
            "authorizationEnabled": "true",
            "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken",
            "tokenSecretKey": "data:;base64," + base64.b64encode(self._key).decode(),
            "superUserRoles": _ADMIN,
            "brokerClientAuthenticationPlugin": "org.apache.pulsar.client.impl.auth.AuthenticationToken",
            "brokerClientAuthenticationParameters": f"token:{self.token()}",
        }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

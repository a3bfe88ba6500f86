"""How this machine asks a web deployment: with its token, and sure that it is the one that it made."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from mlflow_flywheel.pipelines.config import WebConfig
from mlflow_flywheel.pipelines.tokens import read_token


def session_for(config: WebConfig) -> requests.Session:
    """Return a session for requests to the deployment.

    Over TLS exactly the deployment's own certificate is accepted. That is stricter than asking who signed it, and works
    for one that is self-signed or that names another host: we ask by a loopback address.
    Raises BadInput when the token cannot be read.
    """
    session = requests.Session()
    # no proxy may see the token, and no CA bundle or netrc of the shell's has a say in whom we trust
    session.trust_env = False
    if config.auth_token_file is not None:
        session.headers["Authorization"] = f"Bearer {read_token(config.auth_token_file)}"
    if config.tls_cert_sha256 is not None:
        session.verify = False  # the fingerprint is what is checked
        session.mount("https://", _Pinned(config.tls_cert_sha256))
    return session


class _Pinned(HTTPAdapter):
    """Connects to nobody but the holder of one certificate."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, assert_fingerprint=self._sha256)

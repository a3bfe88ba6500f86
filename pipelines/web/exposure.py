"""Who can reach a web service, and what must be so before others may: a token, and a certificate that works.

The control plane asks before it makes anything, and the service itself asks again: it may be started by hand.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from pathlib import Path

from mlflow_flywheel.pipelines.config import WebConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.tokens import read_token


def check_config(config: WebConfig) -> None:
    """Raise BadInput for a service that must not start: open to others without a token, or without its secrets."""
    check_exposed(config.host, config.auth_token_file is not None, config.insecure)
    if config.auth_token_file is not None:
        read_token(config.auth_token_file)
    if config.tls_cert is not None or config.tls_key is not None:
        check_certificate(config.tls_cert, config.tls_key)


def check_exposed(host: str, has_token: bool, insecure: bool) -> None:
    """Raise BadInput when machines beyond this one could ask without a token, and nobody said that they may."""
    if not (has_token or insecure or is_loopback(host)):
        raise BadInput(
            f"host={host} lets other machines ask this service, and nothing tells who they are; give "
            "auth_token_env=NAME (or auth_token_file=PATH) so that callers need a token, or insecure=true if "
            "everybody who reaches the port may ask"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach the address; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_certificate(cert: str | None, key: str | None) -> str:
    """Return the SHA-256 of the certificate that a service would show.

    Raises BadInput when one of the two is missing or unreadable, or when they do not belong together.
    """
    if cert is None or key is None:
        given, missing = ("tls_key", "tls_cert") if cert is None else ("tls_cert", "tls_key")
        raise BadInput(f"{given} needs {missing} too: TLS takes a certificate and its private key")
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise BadInput(f"{name}={path!r} cannot be read: {error.strerror or error}") from None
    try:
        # an encrypted key would ask for its password at the terminal; there is none to ask at
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
        first = Path(cert).read_text().partition("-----END CERTIFICATE-----")
        leaf = first[0][first[0].index("-----BEGIN CERTIFICATE-----") :] + first[1]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf)).hexdigest()
    except (ssl.SSLError, ValueError) as error:
        raise BadInput(
            f"tls_cert={cert!r} and tls_key={key!r} cannot be used: {error}; give a PEM certificate (with its chain) and "
            "its own PEM key without a password"
        ) from None

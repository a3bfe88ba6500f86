"""How a client and its broker know each other: the client's token, and the authorities that may vouch for the broker.

A token is read from its file again for every new connection, so one that is renewed there in time is taken up. It is
never in a configuration, a log or an error.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests.certs

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.tokens import read_token


@dataclass(frozen=True)
class Access:
    """`token` gives the token of now, from any thread; without it the client is anonymous.

    `ca_file` is a PEM file of authorities; without it those that the system trusts count.
    """

    token: Callable[[], str] | None = None
    ca_file: str | None = None

    @classmethod
    def of(cls, config: StreamConfig) -> Access:
        """Take what the configuration says. Raises BadInput when there is no token in the file that it names."""
        file = config.broker_token_file
        return cls(None if file is None else _renewed(file), config.broker_ca_file)

    def trusted_certificates(self) -> str:
        """Return the PEM file with the authorities to trust. Raises BadInput when it is none.

        The client's own default is a path of the machine that built it.
        """
        if self.ca_file is None:
            system = ssl.get_default_verify_paths().cafile
            return system if system is not None else str(requests.certs.where())
        try:
            Path(self.ca_file).read_bytes()
            ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(
                f"broker_ca_file={self.ca_file!r} cannot be used: {error.strerror or error}; give the PEM certificate of "
                "the authority that signed the broker's"
            ) from None
        return self.ca_file


def _renewed(file: str) -> Callable[[], str]:
    last = read_token(file, "broker_token_file")

    def read() -> str:
        nonlocal last
        try:
            last = read_token(file, "broker_token_file")
        except BadInput:
            pass  # it is just being renewed
        return last

    return read

"""XML-RPC to a supervisord on its unix socket, with bounded waiting."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.errors import Unavailable

Fault = xmlrpc.client.Fault
_SECONDS = 20


class SupervisorDown(Unavailable):
    """No supervisord listens on the socket."""


class SupervisorRpc:
    """Calls one supervisord; every call opens its own connection, so threads may share this."""

    def __init__(self, socket_path: Callable[[], Path], home: Path) -> None:
        self._socket_path = socket_path
        self._home = home

    def call(
        self, method: str, *arguments: Any, harmless: int | None = None, seconds: float = _SECONDS
    ) -> Any:
        """Call a method of supervisor's namespace and return its answer; None on the fault that is `harmless`.

        Raises SupervisorDown when nobody listens, Unavailable without an answer in `seconds`, Fault when supervisord
        refuses.
        """
        transport = _Transport(self._socket_path(), seconds)
        proxy = xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != harmless:
                raise
            return None
        except (FileNotFoundError, ConnectionError, http.client.HTTPException) as error:
            raise SupervisorDown(
                f"the supervisor of home {str(self._home)!r} does not run; start it with 'flywheel up'"
            ) from error
        except (OSError, xmlrpc.client.ProtocolError) as error:
            raise Unavailable(
                f"the supervisor of home {str(self._home)!r} did not answer {method} within {seconds:g} s ({error}); "
                "see supervisor/supervisord.log in the home"
            ) from error
        finally:
            transport.close()


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__()
        self._path, self._seconds = path, seconds

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self._path, self._seconds)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

"""The listening socket of a web deployment."""

from __future__ import annotations

import socket

import pytest

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.web.listening import listen, url_of


def test_accepted_connections_send_at_once() -> None:
    """Else the second write of an answer waits 40 ms for the caller's delayed acknowledgement of the first."""
    with listen("127.0.0.1", 0) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(BadInput, match=f"port {port} on 127.0.0.1"):
            listen("127.0.0.1", port)

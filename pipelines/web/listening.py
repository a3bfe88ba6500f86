"""The listening socket of a web deployment, and how a worker lets go of it.

The master binds it once and every worker of every generation accepts on the same one, so the queue of connections that
nobody has accepted yet survives each of them: with a socket per worker (SO_REUSEPORT), closing one resets its queue.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from mlflow_flywheel.pipelines.errors import BadInput

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes any free one.

    Raises BadInput when the address is taken or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted connections inherit it. An answer leaves in two writes, and without this the second one waits until the
    # caller acknowledges the first, which it puts off for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BadInput(
            f"port {port} on {host} cannot be listened on: {error.strerror or error}; choose another port, or "
            "port=0 for any free one"
        ) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL under which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def stop_accepting(descriptor: int) -> None:
    """Let this process accept no more connections, while others go on to accept from the same queue.

    The server holds copies of the descriptor that cannot be asked to stop without ending their connections too. So
    every descriptor of this process that is the listening socket becomes one of a socket that nobody connects to.
    """
    listener = os.fstat(descriptor)
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    deaf.listen(1)
    deaf.setblocking(False)
    folder = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    for number in [int(name) for name in os.listdir(folder)]:
        try:
            found = os.fstat(number)
        except OSError:
            continue  # the listing's own
        if stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == (
            listener.st_dev,
            listener.st_ino,
        ):
            os.dup2(deaf.fileno(), number, inheritable=False)
    deaf.detach()  # stays open for the life of the process

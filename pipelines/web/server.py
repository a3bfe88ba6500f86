"""One worker's HTTP server on an inherited socket: the only import of granian.

Granian's own command starts its own workers on sockets of its own. Here the master keeps the socket, so the worker
class is used directly. Its I/O runs in a thread of granian's, the app's event loop in one of ours.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from granian import _futures, _granian
from granian._loops import loops
from granian.http import HTTP1Settings

from .drain import Drain
from .gateway import Gateway
from .listening import BACKLOG, stop_accepting
from .wsgi import Environ

_native: Any = _granian  # its type stubs are of another version
_new_scheduler: Any = _futures._new_cbscheduler
_watched: Any = _futures._future_watcher_wrapper
_RUNTIME_THREADS = 1
_BLOCKING_THREADS = 1  # they would run WSGI apps; ours runs on the loop
_IDLE_SECONDS = 30
_QUIET_SECONDS = 0.5
_POLL_SECONDS = 0.02
_OLDEST_TLS = "tls1.2"


def serve(
    drain: Drain,
    descriptor: int,
    *,
    threads: int,
    is_quick: Callable[[Environ], bool],
    stop: threading.Event,
    serving: Callable[[], None],
    certificate: tuple[str, str] | None = None,
) -> None:
    """Answer requests on a listening socket until `stop` is set, then drain and return.

    `threads` and `is_quick` are the gateway's. `serving` is called when requests are taken. With a `certificate` (its
    file and its key's) it speaks TLS, 1.2 or newer. Draining: no new connections, every answer asks its caller to
    connect anew (to the next generation), and the server ends when no request has come for half a second.
    """
    listener = _native.SocketHolder(descriptor, False, BACKLOG)
    worker = _native.RSGIWorker(
        1,
        (None, listener),
        None,
        _RUNTIME_THREADS,
        _BLOCKING_THREADS,
        _BLOCKING_THREADS,
        _IDLE_SECONDS,
        4 * BACKLOG,
        "1",
        HTTP1Settings(),
        None,
        False,
        None,
        *_tls(certificate),
        (None, None),
    )
    ended = threading.Event()
    signal = _native.WorkerSignal()
    signal.add_cb(ended.set)
    loop: asyncio.AbstractEventLoop = loops.get("auto")
    threading.Thread(target=loop.run_forever, name="web-loop", daemon=True).start()
    gateway = Gateway(drain, loop, threads, is_quick)
    worker.serve_str(_new_scheduler(loop, _watched(gateway), impl_asyncio=True), loop, signal)
    serving()
    stop.wait()
    stop_accepting(descriptor)
    drain.begin()
    while not drain.quiet(_QUIET_SECONDS):
        time.sleep(_POLL_SECONDS)
    signal.set()
    ended.wait()


def _tls(certificate: tuple[str, str] | None) -> tuple[Any, ...]:
    """Return granian's eight arguments: on, certificate, key, its password, oldest version, and none for clients."""
    cert, key = certificate or (None, None)
    return (certificate is not None, cert, key, None, _OLDEST_TLS, None, [], False)

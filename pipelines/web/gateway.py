"""From the server's event loop to the WSGI app: what never waits is answered on the loop, all else in threads.

The hand-over of a request to a thread and back costs more than all of our own work for a small one. So a request that
only has to be read and queued for the model runs on the loop itself, where its answer (`Deferred`) is awaited; hundreds
of callers then need no hundreds of threads.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .deferred import Deferred
from .wsgi import Environ, Headers, WSGIApp

_CONSTANT = {
    "SCRIPT_NAME": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
}
_PIECE_SECONDS = 60.0  # a caller that sends nothing for so long has gone
_NOT_PREFIXED = {"CONTENT_TYPE", "CONTENT_LENGTH"}


class Gateway:
    """An RSGI app around a WSGI app.

    `is_quick` tells of a request's environment whether the app never waits while it is called for it; its body is read
    before. `threads` is the most other requests that are in the app at once.
    """

    def __init__(
        self,
        app: WSGIApp,
        loop: asyncio.AbstractEventLoop,
        threads: int,
        is_quick: Callable[[Environ], bool],
    ) -> None:
        self._app = app
        self._loop = loop
        self._threads = ThreadPoolExecutor(threads, "web")
        self._is_quick = is_quick
        self._waking = _Waking(loop)

    async def __call__(self, scope: Any, protocol: Any) -> None:
        environ = environment(scope)
        response = _Response()
        if self._is_quick(environ):
            environ["wsgi.input"] = io.BytesIO(await protocol())
            answer = self._app(environ, response.start)
            if isinstance(answer, Deferred):
                await self._waking.until(answer.future)
            body = _whole(answer)
        else:
            environ["wsgi.input"] = io.BufferedReader(_Body(protocol, self._loop))
            body = await self._loop.run_in_executor(self._threads, self._call, environ, response)
        protocol.response_bytes(response.status, response.headers, body)

    def _call(self, environ: Environ, response: _Response) -> bytes:
        return _whole(self._app(environ, response.start))


def environment(scope: Any) -> Environ:
    """Return a request's WSGI environment, but for its input (PEP 3333)."""
    server, _, port = scope.server.rpartition(":")
    environ: Environ = {
        **_CONSTANT,
        "REQUEST_METHOD": scope.method,
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.url_scheme": scope.scheme,
    }
    for name, value in scope.headers.items():
        key = name.upper().replace("-", "_")
        if key not in _NOT_PREFIXED:
            key = "HTTP_" + key
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


class _Response:
    """What the app has said of its answer so far."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: Headers = []

    def start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
        self.status = int(status[:3])
        self.headers = headers
        return _no_write


def _no_write(data: bytes) -> object:
    raise NotImplementedError("the app must return its body; write() is of WSGI's past")


def _whole(answer: Iterable[bytes]) -> bytes:
    try:
        return b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()


class _Waking:
    """Lets coroutines wait for futures of other threads, which wake the loop once for all that are done by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[asyncio.Future[None]] = deque()
        self._woken = False

    async def until(self, future: Future[Any]) -> None:
        if not future.done():
            waiter = self._loop.create_future()
            future.add_done_callback(lambda _: self._wake(waiter))
            await waiter

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._done.append(waiter)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is appended after it wakes the loop again
        while self._done:
            waiter = self._done.popleft()
            if not waiter.done():
                waiter.set_result(None)


class _Body(io.RawIOBase):
    """A request's body, read by a thread as it comes."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._parts: AsyncIterator[bytes] = aiter(protocol)
        self._loop = loop
        self._left: bytes | None = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._left == b"":
            try:
                coming = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
                self._left = coming.result(_PIECE_SECONDS)
            except Exception as error:
                raise OSError("the caller has gone") from error
        if self._left is None:
            return 0
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n

    async def _next(self) -> bytes | None:
        try:  # anext's own default crashes Python 3.11 with the server's awaitables
            return bytes(await anext(self._parts))
        except StopAsyncIteration:
            return None

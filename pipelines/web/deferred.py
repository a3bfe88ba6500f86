"""A WSGI answer that is not there yet.

WSGI lets an app call `start_response` as late as while its answer is iterated. A server that knows `Deferred` waits for
its `future` without holding a thread and iterates then; under any other server, iterating waits. Middlewares need not
care, but for those that do something at the end of a request: see `until_end`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from werkzeug.wsgi import ClosingIterator

from .wsgi import Environ, StartResponse, WSGIApp


class Deferred:
    """An answer that `finish` makes, once the future is done; it calls `start_response`. To be iterated once."""

    def __init__(self, future: Future[Any], finish: Callable[[], Iterable[bytes]]) -> None:
        self.future = future
        self._finish = finish
        self._ends: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[bytes]:
        try:
            return iter(self._finish())
        finally:
            self.close()

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called by `close`."""
        self._ends.append(call)

    def close(self) -> None:
        """End the request, when it is answered or its caller has gone; more than once does no harm."""
        while self._ends:
            self._ends.pop(0)()


def until_end(
    app: WSGIApp, environ: Environ, start_response: StartResponse, end: Callable[[], None]
) -> Iterable[bytes]:
    """Call an app and return its answer; `end` is called once, when the server is done with it or the app raises."""
    try:
        answer = app(environ, start_response)
    except BaseException:
        end()
        raise
    if isinstance(answer, Deferred):
        answer.at_end(end)
        return answer
    return ClosingIterator(answer, [end])

"""From the server's protocol to WSGI: the environment, bodies as they come, and answers that are not there yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mlflow_flywheel.pipelines.web.deferred import Deferred, until_end
from mlflow_flywheel.pipelines.web.gateway import Gateway
from mlflow_flywheel.pipelines.web.wsgi import Environ, StartResponse


@dataclass
class Protocol:
    """A request's body in pieces, and what was answered; `broken` is a caller that hangs up instead of ending it."""

    pieces: tuple[bytes, ...] = ()
    broken: bool = False
    answers: list[tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=list)

    async def __call__(self) -> bytes:
        return b"".join(self.pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.broken:
            raise RuntimeError("protocol closed")

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, headers, body))


def scope(method: str = "POST", path: str = "/é b", **headers: str) -> Any:
    return SimpleNamespace(
        method=method, path=path, query_string="q=%20", server="127.0.0.1:5000", client="::1:4711",
        scheme="https", headers={name.replace("_", "-"): value for name, value in headers.items()},
    )  # fmt: skip


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def ask(
    loop: asyncio.AbstractEventLoop, app: Any, request: Any, protocol: Protocol, quick: bool = False
) -> tuple[int, list[tuple[str, str]], bytes]:
    gateway = Gateway(app, loop, 2, lambda environ: quick)
    asyncio.run_coroutine_threadsafe(gateway(request, protocol), loop).result(20)
    (answer,) = protocol.answers
    return answer


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    start_response("201 CREATED", [("X-Thread", threading.current_thread().name)])
    return [body[:2], body[2:]]


@pytest.mark.parametrize("quick", [True, False])
def test_a_body_reaches_the_app_and_its_answer_the_caller(
    loop: asyncio.AbstractEventLoop, quick: bool
) -> None:
    pieces = (b"ab", b"", b"c" * 100_000, b"")
    status, headers, body = ask(loop, echo, scope(), Protocol(pieces), quick)
    assert (status, body) == (201, b"".join(pieces))
    assert dict(headers)["X-Thread"].startswith("web") is not quick


def test_the_environment_is_what_wsgi_demands(loop: asyncio.AbstractEventLoop) -> None:
    seen: Environ = {}

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.update(environ)
        start_response("204 NO CONTENT", [])
        return []

    sent = {"content_type": "text/csv", "content_length": "3", "x_request_id": "mine"}
    assert ask(loop, app, scope("GET", **sent), Protocol())[0] == 204
    assert seen["PATH_INFO"].encode("latin-1").decode() == "/é b"
    expected = {
        "REQUEST_METHOD": "GET", "QUERY_STRING": "q=%20", "CONTENT_TYPE": "text/csv", "CONTENT_LENGTH": "3",
        "HTTP_X_REQUEST_ID": "mine", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "5000", "REMOTE_ADDR": "::1",
        "wsgi.url_scheme": "https",
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected


def later(future: Future[bytes], ended: Callable[[], None]) -> Any:
    """An app whose answer is what a future will have."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        def finish() -> Iterable[bytes]:
            start_response("200 OK", [])
            return [future.result(20)]

        deferred = Deferred(future, finish)
        deferred.at_end(ended)
        return deferred

    return app


@pytest.mark.parametrize("quick", [True, False])
def test_an_answer_that_comes_later_is_waited_for_and_ends_once(
    loop: asyncio.AbstractEventLoop, quick: bool
) -> None:
    future: Future[bytes] = Future()
    ends: list[None] = []
    app = later(future, lambda: ends.append(None))
    threading.Timer(0.05, future.set_result, [b"late"]).start()
    assert ask(loop, app, scope(), Protocol(), quick) == (200, [], b"late")
    assert ends == [None]


def test_many_wait_on_the_loop_at_once(loop: asyncio.AbstractEventLoop) -> None:
    futures: list[Future[bytes]] = [Future() for _ in range(200)]
    protocols = [Protocol() for _ in futures]
    waiting = [
        asyncio.run_coroutine_threadsafe(
            Gateway(later(future, lambda: None), loop, 1, lambda environ: True)(scope(), protocol), loop
        )
        for future, protocol in zip(futures, protocols, strict=True)
    ]
    for i, future in enumerate(futures):
        future.set_result(b"%d" % i)
    for each in waiting:
        each.result(20)
    assert [protocol.answers[0][2] for protocol in protocols] == [b"%d" % i for i in range(200)]


def test_a_caller_that_hangs_up_within_its_body_is_an_input_that_breaks_off(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            start_response("400 BAD REQUEST", [])
            return [str(error).encode()]
        raise AssertionError("it read a body that never ended")

    assert ask(loop, app, scope(), Protocol((b"half",), broken=True))[::2] == (400, b"the caller has gone")


def test_the_end_of_a_request_is_heard_once_however_it_comes() -> None:
    ends: list[str] = []

    def broken(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError):
        until_end(broken, {}, lambda *said: None, lambda: ends.append("broken"))
    unread = until_end(
        later(Future(), lambda: ends.append("inner")), {}, lambda *said: None, lambda: ends.append("outer")
    )
    unread.close()  # type: ignore[attr-defined]
    unread.close()  # type: ignore[attr-defined]
    assert ends == ["broken", "inner", "outer"]

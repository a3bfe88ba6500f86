"""WSGI middleware that lets only callers with the token in."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from contextlib import suppress

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response
from werkzeug.wsgi import get_input_stream

from .responses import json_response
from .wsgi import Environ, StartResponse, WSGIApp

# Whoever watches the process needs no token: these say that it lives, and nothing about the model.
OPEN_PATHS = frozenset({"/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_SWALLOWED_BYTES = 1024 * 1024
_CHUNK_BYTES = 64 * 1024


class Guard:
    """Answers 401 to every request without `Authorization: Bearer TOKEN`, but for the health checks."""

    def __init__(self, app: WSGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in OPEN_PATHS or self._allows(environ.get("HTTP_AUTHORIZATION", "")):
            return self._app(environ, start_response)
        _swallow(environ)
        return _unauthenticated()(environ, start_response)

    def _allows(self, header: str) -> bool:
        scheme, _, sent = header.partition(" ")
        # the comparison takes as long for a nearly right token as for a wrong one
        right = hmac.compare_digest(sent.strip().encode(errors="replace"), self._token)
        return right and scheme.lower() == "bearer"


def _swallow(environ: Environ) -> None:
    """Read a body and forget it: a caller that is still sending would find a broken connection instead of the answer."""
    with suppress(HTTPException, OSError):
        body = get_input_stream(environ, max_content_length=_SWALLOWED_BYTES)
        while body.read(_CHUNK_BYTES):
            pass


def _unauthenticated() -> Response:
    response = json_response(
        {
            "error_code": "UNAUTHENTICATED",
            "message": "this service needs a token; send it in the header Authorization: Bearer TOKEN",
        },
        401,
    )
    response.headers["WWW-Authenticate"] = "Bearer"
    return response

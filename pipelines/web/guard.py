"""WSGI middleware that lets only callers with the token in."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from contextlib import suppress

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import get_input_stream

from .headers import is_page
from .responses import json_response
from .wsgi import Environ, StartResponse, WSGIApp

# Whoever watches the process needs no token: these say that it lives, and nothing about the model.
OPEN_PATHS = frozenset({"/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_SWALLOWED_BYTES = 1024 * 1024
_CHUNK_BYTES = 64 * 1024

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>This service needs a token</title>
<h1>This service needs a token</h1>
<p>It answers whoever sends <code>Authorization: Bearer TOKEN</code>, which a browser does not do by itself. Whoever runs the
service knows the token.</p>
<p>With it, from a shell, this page and the description of the API:</p>
<pre>curl -H "Authorization: Bearer $TOKEN" -H "Accept: application/json" THIS-ADDRESS/
curl -H "Authorization: Bearer $TOKEN" THIS-ADDRESS/openapi.json</pre>
<p>Without a token <code>/ping</code> and <code>/health</code> say whether it lives.</p>
</html>
"""


class Guard:
    """Answers 401 to every request without `Authorization: Bearer TOKEN`, but for the health checks."""

    def __init__(self, app: WSGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] in OPEN_PATHS or self._allows(environ.get("HTTP_AUTHORIZATION", "")):
            return self._app(environ, start_response)
        _swallow(environ)
        return _unauthenticated(environ)(environ, start_response)

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


def _unauthenticated(environ: Environ) -> Response:
    """Refuse in JSON, or in words where a person's browser asks for one of the pages."""
    accepted = Request(environ).accept_mimetypes.best_match(["application/json", "text/html"])
    if is_page(environ["PATH_INFO"]) and accepted == "text/html":
        response = Response(_PAGE, 401, mimetype="text/html")
    else:
        response = json_response(
            {
                "error_code": "UNAUTHENTICATED",
                "message": "this service needs a token; send it in the header Authorization: Bearer TOKEN",
            },
            401,
        )
    response.headers["WWW-Authenticate"] = "Bearer"
    response.headers["Vary"] = "Accept"
    return response

"""WSGI middlewares for browsers: which origins' pages may ask, and what a page of ours may do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .wsgi import Environ, Headers, StartResponse, WSGIApp

_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# Pages of ours: their scripts and styles come from the service itself, styles also from the page.
_PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_EVERYWHERE = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
]
_PAGE = [*_EVERYWHERE, ("Content-Security-Policy", _PAGE_POLICY)]
_DATA = [*_EVERYWHERE, ("Content-Security-Policy", _DATA_POLICY), ("Cache-Control", "no-store")]
_OURS = frozenset(name.lower() for name, _ in _DATA)
_REQUEST_HEADERS = "Authorization, Content-Type, Content-Encoding, Traceparent, Tracestate, X-Request-ID"
_ANSWER_HEADERS = "Retry-After, WWW-Authenticate, X-Request-ID"
_PREFLIGHT_SECONDS = "600"


class SecurityHeaders:
    """Tells browsers to do nothing with an answer but read it; the pages at `/` and `/docs` may run their scripts.

    Answers that are no page are kept by no cache. What the app itself says in one of these headers stands.
    """

    def __init__(self, app: WSGIApp) -> None:
        self._app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        added = _PAGE if is_page(environ["PATH_INFO"]) else _DATA

        def start(status: str, headers: Headers, *rest: Any) -> Any:
            said = {name.lower() for name, _ in headers} & _OURS
            more = [header for header in added if header[0].lower() not in said] if said else added
            return start_response(status, [*headers, *more], *rest)

        return self._app(environ, start)


def is_page(path: str) -> bool:
    """Tell whether a path is one that people open in a browser."""
    return path in ("/", "/docs") or path.startswith("/docs/")


class Cors:
    """Lets pages of these very origins ask and read the answers; callers prove themselves by token, never by cookie."""

    def __init__(self, app: WSGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        headers: Headers = [("Vary", "Origin")]  # what a cache keeps for one origin is not for another
        if origin in self._origins:
            headers.append(("Access-Control-Allow-Origin", origin))
            if environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
                return _preflight(start_response, headers)
            headers.append(("Access-Control-Expose-Headers", _ANSWER_HEADERS))

        def start(status: str, own: Headers, *rest: Any) -> Any:
            return start_response(status, [*own, *headers], *rest)

        return self._app(environ, start)


def _preflight(start_response: StartResponse, headers: Headers) -> Iterable[bytes]:
    allowed = [
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
        ("Access-Control-Max-Age", _PREFLIGHT_SECONDS),
        ("Content-Length", "0"),
    ]
    start_response("204 No Content", [*headers, *allowed])
    return []

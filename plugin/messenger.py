"""Messages to people, by whatever service a URL of Apprise's names: the only import of apprise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra, Unavailable

if TYPE_CHECKING:
    import apprise

KINDS = "https://appriseit.com/services/"


def shown(url: str) -> str:
    """Return a URL without its secrets. Raises BadInput, also without them, for one that names no service."""
    text: str = _service(url).url(privacy=True)
    return text.partition("?")[0]


def send(url: str, title: str, body: str) -> None:
    """Send a message. Raises Unavailable when the service did not take it."""
    service = _service(url)
    if not service.notify(title=title, body=body):
        raise Unavailable(
            f"{shown(url)} did not take the message {title!r}; it is tried again, "
            "and 'flywheel alerts test' tries now"
        )


def _service(url: str) -> Any:
    try:
        import apprise
    except ModuleNotFoundError:
        raise MissingExtra("telling people of alarms", "alerts") from None
    service: apprise.NotifyBase | None = apprise.Apprise.instantiate(url, suppress_exceptions=True)
    if service is None:
        scheme = url.partition("://")[0] if "://" in url else "..."
        raise BadInput(
            f"the alert URL '{scheme}://...' names no service; write it as in mailto://..., slack://..., json://host/path "
            f"({KINDS})"
        )
    return service

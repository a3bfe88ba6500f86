"""The webhook that a home has at its MLflow server, with the secret that they share, in a private file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .home import Home
from .private_files import write_private


@dataclass(frozen=True)
class Webhook:
    """A webhook: its id at the MLflow server, that server, where it sends to, and since when."""

    id: str
    server: str
    url: str
    since: str
    secret: str = field(repr=False)


def kept_webhook(home: Home) -> Webhook | None:
    """Return the home's webhook; None when it has none."""
    try:
        return Webhook(**json.loads(_file(home).read_text()))
    except FileNotFoundError:
        return None


def keep_webhook(home: Home, webhook: Webhook | None) -> None:
    """Remember the home's webhook, or that it has none any more."""
    file = _file(home)
    if webhook is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, json.dumps(asdict(webhook)))


def _file(home: Home) -> Path:
    return home.path / "secrets" / "webhook.json"

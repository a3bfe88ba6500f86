"""Where a home tells people what happens, in a private file: URLs of such services hold tokens and passwords."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.pipelines.times import utc_now

from .home import Home
from .messenger import shown
from .private_files import write_private

_FILE = "alerts.json"


@dataclass(frozen=True)
class Place:
    """A service that is told; `since` is when it was added: what happened before is no news to it."""

    key: str
    url: str
    since: str

    @property
    def added(self) -> datetime:
        """Return when it was added."""
        return datetime.fromisoformat(self.since)


def places(home: Home) -> list[Place]:
    """Return the places in the order in which they were added."""
    try:
        return [Place(**fields) for fields in json.loads(_file(home).read_text())]
    except FileNotFoundError:
        return []


def add_place(home: Home, url: str) -> Place:
    """Tell this place from now on. Raises BadInput for a URL that names no service or is there already."""
    key = sha256(url.encode()).hexdigest()[:12]
    known = places(home)
    if any(place.key == key for place in known):
        raise BadInput(f"{shown(url)} is told already; 'flywheel alerts list' shows all")
    shown(url)
    place = Place(key, url, utc_now().isoformat())
    _save(home, [*known, place])
    return place


def remove_place(home: Home, number: int) -> Place:
    """Tell the place of this number, as `flywheel alerts list` counts them, no more. Raises NotFound."""
    known = places(home)
    if not 1 <= number <= len(known):
        raise NotFound(f"there is no place {number}; 'flywheel alerts list' shows {len(known)}")
    removed = known.pop(number - 1)
    _save(home, known)
    return removed


def _file(home: Home) -> Path:
    return home.path / "secrets" / _FILE


def _save(home: Home, known: Sequence[Place]) -> None:
    file = _file(home)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(file, json.dumps([asdict(place) for place in known]))

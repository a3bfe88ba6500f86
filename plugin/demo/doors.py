"""How the three airports reach the one model: Newark asks the web service, Kennedy publishes, LaGuardia leaves files.

Each door takes the flights of one day and, later, the labels of those that have landed; and it counts, so that the
demo can say whether every question was answered and every answer logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, final

from .flights import EVENT_TIME, FEATURES, KEY, LABEL, LABEL_TIME

if TYPE_CHECKING:
    import pandas as pd

ANSWER_SECONDS = 120.0
# What a request or a file holds of a flight.
COLUMNS = (KEY, EVENT_TIME, *FEATURES)


class Door(Protocol):
    """One way to the model. `asked` and `answered` count flights, `labelled` the labels that were handed in."""

    name: str
    asked: int
    labelled: int

    @property
    def answered(self) -> int:
        """How many flights have their answer."""

    def ask(self, day: date, flights: pd.DataFrame) -> None:
        """Ask about the flights of one day; answers may still be on their way when this returns."""

    def label(self, day: date, flights: pd.DataFrame) -> None:
        """Hand in the labels of flights that have landed."""

    def settle(self) -> None:
        """Wait until everything that was asked so far is answered. Raises FlywheelError when that does not happen."""

    def close(self) -> None:
        """Let go of connections."""


@final
class Doors:
    """The three of them, each with its airport, used at the same time."""

    def __init__(self, by_origin: dict[str, Door]) -> None:
        self.by_origin = by_origin
        self._pool = ThreadPoolExecutor(len(by_origin), thread_name_prefix="door")

    def __enter__(self) -> Doors:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        for door in self.by_origin.values():
            door.close()

    @property
    def asked(self) -> int:
        return sum(door.asked for door in self.by_origin.values())

    @property
    def answered(self) -> int:
        return sum(door.answered for door in self.by_origin.values())

    @property
    def labelled(self) -> int:
        return sum(door.labelled for door in self.by_origin.values())

    def day(self, day: date, flights: pd.DataFrame, landed: pd.DataFrame) -> None:
        """Ask about a day's flights and, after each airport's last, hand in the labels of what landed that day."""

        def one(origin: str, door: Door) -> None:
            own, down = flights[flights["origin"] == origin], landed[landed["origin"] == origin]
            if len(own):
                door.ask(day, own)
            if len(down):
                door.label(day, down)

        self._all([self._pool.submit(one, *pair) for pair in self.by_origin.items()])

    def settle(self) -> None:
        """Wait until every flight has its answer."""
        self._all([self._pool.submit(door.settle) for door in self.by_origin.values()])

    def _all(self, futures: list[Future[None]]) -> None:
        for future in futures:
            future.result()


def labels_of(flights: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the labels of flights that have landed, as every door of the flywheel takes them."""
    for key, late, moment in zip(flights[KEY], flights[LABEL], flights[LABEL_TIME], strict=True):
        yield {"client_request_id": key, "label": int(late), "label_time": moment.isoformat()}

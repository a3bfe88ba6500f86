"""Publishing until everything is stored. Sending starts at once and is waited for later, with other work in between."""

from __future__ import annotations

from collections.abc import Sequence

from .patience import Patience
from .pulsar import Publisher
from .wire import Outgoing, SendFailure


class Publishing:
    """Messages on their way to a topic, sent again where they fail. One thread at a time."""

    def __init__(self, publisher: Publisher, messages: Sequence[Outgoing], patience: Patience) -> None:
        self._publisher = publisher
        self._patience = patience
        self._waiting = dict(enumerate(messages))
        self._too_big: dict[int, SendFailure] = {}
        self._sending = patience.insist(lambda: publisher.start(messages)) if messages else None

    def finish(self) -> dict[int, SendFailure]:
        """Return when every message is stored: those that never will be, by position, as they are too big.

        Raises Stopped when told to stop while that does not work.
        """
        if self._waiting:
            self._patience.insist(self._settle)
        return self._too_big

    def _settle(self) -> None:
        numbers = list(self._waiting)
        sending = self._sending or self._publisher.start([self._waiting[i] for i in numbers])
        self._sending = None
        failures = sending.wait()
        for place, number in enumerate(numbers):
            failure = failures.get(place)
            if failure is None or failure.too_big:
                del self._waiting[number]
            if failure is not None and failure.too_big:
                self._too_big[number] = failure
        self._publisher.raise_for([failure for failure in failures.values() if not failure.too_big])

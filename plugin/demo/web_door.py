"""Newark's door: flights are asked of the web service."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import requests
from requests.adapters import HTTPAdapter

from mlflow_flywheel.pipelines.errors import FlywheelError, Unavailable

from .doors import ANSWER_SECONDS, COLUMNS, labels_of
from .flights import EVENT_TIME

if TYPE_CHECKING:
    import pandas as pd

_CALLERS = 3
_RETRY_STATUS = (429, 503)


class WebDoor:
    """One request per hour of the schedule, a few callers at a time, over connections that stay open."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.asked = self.labelled = 0
        self._answered = 0
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=_CALLERS))
        self._callers = ThreadPoolExecutor(_CALLERS, thread_name_prefix="web-caller")

    @property
    def answered(self) -> int:
        return self._answered

    def ask(self, day: date, flights: pd.DataFrame) -> None:
        bodies = [
            (orjson.dumps({"dataframe_split": {"columns": COLUMNS, "data": hour}}), len(hour))
            for hour in _by_hour(flights)
        ]
        self.asked += len(flights)
        for n in self._callers.map(lambda one: self._predict(*one), bodies):
            self._answered += n

    def label(self, day: date, flights: pd.DataFrame) -> None:
        self._post("/feedback", orjson.dumps({"feedback": list(labels_of(flights))}))
        self.labelled += len(flights)

    def settle(self) -> None:
        if self.answered != self.asked:
            raise FlywheelError(f"{self.name} answered {self.answered} of {self.asked} flights")

    def close(self) -> None:
        self._callers.shutdown()
        self._session.close()

    def _predict(self, body: bytes, n: int) -> int:
        answer = orjson.loads(self._post("/invocations", body))
        if len(answer["predictions"]) != n or len(set(answer["prediction_ids"])) != n:
            raise FlywheelError(
                f"{self.name} answered {len(answer['predictions'])} of {n} flights of a request"
            )
        return n

    def _post(self, path: str, body: bytes) -> bytes:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                response = self._session.post(
                    self._url + path,
                    data=body,
                    headers={"Content-Type": "application/json"},
                    timeout=ANSWER_SECONDS,
                )
            except requests.RequestException as error:
                raise Unavailable(f"{self.name} does not answer at {self._url}{path}: {error}") from error
            if response.status_code == 200:
                return response.content
            if response.status_code not in _RETRY_STATUS or time.monotonic() > deadline:
                said = response.text[:500]
                raise FlywheelError(f"{self.name} answered {response.status_code} at {path}: {said}")
            time.sleep(_seconds(response.headers.get("Retry-After")))


def _by_hour(flights: pd.DataFrame) -> Iterator[list[list[Any]]]:
    """Yield the rows of each scheduled hour; the flights are in their order."""
    hours = flights[EVENT_TIME].dt.floor("h").to_numpy()
    frame = flights[list(COLUMNS)].assign(**{EVENT_TIME: flights[EVENT_TIME].map(lambda m: m.isoformat())})
    rows: list[list[Any]] = frame.to_numpy(dtype=object).tolist()
    starts = [0, *(np.flatnonzero(hours[1:] != hours[:-1]) + 1), len(rows)]
    for start, end in itertools.pairwise(map(int, starts)):
        yield rows[start:end]


def _seconds(text: str | None) -> float:
    try:
        return min(5.0, max(0.05, float(text or "")))
    except ValueError:
        return 0.2

"""Micro-batching: requests that wait at the same time are scored together, each gets exactly its own rows back.

One thread takes whatever has gathered while it scored the last batch and, after a batch of several, as long again (at
most a millisecond): a lone caller waits for nobody, and many share one call of the model. What cannot be joined (large
requests, `params`, CSV and Parquet) is scored alone, beside it. A batch that fails is scored again request by request:
only those that are wrong themselves are refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa

from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, ModelError
from mlflow_flywheel.pipelines.ids import new_prediction_ids
from mlflow_flywheel.pipelines.scoring import Request, ScoredBatch, ScoringCore

from .parsing import Rows
from .service import Answer

_TICK_SECONDS = 0.05
_COMPANY_SECONDS = 0.001


class TimedOut(FlywheelError):
    """The model took longer than a caller may be kept waiting; nothing of the request is logged."""

    error_code = "DEADLINE_EXCEEDED"
    http_status = 504


@dataclass(eq=False)
class _Ask:
    """One waiting request. `committed` and `abandoned` exclude each other: it is logged and answered, or neither."""

    rows: Rows
    names: tuple[str, ...] | None
    ids: list[str]
    asked: datetime
    came: float = field(default_factory=time.monotonic)
    committed: bool = False
    abandoned: bool = False
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Scores requests of one core from many threads.

    `stuck` is called when the model does not come back: a caller has waited in vain through a single call.
    `max_rows` bounds a joined batch, 1 joins nothing; `wait_seconds` is how long a batch waits for company; `timeout`
    (seconds) how long a caller waits for its answer; `threads` how many requests are scored beside the joined ones.
    `joined` hears of each joined batch: its rows, and how many requests wait then.
    """

    def __init__(
        self,
        core: ScoringCore,
        *,
        max_rows: int = 1,
        wait_seconds: float = 0.0,
        timeout: float = 60.0,
        threads: int = 1,
        joined: Callable[[int, int], None] = lambda rows, waiting: None,
        stuck: Callable[[], None] = lambda: None,
    ) -> None:
        self._core = core
        self._schema = core.scorer.schema
        self._all_features = tuple(sorted(self._schema.name_set))
        self._max_rows = max_rows
        self._wait_seconds = wait_seconds
        self._timeout = timeout
        self._joined = joined
        self._stuck = stuck
        self._lock = threading.Lock()
        self._calls: dict[int, float] = {}  # when each scoring thread that is in the model went in
        self._unanswered: set[_Ask] = set()
        self._closed = False
        self._together: SimpleQueue[_Ask | None] = SimpleQueue()
        self._alone: SimpleQueue[_Ask | None] = SimpleQueue()
        self._threads = threads
        for target, n in ((self._score_together, 1), (self._score_alone, threads), (self._watch, 1)):
            for _ in range(n):
                threading.Thread(target=target, name=f"web{target.__name__}", daemon=True).start()

    def submit(self, rows: Rows) -> Future[Answer]:
        """See Service."""
        ask = _Ask(rows, self._names(rows), new_prediction_ids(rows.count), datetime.now(timezone.utc))
        self._unanswered.add(ask)
        (self._alone if ask.names is None else self._together).put(ask)
        return ask.answer

    @property
    def waiting(self) -> int:
        """Return how many requests wait to be joined."""
        return self._together.qsize()

    def close(self) -> None:
        """End the threads when they have answered those who wait; nobody may ask after that."""
        self._closed = True
        for queue, n in ((self._together, 1), (self._alone, self._threads)):
            for _ in range(n):
                queue.put(None)

    def _names(self, rows: Rows) -> tuple[str, ...] | None:
        """Return the features that the rows have, which those joined with them must have too; None: score alone."""
        if rows.params or rows.count >= self._max_rows or isinstance(rows.columns, pa.Table):
            return None
        if rows.columns.keys() >= self._schema.name_set:
            return self._all_features
        return tuple(sorted(self._schema.name_set & rows.columns.keys()))

    # -- the thread that watches the time

    def _watch(self) -> None:
        """Abandon those who have waited too long."""
        tick = min(_TICK_SECONDS, self._timeout / 4)
        while self._unanswered or not self._closed:
            time.sleep(tick)
            latest = time.monotonic() - self._timeout
            for ask in list(self._unanswered):  # a copy in one step: others add and discard meanwhile
                if ask.came <= latest:
                    self._abandon(ask)

    def _abandon(self, ask: _Ask) -> None:
        """Tell a caller that it has waited too long, unless it is being answered right now."""
        with self._lock:
            ask.abandoned = not ask.committed
        if ask.abandoned:
            if self._hangs(ask.came):
                self._stuck()
            error = TimedOut(
                f"no answer within {self._timeout:g} s (timeout_seconds); send fewer rows at a time, or later"
            )
            self._settle(ask, error)

    def _settle(self, ask: _Ask, answer: Answer | Exception) -> None:
        """Answer a caller; only for whoever has committed or abandoned it."""
        self._unanswered.discard(ask)
        if isinstance(answer, Exception):
            ask.answer.set_exception(answer)
        else:
            ask.answer.set_result(answer)

    def _hangs(self, came: float) -> bool:
        """Tell whether the model is still in a call that it was in when a caller `came` that has waited in vain since."""
        return any(began < came for began in list(self._calls.values()))

    # -- the scoring threads

    def _score_alone(self) -> None:
        while (ask := self._alone.get()) is not None:
            if not ask.abandoned:
                self._score([ask])

    def _score_together(self) -> None:
        took = 0.0
        while (first := self._together.get()) is not None:
            time.sleep(min(took, _COMPANY_SECONDS))
            began, asked = time.perf_counter(), 0
            for batch in self._gather(first):
                self._joined(sum(ask.rows.count for ask in batch), self.waiting)
                self._score(batch)
                asked += len(batch)
            # Who had company will have it again: as long a wait as a call takes halves the calls. The lone never wait.
            took = time.perf_counter() - began if asked > 1 else 0.0

    def _gather(self, first: _Ask) -> Iterator[list[_Ask]]:
        """Take what has come by now, or comes within the wait, and part it by the features given."""
        groups: dict[tuple[str, ...] | None, list[_Ask]] = {}
        if not first.abandoned:
            groups[first.names] = [first]
        count = first.rows.count
        deadline = time.monotonic() + self._wait_seconds
        while count < self._max_rows:
            try:
                left = deadline - time.monotonic() if self._wait_seconds else 0.0
                ask = self._together.get(timeout=left) if left > 0 else self._together.get_nowait()
            except Empty:
                break
            if ask is None:
                self._together.put(None)
                break
            if not ask.abandoned:
                groups.setdefault(ask.names, []).append(ask)
                count += ask.rows.count
        yield from groups.values()

    def _score(self, asks: list[_Ask]) -> None:
        """Answer requests: all at once, or one by one when something is wrong with the batch."""
        try:
            request = self._request(asks)
            self._calls[threading.get_ident()] = time.monotonic()
            try:
                scored = self._core.predict(request, asks[0].rows.params)
            finally:
                del self._calls[threading.get_ident()]
        except (BadInput, ModelError) as error:
            if len(asks) == 1:
                return self._refuse(asks, error)
            for ask in asks:
                self._score([ask])
            return None
        except Exception as error:  # noqa: BLE001 - this thread must live, and the callers hear of it
            return self._refuse(asks, error)
        try:
            self._commit(asks, scored)
        except Exception as error:  # noqa: BLE001
            self._refuse(asks, error)
        return None

    def _request(self, asks: Sequence[_Ask]) -> Request:
        if len(asks) == 1:
            rows = asks[0].rows
            features = rows.features(self._schema)
            return Request(
                features, asks[0].ids, rows.client_request_ids, rows.event_times, request_time=asks[0].asked
            )
        counts = [ask.rows.count for ask in asks]
        columns = _joined_columns([ask.rows.columns for ask in asks], asks[0].names or ())
        return Request(
            self._schema.from_columns(columns, sum(counts)),
            list(chain.from_iterable(ask.ids for ask in asks)),
            join_lists([ask.rows.client_request_ids for ask in asks], counts),
            join_lists([ask.rows.event_times for ask in asks], counts),
            request_times=join_lists([[ask.asked] * n for ask, n in zip(asks, counts, strict=True)], counts),
        )

    def _commit(self, asks: list[_Ask], scored: ScoredBatch) -> None:
        """Log the rows of those who still wait, and answer them."""
        self._keep(asks)
        everyone = all(ask.committed for ask in asks)
        if everyone:
            self._core.log(scored)
        start = 0
        for ask in asks:
            end = start + ask.rows.count
            if ask.committed:
                if not everyone:
                    self._core.log(scored.take(range(start, end)))
                predictions = scored.predictions.native[start:end]
                self._settle(ask, Answer(predictions, ask.ids, self._core.scorer.ref.version, ask.asked))
            start = end

    def _refuse(self, asks: Sequence[_Ask], error: Exception) -> None:
        """Tell those who still wait why they have no answer."""
        self._keep(asks)
        for ask in asks:
            if ask.committed and not ask.answer.done():
                self._settle(ask, error)

    def _keep(self, asks: Sequence[_Ask]) -> None:
        """Commit to answering those who are not abandoned."""
        with self._lock:
            for ask in asks:
                ask.committed = not ask.abandoned


def _joined_columns(parts: Sequence[Any], names: Sequence[str]) -> Mapping[str, list[Any]]:
    return {name: list(chain.from_iterable(map(itemgetter(name), parts))) for name in names}


def join_lists(parts: Sequence[list[Any] | None], counts: Sequence[int]) -> list[Any] | None:
    """Concatenate lists of which any may be missing; None when all are."""
    if all(part is None for part in parts):
        return None
    return list(
        chain.from_iterable(
            [None] * n if part is None else part for part, n in zip(parts, counts, strict=True)
        )
    )

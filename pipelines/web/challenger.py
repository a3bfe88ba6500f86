"""A challenger beside the version that serves: asked unheard (shadow), or answering a sticky share of callers (canary).

Both are services around the champion's: whatever happens to the challenger, callers get an answer, and it is the
answer of one version. What the challenger says is logged as variant `challenger`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from typing import Literal

import pyarrow as pa

from mlflow_flywheel.pipelines.compatibility import check_stands_in
from mlflow_flywheel.pipelines.config import WebConfig
from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.ids import place_of, shadow_prediction_id
from mlflow_flywheel.pipelines.model import Scorer, describe, load_scorer
from mlflow_flywheel.pipelines.scoring import PredictionLog, Request, ScoringCore

from .batcher import Batcher, TimedOut, join_lists
from .parsing import Rows
from .service import Answer, Service

Outcome = Literal["answered", "shadowed", "failed", "dropped"]
Count = Callable[[Outcome], None]
VARIANT = "challenger"
_WAITING_ROWS = 8192
_CLOSE_SECONDS = 5.0
_REST_SECONDS = 60.0
_SAY_SECONDS = 60.0

_log = logging.getLogger(__name__)


def load_challenger(config: WebConfig, champion: Scorer) -> Scorer | None:
    """Load the version that is on trial, if any, and let it score its own example and the champion's.

    Raises ModelError or BadInput, which name it, when it could not stand in for the champion.
    """
    if config.trial is None:
        return None
    try:
        challenger = load_scorer(config.trial.model)
        check_stands_in(challenger, champion)
    except (ModelError, BadInput) as error:
        raise type(error)(f"the challenger cannot be tried: {error.message}") from error
    return challenger


def open_trial(
    config: WebConfig,
    champion: Service,
    challenger: Scorer,
    log: PredictionLog,
    count: Count,
    parts: ExitStack,
) -> Service:
    """Return the service that asks both; `parts` closes it.

    `log` should not be the champion's: its answers are not to wait until the challenger's rows are written.
    """
    assert config.trial is not None
    core = ScoringCore(challenger, deployment=config.deployment, mode="web", log=log, variant=VARIANT)
    if config.trial.mode == "shadow":
        shadow = Shadow(champion, core, batch_rows=config.max_batch_size, count=count)
        parts.callback(shadow.close)
        return shadow
    batcher = Batcher(
        core,
        max_rows=config.max_batch_size,
        wait_seconds=config.batch_wait_ms / 1000,
        # the champion needs time too when the challenger does not come back
        timeout=config.timeout_seconds / 2,
        threads=config.threads,
    )
    parts.callback(batcher.close)
    return Canary(
        champion, batcher, config.trial.traffic_percentage, who=describe(challenger.ref), count=count
    )


def is_chosen(key: str, percentage: float) -> bool:
    """Tell whether a key is among the first `percentage` of all: the same in every process, and still at a larger one."""
    return place_of(key, "canary") * 100 < percentage


class Canary:
    """Lets a challenger answer some callers; those for whom it fails are answered by the champion.

    A caller is known by the client_request_id of its first row; without one, chance decides each time.
    """

    def __init__(
        self, champion: Service, challenger: Service, percentage: float, *, who: str, count: Count
    ) -> None:
        self._champion = champion
        self._challenger = challenger
        self._percentage = percentage
        self._count = count
        self._trouble = _Trouble(who)
        self._rests_until = 0.0

    def submit(self, rows: Rows) -> Future[Answer]:
        """See Service."""
        if not self._chosen(rows) or time.monotonic() < self._rests_until:
            return self._champion.submit(rows)
        heard: Future[Answer] = Future()
        self._challenger.submit(rows).add_done_callback(lambda said: self._hear(said, rows, heard))
        return heard

    def _hear(self, said: Future[Answer], rows: Rows, heard: Future[Answer]) -> None:
        """Pass on what the challenger said, or ask the champion instead: no caller pays for the trial."""
        error = said.exception()
        if error is None:
            self._count("answered")
            heard.set_result(said.result())
            return
        if isinstance(error, TimedOut):  # it may hang for good: not everybody has to find that out
            self._rests_until = time.monotonic() + _REST_SECONDS
        self._champion.submit(rows).add_done_callback(
            lambda instead: self._hear_instead(instead, error, heard)
        )

    def _hear_instead(self, instead: Future[Answer], error: BaseException, heard: Future[Answer]) -> None:
        failure = instead.exception()
        if failure is not None:  # then the challenger was not to blame
            heard.set_exception(failure)
            return
        self._count("failed")
        self._trouble.happened("answered by the champion instead", error)
        heard.set_result(instead.result())

    def _chosen(self, rows: Rows) -> bool:
        key = rows.client_request_ids[0] if rows.client_request_ids else None
        return random.random() * 100 < self._percentage if key is None else is_chosen(key, self._percentage)


@dataclass(frozen=True)
class _Said:
    """An answered request that waits for the challenger."""

    rows: Rows
    answer: Answer
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class Shadow:
    """Asks the challenger what the champion was asked, after the answer is made and in a thread of its own.

    At most `waiting_rows` rows wait, and what does not fit is dropped. The thread joins what has gathered, and rests as
    long as it worked: it shares the interpreter with those who answer, and must never take more than half of it. (A
    lower priority would not do: a thread that is put off while it holds the interpreter's lock puts off all others.)
    """

    def __init__(
        self,
        champion: Service,
        core: ScoringCore,
        *,
        batch_rows: int,
        waiting_rows: int = _WAITING_ROWS,
        count: Count,
    ) -> None:
        self._champion = champion
        self._core = core
        self._batch_rows = batch_rows
        self._waiting_rows = waiting_rows
        self._count = count
        self._trouble = _Trouble(describe(core.scorer.ref))
        self._lock = threading.Condition()
        self._waiting: deque[_Said] = deque()
        self._rows = 0
        self._closing = threading.Event()
        self._given_up = False
        self._thread = threading.Thread(target=self._run, name="web_shadow", daemon=True)
        self._thread.start()

    def submit(self, rows: Rows) -> Future[Answer]:
        """See Service; the answer is the champion's."""
        answer = self._champion.submit(rows)
        answer.add_done_callback(lambda said: self._offer(rows, said))
        return answer

    def _offer(self, rows: Rows, said: Future[Answer]) -> None:
        """Let an answered request wait for the challenger, if there is room."""
        if said.exception() is not None:
            return
        with self._lock:
            # one that is larger than all the room may have the room for itself
            fits = not self._closing.is_set() and (
                not self._waiting or self._rows + rows.count <= self._waiting_rows
            )
            if fits:
                self._waiting.append(_Said(rows, said.result()))
                self._rows += rows.count
                self._lock.notify()
        if not fits:
            self._drop()

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Take no more, score what waits as far as that is done within `seconds`, and drop the rest."""
        with self._lock:
            self._closing.set()
            self._lock.notify()
        self._thread.join(seconds)
        with self._lock:
            self._given_up = True
            left = len(self._waiting)
            self._waiting.clear()
        for _ in range(left):
            self._drop()

    def _drop(self) -> None:
        self._count("dropped")
        self._trouble.happened("not asked, as too many rows were waiting for it")

    # -- its thread

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            self._score(batch)
            self._closing.wait(time.monotonic() - started)

    def _take(self) -> list[_Said]:
        """Wait for requests, and return those that can be scored together; none at the end."""
        with self._lock:
            while not self._waiting and not self._closing.is_set():
                self._lock.wait()
            batch: list[_Said] = []
            rows = 0
            while self._waiting and not self._given_up:
                said = self._waiting[0]
                if batch and (said.rows.params or rows + said.rows.count > self._batch_rows):
                    break
                batch.append(self._waiting.popleft())
                rows += said.rows.count
                if said.rows.params:
                    break
            self._rows -= rows
            return batch

    def _score(self, batch: Sequence[_Said]) -> None:
        try:
            self._core.score(self._request(batch), batch[0].rows.params)
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and the thread must live
            if len(batch) > 1:
                for said in batch:
                    self._score([said])
                return
            self._count("failed")
            self._trouble.happened("without an answer of it", error)
        else:
            for _ in batch:
                self._count("shadowed")

    def _request(self, batch: Sequence[_Said]) -> Request:
        schema = self._core.scorer.schema
        parts = [_table(said.rows.features(schema)) for said in batch]
        counts = [said.rows.count for said in batch]
        ids = chain.from_iterable(said.answer.prediction_ids for said in batch)
        times = [said.answer.asked or said.time for said in batch]
        return Request(
            pa.concat_tables(parts),
            [shadow_prediction_id(name) for name in ids],
            join_lists([said.rows.client_request_ids for said in batch], counts),
            join_lists([said.rows.event_times for said in batch], counts),
            request_times=join_lists([[asked] * n for asked, n in zip(times, counts, strict=True)], counts),
        )


class _Trouble:
    """Counts what the challenger is to blame for, and says it once in a while."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._counts: dict[str, int] = {}
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def happened(self, what: str, error: BaseException | None = None) -> None:
        """Count one request."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + 1
            if time.monotonic() < self._silent_until:
                return
            self._silent_until = time.monotonic() + _SAY_SECONDS
            said = ", ".join(f"{n} requests {what}" for what, n in self._counts.items())
        because = "" if error is None else f"; now: {type(error).__name__}: {error}"
        _log.warning("the challenger, %s: %s so far%s", self._who, said, because)


def _table(features: pa.RecordBatch | pa.Table) -> pa.Table:
    return features if isinstance(features, pa.Table) else pa.Table.from_batches([features])

"""One stream worker process: it loads its model version, takes over when told to, and works until SIGTERM.

`python -m mlflow_flywheel.pipelines.stream.worker --config FILE` runs one by hand; its master (`__main__.py`) starts
it the same way. SIGTERM: the batch in hand is finished and acknowledged, the consumers are closed, exit code 0.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from mlflow_flywheel.pipelines.adjust.live import AdjustedCore, LiveAdjustment
from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.log_filters import check_excluded, open_log
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.scoring import PredictionLog, ScoringCore
from mlflow_flywheel.pipelines.worker_channel import WorkerChannel

from .adjusting import look_after, new_state, open_adjustment
from .dead_letters import DeadLetters
from .endings import Mark, collect_unclean_endings
from .feedback_inbox import FeedbackInbox
from .fields import check_fields
from .loop import StreamLoop
from .messages import AnswerFormat, InputFormat
from .one_core import OneCore
from .patience import Patience, Stopped
from .pulsar import ANOTHER_NUMBER, Connection, Consumer
from .settings import bodies_of, feedback_subscription, letters_subscription, load_stream_config, start_ms
from .stats import StatsKeeper, stats_file

_log = logging.getLogger(__name__)


class Worker:
    """A worker's parts and their lives; `run` returns after SIGTERM."""

    def __init__(
        self,
        config: StreamConfig,
        scorer: Scorer,
        stats: StatsKeeper,
        number: int = 0,
        adjustment: LiveAdjustment | None = None,
    ) -> None:
        self._config = config
        self._number = number
        self._scorer = scorer
        self._stats = stats
        self._adjustment = adjustment
        self._stop = threading.Event()
        self._patience = Patience(self._stop, stats)

    def stop(self) -> None:
        """Ask for the end: the batch in hand is finished first. Safe in a signal handler and from any thread."""
        self._stop.set()

    def run(self, serving: Callable[[], None]) -> None:
        """Subscribe, call `serving`, and work until told to stop. Raises what no waiting helps with."""
        with ExitStack() as parts:
            core = self._core(open_log(self._config, self._scorer, parts))
            try:
                self._patience.insist(lambda: self._consume(core, serving))
            except Stopped:
                _log.warning("stopped in trouble; what was not acknowledged will be delivered again")

    def _core(self, log: PredictionLog) -> ScoringCore:
        config = self._config
        named = {"deployment": config.deployment, "mode": "stream", "variant": config.variant}
        if self._adjustment is not None:
            return AdjustedCore(self._scorer, self._adjustment, log=log, **named)
        return ScoringCore(self._scorer, log=log, **named)

    def _consume(self, core: ScoringCore, serving: Callable[[], None]) -> None:
        """Open everything on the broker, work, close it. Raises Unavailable when it cannot be opened."""
        with ExitStack() as parts:
            if self._config.embedded:
                parts.callback(Mark(self._config.status_file).remove)
            cores = OneCore(zlib.crc32(self._config.deployment.encode()) + self._number)
            parts.enter_context(cores.together())
            # What goes out has a client of its own: its thread waits for Python at each receipt.
            outward = parts.enter_context(Connection.of(self._config))
            inward = parts.enter_context(
                Connection.of(
                    self._config,
                    first_number=1 + self._stats.now.starts % (ANOTHER_NUMBER - 1),
                )
            )
            loop, inbox = self._open_loop(inward, outward, core, cores)
            feedback = self._open_feedback(inward, parts)
            serving()
            self._stats.note(trouble=None)
            _log.info("consuming %s as %s", self._config.input_topic, self._config.subscription)
            with ThreadPoolExecutor(1, "feedback") as pool:
                labels = pool.submit(feedback.run) if feedback is not None else None
                if labels is not None:
                    labels.add_done_callback(lambda _: self.stop())  # one loop's end is the other's
                try:
                    loop.run()
                finally:
                    self.stop()
                if labels is not None:
                    labels.result()
            inbox.settle()

    def _open_loop(
        self, inward: Connection, outward: Connection, core: ScoringCore, cores: OneCore
    ) -> tuple[StreamLoop, Consumer]:
        config = self._config
        by_key = config.ordering == "key"
        answers = outward.publisher(config.output_topic, by_key=by_key)
        letters = outward.publisher(config.dead_letter_topic, batched=False)
        # before the first letter: a broker may forget what nobody subscribes to
        inward.consumer(config.dead_letter_topic, letters_subscription(config), batch_max=1).close()
        inbox = inward.consumer(
            config.input_topic,
            config.subscription,
            position="latest" if config.start_position == "latest" else "earliest",
            batch_max=config.batch_max,
            batch_wait_ms=config.batch_wait_ms,
            by_key=by_key,
        )
        start = start_ms(config)
        loop = StreamLoop(
            core,
            InputFormat.of(config, bodies_of(config, inward.schema)),
            AnswerFormat.of(core.scorer.ref, config.properties),
            inbox=inbox,
            answers=answers,
            dead_letters=DeadLetters(letters, config.deployment, self._patience),
            patience=self._patience,
            stats=self._stats,
            stop=self._stop,
            around_scoring=cores.apart,
            is_due=lambda message: message.publish_ms >= start,
        )
        return loop, inbox

    def _open_feedback(self, connection: Connection, parts: ExitStack) -> FeedbackInbox | None:
        config = self._config
        if config.feedback_topic is None:
            return None
        labels = FeedbackLog(
            config.spool, config.model.name, self._scorer.kind, source="stream", durability=config.durability
        )
        parts.callback(labels.close)
        letters = connection.publisher(config.dead_letter_topic, batched=False)
        return FeedbackInbox(
            labels,
            self._scorer.kind,
            config.max_message_bytes,
            inbox=connection.consumer(config.feedback_topic, feedback_subscription(config)),
            dead_letters=DeadLetters(letters, config.deployment, self._patience),
            patience=self._patience,
            stats=self._stats,
            stop=self._stop,
            **({} if self._adjustment is None else {"learn": self._adjustment.learn}),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_flywheel.pipelines.stream.worker")
    parser.add_argument(
        "--config", type=Path, required=True, help="configuration file (StreamConfig as JSON)"
    )
    parser.add_argument("--worker", type=int, default=0, help="this worker's number, for its statistics file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.Formatter.converter = time.gmtime
    channel = WorkerChannel.from_environment()
    try:
        return _run(options.config, options.worker, channel)
    except FlywheelError as error:
        channel.failed(error)
        _log.error("%s", error.message)
        return 1
    except BaseException as error:
        channel.failed(error)
        raise


def _run(config_path: Path, number: int, channel: WorkerChannel) -> int:
    config = load_stream_config(config_path)
    scorer = load_scorer(config.model)
    check_excluded(config.log_exclude, scorer.schema)
    check_fields(config.fields, scorer.schema)
    state = new_state(config, scorer)
    gc.collect()
    gc.freeze()  # or each batch's many objects make Python look through all that the model's libraries hold
    channel.prepared()
    if not channel.wait_go():
        return 0
    adjustment = open_adjustment(config, state)  # not before the last version's worker has left it
    stats = StatsKeeper(stats_file(config.status_file, number), lambda: _watch(config, stats, adjustment))
    stats.serves(config.model.version)
    _watch(config, stats, adjustment)  # at once: a predecessor's ghost may hold messages back
    worker = Worker(config, scorer, stats, number, adjustment)
    for told in (signal.SIGTERM, signal.SIGINT):
        # in a thread, as this one may hold the very lock that setting an event takes
        signal.signal(told, lambda *_: threading.Thread(target=worker.stop).start())
    try:
        worker.run(channel.serving)
    finally:
        stats.close()
        if adjustment is not None:
            adjustment.close()
    return 0


def _watch(config: StreamConfig, stats: StatsKeeper, adjustment: LiveAdjustment | None) -> None:
    """Look after the adjustment; ask for a restart of the embedded broker when a worker died with open consumers."""
    if adjustment is not None:
        look_after(adjustment, config, stats)
    if config.embedded and collect_unclean_endings(config.status_file):
        _log.warning(
            "a worker died without closing its consumers; the embedded broker must be restarted to free them"
        )
        stats.note(broker_restart_wanted=datetime.now(timezone.utc))


if __name__ == "__main__":
    sys.exit(main())

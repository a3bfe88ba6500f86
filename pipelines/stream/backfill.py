"""Score again what was published in a span of time: what the inference table has of it is left as it is.

`python -m mlflow_flywheel.pipelines.stream.backfill --config FILE --tables ROOT --start ISO --end ISO` prints what it
did as JSON. It reads the input topic through a subscription of its own beside the workers, as far back as the broker
keeps messages. An event whose prediction_id is in the table for this deployment is neither answered nor logged; every
other one is, under the prediction_id that it would have had anyway, so that nothing is ever in the table twice. What
cannot be answered is counted, and not written to the dead-letter topic again.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.log_filters import open_log
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.scoring import ScoringCore
from mlflow_flywheel.pipelines.times import parse_time

from .dead_letters import Refused
from .loop import StreamLoop
from .messages import AnswerFormat, InputFormat
from .patience import Patience
from .pulsar import Connection
from .settings import bodies_of, load_stream_config
from .stats import StatsKeeper
from .wire import Received

_QUIET_SECONDS = 2.0  # nothing of the span came for so long: there is no more


@dataclass(frozen=True)
class Span:
    """Publish times from `start` to before `end`, in milliseconds since 1970."""

    start: int
    end: int

    @classmethod
    def of(cls, start: datetime, end: datetime) -> Span:
        """Take the times. Raises BadInput when nothing is between them."""
        if start >= end:
            raise BadInput(
                f"the span from {start.isoformat()} to {end.isoformat()} is empty; give an earlier start"
            )
        return cls(round(1000 * start.timestamp()), round(1000 * end.timestamp()))


@dataclass(frozen=True)
class Backfilled:
    """What a back-fill did with the messages of its span."""

    messages: int
    answered: int
    known: int
    refused: int
    refused_by: dict[str, int]


class KnownIds:
    """Which predictions the table has of a deployment, at eight bytes each."""

    def __init__(self, table: InferenceTable, deployment: str) -> None:
        self._hashes = np.empty(0, np.uint64)
        if table.exists:
            rows = table.read(deployment=deployment, columns=["prediction_id"], order_by=None)
            self._hashes = np.sort(_hashed(rows.column("prediction_id").to_numpy()))

    def __contains__(self, prediction_id: str) -> bool:
        (wanted,) = _hashed(np.array([prediction_id], object))
        place = int(np.searchsorted(self._hashes, wanted))
        return place < len(self._hashes) and bool(self._hashes[place] == wanted)


def backfill(config: StreamConfig, scorer: Scorer, tables: str, span: Span) -> Backfilled:
    """Answer and log the events of a span that the table does not have.

    Raises Unavailable when the broker cannot be reached at the start; later trouble is waited out.
    """
    known = KnownIds(InferenceTable.open(tables, config.model.name), config.deployment)
    stop = threading.Event()
    seen = 0

    def is_due(message: Received) -> bool:
        return message.position.prediction_id not in known

    with ExitStack() as parts:
        folder = parts.enter_context(tempfile.TemporaryDirectory(prefix="flywheel-backfill-"))
        stats = parts.enter_context(closing(StatsKeeper(Path(folder) / "stats.json")))
        patience = Patience(stop, stats)
        core = ScoringCore(
            scorer,
            deployment=config.deployment,
            mode="stream",
            log=open_log(config, scorer, parts),
            variant=config.variant,
        )
        connection = parts.enter_context(Connection.of(config))
        reader = parts.enter_context(closing(connection.reader(config.input_topic, position="earliest")))
        if not config.embedded:
            reader.seek(span.start)
        loop = StreamLoop(
            core,
            InputFormat.of(config, bodies_of(config, connection.schema)),
            AnswerFormat.of(scorer.ref, config.properties),
            inbox=_Acknowledged(),
            answers=connection.publisher(config.output_topic, by_key=config.ordering == "key"),
            dead_letters=_NoLetters(),
            patience=patience,
            stats=stats,
            stop=stop,
            is_due=is_due,
        )
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_SECONDS:
            early = [message for message in patience.insist(reader.receive) if message.publish_ms < span.end]
            mine = [message for message in early if message.publish_ms >= span.start]
            if mine:
                loop.handle(mine)
                seen += len(mine)
            if early or not reader.is_connected:
                quiet_since = time.monotonic()
        done = stats.now
    return Backfilled(seen, done.rows, done.skipped, done.dead_letters, done.dead_letters_by)


class _Acknowledged:
    """The reader acknowledges for itself."""

    def receive(self, idle_ms: int) -> list[Received]:
        return []

    def acknowledge(self, messages: list[Received]) -> None:
        return None


class _NoLetters:
    """What is refused was refused before, and has its letter."""

    def send(self, letters: Sequence[Refused]) -> None:
        return None


def _hashed(ids: Any) -> Any:
    import pandas as pd

    return pd.util.hash_array(np.asarray(ids, object), categorize=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Back-fill one span; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_flywheel.pipelines.stream.backfill")
    parser.add_argument(
        "--config", type=Path, required=True, help="configuration file (StreamConfig as JSON)"
    )
    parser.add_argument("--tables", required=True, help="root of the inference tables")
    parser.add_argument("--start", type=parse_time, required=True, help="first publish time, ISO 8601")
    parser.add_argument("--end", type=parse_time, required=True, help="publish time after the last, ISO 8601")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a subscription must not be left behind
    try:
        span = Span.of(options.start, options.end)
        config = load_stream_config(options.config)
        print(json.dumps(asdict(backfill(config, load_scorer(config.model), options.tables, span))))
    except FlywheelError as error:
        print(error.message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "ended before the span's end; what was answered is logged, and the rest can be asked for again",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A load of numbered events on a stream deployment, and the check that nothing of it was lost or doubled."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from support.waiting import eventually

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.stream.client import OutputReader
from mlflow_flywheel.pipelines.stream.pulsar import Connection, Publisher
from mlflow_flywheel.pipelines.stream.stats import read_stats
from mlflow_flywheel.pipelines.stream.wire import Outgoing, Position, Received

PADDING = "x" * 300


_PUBLISH_SECONDS = 0.02
_QUIET_SECONDS = 20.0


class Deployed(Protocol):
    """A stream deployment that runs, whoever keeps it."""

    @property
    def config(self) -> StreamConfig: ...


class Load:
    """Publishes numbered events at about `rate` per second until it is ended; what a broker did not store it sends again."""

    def __init__(self, deployment: Deployed, rate: int = 500) -> None:
        self._config = deployment.config
        self._burst = round(rate * _PUBLISH_SECONDS)
        self._end = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._publish)
        self.sent = 0

    def start(self) -> Load:
        self._thread.start()
        return self

    def end(self) -> int:
        """Return how many events the broker has confirmed; raises when it has not confirmed all."""
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.sent

    def _publish(self) -> None:
        try:
            with Connection.of(self._config, quiet=True) as connection:
                publisher = connection.publisher(self._config.input_topic)
                on_their_way: dict[int, int] = {}
                while not self._end.wait(_PUBLISH_SECONDS):
                    for _ in range(self._burst):
                        on_their_way[publisher.send(event(self.sent))] = self.sent
                        self.sent += 1
                    if len(on_their_way) >= 1000:
                        on_their_way = self._send_again(publisher, on_their_way)
                while on_their_way:
                    on_their_way = self._send_again(publisher, on_their_way)
        except BaseException as error:  # noqa: BLE001 (raised again in the test's thread)
            self._error = error

    def _send_again(self, publisher: Publisher, on_their_way: dict[int, int]) -> dict[int, int]:
        return {
            publisher.send(event(on_their_way[number])): on_their_way[number] for number in publisher.flush()
        }


def event(number: int) -> Outgoing:
    body = {"a": number, "b": 1, "c": 0, "d": 0, "padding": PADDING, "client_request_id": str(number)}
    return Outgoing(orjson.dumps(body))


def read_until(deployment: Deployed, topic: str, enough: Callable[[list[Received]], bool]) -> list[Received]:
    """Read a topic from its start until there is enough, and then until nothing more comes for a moment."""
    found: list[Received] = []
    read_through(deployment, topic, found.append, lambda: enough(found))
    assert enough(found), f"{len(found)} messages of {topic} are not enough"
    return found


@dataclass(frozen=True)
class Tally:
    """What became of a load. All but the first three are zero when nothing was lost or doubled.

    A publisher whose confirmation was lost with the broker sends again: that is an event of its own on the topic, so
    the topic, not the publisher, says how often an event must be in the table.
    """

    events: int
    rows: int
    answered_again: int
    not_on_topic: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    unanswered: int = 0
    contradicted: int = 0

    @property
    def is_complete(self) -> bool:
        return self == Tally(self.events, self.events, self.answered_again)


def check_everything_is_there_once(deployment: Deployed, folder: Path, confirmed: int) -> None:
    """Raise AssertionError unless each event is in the table once and answered as it is there."""
    tally = tally_of(deployment, folder, confirmed)
    assert tally.is_complete, tally


def tally_of(deployment: Deployed, folder: Path, confirmed: int) -> Tally:
    """Compare the input topic, the table and the answers; waits until they agree or nothing more comes."""
    config = deployment.config
    published: dict[Position, str] = {}

    def note(message: Received) -> None:
        published[message.position] = body(message)["client_request_id"]

    events = {str(number) for number in range(confirmed)}
    read_through(deployment, config.input_topic, note, lambda: events <= set(published.values()))
    rows = _rows(deployment, folder, len(published))
    expected, found = Counter(published.values()), Counter(rows["client_request_id"])
    ids = Counter(rows["prediction_id"])

    answers: dict[str, set[Any]] = {}
    answered = 0

    def note_answer(message: Received) -> None:
        nonlocal answered
        answered += 1
        answer = body(message)
        answers.setdefault(answer["prediction_id"], set()).add(answer["prediction"])

    read_through(deployment, config.output_topic, note_answer, lambda: set(ids) <= set(answers))
    predictions = dict(zip(rows["prediction_id"], rows["prediction"], strict=True))
    return Tally(
        events=len(published),
        rows=len(rows["prediction_id"]),
        answered_again=answered - len(answers),
        not_on_topic=len(events - set(expected)),
        lost=(expected - found).total(),
        doubled=(found - expected).total() + ids.total() - len(ids),
        wrong=sum(
            float(name) + 1 != said
            for name, said in zip(rows["client_request_id"], rows["prediction"], strict=True)
        ),
        unanswered=len(set(ids) - set(answers)),
        contradicted=sum(said != {predictions.get(name)} for name, said in answers.items()),
    )


def _rows(deployment: Deployed, folder: Path, expected: int) -> dict[str, list[Any]]:
    """Commit until the table has as many rows of the deployment as expected, or gets no more; return them."""
    config = deployment.config
    committer = Committer(folder / "spool", str(folder / "tables"))
    table = InferenceTable.open(str(folder / "tables"), config.model.name)
    quiet = _Quiet()

    def caught_up() -> bool:
        report = committer.commit_once()
        return table.counts().rows >= expected or quiet.after(report.segments > 0)

    eventually(caught_up, 600, every=0.3, what="all that was spooled is committed")
    columns = ["client_request_id", "prediction_id", "prediction"]
    found: dict[str, list[Any]] = table.read(deployment=config.deployment).select(columns).to_pydict()
    return found


def read_through(
    deployment: Deployed, topic: str, note: Callable[[Received], None], enough: Callable[[], bool]
) -> None:
    """Read a topic from its start until there is enough and nothing more comes, or nothing has come for long."""
    quiet = _Quiet()

    def read() -> bool:
        messages = reader.messages()
        for message in messages:
            note(message)
        return quiet.after(bool(messages)) or (not messages and enough())

    with OutputReader(deployment.config, topic, start="earliest") as reader:
        eventually(read, 600, every=0, what=f"the end of {topic}")


class _Quiet:
    """Knows when nothing has come for twenty seconds: then nothing more will."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def after(self, something_came: bool) -> bool:
        """Take note of a look, and tell whether it is long since one has shown something."""
        if something_came:
            self._since = time.monotonic()
        return time.monotonic() - self._since > _QUIET_SECONDS


def body(message: Received) -> Any:
    return orjson.loads(message.data or b"null")


def handled(deployment: Deployed) -> int:
    """Return how many messages a deployment has handled, as it says about every second."""
    stats = read_stats(deployment.config.status_file)
    return 0 if stats is None else stats.messages


def goes_on(deployment: Deployed, beyond: int) -> None:
    """Return when more than `beyond` messages were handled."""
    eventually(lambda: handled(deployment) > beyond, 60, what=f"more than {beyond} messages")

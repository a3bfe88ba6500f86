"""The demo from the first flight to the last table: train, register once, deploy three times, replay, compare."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.config import StreamConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.inference_table import InferenceTable

from .batch_door import BatchDoor
from .doors import Doors
from .flights import DAY, EVENT_TIME, KEY, LABEL, Flights, load_flights, midnight
from .memory import PeakMemory
from .model import MODEL_NAME, January, fit_january, log_january
from .replay import Replay
from .show import Show
from .stage import Stage, choose_port, open_stage
from .stream_door import StreamDoor
from .summary import Summary, account, compare_months
from .web_door import WebDoor

if TYPE_CHECKING:
    from mlflow import MlflowClient

YEAR = 2013
WEB, STREAM, BATCH = "late-web", "late-stream", "late-batch"
_ORIGINS = {"EWR": WEB, "JFK": STREAM, "LGA": BATCH}
_MODEL_URI = f"models:/{MODEL_NAME}@champion"
# The loop's turns, in days of the flights' time.
TURN_DAYS = 14
# Found by replaying the year offline with several seeds and several splits of January: the newest week decides, the
# whole past is trained on (a window of three months forgets the last winter), and about four weeks lie between two
# trainings (a day less, since clocks change).
POLICY: Mapping[str, str] = {
    "monitor_schedule": "0 0 1 1 *",  # the replay says when
    "monitors": "-latency",  # a machine that plays a year in minutes is no measure of it
    "window": f"{TURN_DAYS}d",
    "retrain_on": "performance,labels",
    "consecutive": "1",
    "min_labels": "5000",
    "new_labels": "10000",
    "cooldown": "27d",
    "budget": "2",
    "training_window": "365d",
    "holdout_share": "0.4",
    "holdout_rows": "6500",
    "gate_confidence": "0.8",
}


@dataclass(frozen=True)
class Plan:
    """What to play: `months` of the year, both ends included, or their first `days` only."""

    folder: Path
    months: tuple[int, int] = (2, 12)
    days: int | None = None
    port: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        first, last = self.months
        if not 2 <= first <= last <= 12:
            raise BadInput(
                f"months {first}-{last} cannot be replayed: give two of 2 to 12, such as 2-12 (January is trained on)"
            )


@contextmanager
def play(plan: Plan, show: Show) -> Iterator[Summary]:
    """Play the demo; what it started runs until the context is left.

    Raises FlywheelError that says what went wrong; nothing that was started is left then.
    """
    started = time.monotonic()
    port, remark = choose_port(plan.port)
    with (
        open_stage(plan.folder) as stage,
        PeakMemory(stage.context.home.supervisor / "supervisord.pid") as memory,
    ):
        if remark:
            show.note(remark)
        url = stage.start_server(port)
        _quiet()
        with show.step(f"reading the flights of {YEAR}"):
            year = load_flights(stage.cache)
        with show.step("training on January"):
            january = fit_january(year.of_months(1, 1).known_at(midnight(date(YEAR, 2, 1))), plan.seed)
        with show.step(f"starting MLflow at {url}"):
            stage.wait_for_server(url)
        with show.step(f"registering {MODEL_NAME} once"):
            _register(url, january)
        with show.step("deploying it three times: web, stream, batch"):
            _deploy(stage)
        flights = _chosen(year, plan)
        with _doors(stage) as doors, show.replay(_by_deployment(flights)) as watcher:
            replay = Replay(stage.context, doors, flights, TURN_DAYS, watcher)
            counts = replay.run()
            asked, labels = doors.asked, doors.labelled
        with show.step("comparing with the January model"):
            table = InferenceTable.open(stage.context.home.tables, MODEL_NAME)
            months = compare_months(table, flights, january)
            deployments = _client(stage).list_deployments()
            links = _links(stage, url)
        yield Summary(
            months=months,
            deployments=tuple(deployments),
            retrainings=tuple(replay.retrainings),
            table=account(counts, asked, labels),
            links=links,
            seconds=time.monotonic() - started,
            peak_memory_bytes=memory.peak,
        )


def _quiet() -> None:
    """Keep what libraries have to say out of the picture; their errors are raised."""
    import mlflow  # it sets its own level when it is imported

    logging.getLogger(mlflow.__name__).setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # the server starts while January is trained on
    warnings.filterwarnings("ignore", module=r"mlflow|sklearn")


def _register(url: str, january: January) -> None:
    import mlflow

    from mlflow_flywheel.plugin.registration import register

    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    mlflow.set_experiment(f"flywheel/{MODEL_NAME}")
    with mlflow.start_run(run_name="January"):
        mlflow.log_param("train_rows", january.train_rows)
        info = log_january(january)
    register(info, MODEL_NAME, january.reference, LABEL, timestamp=EVENT_TIME)


def _deploy(stage: Stage) -> None:
    """Deploy the champion in every mode, at the same time."""
    inbox, answers = stage.work / "lga", stage.work / "lga-answers"
    inbox.mkdir()
    common = {"id_column": KEY, "timestamp_column": EVENT_TIME}
    policy = {f"loop.{name}": value for name, value in POLICY.items()}
    wanted: dict[str, dict[str, Any]] = {
        WEB: {"mode": "web", **common, **policy},
        STREAM: {"mode": "stream"},
        BATCH: {"mode": "batch", **common, "input": inbox, "output": answers, "passthrough": KEY},
    }
    with ThreadPoolExecutor(len(wanted)) as pool:
        made = [
            pool.submit(_client(stage).create_deployment, name, _MODEL_URI, config=config)
            for name, config in wanted.items()
        ]
        for future in made:
            future.result()


def _client(stage: Stage) -> Any:
    from mlflow.deployments import get_deploy_client

    return get_deploy_client(f"flywheel:{stage.context.home.path}")  # type: ignore[no-untyped-call]


@contextmanager
def _doors(stage: Stage) -> Iterator[Doors]:
    context = stage.context
    url = context.records.deployment(WEB).url
    assert url is not None
    stream = load_config(StreamConfig, context.home.config_file(STREAM))
    batch = BatchDoor(BATCH, context, stage.work / "lga", stage.work / "lga-landed")
    with Doors({"EWR": WebDoor(WEB, url), "JFK": StreamDoor(STREAM, stream), "LGA": batch}) as doors:
        yield doors


def _chosen(year: Flights, plan: Plan) -> Flights:
    flights = year.of_months(*plan.months)
    if plan.days is None:
        return flights
    days = flights.frame[DAY].unique()[: plan.days]
    return Flights(flights.frame[flights.frame[DAY].isin(days)].reset_index(drop=True))


def _by_deployment(flights: Flights) -> dict[str, int]:
    counts = flights.frame["origin"].value_counts()
    return {name: int(counts.get(origin, 0)) for origin, name in _ORIGINS.items()}


def _links(stage: Stage, url: str) -> dict[str, str]:
    from mlflow import MlflowClient

    from mlflow_flywheel.monitors.reporting import run_link

    links = {"MLflow": url, "flywheel page": f"{url}/flywheel/"}
    client: MlflowClient = MlflowClient(url)
    for verdict in stage.context.records.verdicts(MODEL_NAME, monitor="drift"):
        if verdict.monitor == "drift" and verdict.run_id and verdict.summary.get("report"):
            experiment = client.get_run(verdict.run_id).info.experiment_id
            links["newest drift report"] = f"{url}/{run_link(experiment, verdict.run_id, True)}"
            break
    return links

"""What every monitor must bear: each one that is registered gets every window that has ever broken one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.looks import labelled, logged, look_of, scorer_of
from support.windows_of import WINDOW, reference_of, two_classes

from mlflow_flywheel.monitors.all import NAMES, monitors
from mlflow_flywheel.monitors.look import Deployed, Look, Monitor
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.pipelines.schema import TIMESTAMP

N = 300
ODD = ('say "it\'s"', "</script><script>alert(1)</script>", "größe \U0001f600", "a.b..c", "=1+1", "a b/c:d")
SINCE = WINDOW.end - timedelta(days=1)
DEPLOYMENTS = (
    Deployed("web", "web", SINCE),
    Deployed("night", "batch", SINCE, timedelta(days=1)),
    Deployed("late", "stream", SINCE),
)
NUMBERS = ("x", "y")


def sample(seed: int, n: int = N) -> dict[str, Any]:
    """Return the features of rows: two numbers and a category."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=n), "y": rng.normal(size=n), "c": pa.array(rng.choice(["a", "b", "cc"], n))}


def scores(x: Any) -> Any:
    """Return what the model thinks of feature x: the probability of its positive class."""
    return 1 / (1 + np.exp(-np.clip(np.nan_to_num(np.asarray(x, dtype=np.float64)), -9, 9)))


def answers(features: dict[str, Any]) -> dict[str, Any]:
    """Return what it answers."""
    n, x = len(next(iter(features.values()))), features.get("x")
    score = scores(x if isinstance(x, np.ndarray) else np.zeros(n))
    return {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score)}


def truth(said: dict[str, Any], seed: int) -> Any:
    """Return the labels of these answers: they are right as often as they say."""
    positive = pc.list_element(said["prediction_proba"], 1).to_numpy()
    return (np.random.default_rng(seed).random(len(positive)) < positive) * 1.0


def rows_of(features: dict[str, Any], seed: int = 1, **own: Any) -> pa.Table:
    """Return labelled rows of three deployments in three modes, each with its caller's id."""
    n = len(next(iter(features.values())))
    modes = np.arange(n) % 3
    where = {
        "deployment": pa.array([DEPLOYMENTS[i].name for i in modes], pa.string()),
        "mode": pa.array([DEPLOYMENTS[i].mode for i in modes], pa.string()),
        "client_request_id": pa.array([f"r{i // 2}" for i in range(n)], pa.string()),
        # a batch run answers the events of its last hours, the others answer all the time
        "event_time": pa.array(
            [
                WINDOW.end - (timedelta(minutes=i) if m == 1 else WINDOW.length * i / n)
                for i, m in enumerate(modes, 1)
            ],
            TIMESTAMP,
        ),
    }
    said = answers(features)
    made = logged(features, **(where | said | own))
    if pa.types.is_floating(made["label"].type):
        made = labelled(made, truth(said, seed))
    return made.sort_by("event_time")


def reference(features: dict[str, Any] | None = None) -> Reference:
    features = sample(0) if features is None else features
    said = answers(features)
    return reference_of(features, **said, label=truth(said, 0))


def answer_again(frame: pd.DataFrame) -> tuple[Any, Any]:
    score = scores(frame["x"])
    return (score > 0.5) * 1.0, np.column_stack([1 - score, score])


def look(rows: pa.Table, known: Reference | None, **more: Any) -> Look:
    before = logged(sample(2), WINDOW.before(), **answers(sample(2)))
    loaded = scorer_of(answer_again, *NUMBERS)
    given: dict[str, Any] = {"others": [before], "deployments": DEPLOYMENTS, "load": lambda: loaded}
    return look_of(rows, known, **(given | {"min_rows": 100, "max_age": "2d"} | more))


def changed(**columns: Any) -> Look:
    return look(rows_of(sample(1) | columns), reference())


def odd_names() -> Look:
    def named(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        words = {f"{name} word": pa.array(rng.choice(ODD, N)) for name in ODD}
        return {name: rng.normal(size=N) for name in ODD} | words

    model = scorer_of(lambda frame: (frame[ODD[0]] > 0) * 1.0, *ODD)
    return look(rows_of(named(1)), reference(named(0)), load=lambda: model)


def many_categories() -> Look:
    def words(seed: int) -> dict[str, Any]:
        return sample(seed) | {"c": pa.array([f"{seed} {i}" for i in range(N)])}

    return look(rows_of(words(1)), reference(words(0)))


def texts_as_classes() -> Look:
    said = pa.array(["yes", "no", None] * (N // 3))
    rows = rows_of(sample(1), prediction=said, prediction_proba=pa.nulls(N, pa.list_(pa.float64())))
    known = reference_of(sample(0), prediction=said, label=said)
    return look(labelled(rows, said), known)


def numbers_as_answers(values: Any) -> Look:
    rows = rows_of(sample(1), prediction=values, prediction_proba=pa.nulls(N, pa.list_(pa.float64())))
    known = np.random.default_rng(9).normal(size=N)
    return look(labelled(rows, known), reference_of(sample(0), prediction=known, label=known))


SITUATIONS: dict[str, Callable[[], Look]] = {
    "calm": changed,
    "empty": lambda: look(rows_of(sample(1, 0)), reference()),
    "one row": lambda: look(rows_of(sample(1, 1)), reference()),
    "one row that suffices": lambda: look(rows_of(sample(1, 2)), reference(sample(0, 2)), min_rows=2),
    "no reference": lambda: look(rows_of(sample(1)), None),
    "reference of one row": lambda: look(rows_of(sample(1)), reference(sample(0, 1))),
    "no deployment any more": lambda: look(rows_of(sample(1)), reference(), deployments=()),
    "constant": lambda: changed(x=np.ones(N), c=pa.repeat("a", N)),
    "constant in the reference too": lambda: look(
        rows_of(sample(1) | {"x": np.ones(N)}), reference(sample(0) | {"x": np.ones(N)})
    ),
    "all NaN": lambda: changed(x=np.full(N, np.nan), y=pa.nulls(N, pa.float64()), c=pa.nulls(N, pa.string())),
    "infinite": lambda: changed(x=np.where(np.arange(N) % 2, np.inf, -np.inf)),
    "new and vanished categories": lambda: changed(c=pa.array(["a", "z", "</script>"] * (N // 3))),
    "high cardinality": many_categories,
    "numbers as text": lambda: changed(x=pa.array([str(i) for i in range(N)])),
    "words where numbers were": lambda: changed(x=pa.array(["oops"] * N)),
    "numbers where words were": lambda: changed(c=np.arange(N) * 1.0),
    "truth values where numbers were": lambda: changed(x=pa.array([True, False] * (N // 2))),
    "added column": lambda: changed(z=np.zeros(N)),
    "missing column": lambda: look(rows_of({"x": sample(1)["x"]}), reference()),
    "no features": lambda: look(rows_of(sample(1)).drop_columns(["feature.x", "feature.y", "feature.c"]), reference()),
    "odd names": odd_names,
    "words as classes": texts_as_classes,
    "numbers as answers": lambda: numbers_as_answers(np.random.default_rng(8).normal(size=N)),
    "NaN as answers": lambda: numbers_as_answers(np.full(N, np.nan)),
    "infinite answers": lambda: numbers_as_answers(np.full(N, np.inf)),
    "null as answers": lambda: numbers_as_answers(pa.nulls(N, pa.float64())),
    "no durations": lambda: look(rows_of(sample(1), execution_duration_us=pa.nulls(N, pa.int64())), reference()),
    "a model that cannot be loaded": lambda: look(rows_of(sample(1)), reference(), load=_fail),
}  # fmt: skip


def _fail() -> Any:
    from mlflow_flywheel.pipelines.errors import ModelError

    raise ModelError("model m version 1 cannot be loaded from /none")


@pytest.fixture(scope="module")
def situations() -> dict[str, Look]:
    return {name: make() for name, make in SITUATIONS.items()}


every_monitor = pytest.mark.parametrize("monitor", monitors(), ids=NAMES)


@every_monitor
@pytest.mark.parametrize("name", SITUATIONS)
def test_whatever_the_rows_hold_there_is_an_answer_that_can_be_kept(
    monitor: Monitor, name: str, situations: dict[str, Look]
) -> None:
    looked = situations[name]
    verdict = monitor.look(looked)
    assert monitor.look(replace(looked)) == verdict, "it does not say the same twice"
    if verdict is None:
        return
    assert (verdict.monitor, verdict.window) == (monitor.name, looked.window)
    assert verdict.status in ("ok", "warn", "alarm", "unknown")
    assert verdict.summary and "\n" not in verdict.summary
    assert all(re.fullmatch(r"[\w.\- :/]{1,200}", metric) for metric in verdict.metrics), verdict.metrics
    kept = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert Verdict.from_dict(kept) == verdict
    assert all(
        isinstance(cell, (str, int, float, bool, type(None)))
        for row in verdict.evidence
        for cell in row.values()
    )


@every_monitor
def test_it_is_told_in_the_documentation(monitor: Monitor) -> None:
    page = Path(__file__).parents[2] / "docs" / "monitors.md"
    assert f"## {monitor.name.capitalize()}\n" in page.read_text()


@every_monitor
def test_nothing_that_changed_is_no_alarm(monitor: Monitor, situations: dict[str, Look]) -> None:
    verdict = monitor.look(situations["calm"])
    assert verdict is None or verdict.status != "alarm", verdict.summary


@every_monitor
@pytest.mark.parametrize("name", ["empty", "one row"])
def test_too_little_is_never_all_well(monitor: Monitor, name: str, situations: dict[str, Look]) -> None:
    verdict = monitor.look(situations[name])
    assert verdict is None or verdict.status != "ok", verdict.summary


@every_monitor
def test_what_is_drawn_of_a_deployment_is_measured_of_its_own_rows(
    monitor: Monitor, situations: dict[str, Look]
) -> None:
    measured: set[str] = set()
    for deployment in DEPLOYMENTS:
        own = situations["calm"].of(deployment.name)
        assert own.rows.num_rows == N // 3 and own.deployments == (deployment,)
        assert own.before.num_rows == (N if deployment.name == "web" else 0)
        verdict = monitor.look(own) if monitor.series else None
        measured |= set(verdict.metrics) if verdict is not None else set()
    assert not monitor.series or {metric for metric, _ in monitor.series} & measured

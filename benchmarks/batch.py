"""The batch mode against the model alone, against a bare copy of the file, and against `mlflow models predict`.

Each side runs in a process of its own, one after the other, and every round runs all sides, so that a machine that gets
slower gets slower for all; a figure is the median of rounds. All data are made here, in bounded memory, and go with the
temporary folder (set TMPDIR to a disk that holds the largest size of the curve three times: 25 GB for 50M rows).

For a smoke run of seconds: BENCH_ROWS=200000 BENCH_CSV_ROWS=100000 BENCH_CURVE=100000,200000 BENCH_ROUNDS=1.
"""

from __future__ import annotations

import compileall
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import commands
import mlflow.sklearn
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from report import publish
from rich.progress import track
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression

import mlflow_flywheel.pipelines
from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef

GOALS = {
    "rows_vs_in_memory_gbdt": ">= 0.8",
    "rows_vs_copy_linear": ">= 0.6",
    "csv_vs_mlflow_predict": ">= 5",
    "csv_work_vs_mlflow_predict": ">= 12",
    "peak_memory_50m_vs_1m": "<= 1.1",
}
ROWS = int(os.environ.get("BENCH_ROWS", "5000000"))
CSV_ROWS = int(os.environ.get("BENCH_CSV_ROWS", "1000000"))
CURVE = [int(n) for n in os.environ.get("BENCH_CURVE", "1000000,5000000,20000000,50000000").split(",")]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
NAMES = [f"f{i}" for i in range(20)]
_TABLE_ROWS = 1_000_000


def rows_of(first: int, n: int) -> pa.Table:
    """Return n rows of 20 doubles that are the same whenever they are asked for."""
    values = np.random.default_rng(first).normal(size=(len(NAMES), n))
    return pa.table({name: values[i] for i, name in enumerate(NAMES)})


def write_parquet(path: Path, rows: int) -> None:
    """Write rows as anybody would with pyarrow: its default options, row groups of a million rows."""
    with pq.ParquetWriter(path, rows_of(0, 1).schema) as writer:
        for first in range(0, rows, _TABLE_ROWS):
            writer.write_table(rows_of(first, min(_TABLE_ROWS, rows - first)))


def write_csv(path: Path, rows: int) -> None:
    """Write rows as text with all of their digits."""
    with pacsv.CSVWriter(path, rows_of(0, 1).schema) as writer:
        for first in range(0, rows, _TABLE_ROWS):
            writer.write_table(rows_of(first, min(_TABLE_ROWS, rows - first)))


def save_models(folder: Path) -> dict[str, Path]:
    """Fit scikit-learn's gradient boosting and linear regression with their defaults; return their folders."""
    frame = rows_of(1, 9_000).to_pandas()  # up to 10,000 rows it grows all of its 100 trees
    noise = np.random.default_rng(2).normal(size=len(frame))
    target = frame["f0"] + frame["f1"] * frame["f2"] + noise
    paths = {}
    for name, kind in (("gbdt", HistGradientBoostingRegressor), ("linear", LinearRegression)):
        model, paths[name] = kind().fit(frame, target), folder / name
        mlflow.sklearn.save_model(
            model,
            paths[name],
            signature=mlflow.models.infer_signature(frame, model.predict(frame)),
            input_example=frame.head(2),
            serialization_format="cloudpickle",
        )
    return paths


def job_of(folder: Path, model: Path, source: Path, name: str, **changes: Any) -> BatchConfig:
    """Return a job that leaves everything under a folder of its own."""
    fields: dict[str, Any] = {
        "deployment": name,
        "model": ModelRef(name=name, version="1", path=str(model)),
        "tables": str(folder / "tables"),
        "state_dir": str(folder / "state"),
        "job_id": "bench",
        "input": str(source),
        "output": str(folder / "answers.parquet"),
    }
    return BatchConfig(**{**fields, **changes})


def our_seconds(config: BatchConfig) -> float:
    """Run a job in this process, whose model is loaded already; return the seconds of its work."""
    from mlflow_flywheel.pipelines.batch import run_batch
    from mlflow_flywheel.pipelines.model import load_scorer

    scorer = load_scorer(config.model)
    return run_batch(config, scorer).seconds


def our_csv_seconds(config: BatchConfig) -> float:
    """Load the model and run a job; return the seconds without those of the imports."""

    from mlflow_flywheel.pipelines.batch import run_batch

    started = time.perf_counter()
    run_batch(config)
    return time.perf_counter() - started


def mlflow_csv_seconds(model: Path, source: Path, output: Path) -> float:
    """Do what `mlflow models predict` does once it has started and imported everything; return its seconds."""
    from mlflow.pyfunc.scoring_server import _predict

    started = time.perf_counter()
    _predict(str(model), str(source), str(output), "csv")
    return time.perf_counter() - started


def in_memory_seconds(model: Path, source: Path) -> float:
    """Let a model predict a file's rows that are in memory, as a frame and as a matrix; return the better seconds."""
    estimator = mlflow.sklearn.load_model(str(model))
    frame = pq.read_table(source).to_pandas()
    estimator.predict(frame.head(1000))
    seconds = []
    for rows, names in ((frame, estimator.feature_names_in_), (np.ascontiguousarray(frame), None)):
        if names is None:
            del estimator.feature_names_in_
        started = time.perf_counter()
        estimator.predict(rows)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def copy_seconds(source: Path, target: Path) -> float:
    """Read a file with all cores and write it again with one column more; return the seconds."""
    started = time.perf_counter()
    dataset = pads.dataset(source)
    schema = dataset.schema.append(pa.field("prediction", pa.float64()))
    with pq.ParquetWriter(target, schema) as writer:
        for batch in dataset.to_batches():
            writer.write_batch(batch.append_column("prediction", batch.column(0)))
    return time.perf_counter() - started


def apart(work: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def our_command(config: BatchConfig, folder: Path) -> list[str]:
    """Return the command that runs a job as a whole, cold."""
    config.save(folder / "job.json")
    return [sys.executable, "-m", "mlflow_flywheel.pipelines.batch", "--config", str(folder / "job.json")]


def compile_our_code() -> None:
    """Compile our modules as pip compiles what it installs: a checkout is not, where PYTHONDONTWRITEBYTECODE is set."""
    compileall.compile_dir(Path(mlflow_flywheel.pipelines.__file__).parent, quiet=1)


def speeds(folder: Path, models: Mapping[str, Path]) -> dict[str, list[float]]:
    """Return the seconds of all sides in every round."""
    parquet, csv = folder / "rows.parquet", folder / "rows.csv"
    write_parquet(parquet, ROWS)
    write_csv(csv, CSV_ROWS)
    seconds: dict[str, list[float]] = {}

    def timed(side: str, run: Callable[[Path], float]) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            seconds.setdefault(side, []).append(run(Path(place)))

    linear = models["linear"]

    def csv_job(at: Path) -> BatchConfig:  # MLflow's answers hold no input columns either
        return job_of(at, linear, csv, "linear", log=False, passthrough=())

    predict = ["mlflow", "models", "predict", "-m", str(linear), "-i", str(csv), "-t", "csv"]
    for _ in track(range(ROUNDS), "rounds"):
        timed("in_memory_gbdt", lambda _: apart(in_memory_seconds, models["gbdt"], parquet))
        timed("gbdt", lambda at: apart(our_seconds, job_of(at, models["gbdt"], parquet, "gbdt")))
        timed("copy", lambda at: apart(copy_seconds, parquet, at / "copy.parquet"))
        timed("linear", lambda at: apart(our_seconds, job_of(at, linear, parquet, "linear", log=False)))
        timed(
            "mlflow_predict",
            lambda at: (
                commands.run([*predict, "-o", str(at / "o.json"), "--env-manager", "local"])[1].seconds
            ),
        )
        timed("csv", lambda at: commands.run(our_command(csv_job(at), at))[1].seconds)
        timed("mlflow_predict_work", lambda at: apart(mlflow_csv_seconds, linear, csv, at / "o.json"))
        timed("csv_work", lambda at: apart(our_csv_seconds, csv_job(at)))
    parquet.unlink()
    csv.unlink()
    return seconds


def memory_curve(folder: Path, model: Path) -> dict[str, float]:
    """Return the peak memory in MiB of whole jobs, with the log on and all columns kept, by number of rows."""
    peaks = {}
    for rows in track(CURVE, "memory"):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name)
            write_parquet(place / "rows.parquet", rows)
            command = our_command(job_of(place, model, place / "rows.parquet", "memory"), place)
            peaks[str(rows)] = commands.run(command)[1].peak_mib
    return peaks


def main() -> None:
    """Measure all sides in rounds and publish the ratios."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
        folder = Path(name)
        models = save_models(folder)
        compile_our_code()
        seconds = speeds(folder, models)
        peaks = memory_curve(folder, models["linear"])
    middle = {side: median(runs) for side, runs in seconds.items()}
    ratios = {
        "rows_vs_in_memory_gbdt": middle["in_memory_gbdt"] / middle["gbdt"],
        "rows_vs_copy_linear": middle["copy"] / middle["linear"],
        "csv_vs_mlflow_predict": middle["mlflow_predict"] / middle["csv"],
        "csv_work_vs_mlflow_predict": middle["mlflow_predict_work"] / middle["csv_work"],
        "peak_memory_50m_vs_1m": peaks[str(CURVE[-1])] / peaks[str(CURVE[0])],
    }
    details = {
        "rows": ROWS,
        "csv_rows": CSV_ROWS,
        "rounds": ROUNDS,
        "median_seconds": middle,
        "seconds": seconds,
        "peak_memory_mib": peaks,
    }
    packages = ["mlflow", "scikit-learn", "numpy", "pandas", "pyarrow", "deltalake"]
    path = publish("batch", ratios, GOALS, details, packages)
    print(
        json.dumps({"median_seconds": middle, "peak_memory_mib": peaks}, indent=1),
        f"written to {path}",
        sep="\n",
    )


if __name__ == "__main__":
    main()

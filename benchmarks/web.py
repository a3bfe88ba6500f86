"""The web mode against `mlflow models serve`, and against the limit: the same server answering a constant.

All servers run in one go on one machine, one after the other, each for the same time under wrk (it must be on the
PATH): one row of 20 features as JSON dataframe_split. Ours has two workers, signature checks and inference logging on.
Every round asks all servers, so that a machine that gets slower gets slower for all; a figure is the median of rounds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
import requests
from report import publish
from rich.progress import track
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_flywheel.pipelines.config import ModelRef, WebConfig
from mlflow_flywheel.pipelines.generation_status import read_status

GOALS = {
    "requests_vs_mlflow_serve_c32": ">= 30",
    "mixed_requests_vs_mlflow_serve_c32": ">= 10",
    "requests_vs_constant_c32": ">= 0.4",
    "p50_vs_mlflow_serve_c1": "<= 0.2",
    "p99_logging_on_vs_off": "<= 1.1",
}
WORKERS = 2
T = TypeVar("T")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "6"))
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = io.open("{body}"):read("*a")
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format("FIGURES %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Measured:
    """What wrk saw in one go: requests per second and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def numeric_model(folder: Path) -> tuple[Path, Path]:
    """Save a logistic regression over 20 numbers; return its folder and a body of one row."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(size=(2000, 20)), columns=[f"f{i}" for i in range(20)])
    label = (frame["f0"] + rng.normal(size=len(frame)) > 0).astype(int)
    return _save(LogisticRegression().fit(frame, label), frame, folder / "numeric")


def mixed_model(folder: Path) -> tuple[Path, Path]:
    """Save a pipeline over 10 numbers with gaps and 10 strings with gaps; return its folder and a body of one row."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(size=(2000, 10)), columns=[f"n{i}" for i in range(10)])
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    for i in range(10):
        words = rng.choice(["red", "green", "blue", "grey"], len(frame))
        frame[f"s{i}"] = pd.Series(words, dtype=object).where(rng.random(len(frame)) > 0.1, None)
    label = (frame["n0"].fillna(0) + rng.normal(size=len(frame)) > 0).astype(int)
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [f"n{i}" for i in range(10)]),
            ("words", OneHotEncoder(handle_unknown="ignore"), [f"s{i}" for i in range(10)]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(frame, label)
    return _save(model, frame, folder / "mixed")


def _save(model: Any, frame: pd.DataFrame, path: Path) -> tuple[Path, Path]:
    signature = mlflow.models.infer_signature(frame, model.predict(frame))
    mlflow.sklearn.save_model(
        model, path, signature=signature, input_example=frame.head(2), skops_trusted_types=["numpy.dtype"]
    )
    row = frame.iloc[:1].to_json(orient="split", index=False)
    body = path.with_suffix(".body.json")
    body.write_text(f'{{"dataframe_split": {row}}}')
    return path, body


@contextmanager
def mlflow_serve(model: Path) -> Iterator[str]:
    """Run MLflow's own scoring server as its documentation says."""
    port = _free_port()
    with _process(
        [_script("mlflow"), "models", "serve", "-m", str(model), "-p", port, "--env-manager", "local"]
    ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def ours(model: Path, folder: Path, name: str, log: bool) -> Iterator[str]:
    """Run a web deployment of the model."""
    home = folder / name
    status = home / "status.json"
    config = WebConfig(
        deployment=name,
        model=ModelRef(name=name, version="1", path=str(model)),
        spool=str(home / "spool"),
        status_file=str(status),
        log=log,
        port=0,
        workers=WORKERS,
    )
    config.save(home / "config.json")
    command = [sys.executable, "-m", "mlflow_flywheel.pipelines.web", "--config", str(home / "config.json")]
    with _process(command):

        def url() -> str | None:
            found = read_status(status)
            return found.url if found is not None and found.serving is not None else None

        found = _eventually(url, f"{name} serves")
        assert found is not None
        yield found


@contextmanager
def constant() -> Iterator[str]:
    """Run the limit, as granian's documentation says."""
    port = _free_port()
    command = [_script("granian"), "--interface", "wsgi", "--workers", str(WORKERS), "--port", port]
    with _process([*command, "constant_server:app"], cwd=Path(__file__).parent):
        yield f"http://127.0.0.1:{port}"


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    # `mlflow models serve` looks for uvicorn on the PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(command, start_new_session=True, env={**os.environ, "PATH": path}, **quiet)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def measure(url: str, body: Path, connections: int) -> Measured:
    """Ask one server under wrk. Raises RuntimeError when any request failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(body=body))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-s", script.name]
        said = subprocess.run(
            [*command, f"{url}/invocations"], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"FIGURES (\d+) (\d+) (\d+) (\d+) (\d+)", said)
    if found is None or found[5] != "0":
        raise RuntimeError(f"requests to {url} failed: {said}")
    n, microseconds, p50, p99 = (int(figure) for figure in found.groups()[:4])
    return Measured(n / microseconds * 1e6, p50 / 1000, p99 / 1000)


def main() -> None:
    """Measure all servers in rounds and publish the ratios."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not on the PATH: install it, for example with 'apt-get install wrk'")
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name, ExitStack() as servers:
        folder = Path(name)
        numeric, row = numeric_model(folder)
        mixed, mixed_row = mixed_model(folder)
        start = servers.enter_context
        targets = {
            "mlflow": (start(mlflow_serve(numeric)), row),
            "ours": (start(ours(numeric, folder, "logged", True)), row),
            "unlogged": (start(ours(numeric, folder, "unlogged", False)), row),
            "constant": (start(constant()), row),
            "mlflow_mixed": (start(mlflow_serve(mixed)), mixed_row),
            "ours_mixed": (start(ours(mixed, folder, "mixed", True)), mixed_row),
        }
        for url, body in targets.values():
            _warm_up(url, body)
        runs: dict[str, list[Measured]] = {}
        for _ in track(range(ROUNDS), "rounds"):
            for target, (url, body) in targets.items():
                for connections in (1, 32):
                    runs.setdefault(f"{target}_c{connections}", []).append(measure(url, body, connections))
    middle = {
        key: {field: median(getattr(run, field) for run in all_runs) for field in ("rate", "p50", "p99")}
        for key, all_runs in runs.items()
    }
    ratios = {
        "requests_vs_mlflow_serve_c32": middle["ours_c32"]["rate"] / middle["mlflow_c32"]["rate"],
        "mixed_requests_vs_mlflow_serve_c32": middle["ours_mixed_c32"]["rate"]
        / middle["mlflow_mixed_c32"]["rate"],
        "requests_vs_constant_c32": middle["ours_c32"]["rate"] / middle["constant_c32"]["rate"],
        "p50_vs_mlflow_serve_c1": middle["ours_c1"]["p50"] / middle["mlflow_c1"]["p50"],
        "p99_logging_on_vs_off": middle["ours_c32"]["p99"] / middle["unlogged_c32"]["p99"],
    }
    details = {
        "workers": WORKERS,
        "rounds": ROUNDS,
        "seconds": SECONDS,
        "median": middle,
        "runs": {key: [asdict(run) for run in all_runs] for key, all_runs in runs.items()},
    }
    path = publish("web", ratios, GOALS, details, ["mlflow", "scikit-learn", "flask", "granian", "orjson"])
    print(json.dumps(middle, indent=1), f"written to {path}", sep="\n")


def _warm_up(url: str, body: Path) -> None:
    """Wait until a server answers, and let it answer a few times."""

    def answered() -> bool:
        headers = {"Content-Type": "application/json"}
        try:
            return requests.post(f"{url}/invocations", body.read_bytes(), headers=headers, timeout=10).ok
        except requests.RequestException:
            return False

    for _ in range(20):
        _eventually(answered, f"{url} answers")


def _eventually(check: Callable[[], T], what: str) -> T:
    """Return the first truthy answer of `check`. Raises TimeoutError after two minutes without one."""
    deadline = time.monotonic() + 120
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it was not so within two minutes: {what}")
        time.sleep(0.1)
    return answer


if __name__ == "__main__":
    main()

"""One web worker process: it loads its model version, takes over when told to, and answers until SIGTERM.

The master (`__main__.py`) starts it with the listening socket as an inherited descriptor. SIGTERM: it accepts no more,
answers what it has, closes its spool and exits 0.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mlflow_flywheel.pipelines.backlog import backlog_of
from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.log_filters import check_excluded, open_log
from mlflow_flywheel.pipelines.model import load_scorer
from mlflow_flywheel.pipelines.scoring import ScoringCore
from mlflow_flywheel.pipelines.worker_channel import WorkerChannel

from .app import create_app, is_quick
from .batcher import Batcher
from .challenger import load_challenger, open_trial
from .drain import Drain
from .exposure import check_config
from .gate import Gate
from .metrics import WebMetrics
from .middleware import compose
from .parsing import Parser
from .server import serve
from .service import Service
from .tracing import open_tracer

_log = logging.getLogger(__name__)
_SPARE_THREADS = 8  # for health checks and metrics while all others score or wait


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_flywheel.pipelines.web.worker")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (WebConfig as JSON)")
    parser.add_argument("--descriptor", type=int, required=True, help="the listening socket's descriptor")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.Formatter.converter = time.gmtime
    channel = WorkerChannel.from_environment()
    try:
        return _run(load_config(WebConfig, options.config), options.descriptor, channel)
    except FlywheelError as error:
        channel.failed(error)
        _log.error("%s", error.message)
        return 1
    except BaseException as error:
        channel.failed(error)
        raise


def _run(config: WebConfig, descriptor: int, channel: WorkerChannel) -> int:
    import mlflow

    check_config(config)
    metrics = WebMetrics(config.status_file, config.deployment, config.model.name, config.model.version)
    scorer = load_scorer(config.model)
    check_excluded(config.log_exclude, scorer.schema)  # while the old version still serves
    challenger = load_challenger(config, scorer)
    channel.prepared()
    if not channel.wait_go():
        return 0
    stop = threading.Event()
    for told in (signal.SIGTERM, signal.SIGINT):
        # in a thread, as this one may hold the very lock that setting an event takes
        signal.signal(told, lambda *_: threading.Thread(target=stop.set).start())
    with ExitStack() as parts:
        log = open_log(config, scorer, parts)
        labels = FeedbackLog(
            config.spool, config.model.name, scorer.kind, source="web", durability=config.durability
        )
        parts.callback(labels.close)
        core = ScoringCore(scorer, deployment=config.deployment, mode="web", log=log, variant=config.variant)
        batcher = Batcher(
            core,
            max_rows=config.max_batch_size,
            wait_seconds=config.batch_wait_ms / 1000,
            timeout=config.timeout_seconds,
            threads=config.threads,
            joined=metrics.joined,
            stuck=stop.set,
        )
        parts.callback(batcher.close)
        service: Service = batcher
        metrics.serves(config.model, config.variant)
        if challenger is not None:
            metrics.serves(challenger.ref, "challenger")
            its_log = open_log(config, challenger, parts)
            service = open_trial(config, service, challenger, its_log, metrics.challenged, parts)
        app = create_app(
            core,
            service,
            Parser(scorer.schema, config.max_rows, config.id_column, config.timestamp_column),
            labels=labels,
            gate=Gate(config.threads, config.max_queue, config.max_body_bytes),
            metrics=metrics,
            max_body_bytes=config.max_body_bytes,
            mlflow_version=mlflow.__version__,
            backlog=lambda: backlog_of(config.spool, config.model.name),
            secured=config.auth_token_file is not None,
        )
        tracer = open_tracer(config.deployment, config.model.version, parts)
        drain = Drain(compose(app, config, tracer), shared=config.workers > 1)
        threads = config.threads + config.max_queue + _SPARE_THREADS
        gc.collect()
        gc.freeze()  # the model and the libraries are there for good: no collection need look at them
        _log.info("answering for %s version %s", config.model.name, config.model.version)
        serve(
            drain,
            descriptor,
            threads=threads,
            is_quick=is_quick,
            stop=stop,
            serving=channel.serving,
            certificate=_certificate(config),
        )
    return 0


def _certificate(config: WebConfig) -> tuple[str, str] | None:
    return None if config.tls_cert is None or config.tls_key is None else (config.tls_cert, config.tls_key)


if __name__ == "__main__":
    sys.exit(main())

"""What web and stream have in common: a master process that serves the version its configuration file names."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from mlflow_flywheel.pipelines.config import WorkerConfig, digest_of
from mlflow_flywheel.pipelines.errors import FlywheelError, ModelError, NotFound, Unavailable
from mlflow_flywheel.pipelines.generation_status import GenerationStatus, read_status
from mlflow_flywheel.pipelines.worker_channel import DRAIN_SECONDS
from mlflow_flywheel.plugin.context import Context, log_tail
from mlflow_flywheel.plugin.runners.base import deployment_process, python_module

_STOP_SECONDS = int(DRAIN_SECONDS) + 10
_POLL_SECONDS = 0.05


def start_master(context: Context, config: WorkerConfig, module: str, timeout: float) -> GenerationStatus:
    """Keep a master running from now on, and return its status as soon as the configured version serves."""
    file = context.home.config_file(config.deployment)
    config.save(file)
    _keep(context, config.deployment, module)
    return _wait_serving(context, config.deployment, digest_of(file), timeout)


def restart_master(context: Context, config: WorkerConfig, module: str, timeout: float) -> GenerationStatus:
    """Stop the master and start it with a configuration that it cannot go over to; nothing answers meanwhile.

    When it cannot serve, the old configuration file is back in its place, and is started again.
    """
    file = context.home.config_file(config.deployment)
    before = file.read_bytes()
    _check_running(context, config.deployment)
    context.runner.stop(deployment_process(config.deployment))
    try:
        return start_master(context, config, module, timeout)
    except BaseException:
        context.runner.stop(deployment_process(config.deployment))
        _put_back(file, before)
        _keep(context, config.deployment, module)
        raise


def swap_master(
    context: Context,
    config: WorkerConfig,
    timeout: float,
    proven: Callable[[GenerationStatus], None] = lambda status: None,
) -> GenerationStatus:
    """Let the running master go over to another configuration, and return its status as soon as that serves.

    When it cannot, the old configuration file is back in its place, and the old workers have gone on all the time.
    """
    name = config.deployment
    file = context.home.config_file(name)
    before = file.read_bytes()
    _check_running(context, name)
    config.save(file)
    try:
        if file.read_bytes() != before:
            context.runner.signal(deployment_process(name), signal.SIGHUP)
        status = _wait_serving(context, name, digest_of(file), timeout)
        proven(status)
        return status
    except BaseException:
        _put_back(file, before)
        context.runner.signal(deployment_process(name), signal.SIGHUP)
        raise


def stop_master(context: Context, name: str) -> None:
    """Stop the master with its workers, and remove its files and its log."""
    try:
        context.runner.stop(deployment_process(name))
    except NotFound:
        pass  # it never came so far, or an earlier deletion did
    shutil.rmtree(context.home.deployment(name), ignore_errors=True)
    log = context.home.log_file(deployment_process(name))
    for file in (log, *log.parent.glob(f"{log.name}.[0-9]")):
        file.unlink(missing_ok=True)


def master_state(context: Context, name: str) -> str:
    """Return what a served deployment does now: ready, starting, stopped, failing."""
    try:
        (process,) = context.runner.status(deployment_process(name))
    except NotFound:
        return "stopped"
    if not process.alive:
        return "stopped" if process.state == "stopped" else "failing"
    status = read_status(context.home.status_file(name))
    if status is None or status.pid != process.pid or status.serving is None or not status.serving.pids:
        return "failing" if status is not None and status.failed is not None else "starting"
    return "ready"


def _keep(context: Context, name: str, module: str) -> None:
    context.home.status_file(name).unlink(missing_ok=True)
    command = python_module(module, "--config", str(context.home.config_file(name)))
    context.runner.start(context.process(deployment_process(name), command, _STOP_SECONDS))


def _check_running(context: Context, name: str) -> None:
    if master_state(context, name) not in ("ready", "starting"):
        raise Unavailable(
            f"deployment {name!r} does not run now ('flywheel status'), so it cannot be changed; start it with "
            "'flywheel up' first"
        )


def _wait_serving(context: Context, name: str, digest: str, timeout: float) -> GenerationStatus:
    deadline = time.monotonic() + timeout
    while True:
        (process,) = context.runner.status(deployment_process(name))
        status = read_status(
            context.home.status_file(name)
        )  # after the process: a master reports before it ends
        if status is not None and status.serving is not None and status.serving.digest == digest:
            return status
        if status is not None and status.failed is not None and status.failed.digest == digest:
            raise ModelError(f"deployment {name!r} cannot serve: {status.failed.error.strip()}")
        if not process.alive:
            raise ModelError(_with_log(context, name, f"the process of deployment {name!r} ended by itself"))
        if time.monotonic() >= deadline:
            raise Unavailable(
                _with_log(context, name, f"deployment {name!r} was not ready within {timeout:g} s")
            )
        time.sleep(_POLL_SECONDS)


def _with_log(context: Context, name: str, what: str) -> str:
    log = context.home.log_file(deployment_process(name))
    tail = log_tail(log)
    return f"{what}; its last log lines:\n{tail}" if tail else f"{what}, and its log {str(log)!r} is empty"


def _put_back(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".old")
    temporary.write_bytes(content)
    temporary.replace(file)


def wait_for(check: Callable[[], bool], timeout: float, error: Callable[[], FlywheelError]) -> None:
    """Return as soon as `check` is true; raises `error` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() >= deadline:
            raise error()
        time.sleep(_POLL_SECONDS)

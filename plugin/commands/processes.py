"""up, down, status, logs: the processes of a home."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import click

from mlflow_flywheel.pipelines.errors import NotFound, nearest
from mlflow_flywheel.plugin import broker_disk
from mlflow_flywheel.plugin.context import Context, log_tail
from mlflow_flywheel.plugin.runners.base import ProcessStatus, deployment_process

from .common import command, print_json, print_table, waiting


@click.command()
@click.option("--tracking-uri", metavar="URI", help="bind the home to this MLflow server from now on")
@command
def up(context: Context, as_json: bool, tracking_uri: str | None) -> None:
    """Start the processes of the home; what was deployed comes back."""
    if tracking_uri is not None:
        context.home.bind(tracking_uri, rebind=True)
    bound = context.tracking_uri
    with waiting("starting"):
        context.runner.ensure_up()
        context.ensure_daemon()
        for process in context.runner.status():
            if process.state in (
                "stopped",
                "exited",
                "fatal",
            ):  # given up after many tries: a person says try again
                context.runner.restart(process.name)
    processes = context.runner.status()
    if as_json:
        print_json(
            {"home": str(context.home.path), "tracking_uri": bound, "processes": _processes(processes)}
        )
        return
    click.echo(f"home {context.home.path}, MLflow {bound}")
    _print_processes(processes)


@click.command()
@command
def down(context: Context, as_json: bool) -> None:
    """Stop every process of the home; 'flywheel up' brings them back."""
    with waiting("stopping: every process finishes what it has begun"):
        stopped = context.runner.down()
    if as_json:
        print_json({"home": str(context.home.path), "stopped": [process.name for process in stopped]})
    else:
        click.echo(f"stopped: {', '.join(process.name for process in stopped) or 'nothing was running'}")


@click.command()
@command
def status(context: Context, as_json: bool) -> None:
    """Show deployments, their versions and predictions, and the processes."""
    from mlflow_flywheel.plugin.daemon import read_status
    from mlflow_flywheel.plugin.views import deployment_views

    views = deployment_views(context, context.records.deployments())
    processes = context.runner.status()
    daemon = read_status(context.home.path) or {}
    folders = _label_folders(context, daemon.get("label_folders", []))
    metrics, disk = daemon.get("metrics"), _broker_disk(context, daemon.get("broker_bytes"))
    pauses = context.records.pauses()
    if as_json:
        print_json(
            {
                "home": str(context.home.path),
                "tracking_uri": context.home.tracking_uri,
                "metrics": metrics,
                "broker_disk": disk,
                "label_folders": folders,
                "trouble": daemon.get("trouble", {}),
                "paused": {model: str(pause) for model, pause in pauses.items()},
                "deployments": views,
                "processes": _processes(processes),
            }
        )
        return
    click.echo(f"home {context.home.path}, MLflow {context.home.tracking_uri or '(none yet)'}")
    if not views:
        click.echo("no deployments yet; 'mlflow deployments help -t flywheel' shows how to make one")
    else:
        columns = ["name", "mode", "model", "version", "status", "predictions", "where"]
        print_table("Deployments", columns, [_row(view) for view in views])
    for view in views:
        if view.get("challenger"):
            click.echo(f"{view['name']}: {_trial(view['challenger'])}")
        if "messages_per_second" in view:
            click.echo(f"{view['name']}: {_flow(view)}")
        for said in _runs(view) if view["mode"] == "batch" else ():
            click.echo(f"{view['name']}: {said}")
        if view["message"]:
            click.echo(f"{view['name']}: {view['message']}")
    for folder in folders:
        for line in _folder(folder):
            click.echo(line)
    for model, pause in pauses.items():
        click.echo(f"the loop of {model} is paused {pause}; 'flywheel resume {model}' lets it go on")
    if metrics is not None:
        click.echo(f"Prometheus metrics: {metrics}")
    if disk is not None:
        click.echo(disk["warning"] or f"embedded broker: {broker_disk.said(disk['bytes'])} on disk")
    for source, trouble in daemon.get("trouble", {}).items():
        click.echo(f"daemon, {source}: {trouble['error']}")
    _print_processes(processes)


@click.command()
@click.argument("name")
@click.option("-n", "--lines", type=click.IntRange(1, 10_000), default=40, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="go on as the log grows, until Ctrl-C")
@command
def logs(context: Context, as_json: bool, name: str, lines: int, follow: bool) -> None:
    """Show the end of a log: of a deployment, the daemon or the broker."""
    from mlflow_flywheel.plugin.logs import follow as follow_log

    process = _process_of(context, name)
    file = context.home.log_file(process)
    text = log_tail(file, lines)
    if as_json:
        print_json({"name": name, "file": str(file), "lines": text.splitlines()})
        return
    click.echo(text or f"{file} is empty")
    if follow:
        for piece in follow_log(file):
            click.echo(piece, nl=False)


def _broker_disk(context: Context, used: int | None) -> dict[str, Any] | None:
    """Return how much disk the embedded broker takes, and a warning or None; None without a broker or a daemon."""
    if used is None:
        return None
    return {"bytes": used, "warning": broker_disk.warning(used, context.home.broker)}


def _process_of(context: Context, name: str) -> str:
    deployments = context.records.deployments()
    for record in deployments:
        if record.name == name:
            return "daemon" if record.mode == "batch" else deployment_process(name)
    processes = [process.name for process in context.runner.status()]
    if name in processes:
        return name
    known = sorted({record.name for record in deployments} | set(processes))
    raise NotFound(f"there is no log of {name!r}{nearest(name, known)}; known: {', '.join(known) or 'none'}")


def _row(view: dict[str, Any]) -> list[Any]:
    where = {
        "web": view.get("url"),
        "stream": f"{view.get('input_topic')} -> {view.get('output_topic')}",
        "batch": f"{view.get('input') or 'asked for'} -> {view.get('output')}"
        + (f", at {view['schedule']}" if view.get("schedule") else ""),
    }[view["mode"]]
    followed = view["model_uri"].removeprefix("models:/")
    return [
        view["name"],
        view["mode"],
        followed,
        view["version"],
        view["status"],
        f"{view['predictions']:,}",
        where,
    ]


def _trial(challenger: dict[str, Any]) -> str:
    """Say in words what is tried beside the version that serves."""
    version, share = challenger["version"], challenger.get("traffic_percentage")
    told = "is asked too, unheard" if share is None else f"answers {share:g} % of the callers"
    return {
        "active": f"challenger version {version} {told} ({challenger['mode']})",
        "idle": f"challenger version {version} is the version that serves: nothing to try",
        "refused": f"challenger {challenger['model_uri']} is not tried",
    }[challenger["state"]]


def _flow(view: dict[str, Any]) -> str:
    """Say in words how a stream flows."""
    lag = view.get("lag_seconds")
    said = [
        "lag unknown" if lag is None else f"lag {lag:.1f} s",
        f"{view['messages_per_second']:,.1f} messages/s",
    ]
    if "latency_p50_ms" in view:
        said.append(f"latency p50 {view['latency_p50_ms']:,.0f} ms, p99 {view['latency_p99_ms']:,.0f} ms")
    if view.get("adjustment"):
        said.append(f"adjustment {view['adjustment']}")
    if view["dead_letters"]:
        reasons = ", ".join(f"{count:,} {refusal}" for refusal, count in sorted(view["dead_letters"].items()))
        said.append(f"dead letters: {reasons} ('flywheel dlq list {view['name']}')")
    if view["trouble"]:
        said.append(f"trouble: {view['trouble']}")
    return "; ".join(said)


def _runs(view: dict[str, Any]) -> Iterator[str]:
    """Say in words what a batch deployment's run does, and how the last one went."""
    run, last = view["run"], view["last_run"]
    if run is not None:
        said = f"running since {_moment(run['started'])} ({_why(run)})"
        if "rows" in run:
            said += f": {run['rows']:,} rows, {run['files_done']} of {run['files']} files"
            said += f", {run['rows_per_second']:,.0f} rows/s"
        yield said
    if last is not None:
        said = f"last run {_moment(last['started'])} ({_why(last)}): "
        if last["status"] == "failed":
            said += f"failed: {last['error']}"
        else:
            rejected = f", {last['rows_rejected']:,} set aside" if last["rows_rejected"] else ""
            said += f"{last['rows_out']:,} rows{rejected} in {last['seconds']:.1f} s"
        if last["run_id"]:
            yield f"{said}; MLflow run {last['run_id']}"
        else:
            yield said + ("; nothing was new" if last.get("files") == 0 else "; not in MLflow yet")


def _why(run: dict[str, Any]) -> str:
    return f"{run['trigger']} {run['span']}" if run["span"] else str(run["trigger"])


def _moment(text: str | None) -> str:
    return "?" if text is None else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def _label_folders(context: Context, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the folders that are watched now, with what the daemon says of them where it has looked already."""
    from mlflow_flywheel.plugin.label_folders import watched_folders

    told = {(view["model"], view["folder"]): view for view in views}
    return [told.get((each.model, each.folder), asdict(each)) for each in watched_folders(context.home)]


def _folder(view: dict[str, Any]) -> Iterator[str]:
    """Say in words what became of the labels that arrived in a folder."""
    place = f"labels of {view['model']} from {view['folder']}"
    if "files" not in view:
        yield f"{place}: the daemon has not looked yet ('flywheel up' starts it)"
        return
    said = f"{view['accepted']:,} labels in {view['files']:,} files"
    if view["rejected"] or view["files_set_aside"]:
        said += f"; set aside: {view['rejected']:,} rows and {view['files_set_aside']:,} whole files"
    yield f"{place}: {said}"
    for aside in view["set_aside"]:
        yield f"  {aside['reason'] or aside['file'] + ': rows that were set aside are in ' + aside['rejects']}"


def _processes(processes: list[ProcessStatus]) -> list[dict[str, Any]]:
    return [{"name": p.name, "state": p.state, "pid": p.pid, "uptime": round(p.uptime, 1)} for p in processes]


def _print_processes(processes: list[ProcessStatus]) -> None:
    if not processes:
        click.echo("no processes; they start with the first deployment")
        return
    rows = [
        (p.name, p.state, p.pid, str(timedelta(seconds=round(p.uptime))) if p.pid else None)
        for p in processes
    ]
    print_table("Processes", ["name", "state", "pid", "up"], rows)

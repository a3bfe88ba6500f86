"""Kill -9 of the worker, of the broker, and of both, at random moments under load: is anything lost or doubled?

At last the broker stays away for a while with a backlog on it: what does the worker hold meanwhile?

Each kind has a broker and a deployment of its own and is killed `--rounds` times. At the end the input topic, the
inference table and the answers are compared, event by event; the exit code is 1 unless all of them agree. The seed
decides the moments; how the machine runs in between it does not, so the same seed is no exact repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from random import Random

from report import machine, write
from rich.console import Console
from rich.table import Table
from support.models import log_model
from support.stream_absence import Absence, stay_away
from support.stream_drill import KINDS, Drilled, drill

RATE = 2000
BACKLOG = 200_000


def main() -> None:
    """Drill all kinds, print a line for each, and write `results/stream_drill.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50, help="kills of each kind (50)")
    parser.add_argument("--rate", type=int, default=RATE, help=f"events per second ({RATE})")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default another each time")
    parser.add_argument("--away", type=float, default=60, help="seconds that the broker stays away (60)")
    options = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if options.seed is None else options.seed
    print(f"seed {seed}")
    random = Random(seed)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="flywheel-drill-") as name, console.status("starting") as status:
        folder = Path(name)
        model = log_model("total", f"sqlite:///{folder}/mlflow.db", folder / "models").ref
        done = [
            drill(folder / kind, model, kind, options.rounds, options.rate, random, status.update)
            for kind in KINDS
        ]
        status.update(f"the broker is away for {options.away:g} seconds")
        absence = stay_away(folder / "absence", model, options.away, BACKLOG)
    console.print(table_of(done))
    console.print(said(absence))
    details = {
        "seed": seed,
        "rate": options.rate,
        "drills": [asdict(each) for each in done],
        "away": asdict(absence),
    }
    path = write("stream_drill", {**machine(["pulsar-client", "pulsar-lite"]), **details})
    print(json.dumps(details, indent=1), f"written to {path}", sep="\n")
    if not all(each.tally.is_complete for each in (*done, absence)):
        sys.exit("something was lost, doubled or not answered: see the table")


def said(absence: Absence) -> str:
    """Return a sentence about what the worker held."""
    before, most = (f"{size / 1e6:.0f} MB" for size in (absence.memory_before, absence.memory_most))
    return (
        f"broker away for {absence.seconds:g} s, {absence.waiting:,} events waiting on it: the worker had {before} "
        f"and at most {most}, its spool grew by {absence.spool_growth / 1e6:.1f} MB; "
        f"{absence.tally.lost + absence.tally.not_on_topic} lost, {absence.tally.doubled} doubled"
    )


def table_of(done: list[Drilled]) -> Table:
    """Return the table with a line for each kind."""
    columns = ["killed", "kills", "events", "in the table", "lost", "doubled", "unanswered", "answered again"]
    table = Table(*columns, title="drill: stream")
    for each in done:
        tally = each.tally
        lost = tally.lost + tally.not_on_topic
        doubled = tally.doubled + tally.wrong
        missing = tally.unanswered + tally.contradicted
        figures = (each.kills, tally.events, tally.rows, lost, doubled, missing, tally.answered_again)
        table.add_row(each.kind, *(f"{figure:,}" for figure in figures))
    return table


if __name__ == "__main__":
    main()

"""The simulated streams over many seeds, and the goals that the loop has there.

Nothing can be gained where only the features move: there the loop shall rest, and do no harm. Where the concept
changes, it shall regain nearly all that retraining always regains, with few retrainings. A retraining that goes wrong
shall not be promoted, or be undone soon. What a broken sensor does to it is only shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from loop_strategies import STRATEGIES
from loop_streams import KINDS, ONSET, Goal, simulated
from loop_table import Run, played, runs, summary
from rich.console import Console
from rich.table import Table

from mlflow_flywheel.monitors.policy import PolicySpec

SEEDS = 20
# The defaults of the policy, with a choice of windows to train on; of the monitors those that may start anything by it.
POLICY = PolicySpec.parse({"training_windows": "14d,30d,all", "monitors": ",".join(PolicySpec().retrain_on)})
CONCEPT = tuple(kind for kind, what in KINDS.items() if what.goal == "concept")
GOALS = {
    "harmless_retrainings_per_50_windows": "< 1",
    "harmless_harmful_promotions": "== 0",
    **{f"{kind}_recovered_of_always": ">= 0.9" for kind in CONCEPT},
    "concept_retrainings_of_always": "<= 0.333",
    "bad_retrainings_left_in_force": "== 0",
}
_PROCESSES = 2


def simulations(
    kinds: Iterable[str] = tuple(KINDS), seeds: int = SEEDS, policy: PolicySpec = POLICY
) -> dict[str, dict[str, dict[str, Any]]]:
    """Play every stream with every seed and strategy; return the table, by stream and strategy."""
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = [(kind, seed, policy) for seed in range(seeds) for kind in kinds]
    with ProcessPoolExecutor(_PROCESSES) as pool:
        found = list(pool.map(play_all, wanted))
    by_kind: dict[str, list[Mapping[str, Run]]] = {}
    for (kind, _, _), seed in zip(wanted, found, strict=True):
        by_kind.setdefault(kind, []).append(seed)
    return {kind: summary(of_seeds, onset_of(kind)) for kind, of_seeds in by_kind.items()}


def onset_of(kind: str) -> int | None:
    """Return the window in which a stream's concept changes; None when it does not."""
    return ONSET if KINDS[kind].goal in ("concept", "bad") else None


def play_all(task: tuple[str, int, PolicySpec]) -> dict[str, Run]:
    """Let every strategy play a stream with a seed."""
    kind, seed, policy = task
    stream = simulated(kind, seed)
    return runs({name: played(stream, policy, name) for name in STRATEGIES})


def ratios(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Return what the goals are about: of harmless and bad streams the worst or all of them, of the others each."""

    def ours(goal: Goal, name: str) -> list[float]:
        return [rows["ours"][name] for kind, rows in table.items() if KINDS[kind].goal == goal]

    concept = {kind: rows for kind, rows in table.items() if kind in CONCEPT}
    return {
        "harmless_retrainings_per_50_windows": max(ours("harmless", "retrainings_per_50_windows")),
        "harmless_harmful_promotions": sum(ours("harmless", "harmful_promotions")),
        **{
            f"{kind}_recovered_of_always": rows["ours"]["recovered_of_always"]
            for kind, rows in concept.items()
        },
        "concept_retrainings_of_always": max(
            rows["ours"]["retrainings"] / rows["always"]["retrainings"] for rows in concept.values()
        ),
        "bad_retrainings_left_in_force": sum(ours("bad", "harmful_not_undone")),
    }


def show(table: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> None:
    """Print the whole table."""
    columns = (
        "log loss",
        "regret",
        "of always",
        "retrained",
        "promoted",
        "back",
        "harmful",
        "left",
        "recovers in",
    )
    shown = Table("stream", "strategy", *columns, title=title)
    for kind, rows in table.items():
        for name, row in rows.items():
            shown.add_row(kind if name == "never" else "", name, *_cells(row), end_section=name == "ours")
    Console(width=140).print(shown)


def _cells(row: Mapping[str, Any]) -> Iterable[str]:
    yield f"{row['log_loss']:.4f}"
    yield f"{row['regret']:.4f}"
    yield "" if row["recovered_of_always"] is None else f"{row['recovered_of_always']:.2f}"
    for name in ("retrainings", "promotions", "rollbacks", "harmful_promotions", "harmful_not_undone"):
        yield str(row[name])
    recovered = row["windows_to_recover"]
    yield "" if recovered is None else f"{recovered:g} ({row['seeds_recovered']})"

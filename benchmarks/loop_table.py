"""What a strategy did to a stream, in numbers: losses, regret, retrainings, harm, and how soon it recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from loop_strategies import STRATEGIES, Ours
from loop_streams import Floats, Stream
from loop_world import HARM, Move, World, expected_loss

from mlflow_flywheel.monitors.policy import PolicySpec

RECOVERED = 0.9
_SETTLED = 5
# Windows within which a harmful promotion must be undone.
UNDONE_WITHIN = 2


@dataclass(frozen=True)
class Played:
    """What is kept of a strategy that played a stream: of each window the expected log loss and the answers.

    `best` is the loss of the best schedule in hindsight, which only the strategy that always retrains can tell.
    """

    losses: Floats
    answers: Sequence[Floats]
    moves: Sequence[Move]
    retrained: Sequence[int]
    said: Sequence[str]
    best: Floats | None = None


@dataclass(frozen=True)
class Run:
    """A strategy on one stream, in numbers.

    `harmful` counts promotions after which the true loss was higher, `left` those of them that were not undone within
    two windows.
    """

    losses: Floats
    regret: float
    retrainings: int
    promotions: int
    rollbacks: int
    harmful: int
    left: int
    worst_harm: float


def played(stream: Stream, policy: PolicySpec, strategy: str) -> Played:
    """Let a strategy play a stream to its end; what is decided at the end of a window counts from the next one on."""
    world, turn = World(stream, policy), STRATEGIES[strategy]()
    for _ in stream.batches:
        world.next_window()
        turn(world)
    return Played(
        np.array(world.losses),
        world.said,
        world.moves,
        world.retrained,
        turn.said if isinstance(turn, Ours) else (),
        hindsight(world) if strategy == "always" else None,
    )


def runs(found: Mapping[str, Played]) -> dict[str, Run]:
    """Return every strategy's numbers on the same stream."""
    best = found["always"].best
    assert best is not None
    return {name: _run(each, best) for name, each in found.items()}


def hindsight(always: World) -> Floats:
    """Return, window by window, the loss of the best of all versions that could have been trained before it.

    Those are the first one and one from the end of each earlier window, on the labels of the training window: no
    schedule of such retrainings does better.
    """
    stream = always.stream
    models = [always.versions[str(n)].scorer.raw_model for n in range(1, len(always.versions) + 1)]
    trained = [-1, *always.retrained]
    best = []
    for window, batch in enumerate(stream.batches):
        known = [model for model, at in zip(models, trained, strict=True) if at < window]
        losses = expected_loss(stream.chances(known, batch.rows), batch.chance[None, :])
        best.append(float(losses.mean(axis=1).min()))
    return np.array(best)


def _run(each: Played, best: Floats) -> Run:
    losses = each.losses
    promoted = [move for move in each.moves if move.kind == "promote"]
    harmful = [move for move in promoted if move.harm > HARM]
    undone = {
        (move.before, move.window + ahead)
        for move in each.moves
        if move.kind == "rollback"
        for ahead in range(-UNDONE_WITHIN, 0)
    }
    return Run(
        losses=losses,
        regret=float((losses - best).mean()),
        retrainings=len(each.retrained),
        promotions=len(promoted),
        rollbacks=len(each.moves) - len(promoted),
        harmful=len(harmful),
        left=sum((move.after, move.window) not in undone for move in harmful),
        worst_harm=max((move.harm for move in promoted), default=0.0),
    )


def recovered(seed: Mapping[str, Run], name: str, onset: int) -> int | None:
    """Return after how many windows from a change a strategy had regained most of what retraining always regains.

    That is the most it gains over the untouched model in a few windows together; None when it never did.
    """
    never = seed["never"].losses[onset:]
    most = np.convolve(never - seed["always"].losses[onset:], np.full(_SETTLED, 1 / _SETTLED), "valid").max()
    found = np.flatnonzero(never - seed[name].losses[onset:] >= RECOVERED * most)
    return int(found[0]) if len(found) else None


def summary(seeds: Sequence[Mapping[str, Run]], onset: int | None = None) -> dict[str, dict[str, Any]]:
    """Return the table of one stream over its seeds, by strategy; `onset` is the window in which it changed."""
    found: dict[str, dict[str, Any]] = {}
    gained = {name: _gained(seeds, name) for name in seeds[0]}
    for name in seeds[0]:
        own = [each[name] for each in seeds]
        windows_from = [None if onset is None else recovered(each, name, onset) for each in seeds]
        known = [count for count in windows_from if count is not None]
        windows = sum(len(run.losses) for run in own)
        found[name] = {
            "log_loss": float(np.mean([run.losses.mean() for run in own])),
            "regret": float(np.mean([run.regret for run in own])),
            "recovered_of_always": gained[name] / gained["always"] if gained["always"] else None,
            "retrainings": sum(run.retrainings for run in own),
            "retrainings_per_50_windows": 50 * sum(run.retrainings for run in own) / windows,
            "promotions": sum(run.promotions for run in own),
            "rollbacks": sum(run.rollbacks for run in own),
            "harmful_promotions": sum(run.harmful for run in own),
            "harmful_not_undone": sum(run.left for run in own),
            "worst_promotion": max(run.worst_harm for run in own),
            "windows_to_recover": float(np.median(known)) if known else None,
            "seeds_recovered": len(known),
            "seeds": len(seeds),
        }
    return found


def _gained(seeds: Sequence[Mapping[str, Run]], name: str) -> float:
    return float(np.mean([each["never"].losses.mean() - each[name].losses.mean() for each in seeds]))

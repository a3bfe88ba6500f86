"""What a deployment keeps out of the inference table: features that nobody may keep, and rows beyond a share of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pyarrow as pa

from .config import WorkerConfig
from .errors import BadInput, nearest
from .ids import SHADOW_SUFFIX, place_of
from .model import Scorer
from .schema import FeatureSchema
from .scoring import NullLog, PredictionLog, ScoredBatch, values_of
from .spool import SpoolLog


def open_log(config: WorkerConfig, scorer: Scorer, parts: ExitStack) -> PredictionLog:
    """Return the log of a version that a worker serves or tries, as its configuration asks; `parts` closes it.

    A challenger may lack what `log_exclude` names; of the version that serves, the worker has asked `check_excluded`.
    """
    if not config.log:
        return NullLog()
    spooled = SpoolLog(config.spool, config.model.name, scorer.schema, scorer.kind, config.durability)
    parts.callback(spooled.close)
    log: PredictionLog = spooled
    if config.log_exclude:
        log = RedactedLog(log, config.log_exclude)
    if config.log_sample < 1:
        log = SampledLog(log, config.log_sample)
    return log


def check_excluded(names: Sequence[str], schema: FeatureSchema) -> None:
    """Raise BadInput for the first of these names that is no feature, with the nearest one that is."""
    for name in names:
        if name not in schema.names:
            raise BadInput(
                f"log_exclude={name!r} is no feature of the model{nearest(name, schema.names)}; leave it out, or "
                f"name one of: {', '.join(schema.names)}"
            )


class RedactedLog:
    """A log in front of another one that replaces features by null; models and callers still see them."""

    def __init__(self, log: PredictionLog, names: Sequence[str]) -> None:
        self._log = log
        self._names = frozenset(names)

    def append(self, batch: ScoredBatch) -> None:
        self._log.append(redacted(batch, self._names))


class SampledLog:
    """A log in front of another one that lets a share of the rows through, and writes the share into them."""

    def __init__(self, log: PredictionLog, share: float) -> None:
        self._log = log
        self._share = share

    def append(self, batch: ScoredBatch) -> None:
        kept = sampled(batch, self._share)
        if kept is not None:
            self._log.append(kept)


def redacted(batch: ScoredBatch, names: Collection[str]) -> ScoredBatch:
    """Return the batch with nulls for these features."""
    features = batch.request.features
    for i, name in enumerate(batch.schema.names):
        if name in names:
            kind = features.schema.field(i).type
            features = features.set_column(i, pa.field(name, kind), pa.nulls(features.num_rows, kind))
    return replace(batch, request=replace(batch.request, features=features))


def sampled(batch: ScoredBatch, share: float) -> ScoredBatch | None:
    """Return the share of the rows that is logged, marked with it; None when none is.

    The choice is a function of the row's client_request_id, or else of its prediction_id: a message that is delivered
    again meets the same fate, and so do one thing that several deployments are asked about, and a row and its shadow.
    """
    ids = batch.prediction_ids
    named = batch.request.client_request_ids
    clients = [None] * len(ids) if named is None else values_of(named)
    kept = [
        i
        for i, (client, own) in enumerate(zip(clients, ids, strict=True))
        if is_sampled(own.removesuffix(SHADOW_SUFFIX) if client is None else client, share)
    ]
    if not kept:
        return None
    return replace(batch.take(kept), constants={**batch.constants, "sampling_fraction": share})


def is_sampled(key: str, share: float) -> bool:
    """Tell whether the row of this key is among the share that is logged: the same answer everywhere and always."""
    return place_of(key, "log_sample") < share

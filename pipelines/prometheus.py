"""Prometheus's text format, and counters that several processes share: the only import of prometheus_client."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import psutil

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclass
class Family:
    """One metric with its samples; `suffix` is for the parts of a histogram, and `_total` for a counter's."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def add(self, labels: Mapping[str, str], value: float, suffix: str = "") -> None:
        """Add a sample."""
        self.samples.append((suffix, labels, value))


def exposition(families: Iterable[Family]) -> bytes:
    """Return metrics in Prometheus's text format."""
    from prometheus_client import generate_latest

    return bytes(generate_latest(_Registry(families)))


class _Registry:
    """What prometheus_client collects from: families whose values are known already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Any]:
        from prometheus_client.metrics_core import Metric

        for family in self._families:
            metric = Metric(family.name, family.help, family.type)
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, dict(labels), value)
            yield metric


def shared_counters(folder: Path) -> ModuleType:
    """Return prometheus_client, whose counters are files in `folder` from now on.

    It reads where from an environment variable when it is imported, so this comes before any other use in a process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_FOLDER] = str(folder)
    import prometheus_client

    return prometheus_client


def shared_exposition(folder: Path, families: Iterable[Family] = ()) -> bytes:
    """Return what all processes have counted in a folder, and more families, in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    _forget_the_dead(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry)) + exposition(families)


def shared_samples(folder: Path, name: str) -> list[tuple[Mapping[str, str], float]]:
    """Return the samples of one counter, summed over the processes that counted in a folder; none while it is not there."""
    from prometheus_client.multiprocess import MultiProcessCollector

    files = [str(file) for file in folder.glob("counter_*.db")]
    try:
        metrics = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
    except FileNotFoundError:  # it is being made anew
        return []
    return [
        (sample.labels, sample.value)
        for metric in metrics
        for sample in metric.samples
        if sample.name == name
    ]


def _forget_the_dead(folder: Path) -> None:
    """Drop the gauges of processes that have gone; what they counted stays."""
    for file in folder.glob("gauge_live*_*.db"):
        if not psutil.pid_exists(int(file.stem.rpartition("_")[2])):
            file.unlink(missing_ok=True)

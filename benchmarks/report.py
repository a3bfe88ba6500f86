"""What every benchmark ends with: a table, and a JSON file with the machine and the versions it was measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def publish(
    name: str,
    ratios: Mapping[str, float],
    goals: Mapping[str, str],
    details: Mapping[str, Any],
    packages: Sequence[str],
) -> Path:
    """Print the ratios beside their goals, write `results/<name>.json`, and return its path."""
    table = Table("ratio", "measured", "goal", title=f"benchmark: {name}")
    for ratio, value in ratios.items():
        table.add_row(ratio, f"{value:.4g}", goals[ratio])
    Console().print(table)
    content = {**machine(packages), "ratios": dict(ratios), "details": dict(details)}
    return write(name, content)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Return what a result was measured on: the machine, and the versions of these packages."""
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "versions": {package: version(package) for package in packages},
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Write `results/<name>.json` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path

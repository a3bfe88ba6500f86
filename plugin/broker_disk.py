"""How much disk the embedded broker takes. It never deletes a message, not even one that everybody has read."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow_flywheel.pipelines.errors import BadInput

VARIABLE = "FLYWHEEL_BROKER_WARN_GB"
_WARN_GB = 5.0
_GB = 1e9


def used_bytes(folder: Path) -> int:
    """Return the size of the files in the broker's folder; 0 without one."""
    used = 0
    for path in folder.rglob("*"):
        try:
            used += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # the broker has just replaced it
            continue
    return used


def warn_above() -> float:
    """Return from how many bytes on a warning is given. Raises BadInput when the environment says no number."""
    said = os.environ.get(VARIABLE) or str(_WARN_GB)
    try:
        return float(said) * _GB
    except ValueError:
        raise BadInput(f"{VARIABLE}={said!r} is no number of gigabytes, such as {_WARN_GB:g}") from None


def warning(used: int, folder: Path) -> str | None:
    """Return what to do about the broker's disk, or None while there is no need."""
    limit = warn_above()
    if used <= limit:
        return None
    return (
        f"the embedded broker takes {said(used)} of disk, more than {limit / _GB:g} GB ({VARIABLE}), and deletes "
        "nothing by itself. When the deployments have read what waits: flywheel down, "
        f"rm -r {folder / 'data.rocksdb'}, flywheel up; answers and dead letters on its topics go too. Apache Pulsar "
        "deletes what was read, after a while"
    )


def said(used: int) -> str:
    """Return a size for people."""
    return f"{used / _GB:.1f} GB" if used >= _GB else f"{used / 1e6:.0f} MB"

"""What the control plane does for each mode: check, start, swap, stop, ask."""

from __future__ import annotations

from typing import Any

from .base import Answers, ModeOperations

__all__ = ["Answers", "ModeOperations", "mode_operations"]


def mode_operations(mode: str) -> ModeOperations[Any]:
    """Return what to do for deployments of this mode; each mode's libraries are imported only when it is used."""
    if mode == "web":
        from .web import WebOperations

        return WebOperations()
    if mode == "stream":
        from .stream import StreamOperations

        return StreamOperations()
    from .batch import BatchOperations

    return BatchOperations()

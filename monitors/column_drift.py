"""What the drift monitor finds out about one column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .dependence import Worth, worth
from .samples import Column
from .statistics import (
    Comparison,
    benjamini_hochberg,
    combined,
    compare_counts,
    compare_numbers,
    compare_shares,
    location_p_value,
)

# A change of the missing share that Cohen calls small: 0 to 1%, 5 to 10%, 50 to 60%.
MISSING_EFFECT = 0.2
# A category is named when at least this many rows have it: what few have may say who they are.
FEWEST_NAMED = 10
_SHOWN_CATEGORIES = 5
_SHOWN_LENGTH = 40
_NOTHING = Comparison("none", math.nan, math.nan, "")
_NO_ROWS = Worth(0.0, 0.0)


class Limits(Protocol):
    """How sure a change must be, and how large."""

    @property
    def alpha(self) -> float: ...

    @property
    def effect(self) -> float: ...


@dataclass(frozen=True)
class Change:
    """How a column differs between two samples; the p-values are adjusted for all columns once `adjusted` has them."""

    values: Comparison = _NOTHING
    missing: Comparison = _NOTHING
    worth: Worth = _NO_ROWS
    values_p: float = math.nan
    missing_p: float = math.nan

    def detected(self, limits: Limits) -> bool:
        """Whether the change is no chance."""
        return self.values_p <= limits.alpha or self.missing_p <= limits.alpha

    def relevant(self, limits: Limits) -> bool:
        """Whether the change is no chance, and not too small to matter by more than its standard error."""
        moved = self.values_p <= limits.alpha and self.values.most >= limits.effect
        return moved or (self.missing_p <= limits.alpha and self.missing.most >= MISSING_EFFECT)

    @property
    def size(self) -> float:
        """The larger of both effects, for ranking; 0 where nothing was measured."""
        effects = (self.values.effect, self.missing.effect)
        return max((e for e in effects if math.isfinite(e)), default=0.0)


@dataclass(frozen=True)
class ColumnDrift:
    """One column against the reference and, where there is one, against the window before.

    `note` says in words what numbers cannot; a `broken` column is not there or cannot be read.
    """

    column: str
    role: str
    reference: Column | None
    current: Column | None
    change: Change = Change()
    since_before: Change | None = None
    note: str = ""
    broken: bool = False

    def detected(self, limits: Limits) -> bool:
        return self.broken or self.change.detected(limits)

    def drifted(self, limits: Limits) -> bool:
        return self.broken or self.change.relevant(limits)

    def row(self, limits: Limits) -> dict[str, Any]:
        """Return the evidence row."""
        both = (self.reference, self.current)
        shares = [None if c is None else c.missing / max(1, c.rows) for c in both]
        compared = self.reference is not None and self.current is not None and not self.broken
        change, before = self.change, self.since_before
        return {
            "column": self.column,
            "role": self.role,
            "drifted": self.drifted(limits),
            "detected": self.detected(limits),
            "since": self._since(limits),
            "kind": self.reference.kind if compared and self.reference else None,
            "test": change.values.test,
            "p_value": _finite(change.values.p_value),
            "p_adjusted": _finite(change.values_p),
            "effect": _finite(change.values.effect),
            "effect_high": _finite(change.values.most),
            "effect_name": change.values.effect_name,
            "psi": _finite(change.values.psi),
            "effective_rows_reference": round(change.worth.reference) if compared else None,
            "effective_rows_window": round(change.worth.current) if compared else None,
            "missing_reference": shares[0] if compared else None,
            "missing_window": shares[1] if compared else None,
            "missing_p_adjusted": _finite(change.missing_p),
            "effect_before": _finite(before.values.effect) if before else None,
            "p_before": _finite(before.values_p) if before else None,
            "note": self.note,
        }

    def _since(self, limits: Limits) -> str | None:
        if self.since_before is None or not self.drifted(limits):
            return None
        return "this window" if self.since_before.relevant(limits) else "an earlier window"


def compare(reference: Column, current: Column) -> Change:
    """Compare a column in two samples: its values, and how many are missing."""
    rows = worth((reference.present, reference.alike), (current.present, current.alike))
    values = _NOTHING
    if reference.numbers is not None and current.numbers is not None:
        values = compare_numbers(reference.numbers, current.numbers, rows)
        if reference.location and current.location:
            # A small shift of all rows shows in the mean of their scores first.
            moved = location_p_value(reference.location, current.location, reference.present, current.present)
            values = replace(values, test="ks, scores", p_value=combined((values.p_value, moved)))
    elif reference.categories is not None and current.categories is not None:
        _, old, new = reference.categories.beside(current.categories)
        values = compare_counts(old, new, rows)
    of_missing = worth((reference.rows, reference.missing_alike), (current.rows, current.missing_alike))
    missing = compare_shares(reference.missing, reference.rows, current.missing, current.rows, of_missing)
    return Change(values, missing, rows)


def adjusted(changes: Sequence[Change]) -> list[Change]:
    """Return changes with p-values adjusted over all of their tests."""
    raw = np.array([[c.values.p_value, c.missing.p_value] for c in changes], dtype=np.float64)
    found = benjamini_hochberg(raw.ravel()).reshape(-1, 2)
    return [
        replace(change, values_p=float(values), missing_p=float(missing))
        for change, (values, missing) in zip(changes, found, strict=True)
    ]


def notes(reference: Column, current: Column) -> Iterator[str]:
    """Yield what is to be said of a pair of columns beside the numbers."""
    if reference.kind == "moment":
        yield "moments move on by nature: only their missing share is tested"
    if not reference.present:
        yield "no values in the reference"
    if not current.present:
        yield "no values in the window"
    infinite = (reference.infinite, current.infinite)
    if any(infinite):
        yield f"infinite values, taken as missing: {infinite[0]} in the reference, {infinite[1]} in the window"
    if reference.categories is None or current.categories is None:
        return
    names, old, new = reference.categories.beside(current.categories)
    for what, here, there in (("new", new, old), ("vanished", old, new)):
        chosen = np.flatnonzero((here[:-1] > 0) & (there[:-1] == 0))
        if not len(chosen) or not there.sum():
            continue
        order = chosen[np.argsort(-here[chosen], kind="stable")]
        top = [i for i in order[:_SHOWN_CATEGORIES] if here[i] >= FEWEST_NAMED]
        more = len(chosen) - len(top)
        listed = [", ".join(shortened(names[i]) for i in top)] if top else []
        if more:
            listed.append(f"{more:,} {'more' if top else 'rare ones'}")
        yield f"{what}: {' and '.join(listed)} ({here[chosen].sum() / here.sum():.1%} of its values)"


def shortened(text: str) -> str:
    """Return a text that is no longer than a table's cell."""
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

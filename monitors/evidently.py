"""The drift report that people look at: Evidently's HTML under our verdict. The only import of evidently.

Evidently draws, we judge: it is given our finding per column as its statistical test, so that its tables say what the
verdict says. It sees samples, typed as the reference is, with nothing in them that a browser could take for markup.
Importing it costs seconds and 300 MB: call this only in a process that makes reports.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .columns import Unreadable, numbers_of, texts_of
from .drift import DriftSpec, sampled
from .profile import PREDICTION_SCORE, scores_of
from .reference import FEATURE_PREFIX, Reference
from .report_header import header, plain_page
from .verdicts import Verdict

if TYPE_CHECKING:
    import pandas as pd

# Evidently's figures change little beyond this, its time and memory do.
SAMPLE_ROWS = 2_000
MOST_ROWS = 10_000
# More bars than this are not read by anybody; the rest is drawn as one.
_MOST_CATEGORIES = 40
_OTHER = "(other)"
_NAME_LENGTH = 80
_METHOD = "flywheel"
# Looks like the original, but is no markup wherever it ends up in the page.
_HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a", "&": "\uff06", "`": "\u02cb", "\0": "\ufffd"})

_findings: ContextVar[dict[str, tuple[float, bool]]] = ContextVar("findings")


@dataclass(frozen=True)
class _Drawn:
    """A column as it is drawn: both samples, under a harmless name, with what we found out about it."""

    column: str
    name: str
    role: str
    finding: tuple[float, bool]
    numeric: bool
    current: Any
    reference: Any


def drift_report(
    rows: pa.Table,
    reference: Reference,
    verdict: Verdict,
    spec: DriftSpec | None = None,
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> str:
    """Return a self-contained HTML page about the window that `verdict` (of the drift monitor) judged.

    The page starts with the verdict and its table. A column that cannot be drawn is left out and named there; when
    nothing can be drawn the page is the verdict alone. At most 10,000 rows per side are drawn.
    """
    spec = spec or DriftSpec()
    size = min(sample_rows, MOST_ROWS)
    drawn, left_out = _columns(sampled(rows, size), reference, sampled(reference.table, size), verdict)
    html = _render(drawn, spec) if drawn else None
    if html is None and drawn:
        drawn, broken = _contained(drawn, spec)
        left_out |= broken
        html = _render(drawn, spec) if drawn else None
    top = header(verdict, left_out, size if html else 0)
    if html is None:
        return plain_page(top)
    start = html.index("<body")
    end = html.index(">", start) + 1
    return html[:end] + top + html[end:]


def _columns(
    rows: pa.Table, reference: Reference, old: pa.Table, verdict: Verdict
) -> tuple[list[_Drawn], dict[str, str]]:
    """Return what can be drawn, worst first as in the verdict, and why the rest is left out."""
    drawn: list[_Drawn] = []
    left_out: dict[str, str] = {}
    for finding in verdict.evidence:
        name, role, kind = finding["column"], finding["role"], finding["kind"]
        try:
            if kind not in ("number", "category"):
                raise Unreadable(finding["note"] or "nothing to draw")
            current, before = _pair_of(rows, old, name, role)
            drawn.append(_drawable(finding, {c.name for c in drawn}, current, before))
        except Unreadable as error:
            left_out[name] = str(error)
    return drawn, left_out


def _pair_of(rows: pa.Table, old: pa.Table, name: str, role: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    if role == "prediction" and name == PREDICTION_SCORE:
        current, before = scores_of(rows), scores_of(old)
        if current is None or before is None:
            raise Unreadable("no probabilities")
        return current, before
    return rows[FEATURE_PREFIX + name if role == "feature" else name], old[name]


def _drawable(
    finding: Mapping[str, Any], taken: Collection[str], current: pa.ChunkedArray, before: pa.ChunkedArray
) -> _Drawn:
    import pandas as pd

    name = finding["column"].translate(_HARMLESS)[:_NAME_LENGTH]
    name += f" ({len(taken)})" if name in taken else ""
    numeric = finding["kind"] == "number"
    if numeric:
        sides: list[Any] = [_finite(column) for column in (current, before)]
        if any(np.isnan(side).all() for side in sides):
            raise Unreadable("no values to draw")
    else:
        texts = [texts_of(column).to_pandas() for column in (current, before)]
        if any(side.isna().all() for side in texts):
            raise Unreadable("no values to draw")
        top = pd.concat(texts).value_counts().index[:_MOST_CATEGORIES]
        sides = [
            side.where(side.isin(top) | side.isna(), _OTHER).map(
                lambda v: v.translate(_HARMLESS), na_action="ignore"
            )
            for side in texts
        ]
    found = (float(finding["effect_high"] or 0.0), bool(finding["drifted"]))
    return _Drawn(finding["column"], name, finding["role"], found, numeric, *sides)


def _finite(column: pa.ChunkedArray) -> Any:
    values = numbers_of(column)
    return np.where(np.isfinite(values), values, np.nan)


def _contained(drawn: Sequence[_Drawn], spec: DriftSpec) -> tuple[list[_Drawn], dict[str, str]]:
    """Find the columns that Evidently fails on by drawing each alone."""
    fine, broken = [], {}
    for column in drawn:
        if _render([column], spec) is None:
            broken[column.column] = "Evidently cannot draw it"
        else:
            fine.append(column)
    return fine, broken


def _render(drawn: Sequence[_Drawn], spec: DriftSpec) -> str | None:
    """Return Evidently's page, or None when it raises: its errors for odd columns have no common class."""
    import logging

    import pandas as pd

    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    _register()
    numbers = [c.name for c in drawn if c.numeric]
    categories = [c.name for c in drawn if not c.numeric]
    definition = DataDefinition(
        numerical_columns=numbers,
        categorical_columns=categories,
        text_columns=[],
        datetime_columns=[],
        unknown_columns=[],
        list_columns=[],
    )
    frames: list[pd.DataFrame] = [
        pd.DataFrame({c.name: getattr(c, side) for c in drawn}) for side in ("current", "reference")
    ]
    features = [c.name for c in drawn if c.role == "feature"]
    outputs = [c.name for c in drawn if c.role != "feature"]
    metrics: list[Any] = []
    if features:
        metrics.append(_table()(columns=features, method=_METHOD, threshold=spec.effect))
    metrics += [ValueDrift(column=name, method=_METHOD, threshold=spec.effect) for name in outputs]
    token = _findings.set({c.name: c.finding for c in drawn})
    try:
        current, reference = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
        snapshot = Report(metrics, include_tests=False).run(current, reference)
        html: str = snapshot.get_html_str(as_iframe=False)
    except Exception:
        logging.getLogger(__name__).warning("Evidently cannot draw %d columns", len(drawn), exc_info=True)
        return None
    finally:
        _findings.reset(token)
    return html


def _register() -> None:
    """Make our findings known to Evidently as a statistical test that it can name."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.calculations.stattests.registry import _registered_stat_tests
    from evidently.legacy.core import ColumnType

    if _METHOD in _registered_stat_tests:
        return
    kinds = [ColumnType.Numerical, ColumnType.Categorical]
    test = StatTest(
        name=_METHOD, display_name="largest likely effect, verdict above", allowed_feature_types=kinds
    )
    register_stattest(test, default_impl=_finding)


@cache
def _table() -> Any:
    """Return Evidently's drift preset with its table alone.

    It draws each column three times, twice for nothing but to count what has drifted, which the verdict above says.
    """
    from evidently.legacy.metrics import DataDriftTable
    from evidently.presets import DataDriftPreset

    class DriftTable(DataDriftPreset):  # type: ignore[misc]
        def generate_metrics(self, context: Any) -> Sequence[Any]:
            return []

        def render(self, context: Any, child_widgets: Any = None) -> Any:
            table = DataDriftTable(
                columns=self.columns, stattest=self.method, stattest_threshold=self.threshold
            )
            return context.get_legacy_metric(table, None, None)[1]

    return DriftTable


def _finding(reference: Any, current: Any, kind: Any, threshold: float) -> tuple[float, bool]:
    return _findings.get()[str(reference.name)]

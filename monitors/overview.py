"""The overview of a look: what was seen, in which columns, since when, and what it did to performance, on one page.

It stands alone, and holds no row of the window: distributions are counts, and a category that few rows have is not
named in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

import pyarrow as pa

from .drift import DRAWN_ROWS, both_sides
from .drift import MONITOR as DRIFT
from .overview_chart import distributions
from .performance import MONITOR as PERFORMANCE
from .reference import Reference
from .samples import Column
from .standalone import document
from .verdicts import Status, Verdict, worst
from .windows import Window

_MOST_DRAWN = 24
_MOST_LISTED = 100
_STYLE = """
.status { color: #fff; border-radius: 4px; padding: 1px 8px; font-size: 12px; text-transform: uppercase }
.ok { background: #1a7f37 } .warn { background: #9a6700 } .alarm { background: #cf222e } .unknown { background: #57606a }
h1 .status { font-size: 14px; margin-right: 10px; vertical-align: 2px }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 22px 34px }
.columns h3 { font-size: 13px; margin: 0 0 2px; overflow-wrap: anywhere } .columns p { margin: 0 0 6px }
.before { fill: var(--second); opacity: .45 } .now { fill: var(--first) }
path.now { fill: none; stroke: var(--first); stroke-width: 1.8 } tr.drifted td { background: var(--mark) }
"""


def overview(
    model: str,
    version: str,
    verdicts: Sequence[Verdict],
    rows: pa.Table,
    reference: Reference | None,
    since: Mapping[str, datetime] | None = None,
) -> str:
    """Return the page about a look with these verdicts; `since` says when a monitor's present trouble was first seen."""
    window = verdicts[0].window
    title = f"{model} version {version}, {window} UTC"
    body = "".join(_sections(title, verdicts, rows, reference, since or {}))
    return document(title, body, _STYLE)


def episode_start(verdict: Verdict, earlier: Iterable[tuple[Window, str]]) -> datetime | None:
    """Return the end of the first window of the trouble that a verdict is part of; None when there is none.

    `earlier` are the monitor's verdicts of older windows, newest first. One that is `unknown` ends nothing.
    """
    if verdict.status not in ("warn", "alarm"):
        return None
    first = verdict.window.end
    for window, status in earlier:
        if status == "ok":
            break
        if status in ("warn", "alarm"):
            first = min(first, window.end)
    return first


def _sections(
    title: str,
    verdicts: Sequence[Verdict],
    rows: pa.Table,
    reference: Reference | None,
    since: Mapping[str, datetime],
) -> Iterator[str]:
    status = worst(verdicts)
    yield f"<h1>{_pill(status)}{escape(title)}</h1>"
    yield f'<p class="soft">{rows.num_rows:,} rows in the window.</p>'
    yield f'<section><h2>Verdicts</h2><div class="scroll">{_verdicts(verdicts, since)}</div></section>'
    found = {verdict.monitor: verdict for verdict in verdicts}
    if PERFORMANCE in found:
        yield f"<section><h2>What it did to performance</h2>{_performance(found[PERFORMANCE])}</section>"
    if DRIFT in found and found[DRIFT].evidence:
        yield _drifted(found[DRIFT], rows, reference)
        yield f'<section><h2>Every column</h2><div class="scroll">{_table(found[DRIFT].evidence)}</div></section>'


def _verdicts(verdicts: Sequence[Verdict], since: Mapping[str, datetime]) -> str:
    lines = []
    for verdict in verdicts:
        first = since.get(verdict.monitor)
        when = f"{first:%Y-%m-%d %H:%M}" if first else ""
        lines.append(
            f"<tr><td>{escape(verdict.monitor)}</td><td>{_pill(verdict.status)}</td><td>{when}</td>"
            f'<td class="reason">{escape(verdict.summary)}</td></tr>'
        )
    return _filled(("monitor", "", "since", "what was seen"), lines)


def _performance(verdict: Verdict) -> str:
    """Show each metric beside what it was at validation, with intervals."""
    said = f"<p>{_pill(verdict.status)} {escape(verdict.summary)}</p>"
    lines = []
    for row in verdict.evidence:
        if "value" not in row:
            continue
        cells = [
            _number(row.get(key), row.get(low), row.get(high))
            for key, low, high in (("value", "low", "high"), ("reference", "reference_low", "reference_high"))
        ]
        lines.append(f"<tr><td>{escape(str(row['metric']))}</td>{''.join(cells)}</tr>")
    return said + (_filled(("metric", "in the window", "in the reference"), lines) if lines else "")


def _drifted(verdict: Verdict, rows: pa.Table, reference: Reference | None) -> str:
    drifted = [row for row in verdict.evidence if row["drifted"]]
    if not drifted:
        return "<section><h2>Columns that drifted</h2><p>None.</p></section>"
    shown = drifted[:_MOST_DRAWN]
    keys = [(row["role"], row["column"]) for row in shown]
    drawn = both_sides(rows, reference, keys) if reference is not None else {}
    cards = "".join(_card(row, drawn.get(key)) for row, key in zip(shown, keys, strict=True))
    more = len(drifted) - _MOST_DRAWN
    rest = f'<p class="soft small">{more} more are in the table below.</p>' if more > 0 else ""
    legend = (
        '<div class="legend"><span><b style="background:var(--second)"></b>reference</span>'
        f'<span><b style="background:var(--first)"></b>window, of {min(DRAWN_ROWS, rows.num_rows):,} rows</span></div>'
    )
    return f'<section><h2>Columns that drifted</h2>{legend}<div class="columns">{cards}</div>{rest}</section>'


def _card(row: Mapping[str, Any], both: tuple[Column, Column] | None) -> str:
    facts = []
    if row["effect"] is not None:
        facts.append(f"{row['effect_name']} {row['effect']:.2f}")
    before, now = row["missing_reference"], row["missing_window"]
    if before is not None and (before or now):
        facts.append(f"missing {before:.1%} before, {now:.1%} now")
    if row["since"]:
        facts.append(f"since {row['since']}")
    if row["note"]:
        facts.append(row["note"])
    role = "" if row["role"] == "feature" else f' <span class="soft">({row["role"]})</span>'
    return (
        f'<div><h3>{escape(row["column"])}{role}</h3><p class="soft small">{escape("; ".join(facts))}</p>'
        f"{distributions(*both) if both is not None else ''}</div>"
    )


def _table(evidence: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in evidence[:_MOST_LISTED]:
        told = "drifted" if row["drifted"] else "small" if row["detected"] else ""
        cells = "".join(
            _number(row[key])
            for key in ("effect", "p_adjusted", "psi", "effective_rows_reference", "effective_rows_window")
        )
        name = f"<td>{escape(row['column'])}</td><td>{escape(row['role'])}</td><td>{told}</td>"
        mark = ' class="drifted"' if row["drifted"] else ""
        lines.append(f'<tr{mark}>{name}{cells}<td class="reason">{escape(row["effect_name"])}</td></tr>')
    heads = (
        "column",
        "role",
        "change",
        "effect",
        "p (adjusted)",
        "PSI",
        "reference worth rows",
        "window worth rows",
        "effect is",
    )
    more = len(evidence) - _MOST_LISTED
    rest = f'<p class="soft small">{more} more are in evidence/drift.csv.</p>' if more > 0 else ""
    return (
        _filled(heads, lines)
        + rest
        + '<p class="soft small">Rows of a day are alike, so a sample is worth fewer independent ones. A change is '
        "“small” when it is no chance and yet does not matter by its effect.</p>"
    )


def _filled(heads: Sequence[str], lines: Sequence[str]) -> str:
    columns = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None or not math.isfinite(value):
        return "<td></td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    between = (
        f" <small class='soft'>{low:.3g} to {high:.3g}</small>"
        if low is not None and high is not None
        else ""
    )
    return f"<td>{shown}{between}</td>"


def _pill(status: Status) -> str:
    return f'<span class="status {status}">{status}</span>'

"""Our verdict as HTML, on top of a drawn report or as a page of its own. No scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .verdicts import Verdict

_MOST_ROWS = 100
_COLOURS = {"ok": "#1a7f37", "warn": "#9a6700", "alarm": "#cf222e", "unknown": "#57606a"}
_STYLE = """
.fw{font:14px/1.5 system-ui,sans-serif;color:#1f2328;background:#fff;margin:0 auto;max-width:1200px;padding:24px}
.fw h1{font-size:22px;margin:0 0 4px}.fw p{margin:4px 0}.fw .wide{overflow-x:auto}
.fw .status{color:#fff;border-radius:4px;padding:1px 8px;margin-right:8px;text-transform:uppercase;font-size:15px}
.fw table{border-collapse:collapse;margin:12px 0;width:100%;font-size:13px}
.fw th,.fw td{border-bottom:1px solid #d0d7de;padding:4px 10px;text-align:left;white-space:nowrap}
.fw td.num,.fw th.num{text-align:right;font-variant-numeric:tabular-nums}.fw td.note{white-space:normal;min-width:340px}
.fw tr.drifted td{background:#ffebe9}.fw .small{color:#57606a;font-size:12px}
"""
_COLUMNS = (
    ("column", "column", ""),
    ("drifted", "drifted", ""),
    ("detected", "no chance", ""),
    ("since", "since", ""),
    ("effect", "effect", "num"),
    ("effect_high", "up to", "num"),
    ("effect_name", "measured as", ""),
    ("p_adjusted", "p (adjusted)", "num"),
    ("psi", "PSI", "num"),
    ("missing_reference", "missing before", "num"),
    ("missing_window", "missing now", "num"),
    ("note", "note", "note"),
)


def header(verdict: Verdict, left_out: Mapping[str, str], drawn_rows: int) -> str:
    """Return the verdict, its table and what the figures below do not show, as one escaped HTML section."""
    rows = "".join(map(_row, verdict.evidence[:_MOST_ROWS]))
    heads = "".join(f'<th class="{kind}">{title}</th>' for _, title, kind in _COLUMNS)
    more = len(verdict.evidence) - _MOST_ROWS
    remarks = []
    if more > 0:
        remarks.append(f"{more} further columns are in the run's evidence table.")
    if left_out:
        names = "; ".join(f"{escape(name)} ({escape(why)})" for name, why in left_out.items())
        remarks.append(f"Not drawn below: {names}.")
    if drawn_rows:
        remarks.append(
            f"Figures below are drawn from samples of at most {drawn_rows:,} rows; the verdict is not."
        )
    small = "".join(f'<p class="small">{remark}</p>' for remark in remarks)
    return (
        f"<style>{_STYLE}</style>"
        f'<section class="fw" id="flywheel-verdict"><h1><span class="status" '
        f'style="background:{_COLOURS[verdict.status]}">{verdict.status}</span>{escape(verdict.monitor)}</h1>'
        f"<p>{escape(verdict.summary)}</p><p class='small'>Window {escape(str(verdict.window))}, UTC, "
        f"{verdict.metrics.get('rows', 0):,.0f} rows, against the reference of the version in force. A column has "
        "drifted when its change is no chance (Benjamini-Hochberg over all tests) and not too small to matter.</p>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{small}</section>'
    )


def plain_page(body: str) -> str:
    """Return a complete page around the header."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>flywheel drift</title></head>'
        f"<body>{body}</body></html>"
    )


def _row(row: Mapping[str, Any]) -> str:
    cells = "".join(f'<td class="{kind}">{_cell(key, row.get(key))}</td>' for key, _, kind in _COLUMNS)
    return f'<tr class="drifted">{cells}</tr>' if row.get("drifted") else f"<tr>{cells}</tr>"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1%}" if key.startswith("missing_") else f"{value:.3g}"
    return escape(str(value))

"""Pages that stand alone: one HTML file without scripts, nothing loaded from elsewhere, for light and dark screens."""

from __future__ import annotations

from html import escape

_STYLE = """
:root { --ground: #f3f5f7; --card: #fff; --ink: #11171c; --soft: #5f7281; --line: #e2e7eb; --first: #2272b4;
  --second: #c77700; --good: #277c43; --bad: #c82d4c; --mark: #fdf1e0; --mark-ink: #8a4d00 }
@media (prefers-color-scheme: dark) { :root { --ground: #0f151a; --card: #171f26; --ink: #e6ebef; --soft: #92a4b3;
  --line: #2b3740; --first: #6fb7ea; --second: #f0b35e; --good: #7fd49a; --bad: #ff8a9f; --mark: #38280f;
  --mark-ink: #f0b35e } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 14px/1.5 -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums }
main { max-width: 1120px; margin: 0 auto; padding: 24px 28px 48px }
h1 { font-size: 20px; margin: 0 } h2 { font-size: 15px; margin: 0 0 10px } p { margin: 4px 0 }
.soft { color: var(--soft) } .small { font-size: 12.5px }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 18px 22px; margin-top: 18px }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { font-size: 11px; fill: var(--soft) }
.grid { stroke: var(--line) }
.legend { display: flex; gap: 16px; flex-wrap: wrap; margin: 8px 0 14px; font-size: 12.5px; color: var(--soft) }
.legend b { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px }
.scroll { overflow-x: auto } table { width: 100%; border-collapse: collapse; font-size: 13px }
th { text-align: left; color: var(--soft); font-size: 12px; padding: 0 14px 4px 0; vertical-align: bottom }
td { padding: 5px 14px 5px 0; border-top: 1px solid var(--line); white-space: nowrap; vertical-align: baseline }
td.reason { white-space: normal; overflow-wrap: anywhere } .number { text-align: right }
"""


def document(title: str, body: str, style: str = "") -> str:
    """Return a page; `body` is HTML, and `style` what it needs beyond the common styles."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body><main>{body}</main></body></html>"
    )

"""The report of a back-test: one HTML page that stands alone, without scripts, nothing loaded, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .backtest import Backtest, Estimate, Period, reasons
from .backtest_chart import differences, lines, reliability_chart
from .backtest_words import better, conclusion, leak_note, names, shown_state
from .standalone import document
from .windows import format_duration

_CHARTED = ("auc", "log_loss", "skill", "accuracy", "f1_macro", "mae", "r2", "calibration_error")
_TABLED = {
    "binary": ("auc", "log_loss", "calibration_error"),
    "multiclass": ("accuracy", "log_loss", "calibration_error"),
    "regression": ("mae", "r2", "bias"),
}
_STYLE = """
.leak { background: var(--mark); color: var(--mark-ink) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 18px 34px }
.charts h3 { font-size: 12.5px; margin: 0 0 4px }
.zero { stroke: var(--soft) } .marked { fill: var(--mark); shape-rendering: crispEdges }
.s0 { stroke: var(--first) } .s1 { stroke: var(--second) } path.line { fill: none; stroke-width: 1.8 }
circle.s0, .fill0 { fill: var(--first) } circle.s1, .fill1 { fill: var(--second) } .band { opacity: .16; stroke: none }
.good { stroke: var(--good); fill: var(--good) } .bad { stroke: var(--bad); fill: var(--bad) }
.even { stroke: var(--soft); fill: var(--soft) } td.good { color: var(--good) } td.bad { color: var(--bad) }
tr.marked td { background: var(--mark) } small { color: var(--soft) }
"""


def page(result: Backtest) -> str:
    """Return the whole report."""
    title = f"Back-test of {result.model}, {' against '.join(names(result))}"
    body = "".join(_sections(result, title))
    return document(title, body, _STYLE)


def _sections(result: Backtest, title: str) -> Iterator[str]:
    spec = result.spec
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f'<p class="soft">Logged events from {spec.start:%Y-%m-%d %H:%M} to {spec.end:%Y-%m-%d %H:%M} UTC, by '
        f"{format_duration(spec.every)}; intervals of {100 * spec.confidence:g}% from a bootstrap over days; periods "
        f"with fewer than {spec.min_rows:,} labelled rows are not measured.</p>"
    )
    yield f"<section><h2>Over all</h2><p>{escape(conclusion(result))}</p></section>"
    trained = any(period.trained_on for period in result.periods)
    warned = ' class="leak"' if trained or not all(result.training_known) else ""
    yield f"<section{warned}><h2>Training windows</h2><p>{escape(leak_note(result))}</p></section>"
    yield f"<section><h2>Period by period</h2>{_legend(result, trained)}{_charts(result)}</section>"
    yield f'<section><h2>Numbers</h2><div class="scroll">{_table(result)}</div></section>'
    yield _calibration(result)
    yield _left_out(result)


def _legend(result: Backtest, trained: bool) -> str:
    parts = [
        f'<span><b style="background:var(--{colour})"></b>{escape(name)}</span>'
        for name, colour in zip(names(result), ("first", "second"), strict=False)
    ]
    if trained:
        parts.append('<span><b style="background:var(--mark)"></b>rows in a training window</span>')
    return f'<div class="legend">{"".join(parts)}</div>'


def _charts(result: Backtest) -> str:
    drawn = []
    for metric in [name for name in _CHARTED if name in result.metrics]:
        title = metric.replace("_", " ")
        drawn.append(f"<div><h3>{escape(title)}</h3>{lines(result, metric)}</div>")
        if any(metric in period.difference for period in result.periods):
            apart = f"{title}: {' less '.join(names(result))}"
            drawn.append(f"<div><h3>{escape(apart)}</h3>{differences(result, metric)}</div>")
    if not drawn:
        return "<p>No period has enough labelled rows to be measured.</p>"
    return f'<div class="charts">{"".join(drawn)}</div>'


def _table(result: Backtest) -> str:
    shown = [name for name in _metrics_of(result) if name in result.metrics]
    sides = names(result)
    heads = ["period", "rows", "labels"]
    heads += [f"{name.replace('_', ' ')}<br>{escape(side)}" for name in shown for side in sides]
    heads += [f"difference<br>{name.replace('_', ' ')}" for name in shown[:2] if len(sides) > 1]
    heads += ["not scored"]
    columns = "".join(f"<th{_number(i)}>{head}</th>" for i, head in enumerate(heads))
    rows = "".join(_row(result, period, shown) for period in result.periods)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"


def _row(result: Backtest, period: Period, shown: Sequence[str]) -> str:
    coverage = f" <small>{period.coverage:.0%}</small>" if period.coverage is not None else ""
    state = shown_state(period, result.spec.min_rows)
    note = "" if state == "ok" else f"<br><small>{escape(state)}</small>"
    cells = [f"<td>{period.window.start:%Y-%m-%d %H:%M}{note}</td>"]
    cells += [
        f'<td class="number">{text}</td>' for text in (f"{period.events:,}", f"{period.labelled:,}{coverage}")
    ]
    cells += [_estimate(side.metrics.get(name)) for name in shown for side in period.sides]
    if len(period.sides) > 1:
        cells += [_change(name, period.difference.get(name)) for name in shown[:2]]
    unscored = " / ".join(f"{sum(side.unscored.values()):,}" for side in period.sides)
    cells.append(f'<td class="number">{unscored}</td>')
    return f"<tr{' class=marked' if period.trained_on else ''}>{''.join(cells)}</tr>"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return '<td class="number"></td>'
    bounds = ""
    if estimate.low is not None and estimate.high is not None:
        bounds = f"<br><small>{estimate.low:.3g} to {estimate.high:.3g}</small>"
    return f'<td class="number">{estimate.value:.3g}{bounds}</td>'


def _change(name: str, change: Estimate | None) -> str:
    if change is None:
        return '<td class="number"></td>'
    colour = {True: " good", False: " bad", None: ""}[better(name, change)]
    bounds = ""
    if change.low is not None and change.high is not None:
        bounds = f"<br><small>{change.low:+.3g} to {change.high:+.3g}</small>"
    return f'<td class="number{colour}">{change.value:+.3g}{bounds}</td>'


def _calibration(result: Backtest) -> str:
    if result.overall is None or not any(result.overall.calibration):
        return ""
    text = (
        "What the model said against what came true, in tenths of the probability, over all periods without training "
        "rows. On the diagonal the two agree; the larger a point, the more rows."
    )
    return (
        f'<section><h2>Calibration</h2><p class="soft small">{text}</p>'
        f"{reliability_chart(result.overall.calibration)}</section>"
    )


def _left_out(result: Backtest) -> str:
    rows = []
    for place, name in enumerate(names(result)):
        for what, verb in (("unscored", "not scored"), ("remarks", "scored, but")):
            rows += [
                f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td><td>{verb}</td>'
                f'<td class="reason">{escape(reason)}</td></tr>'
                for reason, count in reasons(result.periods, place, what)
            ]
    repeated = sum(period.repeated for period in result.periods)
    if repeated:
        rows.append(
            f'<tr><td>any</td><td class="number">{repeated:,}</td><td>left out</td><td class="reason">they repeat an '
            "event: a shadow's answers, or the same client_request_id again</td></tr>"
        )
    if not rows:
        return ""
    heads = '<th>version</th><th class="number">rows</th><th></th><th>why</th>'
    return (
        '<section><h2>Rows that are missing above</h2><div class="scroll"><table><thead><tr>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _metrics_of(result: Backtest) -> tuple[str, ...]:
    kind = "binary" if "auc" in result.metrics else "regression" if "mae" in result.metrics else "multiclass"
    return _TABLED[kind]


def _number(place: int) -> str:
    return ' class="number"' if place else ""

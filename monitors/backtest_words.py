"""What a back-test says, in sentences: the same ones in the terminal, in MLflow and in the report."""

from __future__ import annotations

from .backtest import LOWER_IS_BETTER, Backtest, Estimate, Period


def names(result: Backtest) -> tuple[str, ...]:
    """Return what to call the versions."""
    return tuple(f"version {version}" for version in result.versions)


def conclusion(result: Backtest) -> str:
    """Return the figures over all periods that may count, and whether they tell the versions apart."""
    overall = result.overall
    if overall is None:
        return (
            "No period without training rows has enough labelled rows that every version could score, so there is "
            "nothing to say over the whole span."
        )
    unit = overall.metric.replace("_", " ")
    said = " and ".join(
        f"{interval(loss)} of {name}" for loss, name in zip(overall.losses, names(result), strict=True)
    )
    text = f"Mean {unit} over {overall.rows:,} rows of {_periods(overall.periods)}: {said}."
    change = overall.difference
    if change is None:
        return text
    if _undecided(change):
        verdict = "the two cannot be told apart"
    else:
        better, worse = names(result) if change.value < 0 else names(result)[::-1]
        verdict = f"{better} is better than {worse}"
    return f"{text} The difference is {interval(change, signed=True)}: {verdict}."


def leak_note(result: Backtest) -> str:
    """Say for each version whether it met rows that it was trained or chosen on, or that nobody knows."""
    said = []
    for place, (name, known) in enumerate(zip(names(result), result.training_known, strict=True)):
        if not known:
            said.append(f"Whether {name} was trained on these rows is {result.training[place]}.")
            continue
        trained = [period.sides[place].training_rows for period in result.periods]
        chosen = sum(period.sides[place].chosen_rows for period in result.periods)
        text = f"{name.capitalize()} was trained on {result.training[place]}; "
        if any(trained):
            periods = sum(rows > 0 for rows in trained)
            text += f"{sum(trained):,} rows in {_periods(periods)} lie in that window: marked, and "
            text += "left out of the figures over all periods."
        else:
            text += "none of the rows that it scored lies in that window."
        if chosen:
            text += f" {chosen:,} rows were the hold-out on which it was chosen, so it looks a little better there."
        said.append(text)
    return " ".join(dict.fromkeys(said))


def shown_state(period: Period, min_rows: int) -> str:
    """Return one short word group about a period: what keeps its numbers from counting, or "ok"."""
    if not period.events:
        return "no rows"
    if not period.labelled:
        return "no labels"
    if period.labelled < min_rows:
        return f"too few labels ({period.labelled} of {min_rows})"
    if not any(side.metrics for side in period.sides):
        return "too few rows could be scored"
    return "in training window" if period.trained_on else "ok"


def better(metric: str, change: Estimate) -> bool | None:
    """Tell whether a difference is surely for the first version (True), for the second (False), or neither."""
    if _undecided(change):
        return None
    return (change.value < 0) == (metric in LOWER_IS_BETTER)


def _undecided(change: Estimate) -> bool:
    return change.low is None or change.high is None or change.low <= 0 <= change.high


def _periods(n: int) -> str:
    return "1 period" if n == 1 else f"{n} periods"


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Write a number with its interval."""
    sign = "+" if signed else ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.4g}"
    return f"{estimate.value:{sign}.4g} ({estimate.low:{sign}.4g} to {estimate.high:{sign}.4g})"

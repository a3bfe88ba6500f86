"""Whether one version can stand in for another: every row that the one takes, the other must take too."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .errors import BadInput
from .model import Scorer, describe
from .schema import Feature, FeatureSchema

# What a challenger may take a champion's feature as without refusing or changing a value; others must be equal.
_ALSO_TAKES = {
    "double": {"double", "float", "integer", "long"},
    "float": {"double", "float", "integer", "long"},
    "long": {"long", "integer"},
}


def check_takes(schema: FeatureSchema, wanted: FeatureSchema, who: str, instead_of: str) -> None:
    """Raise BadInput, with every reason, when rows that fit `wanted` would not all fit `schema`."""
    given = {feature.name: feature for feature in wanted.features}
    reasons = [reason for feature in schema.features if (reason := _complaint(feature, given))]
    if reasons:
        raise BadInput(
            f"{who} cannot be asked what {instead_of} is asked: {'; '.join(reasons)}; register a version that takes "
            "the same features"
        )


def check_stands_in(challenger: Scorer, champion: Scorer) -> None:
    """Let the challenger score the champion's own example, and compare the form of what they answer.

    Raises BadInput when it does not take the champion's features or answers in another form, ModelError when it raises.
    """
    who, instead_of = describe(challenger.ref), describe(champion.ref)
    check_takes(challenger.schema, champion.schema, who, instead_of)
    if challenger.kind != champion.kind:
        raise BadInput(f"{who} predicts a {challenger.kind}, but {instead_of} a {champion.kind}")
    example = champion.input_example
    if example is None or example.num_rows == 0:
        return
    features = challenger.schema.from_table(pa.Table.from_batches([example]))
    forms = [_form(s.predict(rows).native[0]) for s, rows in ((challenger, features), (champion, example))]
    if forms[0] != forms[1]:
        raise BadInput(f"{who} answers {forms[0]} for a row, but {instead_of} {forms[1]}")


def _complaint(feature: Feature, given: dict[str, Feature]) -> str | None:
    theirs = given.get(feature.name)
    if theirs is None:
        return f"it needs a feature {feature.name!r}" if feature.required else None
    if theirs.type not in _ALSO_TAKES.get(feature.type, {feature.type}):
        return f"feature {feature.name!r} is {feature.type} for it, but {theirs.type} is sent"
    if feature.required and not theirs.required:
        return f"feature {feature.name!r} is required by it, but may be left out"
    return None


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return f"the fields {', '.join(map(str, value))}"
    return f"{len(value)} values" if isinstance(value, list) else "one value"

"""Which parts of a model's rows are wanted, as people write them: "carrier, origin, distance>1000 & carrier=UA".

A column alone stands for a slice per category or, of numbers, per quarter. A comparison, or several joined by `&`, is
one slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import model_serializer

from mlflow_flywheel.pipelines.config import Frozen

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
# Names and values may stand in quotes or backticks; inside of these everything is plain text.
_TOKEN = re.compile(
    r"""\s*(?:(["'`])(.*?)\1|(<=|>=|!=|==|=|<|>)|([,&])|([^\s"'`,&=<>!](?:[^"'`,&=<>!]*[^\s"'`,&=<>!])?))\s*""",
    re.DOTALL,
)


class Condition(Frozen):
    """A comparison of a column with a value; numbers are compared as numbers, everything else as text."""

    column: str
    operator: Operator
    value: str

    def __str__(self) -> str:
        return f"{quoted(self.column)}{self.operator}{quoted(self.value)}"


class Slices(Frozen):
    """One entry of the setting: a column to be cut into slices, or the conditions of one slice."""

    column: str = ""
    conditions: tuple[Condition, ...] = ()

    @model_serializer
    def _text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return " & ".join(map(str, self.conditions)) if self.conditions else quoted(self.column)


def parse_slices(value: object) -> object:
    """Read slices from a comma-separated string, or a list of such strings. Raises ValueError for pydantic."""
    if isinstance(value, str):
        return tuple(_entries(value))
    if isinstance(value, (list, tuple)):
        return tuple(made for part in value for made in (_entries(part) if isinstance(part, str) else [part]))
    return value


def _entries(text: str) -> Iterator[Slices]:
    tokens = list(_tokens(text))
    entry: list[tuple[str, str]] = []
    for kind, word in [*tokens, ("mark", ",")]:
        if (kind, word) != ("mark", ","):
            entry.append((kind, word))
        elif entry:
            yield _entry(entry, text)
            entry = []


def _entry(tokens: list[tuple[str, str]], text: str) -> Slices:
    if [kind for kind, _ in tokens] == ["word"]:
        return Slices(column=tokens[0][1])
    conditions = []
    for start in range(0, len(tokens), 4):
        kinds = [kind for kind, _ in tokens[start : start + 4]]
        words = [word for _, word in tokens[start : start + 4]]
        last = start + 4 > len(tokens)
        if kinds[:3] != ["word", "operator", "word"] or (kinds[3:] != ([] if last else ["mark"])):
            raise ValueError(_not_understood(text))
        operator = "=" if words[1] == "==" else words[1]
        conditions.append(
            Condition.model_validate({"column": words[0], "operator": operator, "value": words[2]})
        )
    if len(tokens) % 4 != 3:
        raise ValueError(_not_understood(text))
    return Slices(conditions=tuple(conditions))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    text = text.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(_not_understood(text))
        place = match.end()
        _, quoted, operator, mark, word = match.groups()
        if operator or mark:
            yield ("operator", operator) if operator else ("mark", mark)
        else:
            yield ("word", word if quoted is None else quoted)


def _not_understood(text: str) -> str:
    return (
        f"{text!r} is no list of slices; write columns and comparisons, such as "
        '"carrier, distance>1000, carrier=UA & origin!=JFK"; names and values with other signs in them go in quotes'
    )


def quoted(word: str) -> str:
    """Write a name or value so that it is read back as one word."""
    plain = re.fullmatch(r"""[^\s"'`,&=<>!](?:[^"'`,&=<>!]*[^\s"'`,&=<>!])?""", word)
    quote = next((q for q in "'\"`" if q not in word), None)
    return word if plain or quote is None else f"{quote}{word}{quote}"

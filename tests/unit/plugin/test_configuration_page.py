"""The configuration reference: it is what the code says, key by key."""

from __future__ import annotations

import re
from pathlib import Path

from mlflow_flywheel.plugin.help import markdown
from mlflow_flywheel.plugin.spec import MODES
from mlflow_flywheel.plugin.spec_keys import keys, loop_keys

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == markdown(), (
        "write it again: python -m mlflow_flywheel.plugin.help > docs/configuration.md"
    )


def test_every_key_has_a_row_of_four_cells() -> None:
    _, *sections = re.split(r"^## ", markdown(), flags=re.MULTILINE)
    assert [section.partition("\n")[0] for section in sections] == [*(f"mode={m}" for m in MODES), "The loop"]
    for section, entries in zip(sections, [*map(keys, MODES), loop_keys()], strict=True):
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == [key.name for key in entries]
        assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)

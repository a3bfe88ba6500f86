"""Every key explained, drawn from the specs: `mlflow deployments help -t flywheel`, and docs/configuration.md.

`python -m mlflow_flywheel.plugin.help > docs/configuration.md` writes the latter.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from .spec import MODES
from .spec_keys import Key, keys, loop_keys

_WIDTH = 100
_HEAD = """\
mlflow-flywheel: one model, deployed as web service, stream consumer or batch job, watched and retrained.

Target:  -t flywheel                the home folder is $FLYWHEEL_HOME, or ~/.flywheel
         -t flywheel:/some/folder   the home is that folder

Models:  models:/NAME/3, models:/NAME@champion (followed when the alias moves), runs:/RUN_ID/model, models:/m-...

Examples:
  mlflow deployments create -t flywheel --name late-web -m models:/flight-late@champion -C mode=web -C port=5001
  mlflow deployments create -t flywheel --name late-stream -m models:/flight-late@champion \\
      -C mode=stream -C broker=pulsar://broker:6650 -C input_topic=flights -C output_topic=lateness
  mlflow deployments create -t flywheel --name late-batch -m models:/flight-late@champion \\
      -C mode=batch -C input=flights/ -C output=answers/ -C schedule="0 2 * * *" -C id_column=flight
  mlflow deployments create ... -C loop.retrain_on=performance,labels -C loop.cooldown=7d
  mlflow deployments predict -t flywheel --name late-web -I rows.json
  mlflow deployments update -t flywheel --name late-web -m models:/flight-late/4
  mlflow deployments run-local -t flywheel --name try -m models:/flight-late/4 -C mode=web
  flywheel status
"""


def help_text() -> str:
    """Return the whole help: target, examples, and every key by mode with type, default and meaning."""
    parts = [_HEAD]
    for mode in MODES:
        parts.append(_section(f"Keys of mode={mode} (-C key=value)", keys(mode)))
    parts.append(
        _section(
            "Keys of the loop: how the registered model is watched, whatever its deployments, and what may be done "
            "about it",
            loop_keys(),
        )
    )
    return "\n".join(parts)


_MARKDOWN_HEAD = """\
# What a deployment can be told

Keys are given with `-C key=value` to `mlflow deployments create` and `update`, or as `config={...}` in Python. An
unknown key, or a value that does not fit, is refused with what would; on an update, keys that are not given keep their
values, and an empty value means the default again.

This page is what `mlflow deployments help -t flywheel` prints, to read at leisure.
"""
_LOOP_TEXT = """\
How the registered model is watched, whatever its deployments, and what may be done about it. Given with any deployment
of the model, or with `flywheel loop set MODEL key=value` (there without `loop.`); `flywheel loop show MODEL` shows what
is in force. Durations are written `30d`, `12h` or `90m`; an empty list means none. What the settings do together, and how
to keep them in a file, is in [loop.md](loop.md).
"""


def markdown() -> str:
    """Return the configuration reference of the documentation: a table per mode, and one of the loop."""
    parts = [_MARKDOWN_HEAD]
    for mode in MODES:
        parts.append(f"## mode={mode}\n\n{_table(keys(mode))}")
    parts.append(f"## The loop\n\n{_LOOP_TEXT}\n{_table(loop_keys())}")
    return "\n".join(parts)


def _table(entries: Iterable[Key]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in entries:
        default = key.default if key.default in ("", "required") else f"`{key.default}`"
        cells = (f"`{key.name}`", key.type, default, key.help)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _section(title: str, entries: Iterable[Key]) -> str:
    lines = [*textwrap.wrap(title, _WIDTH), ""]
    for key in entries:
        facts = ", ".join(
            fact for fact in (key.type, f"default {key.default}" if key.default else "") if fact
        )
        facts = facts.replace("default required", "required")
        lines.append(f"  {key.name}" + (f"  ({facts})" if facts else ""))
        lines += textwrap.wrap(key.help, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")

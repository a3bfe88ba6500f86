"""Labels from files into a model's inference table, each file whole and once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mlflow_flywheel.pipelines.batch.inputs import InputFile, find_inputs
from mlflow_flywheel.pipelines.errors import NotFound
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.labels import Taken, take_label_file

from .context import Context

Told = Callable[[str, int, "float | None"], None]
"""Told of a file how many of its labels were read, and which share of it."""


def labelled_table(context: Context, model: str) -> InferenceTable:
    """Return the table that a model's labels go to; raises NotFound before the first deployment."""
    table = InferenceTable.open(context.home.tables, model)
    if not table.exists:
        raise NotFound(f"model {model!r} has no inference table yet; deploy it first")
    return table


def find_label_files(names: Sequence[str]) -> list[InputFile]:
    """Return the files that paths, folders, globs or URLs name; raises NotFound for one that names none."""
    found = []
    for name in names:
        files = find_inputs(name)
        if not files:
            raise NotFound(f"{name!r} holds no label file: none ends with .csv, .csv.gz, .parquet or .jsonl")
        found += files
    return found


def give_labels(
    context: Context,
    model: str,
    files: Sequence[InputFile],
    *,
    skip: bool = False,
    progress: Told = lambda file, rows, read: None,
    done: Callable[[Taken], None] = lambda taken: None,
) -> dict[str, Any]:
    """Take label files one after the other; `done` is told of each that is in the table.

    Returns `accepted`, `rejected` and `files`, and of the whole table `rows`, `labelled` and `unmatched`: labels whose
    prediction is not there. Raises what `take_label_file` raises for the first file that does not fit; those before it
    were taken.
    """
    table = labelled_table(context, model)
    folder = context.home.label_folder(model)
    taken = []
    for file in files:
        tell = _tell_of(file, progress)
        taken.append(take_label_file(table, file, folder, skip=skip, progress=tell))
        done(taken[-1])
    counts = table.counts()
    return {
        "accepted": sum(each.accepted for each in taken),
        "rejected": sum(each.rejected for each in taken),
        "files": [asdict(each) for each in taken],
        "rows": counts.answered,
        "labelled": counts.labelled,
        "unmatched": table.unmatched_feedback(),
    }


def _tell_of(file: InputFile, progress: Told) -> Callable[[int, float | None], None]:
    return lambda rows, read: progress(file.path, rows, read)

"""Folders of this machine in which labels arrive: who is told to watch them, and the daemon's watch.

A folder is remembered in the home, beside what became of each of its files: a journal by path, size and modification
time, so that a file is read once, and again when another one takes its place. A file is taken when two looks in a row
found it the same. One that does not fit is set aside: left where it is, told in `flywheel status`, and not tried again
until it changes. A kill between the commit of a file and its line in the journal costs a second hash of its bytes; its
labels are in the table once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.batch.inputs import InputFile, find_inputs, is_delta
from mlflow_flywheel.pipelines.batch.locations import Location, is_remote
from mlflow_flywheel.pipelines.batch.state import Journal
from mlflow_flywheel.pipelines.config import OnError
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.labels import take_label_file

from .home import Home

_log = logging.getLogger(__name__)
_FOLDERS = "folders"
_SHOWN = 3
# Looking around may take this share of the time, however many files there are.
_SHARE = 0.05


@dataclass(frozen=True)
class LabelFolder:
    """A folder that is watched for labels of a model; what to do with rows that are none."""

    model: str
    folder: str
    on_error: OnError

    def memo(self, home: Home) -> Path:
        """Return the file that remembers it; the journal is beside it."""
        name = hashlib.sha256(self.folder.encode()).hexdigest()[:16]
        return home.label_folder(self.model) / _FOLDERS / f"{name}.json"


def watch_folder(home: Home, model: str, folder: str, on_error: OnError) -> LabelFolder:
    """Remember a folder, for the daemon to watch; one that is watched already takes the new `on_error`.

    Raises BadInput for what is no folder of this machine.
    """
    if is_remote(folder):
        raise BadInput(
            f"{folder!r} is no folder of this machine, and only such are watched; 'flywheel feedback NAME {folder}' takes "
            "the files that are there now"
        )
    place = Location.of(folder)
    if not place.is_folder or is_delta(place):
        raise BadInput(f"{folder!r} is no folder of files; make it, or name the one in which labels arrive")
    watched = LabelFolder(model, place.path, on_error)
    memo = watched.memo(home)
    memo.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = memo.with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(watched)))
    unfinished.replace(memo)
    return watched


def stop_watching(home: Home, model: str, folder: str) -> LabelFolder:
    """Forget a folder; what became of its files is kept. Raises NotFound when it is not watched."""
    path = Location.of(folder).path
    for watched in watched_folders(home):
        if (watched.model, watched.folder) == (model, path):
            watched.memo(home).unlink(missing_ok=True)
            return watched
    known = ", ".join(each.folder for each in watched_folders(home) if each.model == model)
    raise NotFound(f"folder {path!r} is not watched for labels of {model!r}; watched: {known or 'none'}")


def watched_folders(home: Home) -> list[LabelFolder]:
    """Return the folders of all models that are to be watched."""
    memos = sorted(home.labels.glob(f"*/{_FOLDERS}/*.json"))
    return [LabelFolder(**json.loads(memo.read_text())) for memo in memos]


class FolderWatch:
    """The daemon's watch over all label folders of a home; one process at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._states: dict[LabelFolder, _State] = {}
        self._rest_until = 0.0

    def look(self) -> None:
        """Take what is new and complete in every folder.

        Raises, at the end, the first trouble that may pass: a folder or a table that is away.
        """
        started = time.monotonic()
        if started < self._rest_until:
            return
        trouble: FlywheelError | None = None
        watched = watched_folders(self._home)
        for folder in watched:
            state = self._states.setdefault(folder, _State(self._home, folder))
            try:
                state.look()
            except FlywheelError as error:
                trouble = trouble or error
        for gone in self._states.keys() - set(watched):
            self._states.pop(gone).close()
        now = time.monotonic()
        self._rest_until = now + (now - started) / _SHARE
        if trouble is not None:
            raise trouble

    def views(self) -> list[dict[str, Any]]:
        """Return what became of each folder's files, for people and scripts."""
        return [state.view() for state in list(self._states.values())]


class _State:
    """One folder: what became of its files, and what the last look found."""

    def __init__(self, home: Home, watched: LabelFolder) -> None:
        self._home = home
        self._watched = watched
        self._journal = Journal(watched.memo(home).with_suffix(".jsonl"))
        self._known = {(line["file"], line["size"], line["stamp"]) for line in self._journal.entries}
        self._before: set[tuple[str, int, int]] = set()

    def close(self) -> None:
        self._journal.close()

    def look(self) -> None:
        fresh = [file for file in find_inputs(self._watched.folder) if file.identity not in self._known]
        still = [file for file in fresh if file.identity in self._before]
        self._before = {file.identity for file in fresh}
        for file in sorted(still, key=lambda file: (file.stamp, file.path)):
            self._remember(file, self._take(file))

    def _take(self, file: InputFile) -> dict[str, Any]:
        model, folder = self._watched.model, self._home.label_folder(self._watched.model)
        table = InferenceTable.open(self._home.tables, model)
        try:
            taken = take_label_file(table, file, folder, skip=self._watched.on_error == "skip")
        except FlywheelError as error:
            if error.retryable:
                raise
            reason = error.message
        except Exception as error:  # noqa: BLE001 - whatever it was, the other files must go on
            _log.exception("label file %s", file.path)
            reason = f"{type(error).__name__}: {error}"
        else:
            _log.info("%d labels of %s from %s", taken.accepted, model, file.path)
            return {name: value for name, value in asdict(taken).items() if name != "file" and value}
        _log.warning("%s", reason)
        return {"error": reason}

    def _remember(self, file: InputFile, outcome: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        path, size, stamp = file.identity
        self._journal.append({"file": path, "size": size, "stamp": stamp, "time": now, **outcome})
        self._known.add(file.identity)

    def view(self) -> dict[str, Any]:
        lines = self._journal.entries
        # a file that was set aside and then replaced is no trouble any more
        last = {line["file"]: line for line in lines}
        aside = [line for line in last.values() if "error" in line or "rejects" in line]
        return {
            **asdict(self._watched),
            "files": sum("error" not in line for line in lines),
            "accepted": sum(line.get("accepted", 0) for line in lines),
            "rejected": sum(line.get("rejected", 0) for line in lines),
            "files_set_aside": sum("error" in line for line in last.values()),
            "set_aside": [
                {"file": line["file"], "reason": line.get("error"), "rejects": line.get("rejects")}
                for line in aside[-_SHOWN:]
            ],
        }

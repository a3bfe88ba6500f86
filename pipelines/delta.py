"""Append-only Delta tables with exactly-once commits: the only import of deltalake.

delta-rs does not refuse a repeated (application id, version): it writes the rows twice. So an append looks the
versions up first and writes through the very handle it looked at; then a racing writer gets a conflict, and the loop
here looks again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from .commits import Commit, GrowingCommit, HeldCommit
from .durable import sync
from .errors import Unavailable
from .parquet_parts import Part, PartWriter
from .stores import table_files
from .times import EPOCH

_ATTEMPTS = 50
_CONFIGURATION = {
    # a commit every second or two makes a long log, and a long log makes every commit slow: keep an hour of it
    "delta.logRetentionDuration": "interval 1 hours",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.checkpointInterval": "100",
}
# what append-only tables of ours ask of their writers; more would be constraints, generated columns and the like
_PLAIN_WRITER = 2
_MANY_FILES = 100
_SMALL_FILE = 32 * 1024 * 1024


class DeltaLog:
    """One Delta table that only ever grows."""

    def __init__(self, uri: str, partition_by: str | None = None, statistics: tuple[str, ...] = ()) -> None:
        self.uri = uri
        self._partition_by = partition_by
        self._statistics = statistics

    def pinned(self) -> DeltaLog:
        """Return the table as it is now, for readers: what is appended later is not seen."""
        return _PinnedLog(self)

    @property
    def exists(self) -> bool:
        return DeltaTable.is_deltatable(self.uri)

    def ensure(self, schema: pa.Schema) -> pa.Schema:
        """Create the table, or add the columns that it lacks; return its schema."""
        for _ in range(_ATTEMPTS):
            try:
                if not self.exists:
                    configuration = dict(_CONFIGURATION)
                    if self._statistics:
                        configuration["delta.dataSkippingStatsColumns"] = ",".join(self._statistics)
                    if self._is_local:
                        Path(self.uri).mkdir(parents=True, exist_ok=True)
                    DeltaTable.create(
                        self.uri,
                        schema,
                        mode="ignore",
                        partition_by=self._partition_by,
                        configuration=configuration,
                    )
                table = DeltaTable(self.uri)
                have = _schema_of(table)
                if not set(schema.names) <= set(have.names):
                    write_deltalake(table, schema.empty_table(), mode="append", schema_mode="merge")
                    continue
                return have
            except (CommitFailedError, DeltaError) as error:
                last = error
                time.sleep(0.02)
        raise Unavailable(f"table {self.uri!r} cannot be created: {last}")

    def schema(self) -> pa.Schema:
        """Return the table's Arrow schema."""
        return _schema_of(self._open())

    def append(self, rows: pa.Table, transactions: Mapping[str, int]) -> bool:
        """Append rows unless every one of the transactions was committed before; return whether it was done now.

        `transactions` maps application ids to versions that only grow. A caller whose rows belong to several of them
        must ask `committed` first and leave out what is there.
        Raises Unavailable when the table stays away or under contention for too long.
        """

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            write_deltalake(table, rows, mode="append", schema_mode="merge", commit_properties=properties)

        if not self._commit(write, transactions):
            return False
        if self._is_local:
            os.sync()  # delta-rs does not fsync
        return True

    def growing_commit(self, name: str, app: str, version: int) -> Commit:
        """Begin a commit whose rows come in batches.

        Its files are named by `name`, which must belong to this transaction alone: an attempt that was killed leaves
        files that the next one replaces. One process at a time may try it.
        """
        table = self._open()
        if _committed(table, app) >= version:
            return HeldCommit(lambda rows: False)
        ours = [self._partition_by] if self._partition_by is not None else []
        if table.metadata().partition_columns != ours or table.protocol().min_writer_version > _PLAIN_WRITER:
            return HeldCommit(lambda rows: self.append(rows, {app: version}))
        files: fs.FileSystem = (
            self._local_files
            if self._is_local
            else fs.PyFileSystem(DeltaStorageHandler.from_table(table._table))
        )
        parts = PartWriter(files, name, self._partition_by, self._statistics)
        return GrowingCommit(parts, lambda done: self._add(done, {app: version}))

    def _add(self, parts: list[Part], transactions: Mapping[str, int]) -> bool:
        actions: list[AddAction | RemoveAction] = [self._action(part) for part in parts]
        columns = [self._partition_by] if self._partition_by is not None else []
        if self._is_local:
            _sync_names(Path(self.uri, part.path) for part in parts)

        def write(table: DeltaTable, properties: CommitProperties) -> None:
            table.create_write_transaction(
                actions, "append", table.schema(), partition_by=columns, commit_properties=properties
            )

        done = self._commit(write, transactions)
        if done and self._is_local:
            _sync_names(Path(self.uri, "_delta_log").glob(f"{self.version():020}.json"))
        return done

    def _action(self, part: Part) -> AddAction:
        values: dict[str, str | None] = {self._partition_by: part.partition} if self._partition_by else {}
        known = {name: bounds for name, bounds in part.bounds.items() if bounds[0] is not None}
        statistics = {
            "numRecords": part.rows,
            "minValues": {name: _in_json(low) for name, (low, _, _) in known.items()},
            "maxValues": {name: _in_json(high) for name, (_, high, _) in known.items()},
            "nullCount": {name: nulls for name, (_, _, nulls) in part.bounds.items()},
        }
        now = int(time.time() * 1000)
        return AddAction(part.path, part.size, values, now, True, json.dumps(statistics))

    def _commit(
        self, write: Callable[[DeltaTable, CommitProperties], None], transactions: Mapping[str, int]
    ) -> bool:
        """Write through a handle that shows none of the transactions; return False when one shows them all."""
        last: Exception | None = None
        for attempt in range(_ATTEMPTS):
            table = self._open()
            if transactions and all(
                _committed(table, app) >= version for app, version in transactions.items()
            ):
                return False
            now = int(time.time() * 1000)
            properties = CommitProperties(
                app_transactions=[Transaction(app, version, now) for app, version in transactions.items()]
            )
            try:
                write(table, properties)
            except CommitFailedError as error:
                last = error
                time.sleep(min(0.01 * 2**attempt, 0.5))
                continue
            except DeltaError as error:
                if "Metadata changed" not in str(error) and "concurrent" not in str(error).lower():
                    raise Unavailable(f"table {self.uri!r} cannot be written: {error}") from error
                last = error
                continue
            return True
        raise Unavailable(f"table {self.uri!r} was contended {_ATTEMPTS} times in a row: {last}")

    def committed(self, apps: list[str]) -> dict[str, int]:
        """Return the last committed version of each application id; -1 for none."""
        table = self._open()
        return {app: _committed(table, app) for app in apps}

    def dataset(self, version: int | None = None) -> Any:
        """Return a pyarrow dataset of the newest snapshot, or of an older one that is still kept."""
        table = self._open()
        if version is not None:
            table.load_as_version(version)
        # Python's file system, which delta-rs would give, asks Arrow's threads for the interpreter's lock: DuckDB opens
        # scanners while it holds that, and the two wait for each other for ever
        files = self._local_files if self._is_local else table_files(self.uri)
        return table.to_pyarrow_dataset(filesystem=files)

    def local_files(self) -> list[str]:
        """Return the Parquet files of the newest snapshot; none for a table that is in no folder of this machine."""
        if not self._is_local:
            return []
        # delta-rs itself would spell them as URLs
        paths = pa.table(self._open().get_add_actions(flatten=True)).column("path").to_pylist()
        return [f"{self.uri}/{path}" for path in paths]

    def version(self) -> int:
        """Return the number of the newest commit."""
        return int(self._open().version())

    def written(self) -> datetime | None:
        """Return when the newest commit was made; None where its writer did not say."""
        newest = next(iter(self._open().history(1)), {}).get("timestamp")
        return None if newest is None else EPOCH + timedelta(milliseconds=newest)

    def maintain(self) -> bool:
        """Compact many small files into few, and remove what no reader needs any more; return whether it was due."""
        table = self._open()
        sizes = table.get_add_actions(flatten=True)
        small = sum(1 for size in pa.table(sizes).column("size_bytes").to_pylist() if size < _SMALL_FILE)
        if small < _MANY_FILES:
            return False
        try:
            table.optimize.compact()
            table.create_checkpoint()
            table.vacuum(retention_hours=1, dry_run=False, enforce_retention_duration=False, full=False)
            table.cleanup_metadata()
        except CommitFailedError:
            return False  # a writer was faster; the next round comes
        return True

    @property
    def _is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def _local_files(self) -> fs.FileSystem:
        return fs.SubTreeFileSystem(self.uri, fs.LocalFileSystem())

    def _open(self) -> DeltaTable:
        try:
            return DeltaTable(self.uri)
        except TableNotFoundError:
            raise Unavailable(f"table {self.uri!r} does not exist yet; deploy the model first") from None
        except (DeltaError, OSError) as error:
            raise Unavailable(f"table {self.uri!r} cannot be read: {error}") from error


class _PinnedLog(DeltaLog):
    """One snapshot of a table, opened once."""

    def __init__(self, log: DeltaLog) -> None:
        super().__init__(log.uri, log._partition_by, log._statistics)
        self._table = log._open()

    def dataset(self, version: int | None = None) -> Any:
        return self._dataset if version is None else DeltaLog(self.uri).dataset(version)

    def _open(self) -> DeltaTable:
        return self._table

    @cached_property
    def _dataset(self) -> Any:
        return super().dataset()


def _sync_names(paths: Iterable[Path]) -> None:
    """Make files, and their names in their folders, survive a power cut: delta-rs does not."""
    files = list(paths)
    for path in {*files, *(path.parent for path in files)}:
        sync(path)


def _in_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value


def _committed(table: DeltaTable, app: str) -> int:
    version = table.transaction_version(app)
    return -1 if version is None else int(version)


def _schema_of(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())

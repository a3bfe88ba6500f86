"""Append-only Delta tables with exactly-once commits: the only import of deltalake.

delta-rs does not refuse a repeated (application id, version): it writes the rows twice. So an append looks the
versions up first and writes through the very handle it looked at; then a racing writer gets a conflict, and the loop
here looks again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from .errors import Unavailable

_ATTEMPTS = 50
_CONFIGURATION = {
    # a commit every second or two makes a long log, and a long log makes every commit slow: keep an hour of it
    "delta.logRetentionDuration": "interval 1 hours",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.checkpointInterval": "100",
}
_MANY_FILES = 100
_SMALL_FILE = 32 * 1024 * 1024


class DeltaLog:
    """One Delta table that only ever grows."""

    def __init__(self, uri: str, partition_by: str | None = None, statistics: tuple[str, ...] = ()) -> None:
        self.uri = uri
        self._partition_by = partition_by
        self._statistics = statistics

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
                write_deltalake(table, rows, mode="append", schema_mode="merge", commit_properties=properties)
            except CommitFailedError as error:
                last = error
                time.sleep(min(0.01 * 2**attempt, 0.5))
                continue
            except DeltaError as error:
                if "Metadata changed" not in str(error) and "concurrent" not in str(error).lower():
                    raise Unavailable(f"table {self.uri!r} cannot be written: {error}") from error
                last = error
                continue
            if self._is_local:
                os.sync()  # delta-rs does not fsync
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
        return table.to_pyarrow_dataset()

    def version(self) -> int:
        """Return the number of the newest commit."""
        return int(self._open().version())

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

    def _open(self) -> DeltaTable:
        try:
            return DeltaTable(self.uri)
        except TableNotFoundError:
            raise Unavailable(f"table {self.uri!r} does not exist yet; deploy the model first") from None
        except (DeltaError, OSError) as error:
            raise Unavailable(f"table {self.uri!r} cannot be read: {error}") from error


def _committed(table: DeltaTable, app: str) -> int:
    version = table.transaction_version(app)
    return -1 if version is None else int(version)


def _schema_of(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())

"""The SQL database as the records use it: short transactions that several processes may run at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, MetaData, create_engine, event, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator

from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra, Unavailable

_BUSY_SECONDS = 30
_SCHEMA_LOCK = 0x666C79  # any constant: PostgreSQL's advisory lock around CREATE TABLE


class Utc(TypeDecorator[datetime]):
    """A point in time: goes in with any time zone, comes out in UTC (SQLite keeps none)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise BadInput(f"time {value.isoformat()!r} has no time zone; give it in UTC")
        return value.astimezone(timezone.utc)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        aware: datetime = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return aware.astimezone(timezone.utc)


class Database:
    """Sessions on one database, whose tables are made on first use.

    A writing session takes SQLite's write lock when it begins, so what it reads cannot change before it writes, and
    waiting writers queue instead of failing. Raises BadInput for a URL that is none, Unavailable for a database that
    does not answer.
    """

    def __init__(self, url: str, metadata: MetaData) -> None:
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(flywheel_write=True)
        with self._answering(), self._writer.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            metadata.create_all(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads."""
        with self._answering(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that commits at its end, or rolls back when its body raises."""
        with self._answering(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if type(error) not in (
                OperationalError,
                DatabaseError,
            ):  # others are mistakes of ours, not its state
                raise
            raise Unavailable(
                f"the record database {self._engine.url.render_as_string(hide_password=True)} does not answer: "
                f"{error.orig}"
            ) from error


def utc_now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(timezone.utc)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise BadInput(f"database {parsed.render_as_string()!r}: only sqlite and postgresql URLs work")
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(url, parsed.database)
        return create_engine(url, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadInput(
            f"FLYWHEEL_DATABASE_URL is not a database URL ({error}); give sqlite:///path or postgresql+psycopg://..."
        ) from None
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the database driver {error.name!r}", "postgresql") from None


def _sqlite(url: str, file: str | None) -> Engine:
    if not file or file == ":memory:":
        raise BadInput("the record database must be a file: several processes share it; give sqlite:///path")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the folder of the record database {file!r} cannot be made: {error.strerror}; set FLYWHEEL_DATABASE_URL "
            "to a file that you can write"
        ) from None
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("flywheel_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine

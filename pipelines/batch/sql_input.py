"""The result of a SQL query as a Parquet file of the job's own: the only import of SQLAlchemy in the data plane.

A database goes on changing while a job runs, is killed and is started again. So the result is first written down, in
bounded memory, and the job reads that: each row has one place, and keeps it.
"""

from __future__ import annotations

import decimal
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlflow_flywheel.pipelines.durable import sync
from mlflow_flywheel.pipelines.errors import BadInput, MissingExtra, Unavailable, nearest
from mlflow_flywheel.pipelines.parquet_parts import open_parquet
from mlflow_flywheel.pipelines.schema import TIMESTAMP, FeatureSchema

from .sql_narrowing import Narrowing

_ROWS_PER_FETCH = 20_000
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_DRIVERS = {"psycopg": "postgresql", "psycopg2": "postgresql"}


def save_query(
    url: str, query: str, schema: FeatureSchema, target: Path, narrowing: Narrowing | None = None
) -> Any:
    """Write the result of a query to a Parquet file, complete or not at all; return its last mark, if it has rows.

    A narrowing that comes in order has a mark: the last value of its column.
    `url` is SQLAlchemy's; ${NAME} in it stands for an environment variable, whose value no message shows. Features
    have the types of `schema`, other columns those of their first rows. Raises BadInput for a query or a value that
    does not fit, and Unavailable when the database does not answer.
    """
    asked = _Asked(query, narrowing)
    partial = target.with_suffix(".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = None
    try:
        for rows in _fetched(url, asked, schema):
            if written is None:
                written = open_parquet(str(partial), rows)
            written.write_table(rows)
    except BaseException:
        if written is not None:
            written.close()
        partial.unlink(missing_ok=True)
        raise
    assert written is not None, "a result has columns even when it has no rows"
    written.close()
    sync(partial)
    partial.replace(target)
    return asked.last_mark


class _Asked:
    """A query as the database is asked it, and the last mark that came: it is the largest in the database's order."""

    def __init__(self, query: str, narrowing: Narrowing | None) -> None:
        self._query = query
        self._narrowing = narrowing
        self.last_mark: Any = None

    def result(self, connection: Any) -> Any:
        from sqlalchemy import text

        whole, some = self._query, self._narrowing
        if some is None:
            return connection.execute(text(whole))
        column = connection.dialect.identifier_preparer.quote(some.column)
        # the line break ends a comment that the query may end with
        rows = f"({whole.rstrip().rstrip(';')}\n) AS flywheel_rows"
        condition = some.condition(column, self._value(connection, rows) if some.by_kind else None)
        if condition is None:
            return connection.execute(text(whole))
        order = f" ORDER BY {column}" if some.in_order else ""
        return connection.execute(text(f"SELECT * FROM {rows} WHERE {condition[0]}{order}"), condition[1])

    def _value(self, connection: Any, rows: str) -> Any:
        """Return a value of the narrowing's column; None where there is none, or where only the query itself can tell."""
        from sqlalchemy import column, select, text
        from sqlalchemy.exc import DBAPIError

        assert self._narrowing is not None
        named: Any = column(self._narrowing.column)
        try:
            with connection.execute(
                select(named).select_from(text(rows)).where(named.is_not(None)).limit(1)
            ) as found:
                return found.scalar()
        except DBAPIError:
            connection.rollback()
            return None

    def note(self, columns: Sequence[str], rows: Sequence[Any]) -> None:
        if self._narrowing is None:
            return
        column = self._narrowing.column
        if column not in columns:
            raise BadInput(
                f"the query's result has no column {column!r}, the {self._narrowing.role}{nearest(column, columns)}; it "
                f"has: {', '.join(columns)}"
            )
        if self._narrowing.in_order:
            self.last_mark = rows[-1][columns.index(column)]


def check_sql_url(url: str) -> None:
    """Raise BadInput for what is no SQLAlchemy URL, and for a password that is written out in it."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(_VARIABLE.sub("0", url))
    except ArgumentError:
        raise BadInput(
            "query= needs input= to be SQLAlchemy's URL of a database, such as postgresql+psycopg://user:${DB_PASSWORD}"
            "@host/name or sqlite:////folder/file.db"
        ) from None
    if found.password is not None and not _VARIABLE.search(url):
        raise BadInput(
            "the database URL has a password in it, which records would keep; put it into an environment variable and "
            "write ${ITS_NAME} instead"
        )


def _fetched(url: str, asked: _Asked, schema: FeatureSchema) -> Iterator[pa.Table]:
    """Yield the result as tables of one schema, the first one even when it is empty."""
    from sqlalchemy import create_engine

    secrets: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise BadInput(
                f"environment variable {match[1]!r} of the database URL is not set; set it where jobs run"
            )
        secrets.append(value)
        return value

    with _naming_the_database(url, secrets):
        engine = create_engine(_VARIABLE.sub(value_of, url))
        try:
            with engine.connect().execution_options(
                stream_results=True, yield_per=_ROWS_PER_FETCH
            ) as connection:
                result = asked.result(connection)
                types = {feature.name: feature.arrow_type for feature in schema.features}
                columns, first = list(result.keys()), True
                for rows in result.partitions(_ROWS_PER_FETCH):
                    asked.note(columns, rows)
                    table = _table(columns, rows, types)
                    types = dict(zip(table.column_names, table.schema.types, strict=True))
                    yield table
                    first = False
                if first:
                    yield _table(columns, [], types)
        finally:
            engine.dispose()


@contextmanager
def _naming_the_database(url: str, secrets: Sequence[str]) -> Iterator[None]:
    """Translate SQLAlchemy's errors, without what came from the environment."""
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, ProgrammingError, SQLAlchemyError

    def said(error: Exception) -> str:
        words = str(getattr(error, "orig", None) or error).splitlines()[0]
        for secret in filter(None, secrets):
            words = words.replace(secret, "***")
        return words

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in _DRIVERS:
            raise MissingExtra(f"the database driver {error.name!r}", _DRIVERS[error.name]) from None
        raise BadInput(f"database {url!r} needs the Python package {error.name!r}; install it") from None
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadInput(f"input {url!r} is no database URL ({said(error)})") from None
    except DBAPIError as error:
        is_ours = isinstance(error, ProgrammingError) or "no such" in said(error) or "syntax" in said(error)
        kind: Any = BadInput if is_ours else Unavailable
        raise kind(f"the query of database {url!r} failed: {said(error)}") from None
    except SQLAlchemyError as error:
        raise BadInput(f"the query of database {url!r} failed: {said(error)}") from None


def _table(columns: Sequence[str], rows: Sequence[Any], types: dict[str, pa.DataType]) -> pa.Table:
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = [
        _array(name, list(column), types.get(name)) for name, column in zip(columns, values, strict=True)
    ]
    return pa.Table.from_arrays(arrays, names=list(columns))


def _array(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind == TIMESTAMP and any(isinstance(value, str) for value in values):
        kind = pa.string()  # SQLite has no times; they are parsed like those of text files
    if any(isinstance(value, decimal.Decimal) for value in values):
        values = [float(value) if isinstance(value, decimal.Decimal) else value for value in values]
    try:
        found = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"column {name!r} of the query's result must be {kind or 'of one type'}: {reason}"
        ) from None
    return found.cast(pa.string()) if pa.types.is_null(found.type) else found

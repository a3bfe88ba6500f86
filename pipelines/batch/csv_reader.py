"""CSV in Arrow tables: features with the signature's types, other columns with inferred ones.

What counts as a missing value ("", NA, NaN, null, ...) is pandas' list, so that a model is given what it was trained
on when its training data came through `pandas.read_csv`, as MLflow's own batch command would.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.csv as pacsv

from mlflow_flywheel.pipelines.errors import BadInput

from .wanted import Retype, Wanted, misfit, unreadable

_BLOCK_BYTES = 8 * 1024 * 1024
_CONVERSION = re.compile(
    r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to ([^:]+): (.*)", re.DOTALL
)


def read_csv(path: str, wanted: Wanted, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Yield an empty table with the schema, then the rows.

    A column outside the signature has the type that its first block suggests; when a later block does not fit, Retype
    says to read it as text.
    """
    names = _header(path)
    wanted.check_names(path, names)
    columns = wanted.select(names) or names[:1]  # Arrow takes an empty list for "all"
    keys = dict.fromkeys(wanted.keys, pa.string())
    try:
        with pa.input_stream(path) as stream:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types={**keys, **wanted.text_types(), **types},
                    include_columns=columns,
                    strings_can_be_null=True,
                ),
            )
            yield reader.schema.empty_table()
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _complaint(path, wanted, types, columns, error) from None


def _header(path: str) -> list[str]:
    with pa.input_stream(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        try:
            header = next(csv.reader(text), None)
        except (UnicodeDecodeError, csv.Error) as error:
            raise unreadable(path, "csv", error) from None
    if header is None:
        raise BadInput(f"input file {path!r} is empty: a CSV file needs at least its header line")
    return header


def _complaint(
    path: str, wanted: Wanted, types: Mapping[str, pa.DataType], columns: list[str], error: pa.ArrowInvalid
) -> Exception:
    match = _CONVERSION.search(str(error))
    if match is None:
        return unreadable(path, "csv", error)
    name, expected, found = columns[int(match[1])], match[2], match[3]
    complaint = misfit(path, name, expected, found)
    if name in types:
        return complaint
    if name in wanted.whole_numbers():
        return Retype({name: pa.float64()}, complaint)
    return complaint if name in wanted.text_types() else Retype({name: pa.string()}, complaint)

"""The files that training, the gate and the monitors share: labelled rows with plain feature names.

A reference (`flywheel/reference.parquet`), `train.parquet` and `holdout.parquet` have one column per feature under its
own name, and `label`; a reference also has `prediction` and `prediction_proba`. What else a row carries is under a
`flywheel.` name, so that `columns that are no features` can be told without a schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import BadInput, NotFound
from .schema import FeatureSchema

LABEL = "label"
PREDICTION = "prediction"
PREDICTION_PROBA = "prediction_proba"
EVENT_TIME = "flywheel.event_time"
PREDICTION_ID = "flywheel.prediction_id"
WEIGHT = "flywheel.weight"

REFERENCE_ARTIFACT = "flywheel/reference.parquet"
LINEAGE_ARTIFACT = "flywheel/lineage.json"
REFERENCE_TAG = "flywheel.reference"
BASE_TAG = "flywheel.base"
LABEL_TAG = "flywheel.label"
HOLDOUT_START_TAG = "flywheel.holdout_start"

_RESERVED = (LABEL, PREDICTION, PREDICTION_PROBA)


def check_feature_names(schema: FeatureSchema, model: str) -> None:
    """Raise BadInput when a feature has a name that these files need for themselves."""
    for name in schema.names:
        if name in _RESERVED or name.startswith("flywheel."):
            raise BadInput(
                f"{model} has a feature {name!r}, a name that reference and training files use for themselves "
                f"({', '.join(_RESERVED)}, flywheel.*); rename the feature and log the model again"
            )


def write_rows(table: pa.Table, path: Path) -> None:
    """Write labelled rows as Parquet, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read_rows(path: Path, needs: Sequence[str] = ()) -> pa.Table:
    """Read labelled rows.

    Raises NotFound when there is no such file, and BadInput when it is no Parquet file or lacks a column of `needs`.
    """
    if not path.is_file():
        raise NotFound(f"file {str(path)!r} does not exist")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise BadInput(f"file {str(path)!r} is not valid Parquet: {error}") from None
    missing = [name for name in needs if name not in table.column_names]
    if missing:
        raise BadInput(
            f"file {str(path)!r} lacks the column {missing[0]!r}; it has: {', '.join(table.column_names)}"
        )
    return table


def content_hash(table: pa.Table) -> str:
    """Return the sha256 of names, types and values in row order; it does not depend on files, chunks or versions."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(f"{name}\0{column.type}\0{len(column)}\0".encode())
        digest.update(np.packbits(column.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            texts = column.fill_null("")
            digest.update(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
            digest.update("".join(texts.to_pylist()).encode())
        else:
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.int64())
            values = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
            digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
    return digest.hexdigest()

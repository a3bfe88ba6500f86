"""A request that works, for whoever reads the service's own descriptions."""

from __future__ import annotations

import csv
import io
from typing import Any

import orjson

from mlflow_flywheel.pipelines.schema import FeatureSchema
from mlflow_flywheel.pipelines.scoring import ScoringCore

from .responses import to_json
from .tensors import datatype_of

_MADE_UP: dict[str, Any] = {"boolean": True, "string": "text", "datetime": "2026-01-31T12:00:00Z"}


class Example:
    """One row: the first of the model's own input example, or made up of the types where it has none."""

    def __init__(self, core: ScoringCore) -> None:
        self._schema: FeatureSchema = core.scorer.schema
        logged = core.scorer.input_example
        self.made_up = logged is None or logged.num_rows == 0
        if logged is not None and not self.made_up:
            self.row: dict[str, Any] = orjson.loads(to_json(logged.slice(0, 1).to_pylist()[0]))
        else:
            self.row = {feature.name: _MADE_UP.get(feature.type, 1) for feature in self._schema.features}

    @property
    def split(self) -> dict[str, Any]:
        return {"dataframe_split": {"columns": list(self.row), "data": [list(self.row.values())]}}

    @property
    def records(self) -> dict[str, Any]:
        return {"dataframe_records": [self.row]}

    @property
    def instances(self) -> dict[str, Any]:
        return {"instances": [self.row]}

    @property
    def inputs(self) -> dict[str, Any]:
        return {"inputs": {name: [value] for name, value in self.row.items()}}

    @property
    def csv(self) -> str:
        """A missing value is an empty field, as pandas writes it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.row)
        writer.writerow(
            str(value).lower() if isinstance(value, bool) else value for value in self.row.values()
        )
        return text.getvalue()

    @property
    def v2(self) -> dict[str, Any]:
        return {
            "id": "request-1",
            "inputs": [
                {
                    "name": feature.name,
                    "shape": [1],
                    "datatype": datatype_of(feature),
                    "data": [self.row[feature.name]],
                }
                for feature in self._schema.features
            ],
        }

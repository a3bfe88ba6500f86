"""Scikit-learn models as MLflow saves them, read without MLflow: its import takes longer than to score a million rows.

Only what is plain all through is read here. Code beside the model, another function to call, packages of other versions
than the model's (of which MLflow warns) and whatever else is unusual are MLflow's own to load.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .yaml_text import read_yaml

_ODD = (OSError, KeyError, TypeError, ValueError, AttributeError)
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:==([A-Za-z0-9.]+))?")
_FORBIDS_PICKLES = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@dataclass(frozen=True)
class PlainModel:
    """What the files of a model say about it; inputs and outputs are those of its signature."""

    flavors: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]] | None
    example: Mapping[str, Sequence[Any]] | None
    """Columns of values, when it was saved with a data frame."""
    path: Path
    serialization: str
    trusted_types: Sequence[str] | None

    def load(self) -> Any:
        """Return the estimator; raises whatever unpickling it raises."""
        if self.serialization == "skops":
            import skops.io

            return skops.io.load(self.path, trusted=self.trusted_types)
        with self.path.open("rb") as file:
            if self.serialization == "pickle":
                return pickle.load(file)
            import cloudpickle

            return cloudpickle.load(file)


def plain_model(folder: Path) -> PlainModel | None:
    """Read what a model's folder says; None when only MLflow should load it, or say what is wrong with it."""
    try:
        said = read_yaml((folder / "MLmodel").read_bytes())
        generic, own = said["flavors"]["python_function"], said["flavors"]["sklearn"]
        is_plain = (
            generic["loader_module"] == "mlflow.sklearn"
            and generic.get("predict_fn", "predict") == "predict"
            and not generic.keys() & {"code", "config", "data"}
            and generic["python_version"].split(".")[:2] == platform.python_version().split(".")[:2]
            and generic["model_path"] == own["pickled_model"]
            and own.get("code") is None
            and own["serialization_format"] in ("pickle", "cloudpickle", "skops")
            and not said.get("metadata")
            and said["signature"].get("params") is None
            and os.environ.get(_FORBIDS_PICKLES, "true").lower() in ("true", "1")
            and all(map(_is_met, (folder / "requirements.txt").read_text().splitlines()))
        )
        if not is_plain:
            return None
        outputs = said["signature"].get("outputs")
        return PlainModel(
            flavors=said["flavors"],
            inputs=json.loads(said["signature"]["inputs"]),
            outputs=None if outputs is None else json.loads(outputs),
            example=_example(folder, said.get("saved_input_example_info")),
            path=folder / own["pickled_model"],
            serialization=own["serialization_format"],
            trusted_types=own.get("skops_trusted_types"),
        )
    except _ODD:
        return None


def _is_met(requirement: str) -> bool:
    """Tell whether a package is there, in the one version that is asked for; False for any other kind of line."""
    match = _REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        return not requirement.strip()
    try:
        return match[2] in (None, metadata.version(match[1]))
    except metadata.PackageNotFoundError:
        return False


def _example(folder: Path, info: Mapping[str, Any] | None) -> Mapping[str, Sequence[Any]] | None:
    """Return the columns of an input example; raises ValueError for one that only MLflow can read as it was."""
    if info is None:
        return None
    if info.get("params") or (info["type"], info.get("pandas_orient")) != ("dataframe", "split"):
        raise ValueError(info)
    text = (folder / info["artifact_path"]).read_bytes()
    found = json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
    return {name: [row[i] for row in found["data"]] for i, name in enumerate(found["columns"])}

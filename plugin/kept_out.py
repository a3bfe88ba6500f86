"""Features that a model's deployments keep out of the inference table (`log_exclude`): nothing may be made of them."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.pipelines.errors import BadInput

from .records import Records
from .spec import BatchSpec
from .spec_reading import parse_spec


def kept_out(records: Records, model: str) -> dict[str, str]:
    """Return the features that are null in rows of the model, each with a deployment that keeps it out."""
    found: dict[str, str] = {}
    for record in records.deployments(model_name=model):
        spec = parse_spec(record.config)
        if not isinstance(spec, BatchSpec):
            found |= dict.fromkeys(spec.log_exclude, record.name)
    return found


def without(
    rows: pa.Table, reference: Reference | None, features: dict[str, str]
) -> tuple[pa.Table, Reference | None]:
    """Return a window and the reference without these features: that they are null is no drift."""
    logged = [FEATURE_PREFIX + name for name in features]
    if reference is not None:
        known = [name for name in reference.feature_names if name in features]
        reference = replace(reference, table=reference.table.drop_columns(known))
    return rows.drop_columns([name for name in logged if name in rows.column_names]), reference


def check_trainable(records: Records, model: str) -> None:
    """Raise BadInput when the logged rows of a model lack features: a model trained on them would learn the gaps."""
    found = kept_out(records, model)
    if found:
        feature, deployment = next(iter(found.items()))
        raise BadInput(
            f"{model!r} cannot be retrained on its logged rows: deployment {deployment!r} keeps feature {feature!r} out "
            "of the inference table (log_exclude); log it, or train the next version elsewhere and register it"
        )

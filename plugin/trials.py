"""Challengers of web deployments: which version is tried beside the model, and which one should be."""

from __future__ import annotations

from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.pipelines.errors import NotFound

from .context import Context
from .model_files import FetchedModel, fetch_model
from .spec import Spec, WebSpec


def challenger_in_force(context: Context, name: str) -> str | None:
    """Return the version that a web deployment tries beside its model, None when there is none."""
    try:
        challenger = load_config(WebConfig, context.home.config_file(name)).challenger
    except NotFound:
        return None
    return None if challenger is None else challenger.model.version


def challenger_uri(spec: Spec) -> str | None:
    """Return the URI of the version that a deployment is to try, None when it tries none."""
    return spec.challenger if isinstance(spec, WebSpec) else None


def with_challenger(
    context: Context, spec: Spec, model: FetchedModel, version: str | None = None
) -> FetchedModel:
    """Put the spec's challenger beside a model; `version` is one that stays, whatever the URI means by now.

    Raises what `fetch_model` raises, and BadInput for a challenger that could not answer in the model's place.
    """
    uri = challenger_uri(spec)
    if uri is None:
        return model
    return model.beside(fetch_model(context, f"models:/{model.ref.name}/{version}" if version else uri))

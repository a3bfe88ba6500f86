"""Models of a server that is not the one this process would ask by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from support.models import ZooModel

from mlflow_flywheel.pipelines.registry import download_model, resolve_model


@pytest.mark.parametrize("form", ["version", "model_id"])
def test_a_model_comes_from_the_server_that_is_named(
    zoo: Callable[[str], ZooModel],
    tracking_uri: str,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = zoo("regressor")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    uri = model.uri if form == "version" else f"models:/{model.ref.model_id}"
    ref = download_model(resolve_model(uri, tracking_uri), tmp_path / "models", tracking_uri)
    assert (ref.name, ref.version) == (model.ref.name, model.ref.version)
    assert (Path(ref.path) / "MLmodel").exists()

"""What "normal" means for a model version: the labelled sample that it was validated on."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mlflow_flywheel.pipelines.errors import BadInput, NotFound, Unavailable
from mlflow_flywheel.pipelines.training_files import (
    EVENT_TIME,
    LABEL,
    PREDICTION,
    PREDICTION_PROBA,
    REFERENCE_TAG,
    read_rows,
)

from .profile import PROFILE_FILE, Profile, feature_names, make_profile

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

FEATURE_PREFIX = "feature."
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Features by plain name, and beside them `prediction`, `prediction_proba`, `label` and the event time if known."""

    table: pa.Table
    kept_profile: Profile | None = None

    @cached_property
    def profile(self) -> Profile:
        """What the drift monitor compares with: as it was kept beside the reference, or made now."""
        return self.kept_profile or make_profile(self.table)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The features, in the model's order."""
        return feature_names(self.table)

    @property
    def features(self) -> pa.Table:
        """The features alone."""
        return self.table.select(list(self.feature_names))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The features as a pandas frame."""
        frame: pd.DataFrame = self.features.to_pandas()
        return frame

    def outcomes(self) -> pa.Table:
        """Return predictions, labels and event times under the inference table's names."""
        kept = [n for n in (PREDICTION, PREDICTION_PROBA, LABEL, EVENT_TIME) if n in self.table.column_names]
        return self.table.select(kept).rename_columns(["event_time" if n == EVENT_TIME else n for n in kept])


def load_reference(model_name: str, version: str, tracking_uri: str | None = None) -> Reference | None:
    """Return the reference of a registered version, or None when it was registered without one.

    A version's reference never changes, so it is read once per process. Raises NotFound when there is no such version
    and Unavailable when the file that its tag names cannot be read.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri)
    try:
        uri = client.get_model_version(model_name, version).tags.get(REFERENCE_TAG)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFound(
                f"model {model_name!r} has no version {version!r}; the Models page of MLflow lists them"
            ) from error
        raise Unavailable(
            f"model {model_name!r} version {version} cannot be looked up: {error.message}"
        ) from error
    return _read(uri, client.tracking_uri) if uri else None


@lru_cache(maxsize=16)
def _read(uri: str, tracking_uri: str) -> Reference:
    import mlflow

    with tempfile.TemporaryDirectory(prefix="flywheel-reference-") as folder:
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=tracking_uri)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise Unavailable(f"the reference {uri!r} cannot be read: {error}") from error
        table = read_rows(Path(path))
        return Reference(table, _profile(uri, tracking_uri, table, Path(folder)))


def _profile(uri: str, tracking_uri: str, table: pa.Table, folder: Path) -> Profile:
    """Read the profile that is kept beside a reference; make it, and keep it there, when there is none."""
    import mlflow

    beside = f"{uri.rpartition('/')[0]}/{PROFILE_FILE}"
    try:
        path = mlflow.artifacts.download_artifacts(beside, dst_path=str(folder), tracking_uri=tracking_uri)
        return Profile.load(Path(path))
    except (mlflow.exceptions.MlflowException, OSError, BadInput):
        made = make_profile(table)
    run = re.fullmatch(r"runs:/([^/]+)/(.+)/[^/]+", uri)
    if run is not None:
        try:
            keep_profile(mlflow.MlflowClient(tracking_uri), run[1], run[2], made)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            _log.warning("the profile of %s is made again by every process: %s", uri, error)
    return made


def keep_profile(client: MlflowClient, run_id: str, folder: str, profile: Profile) -> None:
    """Keep a profile in the artifact folder of a run that its reference is in."""
    with tempfile.TemporaryDirectory(prefix="flywheel-profile-") as place:
        path = Path(place) / PROFILE_FILE
        profile.save(path)
        client.log_artifact(run_id, str(path), folder)

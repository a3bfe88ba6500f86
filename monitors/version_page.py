"""What a model version's page in the registry says: the newest verdicts as tags, and a link in its description."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_flywheel.pipelines.times import as_utc

from .verdicts import Verdict

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAST_REPORT_TAG = "flywheel.last_report"
VERDICT_TAG = "flywheel.verdict."
# Our paragraph of the description; what people wrote around it is theirs.
_OURS = re.compile(r"\n*\*\*flywheel\*\* as of [^\n]*\n?")


def show_on_version(
    client: MlflowClient, model: str, version: str, as_of: datetime, verdicts: Sequence[Verdict], link: str
) -> None:
    """Set the version's verdict tags (only those that changed) and the paragraph of its description that is ours."""
    found = client.get_model_version(model, version)
    tags = {VERDICT_TAG + v.monitor: v.status for v in verdicts} | {LAST_REPORT_TAG: link}
    for tag, value in tags.items():
        if found.tags.get(tag) != value:
            client.set_model_version_tag(model, version, tag, value)
    said = ", ".join(f"{v.monitor} {v.status}" for v in verdicts)
    ours = f"**flywheel** as of {as_utc(as_of):%Y-%m-%d %H:%M} UTC: {said} ([newest report]({link}))"
    theirs = _OURS.sub("", found.description or "").rstrip()
    client.update_model_version(model, version, f"{theirs}\n\n{ours}" if theirs else ours)

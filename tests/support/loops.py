"""A small world for the loop: a model that was good, traffic through the scoring core, labels that come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.feedback import FeedbackLog
from mlflow_flywheel.pipelines.ids import new_prediction_ids, shadow_prediction_id
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.log_filters import RedactedLog
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.registry import download_model, resolve_model
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore
from mlflow_flywheel.pipelines.spool import SpoolLog
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.registration import register

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
LABEL_DELAY = timedelta(hours=6)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


class LoopWorld:
    """A registered classifier in a home; y follows +a until the concept turns and it follows -a."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.records = Records(home.database_url)
        self.seed = 0

    def close(self) -> None:
        self.records.close()

    def rows(
        self, n: int, *, turned: bool = False
    ) -> tuple[pd.DataFrame, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Return features and labels; about a sixth of the labels is noise."""
        self.seed += 1
        rng = np.random.default_rng(self.seed)
        frame = pd.DataFrame(rng.normal(size=(n, 3)), columns=["a", "b", "c"])
        signal = (-2 if turned else 2) * frame["a"] + frame["b"]
        labels = (rng.random(n) < 1 / (1 + np.exp(-2 * signal))).astype(int).to_numpy()
        return frame, labels

    def register_classifier(
        self, n: int = 600, *, flipped: bool = False, alias: str | None = "champion"
    ) -> str:
        """Train and register a version, on labels that say the opposite when `flipped`; return its number."""
        import mlflow
        from mlflow.models import infer_signature
        from sklearn.linear_model import LogisticRegression

        mlflow.set_tracking_uri(self.home.tracking_uri)
        frame, labels = self.rows(n)
        model = LogisticRegression().fit(frame, 1 - labels if flipped else labels)
        with mlflow.start_run():
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                signature=infer_signature(frame, model.predict(frame)),
                input_example=frame.head(3),
                pip_requirements=["mlflow", "scikit-learn"],  # to infer them takes seconds
            )
        reference, truth = self.rows(n)
        return register(info.model_uri, self.name, reference.assign(y=truth), "y", alias)

    def deploy(self, *names: str, mode: str = "web", **config: str) -> None:
        """Record deployments, as if they were served."""
        for name in names:
            self.records.add_deployment(
                name,
                model_uri=f"models:/{self.name}@champion",
                model_name=self.name,
                mode=mode,
                config={"mode": mode, **config},
                flavor="sklearn",
                version="1",
                status="ready",
            )

    def serve(
        self,
        days: Sequence[int],
        per_day: int,
        *,
        turned: bool = False,
        deployments: Sequence[str] = ("shop-web",),
        mode: str = "web",
        label: int | None = None,
        challenger_shadows: bool | str = False,
        challenger_answers: int = 0,
        log_exclude: Sequence[str] = (),
    ) -> None:
        """Answer traffic of some days by the version in force, and send its labels, true six hours later.

        `challenger_shadows`: a challenger, of this or the same version, is asked each row too; `challenger_answers`: the
        last so many rows of each day are answered by it instead.
        """
        home, scorer = self.home, self.version("@champion")
        tried = self.version(f"/{challenger_shadows}") if isinstance(challenger_shadows, str) else scorer
        log = SpoolLog(home.spool, self.name, scorer.schema, scorer.kind)
        feedback = FeedbackLog(home.spool, self.name, scorer.kind, source="test")
        for number in days:
            for i, deployment in enumerate(deployments):
                frame, truth = self.rows(per_day, turned=turned)
                times: list[datetime | None] = [
                    day(number + (j + i / 2) / per_day / 1.01) for j in range(per_day)
                ]
                ids = new_prediction_ids(per_day)
                batch = scorer.schema.from_columns(frame.to_dict("list"), per_day)
                asked = Request(batch, ids, event_times=times)
                kept = RedactedLog(log, log_exclude)
                core = ScoringCore(scorer, deployment=deployment, mode=mode, log=kept)
                trial = ScoringCore(tried, deployment=deployment, mode=mode, log=kept, variant="challenger")
                heard = per_day - challenger_answers
                core.score(asked.take(range(heard)))
                if challenger_answers:
                    trial.score(asked.take(range(heard, per_day)))
                if challenger_shadows:
                    trial.score(replace(asked, prediction_ids=[shadow_prediction_id(name) for name in ids]))
                labels = truth if label is None else np.full(per_day, label)
                feedback.submit(
                    [
                        {"prediction_id": name, "label": int(y), "label_time": when + LABEL_DELAY}
                        for name, y, when in zip(ids, labels, times, strict=True)
                        if when is not None
                    ]
                )
        log.close()
        feedback.close()
        Committer(home.spool, home.tables).commit_once()

    def version(self, which: str) -> Scorer:
        """Load "/2" or "@champion"."""
        resolved = resolve_model(f"models:/{self.name}{which}", self.home.tracking_uri)
        return load_scorer(download_model(resolved, self.home.models, self.home.tracking_uri))

    def table(self) -> InferenceTable:
        return InferenceTable.open(self.home.tables, self.name)

"""Champions and challengers that follow their aliases, with a registry and a master process that only pretend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_flywheel.pipelines.config import ModelRef, WebConfig, WorkerConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, ModelError, NotFound
from mlflow_flywheel.pipelines.registry import ResolvedModel
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema
from mlflow_flywheel.plugin import operations, rollout, trials
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.model_files import FetchedModel
from mlflow_flywheel.plugin.modes import web
from mlflow_flywheel.plugin.operations import Operations
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.rollout import RollOver, follow_once
from mlflow_flywheel.plugin.views import deployment_view

NAME = "m-web"
TRIAL = {"mode": "web", "challenger": "models:/m@challenger", "challenger_mode": "canary"}


class World:
    """Versions by their features, aliases, and one deployment; versions in `broken` load nowhere."""

    def __init__(self, home: Home) -> None:
        self.features = {"1": "a", "2": "a", "3": "a", "4": "b"}
        self.aliases = {"champion": "1", "challenger": "2"}
        self.broken: set[str] = set()
        self.swaps: list[tuple[str, str | None]] = []
        self.runner: Any = None
        self.context = Context(home, Records(home.database_url), self.runner)
        self.operations = Operations(self.context)
        self.context.records.add_deployment(
            NAME,
            model_uri="models:/m@champion",
            model_name="m",
            mode="web",
            config=TRIAL,
            flavor="sklearn",
            version="1",
            status="ready",
        )
        first = self.fetch(self.context, "models:/m/1").beside(self.fetch(self.context, "models:/m/2"))
        self.config(first).save(home.config_file(NAME))

    def config(self, model: FetchedModel) -> WebConfig:
        return web._config(self.context, NAME, web.WebSpec(**TRIAL), model, 1234, None)  # type: ignore[arg-type]

    def resolve(self, uri: str, tracking_uri: str | None = None) -> ResolvedModel:
        alias = uri.rpartition("@")[2]
        if alias not in self.aliases:
            raise NotFound(f"{uri!r} leads nowhere")
        return ResolvedModel(uri, "m", self.aliases[alias], None)

    def fetch(self, context: Context, uri: str) -> FetchedModel:
        version = uri.rpartition("/")[2] if "@" not in uri else self.resolve(uri).version
        ref = ModelRef(name="m", version=version, path=f"/models/{version}")
        return FetchedModel(
            ref, FeatureSchema([Feature(self.features[version], "double")]), "double", ("sklearn",)
        )

    def swap(self, context: Context, config: WorkerConfig, timeout: float) -> None:
        assert isinstance(config, WebConfig)
        loaded = [config.model.version, *([config.trial.model.version] if config.trial else [])]
        for version in loaded:
            if version in self.broken:
                raise ModelError(f"version {version} has no weights")
        config.save(context.home.config_file(NAME))
        self.swaps.append((config.model.version, config.challenger and config.challenger.model.version))

    def follow(self) -> list[RollOver]:
        return follow_once(self.context.home, self.context.records, self.runner)

    @property
    def present(self) -> tuple[str, str | None]:
        """Return the version that serves and the one that is tried."""
        config = load_config(WebConfig, self.context.home.config_file(NAME))
        assert config.model.version == self.record.version
        return config.model.version, config.challenger and config.challenger.model.version

    @property
    def record(self) -> Any:
        return self.context.records.deployment(NAME)

    @property
    def trial(self) -> dict[str, Any]:
        web_ = web.WebOperations()
        return dict(web_.places(self.context, self.record, web.WebSpec(**TRIAL)))["challenger"]  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(Home(tmp_path / "home").create())
    monkeypatch.setattr(operations, "fetch_model", made.fetch)
    monkeypatch.setattr(trials, "fetch_model", made.fetch)
    monkeypatch.setattr(rollout, "resolve_model", made.resolve)
    monkeypatch.setattr(web, "swap_master", made.swap)
    monkeypatch.setattr(Context, "ensure_daemon", lambda self: None)
    yield made
    made.context.records.close()


def test_nothing_moves_while_no_alias_does(world: World) -> None:
    assert world.follow() == [] and world.swaps == []
    assert world.trial == {
        "model_uri": "models:/m@challenger",
        "version": "2",
        "mode": "canary",
        "state": "active",
        "traffic_percentage": 10.0,
    }


def test_an_alias_that_is_gone_keeps_nobody_from_following_another(world: World) -> None:
    others = {
        "model_name": "m",
        "mode": "web",
        "config": {"mode": "web"},
        "flavor": "sklearn",
        "version": "1",
    }
    world.context.records.add_deployment("other", model_uri="models:/m@staging", status="ready", **others)  # type: ignore[arg-type]
    world.aliases["champion"] = "2"
    assert world.follow() == [RollOver(NAME, "1", "2")]
    assert world.context.records.deployment("other").version == "1"


def test_both_follow_their_aliases_and_a_promoted_challenger_is_idle(world: World) -> None:
    world.aliases["champion"] = "2"
    assert world.follow() == [RollOver(NAME, "1", "2")]
    assert world.present == ("2", "2") and world.trial["state"] == "idle"
    world.aliases["challenger"] = "3"
    assert world.follow() == [RollOver(NAME, "2", "3", role="challenger")]
    assert world.present == ("2", "3") and world.trial["state"] == "active"
    world.aliases |= {"champion": "3", "challenger": "1"}
    assert [(done.role, done.error) for done in world.follow()] == [("champion", None), ("challenger", None)]
    assert world.present == ("3", "1") and world.follow() == []


def test_a_challenger_that_cannot_be_tried_is_refused_once_until_its_alias_moves(world: World) -> None:
    world.broken.add("3")
    world.aliases["challenger"] = "3"
    (refused,) = world.follow()
    assert refused.role == "challenger" and "no weights" in (refused.error or "")
    assert world.present == ("1", "2") and world.trial["version"] == "2"
    assert "stayed as it was: version 3 has no weights" in world.record.message
    assert world.follow() == []
    world.aliases["challenger"] = "4"  # takes another feature: known before anything is started
    (refused,) = world.follow()
    assert "it needs a feature 'b'" in (refused.error or "") and "'b'" in world.record.message
    world.aliases["challenger"] = "2"
    assert world.follow() == [] and world.record.message == ""


@pytest.mark.parametrize("why", ["signature", "loading"])
def test_a_champion_never_waits_for_its_challenger(world: World, why: str) -> None:
    """Its next version takes other features, or the challenger's files are gone: then it goes on without a trial."""
    if why == "signature":
        world.aliases["champion"] = "4"
    else:
        world.aliases["champion"] = "3"
        world.broken.add("2")
    champion, challenger = world.follow()
    assert (champion.role, champion.error, challenger.role) == ("champion", None, "challenger")
    assert challenger.error is not None
    assert world.present == (world.aliases["champion"], None)
    assert world.trial["state"] == "refused" and world.record.status == "ready" and world.record.message
    assert world.follow() == []
    world.aliases["champion"], world.broken = "1", set()  # the next version may suit it again
    assert [done.error for done in world.follow()] == [None, None]
    assert world.present == ("1", "2") and world.trial["state"] == "active" and world.record.message == ""


def test_a_broken_champion_is_refused_and_the_trial_goes_on(world: World) -> None:
    world.broken.add("3")
    world.aliases["champion"] = "3"
    (refused,) = world.follow()
    assert refused.role == "champion" and "no weights" in (refused.error or "")
    assert world.present == ("1", "2") and "no weights" in world.record.message


def test_an_alias_that_is_gone_leaves_the_trial_as_it_is(world: World) -> None:
    del world.aliases["challenger"]
    assert world.follow() == [] and world.present == ("1", "2")
    world.aliases["champion"] = "3"
    assert world.follow() == [RollOver(NAME, "1", "3")]
    assert world.present == ("3", "2")


def test_an_update_keeps_the_version_on_trial_unless_the_challenger_is_named(world: World) -> None:
    world.aliases["challenger"] = "3"
    world.operations.update(NAME, config={"traffic_percentage": "50"})
    assert world.present == ("1", "2") and world.trial["version"] == "2"
    world.operations.update(NAME, config={"challenger": "models:/m@challenger"})
    assert world.present == ("1", "3")
    with pytest.raises(BadInput, match="it needs a feature 'b'"):
        world.operations.update(NAME, config={"challenger": "models:/m/4"})
    assert world.present == ("1", "3")
    world.operations.update(NAME, config={"challenger": ""})
    assert world.present == ("1", None)
    assert "challenger" not in deployment_view_of(world)


def deployment_view_of(world: World) -> dict[str, Any]:
    class Away:
        def status(self, name: str | None = None) -> list[Any]:
            raise NotFound("nothing runs")

    context = Context(world.context.home, world.context.records, Away())  # type: ignore[arg-type]
    return deployment_view(context, world.record, predictions=0)

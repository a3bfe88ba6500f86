"""Who is champion: every move is recorded once and made, over crashes, hands in MLflow's interface, and two at a time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.plugin import approvals
from mlflow_flywheel.plugin.champion import (
    CHAMPION,
    PARENT_TAG,
    ROLLED_BACK_TAG,
    Registry,
    finish_moves,
    move,
    note_move,
)
from mlflow_flywheel.plugin.records import Records

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


@dataclass(frozen=True)
class World:
    """A model with four versions, of which the first is champion, and the records of a home."""

    client: MlflowClient
    registry: Registry
    records: Records
    model: str

    @property
    def champion(self) -> str:
        return self.registry.champion(self.model)

    @property
    def story(self) -> list[tuple[str, str, str, str]]:
        """Return the moves, oldest first: what, from, to, by whom."""
        moves = self.records.moves(self.model)[::-1]
        return [
            (m.kind, m.evidence["before"], m.evidence["after"], m.evidence["requested_by"]) for m in moves
        ]

    def look(self, before: str = "") -> str:
        return note_move(self.records, self.model, NOON, lambda: self.champion, before)

    def promote(self, version: str) -> None:
        approvals.promote(self.records, self.registry, self.model, version, "ada", NOON)

    def rollback(self, **more: str) -> str:
        done = approvals.rollback(self.records, self.registry, self.model, "bob", NOON, **more)
        return str(done.evidence["after"])


@pytest.fixture
def world(tmp_path: Path, tracking_uri: str) -> Iterator[World]:
    client = MlflowClient(tracking_uri)
    model = f"m-{uuid.uuid4().hex[:8]}"
    client.create_registered_model(model)
    for _ in range(4):
        client.create_model_version(model, f"file://{tmp_path}", await_creation_for=None)
    client.set_registered_model_alias(model, CHAMPION, "1")
    records = Records(f"sqlite:///{tmp_path}/records.db")
    yield World(client, Registry(client), records, model)
    records.close()


def test_one_goes_back_step_by_step_and_a_second_click_goes_no_further(world: World) -> None:
    world.promote("2")
    world.promote("3")
    assert world.rollback(expected="3", reason="complaints") == "2"
    with pytest.raises(BadInput, match=r"version 2 is champion of 'm-\w+' by now, not 3"):
        world.rollback(expected="3")
    assert world.rollback() == "1"
    assert world.champion == "1"
    assert "complaints" in world.registry.tags(world.model, "3")[ROLLED_BACK_TAG]
    with pytest.raises(NotFound, match="no promotion of version 1 .* --to VERSION"):
        world.rollback()
    with pytest.raises(NotFound, match="name a version that exists"):
        world.rollback(to="9")
    with pytest.raises(BadInput, match="is the champion already"):
        world.rollback(to="1")
    world.client.set_model_version_tag(world.model, "1", PARENT_TAG, "4")
    assert world.rollback() == "4"  # nobody recorded how the first one came, but its training says from where


def test_a_move_that_nobody_lived_to_make_is_made(world: World) -> None:
    evidence = {"requested_by": "ada"}
    started, new = world.records.add_move("promote", world.model, "1", "2", "a test", evidence, NOON)
    assert new and started.status == "started" and world.champion == "1"
    with pytest.raises(BadInput, match="version 2 is just becoming the champion"):
        world.promote("3")
    world.look()
    for _ in range(2):
        finish_moves(world.records, world.registry)
    assert world.champion == "2" and world.story == [("promote", "1", "2", "ada")]
    # one that was overtaken stays undone
    late, _ = world.records.add_move("promote", world.model, "2", "3", "a test", evidence, NOON)
    world.client.set_registered_model_alias(world.model, CHAMPION, "4")
    finish_moves(world.records, world.registry)
    assert world.champion == "4"
    (overtaken,) = [a for a in world.records.actions(world.model) if a.id == late.id]
    assert overtaken.status == "superseded"
    world.promote("3")
    assert world.story[1:] == [("promote", "2", "4", "MLflow"), ("promote", "4", "3", "ada")]


def test_two_who_ask_for_the_same_at_the_same_time_get_one_move(world: World) -> None:
    world.promote("2")

    def back(_: int) -> int:
        evidence = {"requested_by": "bob"}
        return move(world.records, world.registry, "rollback", world.model, "1", "both", evidence, NOON).id

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(back, range(2)))) == 1
    assert world.champion == "1" and len(world.story) == 2


def test_an_alias_set_by_hand_is_a_move_and_an_approval(world: World) -> None:
    action = world.records.add_action(world.model, "retrain", "labels", {}, NOON, "key")
    world.records.update_action(action, "waiting", {"version": "2", "status": "waiting"})
    world.look(before="1")
    assert world.story == []
    world.client.set_registered_model_alias(world.model, CHAMPION, "2")
    for _ in range(2):
        assert world.look(before="1") == "2"
    assert world.story == [("promote", "1", "2", "MLflow")]
    (settled,) = world.records.actions(world.model, kinds=("retrain",))
    assert settled.status == "promoted" and (settled.result or {})["decided_by"] == "MLflow"
    world.client.set_registered_model_alias(world.model, CHAMPION, "1")
    world.look()
    assert world.story[1:] == [("rollback", "2", "1", "MLflow")]


def test_a_challenger_that_waits_is_rejected_once(world: World) -> None:
    with pytest.raises(NotFound, match="no version of .* waits for approval"):
        approvals.promote(world.records, world.registry, world.model, None, "ada", NOON)
    action = world.records.add_action(world.model, "retrain", "labels", {}, NOON, "key")
    world.records.update_action(action, "waiting", {"version": "2", "status": "waiting"})
    world.client.set_registered_model_alias(world.model, "challenger", "2")
    with pytest.raises(NotFound, match="version 3 of .* does not wait"):
        approvals.reject(world.records, world.registry, world.model, "3", "ada")
    assert approvals.reject(world.records, world.registry, world.model, None, "ada").status == "rejected"
    assert world.registry.aliases(world.model) == {CHAMPION: "1"}
    with pytest.raises(NotFound, match="version 2 of .* does not wait"):
        approvals.reject(world.records, world.registry, world.model, "2", "ada")

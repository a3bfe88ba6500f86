"""Which threads are kept on one core, and which are not."""

from __future__ import annotations

import os
import threading

import pytest

from mlflow_flywheel.pipelines.stream.one_core import OneCore

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinities")


def cores_of_a_new_thread() -> set[int]:
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_and_those_that_it_starts_are_together_but_for_what_is_apart() -> None:
    everywhere = os.sched_getaffinity(0)
    cores = OneCore(7)
    assert os.sched_getaffinity(0) == everywhere
    with cores.together():
        one = os.sched_getaffinity(0)
        assert len(one) == 1 and one <= everywhere
        assert cores_of_a_new_thread() == one
        with cores.apart():
            assert cores_of_a_new_thread() == os.sched_getaffinity(0) == everywhere
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == everywhere


def test_workers_of_one_deployment_share_a_core_only_when_there_are_more_of_them() -> None:
    cores = len(os.sched_getaffinity(0))
    taken = []
    for place in range(100, 100 + cores):
        with OneCore(place).together():
            taken.append(os.sched_getaffinity(0).pop())
    assert len(set(taken)) == cores

"""Warm child processes: one call after another, errors as text, crashes and kills contained, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest
from support import warm_calls
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.plugin.warm_process import CallFailed, WarmProcess


@pytest.fixture
def warm() -> Iterator[WarmProcess]:
    made = WarmProcess("test", idle_seconds=0.2)
    yield made
    made.stop()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_stays_warm_tells_errors_and_survives_a_crash(warm: WarmProcess) -> None:
    first, calls = warm.call(warm_calls.count)
    assert (first, calls) == (warm.pid, 1) and first != os.getpid()
    with pytest.raises(CallFailed, match="no such thing: 'x'"):
        warm.call(warm_calls.refuse, "x")
    with pytest.raises(CallFailed, match="ValueError: told to"):
        warm.call(warm_calls.fail)
    assert warm.call(warm_calls.count) == (first, 2)
    with pytest.raises(Unavailable, match="died"):
        warm.call(warm_calls.crash)
    second, calls = warm.call(warm_calls.count)
    assert second != first and calls == 1 and gone(first)


def test_a_call_that_takes_too_long_is_killed_with_what_it_started(warm: WarmProcess) -> None:
    child, grandchild = warm.call(warm_calls.start_sleeper)
    with pytest.raises(Unavailable, match="longer than 0.5 s"):
        warm.call(warm_calls.hang, timeout=0.5)
    eventually(lambda: gone(child) and gone(grandchild))


def test_it_is_dropped_when_nobody_calls(warm: WarmProcess) -> None:
    child, _ = warm.call(warm_calls.count)

    def dropped() -> bool:
        warm.drop_if_idle()
        return warm.pid is None and gone(child)

    eventually(dropped)


def test_stopping_ends_a_call_in_progress(warm: WarmProcess) -> None:
    warm.call(warm_calls.count)
    outcome: list[Exception] = []

    def wait() -> None:
        try:
            warm.call(warm_calls.hang)
        except Unavailable as error:
            outcome.append(error)

    caller = threading.Thread(target=wait)
    caller.start()
    eventually(lambda: warm.busy)
    warm.stop()
    caller.join(30)
    assert len(outcome) == 1
    with pytest.raises(Unavailable, match="being stopped"):
        warm.call(warm_calls.count)


def test_it_ends_with_a_parent_that_was_killed() -> None:
    code = (
        "from mlflow_flywheel.plugin.warm_process import WarmProcess\n"
        "from support import warm_calls\n"
        "if __name__ == '__main__':\n"
        "    print(*WarmProcess('test').call(warm_calls.start_sleeper), flush=True)\n"
        "    input()\n"
    )
    folder = os.path.dirname(os.path.dirname(warm_calls.__file__))
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folder},
    )
    assert parent.stdout is not None
    child, grandchild = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    eventually(lambda: gone(child) and gone(grandchild))

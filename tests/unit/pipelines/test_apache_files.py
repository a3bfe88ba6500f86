"""Fetching the Apache Pulsar broker: whole or not at all, and every way out is said. Maven is a script here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import eventually

from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.stream import apache_files
from mlflow_flywheel.pipelines.stream.apache_files import VERSION, fetch, find_jars, find_java, pulsar_home

JAR = f"pulsar-broker-{VERSION}.jar"
GOOD_MAVEN = f"""
for each in "$@"; do case $each in -DoutputDirectory=*) lib=${{each#-DoutputDirectory=}};; esac; done
echo once >> "$COUNT"; mkdir -p "$lib"; touch "$lib/{JAR}"
for each in 1 2 3 4 5 6 7 8; do for jar in 1 2 3 4 5; do echo "[INFO] Downloaded from central: x$jar.jar"; done; done
"""


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a PATH of our own with a Java 21 on it, and a cache of our own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "java", "echo 'openjdk version \"21.0.1\" 2023-10-17' >&2")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    for name in ("JAVA_HOME", "FLYWHEEL_PULSAR_HOME"):
        monkeypatch.delenv(name, raising=False)
    apache_files._java_version.cache_clear()
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_it_is_fetched_once_and_tells_how_far_it_is(programs: Path, tmp_path: Path) -> None:
    write_program(programs / "mvn", GOOD_MAVEN)
    said: list[str] = []
    assert fetch(said.append) == fetch(said.append) == find_jars() == pulsar_home() / "lib"
    assert (tmp_path / "count").read_text() == "once\n"
    assert pulsar_home() == tmp_path / "cache/mlflow-flywheel" / f"pulsar-{VERSION}"
    assert "40 jars so far" in said


def test_a_fetch_that_is_killed_leaves_nothing_that_looks_whole(programs: Path) -> None:
    write_program(programs / "mvn", f"{GOOD_MAVEN}\ntouch here; exec sleep 60")
    command = [sys.executable, "-m", "mlflow_flywheel.pipelines.stream.apache_files"]
    process = subprocess.Popen(command, start_new_session=True)
    eventually(lambda: list(pulsar_home().parent.glob(".*fetching-*/here")), what="Maven in the middle of it")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(Unavailable, match="make pulsar"):
        find_jars()
    write_program(programs / "mvn", GOOD_MAVEN)
    fetch()
    assert find_jars().is_dir()
    assert not list(pulsar_home().parent.glob(".*fetching-*"))


def test_what_maven_complains_of_is_passed_on(programs: Path) -> None:
    write_program(programs / "mvn", "echo '[ERROR] could not resolve central'; exit 1")
    with pytest.raises(Unavailable, match=r"exit code 1.*\n.*could not resolve central"):
        fetch()
    assert not pulsar_home().exists()


def test_a_missing_program_is_said_with_the_two_ways_out(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways_out = r"the embedded broker .*broker=pulsar://"
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(Unavailable, match=rf"no mvn on PATH.*{ways_out}"):
        fetch()
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(Unavailable, match=rf"no java in JAVA_HOME='/nowhere'.*{ways_out}"):
        find_java()


@pytest.mark.parametrize(("said", "version"), [("11.0.2", 11), ("1.8.0_402", 8)])
def test_a_java_that_is_too_old_is_named(programs: Path, said: str, version: int) -> None:
    write_program(programs / "java", f"echo 'java version \"{said}\"' >&2")
    with pytest.raises(Unavailable, match=rf"bin/java' is Java {version}; .*broker=pulsar://"):
        find_java()


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLYWHEEL_PULSAR_HOME", str(tmp_path / "chosen"))
    assert pulsar_home() == tmp_path / "chosen"
    with pytest.raises(Unavailable, match="chosen"):
        find_jars()

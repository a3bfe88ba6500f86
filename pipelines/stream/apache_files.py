"""What a real Apache Pulsar broker needs on this machine: Java, and the broker's jars, fetched once by Maven.

`python -m mlflow_flywheel.pipelines.stream.apache_files` (`make pulsar`) fetches the jars into a cache outside of any
repository. The folder appears whole or not at all, however the fetch ends.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_flywheel.pipelines.errors import FlywheelError, Unavailable

VERSION = "4.2.4"
_JARS = 327
_OLDEST_JAVA = 17
_TELL_EVERY = 40
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
WAYS_OUT = (
    "there are two ways without it: the embedded broker (leave out broker= and --apache), or a Pulsar that runs "
    "already (-C broker=pulsar://host:6650)"
)

# The import gives every library the version that Pulsar was built with; without it the broker dies of a mixture.
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>mlflow-flywheel</groupId>
  <artifactId>apache-pulsar</artifactId>
  <version>{VERSION}</version>
  <packaging>pom</packaging>
  <dependencyManagement><dependencies><dependency>
    <groupId>org.apache.pulsar</groupId><artifactId>pulsar</artifactId><version>{VERSION}</version>
    <type>pom</type><scope>import</scope>
  </dependency></dependencies></dependencyManagement>
  <dependencies><dependency>
    <groupId>org.apache.pulsar</groupId><artifactId>pulsar-broker</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""


def pulsar_home() -> Path:
    """Return the folder of the broker's jars: `$FLYWHEEL_PULSAR_HOME`, or one in the user's cache."""
    chosen = os.environ.get("FLYWHEEL_PULSAR_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "mlflow-flywheel" / f"pulsar-{VERSION}"


def find_jars() -> Path:
    """Return the folder with the broker's jars. Raises Unavailable, with how to get them and the ways without."""
    folder = pulsar_home() / "lib"
    if not _is_complete(folder):
        raise Unavailable(
            f"Apache Pulsar {VERSION} is not at {str(folder.parent)!r}; fetch it with 'make pulsar', or with "
            f"'{Path(sys.executable).name} -m {_MODULE}' (Maven and 240 MB are needed); {WAYS_OUT}"
        )
    return folder


def find_java() -> Path:
    """Return a Java that runs the broker: that of `$JAVA_HOME`, else the one on PATH.

    Raises Unavailable, with the ways out, when there is none or when it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    where = f"in JAVA_HOME={home!r}" if home else "on PATH"
    if found is None:
        raise Unavailable(
            f"Apache Pulsar needs Java {_OLDEST_JAVA} or newer, and there is no java {where}; install one "
            f"(apt-get install openjdk-{_OLDEST_JAVA}-jre-headless); {WAYS_OUT}"
        )
    version = _java_version(found)
    if version < _OLDEST_JAVA:
        raise Unavailable(
            f"Apache Pulsar needs Java {_OLDEST_JAVA} or newer, and {found!r} is Java {version or 'of no known version'}"
            f"; install a newer one, or name it by JAVA_HOME; {WAYS_OUT}"
        )
    return Path(found)


def fetch(say: Callable[[str], None] = lambda text: None) -> Path:
    """Fetch the jars unless they are there, and return their folder; `say` hears of the progress.

    Several fetches at once wait for each other. Raises Unavailable without Java or Maven, or with what Maven said.
    """
    home = pulsar_home()
    find_java()
    with _alone(home):
        if not _is_complete(home / "lib"):
            _fetch_into(home, _find_maven(), say)
    return home / "lib"


def _fetch_into(home: Path, maven: str, say: Callable[[str], None]) -> None:
    for left in home.parent.glob(f".{home.name}.fetching-*"):
        shutil.rmtree(left, ignore_errors=True)  # of a fetch that was killed: nobody else is here now
    with tempfile.TemporaryDirectory(prefix=f".{home.name}.fetching-", dir=home.parent) as folder:
        lib = Path(folder, "lib")
        Path(folder, "pom.xml").write_text(_POM)
        say(f"fetching Apache Pulsar {VERSION} with Maven: {_JARS} jars, 240 MB")
        command = [
            maven,
            "-B",
            "-Dstyle.color=never",
            _COPY,
            f"-DoutputDirectory={lib}",
            "-DincludeScope=runtime",
        ]
        _run_maven(command, folder, say)
        if not _is_complete(lib):
            raise Unavailable(f"Maven ended well, but there is no {_BROKER_JAR} among what it fetched")
        home.mkdir(exist_ok=True)
        shutil.rmtree(home / "lib", ignore_errors=True)
        lib.rename(home / "lib")
    say(f"Apache Pulsar {VERSION} is at {home}")


def _run_maven(command: list[str], folder: str, say: Callable[[str], None]) -> None:
    jars, errors = 0, deque[str](maxlen=8)
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as maven:
        assert maven.stdout is not None
        try:
            for line in maven.stdout:
                if "Downloaded from" in line and ".jar" in line:
                    jars += 1
                    if jars % _TELL_EVERY == 0:
                        say(f"{jars} jars so far")
                elif "ERROR" in line:
                    errors.append(line.strip())
        except BaseException:
            maven.terminate()
            raise
    if maven.returncode != 0:
        said = "\n".join(errors) or "it says nothing"
        raise Unavailable(
            f"Maven could not fetch Apache Pulsar {VERSION} (exit code {maven.returncode}):\n{said}"
        )


def _find_maven() -> str:
    found = shutil.which("mvn")
    if found is None:
        raise Unavailable(
            f"Apache Pulsar {VERSION} is fetched with Maven, and there is no mvn on PATH; install it "
            f"(apt-get install maven); {WAYS_OUT}"
        )
    return found


@functools.lru_cache
def _java_version(java: str) -> int:
    """Return the major version, 0 when it does not tell: 17 for 17.0.15, 8 for 1.8.0_402."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else 0


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f".{home.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_complete(lib: Path) -> bool:
    return (lib / _BROKER_JAR).is_file()


_BROKER_JAR = f"pulsar-broker-{VERSION}.jar"
_MODULE = "mlflow_flywheel.pipelines.stream.apache_files"


def main() -> int:
    """Fetch the jars; returns the process's exit code."""
    try:
        print(fetch(lambda text: print(text, flush=True)))
    except FlywheelError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

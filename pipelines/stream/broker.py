"""The embedded broker, described for whoever keeps processes alive: a command, its settings, and a readiness probe.

It is the `pulsar-lite` binary that its wheel carries: one process, one folder, loopback only. It speaks Pulsar's
protocol but is no replacement for Apache Pulsar; `pulsar.py` says what is avoided on it. Its own Python wrapper is not
used: it races for ports, logs into a shared temporary file and leaves the broker behind.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow_flywheel.pipelines.errors import Unavailable

HOST = "127.0.0.1"
STOP_SECONDS = 10
_PORT, _TLS_PORT = 6650, 6651
_WAYS_OUT = (
    'install its wheel (Linux x86_64, macOS, Windows: pip install "pulsar-lite>=0.2,<0.3"), or give the deployment '
    "the URL of a broker: -C broker=pulsar://host:6650"
)

# The binary takes a malformed file for an empty one, so this stays trivial.
# - Its metrics would listen on all interfaces.
# - Beyond the high watermark of a connection's unsent bytes it stops dispatching, and nothing starts it again: with
#   the default of 64 KiB a consumer of 20 kB messages stands still for ever. What a connection may hold is bounded
#   by the consumers' receiver queues anyway.
_SETTINGS = """\
pulsar_channel_write_buffer_high_water_mark_bytes = 1073741824
pulsar_channel_write_buffer_low_water_mark_bytes = 536870912

[metrics]
enabled = false
"""


@dataclass(frozen=True)
class EmbeddedBroker:
    """One broker on one folder; two processes on the same folder exclude each other ("LOCK" in the log of the second).

    SIGTERM stops it in milliseconds; neither that nor SIGKILL loses what was acknowledged to a producer.
    """

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"pulsar://{HOST}:{self.port}"

    @property
    def store_file(self) -> Path:
        """The file that names its store; another one is made with a fresh store alone (RocksDB's own identity)."""
        return self.folder / "data.rocksdb" / "IDENTITY"

    @property
    def command(self) -> tuple[str, ...]:
        """Return the argv. Raises Unavailable where the binary does not exist for this platform."""
        return (
            str(find_binary()),
            *("--config", str(self.folder / "pulsar-lite.toml")),
            *("--addr", f"{HOST}:{self.port}"),
            *("--db-path", str(self.folder / "data")),
            *("--log-level", "warn"),
        )

    def prepare(self) -> None:
        """Make the folder and write the settings; to be called before each start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "pulsar-lite.toml").write_text(_SETTINGS)


def embedded_broker(folder: Path, port: int) -> EmbeddedBroker:
    """Return the broker of a folder, prepared to be started with its `command`."""
    broker = EmbeddedBroker(folder, port)
    broker.prepare()
    return broker


def store_name(file: Path) -> str:
    """Return a short name of the store, from its broker's `store_file`. Raises Unavailable while there is none."""
    try:
        return file.read_text().partition("-")[0]
    except FileNotFoundError:
        raise Unavailable(
            f"the broker of the home has made no store yet, as {str(file)!r} is missing"
        ) from None


def find_binary() -> Path:
    """Return the path of the packaged binary. Raises Unavailable, with the two ways out."""
    name = "pulsar-lite.exe" if sys.platform == "win32" else "pulsar-lite"
    spec = importlib.util.find_spec("pulsar_lite")
    if spec is None or spec.origin is None:
        raise Unavailable(f"the embedded broker (package pulsar-lite) is not installed here; {_WAYS_OUT}")
    binary = Path(spec.origin).parent / "bin" / name
    if not binary.is_file():
        raise Unavailable(f"the package pulsar-lite has no binary for this platform at {binary}; {_WAYS_OUT}")
    return binary


def is_ready(host: str, port: int, timeout: float = 0.5) -> bool:
    """Tell whether something accepts connections there: the embedded broker is ready as soon as it does."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def takes_connections(url: str) -> bool:
    """Tell whether something accepts connections at one of the hosts of a service URL."""
    scheme, _, hosts = url.partition("://")
    default = _TLS_PORT if scheme == "pulsar+ssl" else _PORT
    places = [urlsplit(f"//{host}") for host in hosts.split("/")[0].split(",")]
    return any(place.hostname and is_ready(place.hostname, place.port or default) for place in places)


def wait_ready(host: str, port: int, timeout: float = 15.0) -> None:
    """Return when the broker accepts connections. Raises Unavailable after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not is_ready(host, port):
        if time.monotonic() > deadline:
            raise Unavailable(f"no broker answers at {host}:{port} after {timeout:g} s; its log says why")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that is free now. Another process may take it before the broker does: check that it is ready."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

"""A real Apache Pulsar broker on this machine, described for whoever keeps processes alive, like `broker.py`'s.

It is Apache Pulsar's standalone mode: broker, BookKeeper and metadata in one Java process on one folder, loopback only.
Everything that an Apache Pulsar cluster does for a client it does too; what it lacks is a second machine.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .apache_files import find_jars, find_java
from .broker import HOST

STOP_SECONDS = 30
LEAST_MEMORY_MB = 256
_HEALTH_SECONDS = 5.0
_METADATA = "metadata"
_RETENTION_DAYS = 7
_RETENTION_MB = 1024

# The metadata store's URL stays unset: it would be read as ZooKeeper's; RocksDB is what a fresh folder gets.
_SETTINGS = {
    "clusterName": "standalone",
    "bindAddress": HOST,
    "advertisedAddress": HOST,
    "allowLoopback": "true",
    "managedLedgerDefaultEnsembleSize": "1",
    "managedLedgerDefaultWriteQuorum": "1",
    "managedLedgerDefaultAckQuorum": "1",
    "allowAutoTopicCreation": "true",
    "brokerDeleteInactiveTopicsEnabled": "false",
    "webSocketServiceEnabled": "false",
    "systemTopicEnabled": "true",
    "topicLevelPoliciesEnabled": "true",
    "acknowledgmentAtBatchIndexLevelEnabled": "true",
    "loadBalancerEnabled": "false",
    # What every subscription has acknowledged would be gone at once, and nothing could be replayed.
    "defaultRetentionTimeInMinutes": str(_RETENTION_DAYS * 24 * 60),
    "defaultRetentionSizeInMB": str(_RETENTION_MB),
}
_LOGGING = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5level %logger{36} %msg%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""
_OPENED = (
    *("java.base/sun.net", "java.base/java.lang", "java.base/java.nio", "java.base/jdk.internal.platform"),
    *("java.base/jdk.internal.misc", "java.management/sun.management"),
    "jdk.management/com.sun.management.internal",
)


@dataclass(frozen=True)
class ApacheBroker:
    """One broker on one folder. `settings` are laid over ours; `memory_mb` bounds the heap and, again, its buffers.

    SIGTERM stops it in three seconds; neither that nor SIGKILL loses what was acknowledged to a producer.
    """

    folder: Path
    port: int
    web_port: int
    memory_mb: int = 512
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"pulsar://{HOST}:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{HOST}:{self.web_port}"

    @property
    def command(self) -> tuple[str, ...]:
        """Return the argv. Raises Unavailable without Java or the jars, with the ways out."""
        return (
            str(find_java()),
            f"-Xmx{self.memory_mb}m",
            f"-XX:MaxDirectMemorySize={self.memory_mb}m",
            "-XX:+ExitOnOutOfMemoryError",  # it would go on half dead; whoever keeps it starts it again
            "-Dpulsar.allocator.exit_on_oom=true",
            "-Dio.netty.tryReflectionSetAccessible=true",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            *(part for opened in _OPENED for part in ("--add-opens", f"{opened}=ALL-UNNAMED")),
            *("-cp", f"{find_jars()}/*", "org.apache.pulsar.PulsarStandaloneStarter"),
            *("--config", str(self.folder / "standalone.conf")),
            *("--no-functions-worker", "--no-stream-storage"),
            *("--bookkeeper-dir", str(self.folder / "bookkeeper")),
            *("--metadata-dir", str(self.folder / _METADATA)),
        )

    def prepare(self) -> None:
        """Make the folder and write the settings; to be called before each start."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ports = {"brokerServicePort": str(self.port), "webServicePort": str(self.web_port)}
        # BookKeeper takes a port of its own, remembers it beside its data, and would listen on every interface
        settings = {**_SETTINGS, "listeningInterface": _loopback_interface(), **ports, **self.settings}
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        file = self.folder / "standalone.conf"
        file.touch(mode=0o600)  # a secured broker's has its key in it
        file.write_text(text)
        (self.folder / "log4j2.properties").write_text(_LOGGING)


def store_file(folder: Path) -> Path:
    """Return the file that names a broker's store; another one is made with fresh metadata alone, by RocksDB."""
    return folder / _METADATA / "IDENTITY"


def apache_broker(
    folder: Path, port: int, web_port: int, memory_mb: int, settings: Mapping[str, str] | None = None
) -> ApacheBroker:
    """Return the broker of a folder, prepared to be started with its `command`."""
    broker = ApacheBroker(folder, port, web_port, memory_mb, settings or {})
    broker.prepare()
    return broker


def is_healthy(broker: ApacheBroker, token: str | None = None) -> bool:
    """Tell whether the broker says that it can store and deliver a message, which it tries then.

    `token` is what a secured broker wants from somebody who may ask.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection = http.client.HTTPConnection(HOST, broker.web_port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", "/admin/v2/brokers/health", headers=headers)
        answer = connection.getresponse()
        return answer.status == 200 and answer.read().strip() == b"ok"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _loopback_interface() -> str:
    return next(
        str(name)
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == HOST for address in addresses)
    )

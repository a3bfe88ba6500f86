"""The home folder: where one flywheel keeps its records, tables, spool, logs and process files.

A home is bound to one MLflow tracking URI, one record database and one root of inference tables, remembered in
`home.json` when it is first used: a shell that names other ones later gets an error, never a silent mix.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from mlflow_flywheel.pipelines.errors import BadInput, Unavailable

from .private_files import write_private

# supervisord binds "<socket>.<pid>" first and links it afterwards; the kernel's limit is 103 (macOS) or 107 bytes.
_SOCKET_PATH_LIMIT = 92
_SOCKET = "supervisor.sock"
# What a new home remembers of the environment, and which variable says it.
HOME_VARIABLES = {"database_url": "FLYWHEEL_DATABASE_URL", "tables": "FLYWHEEL_TABLES"}


class Home:
    """Paths and bindings of one home; constructing it touches nothing on disk.

    Raises BadInput when the environment names another database or tables root than the home remembers.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self._check_environment()

    @classmethod
    def default(cls) -> Home:
        """Return the home of `$FLYWHEEL_HOME`, or `~/.flywheel`."""
        return cls(os.environ.get("FLYWHEEL_HOME") or "~/.flywheel")

    @classmethod
    def from_target(cls, target_uri: str) -> Home:
        """Return the home of an MLflow deployments target: `flywheel` or `flywheel:/some/folder`.

        Raises BadInput for a target with a host, such as `flywheel://host/x`.
        """
        scheme, _, rest = target_uri.partition(":")
        if scheme != "flywheel" or rest.startswith("//"):
            raise BadInput(
                f"deployment target {target_uri!r} is not one of ours; use 'flywheel' (the home is "
                "$FLYWHEEL_HOME or ~/.flywheel) or 'flywheel:/some/folder'"
            )
        return cls(rest) if rest else cls.default()

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def supervisor(self) -> Path:
        return self.path / "supervisor"

    @property
    def broker(self) -> Path:
        return self.path / "broker"

    @property
    def apache_broker(self) -> Path:
        return self.path / "apache-broker"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def deployments(self) -> Path:
        return self.path / "deployments"

    @property
    def batch(self) -> Path:
        return self.path / "batch"

    @property
    def labels(self) -> Path:
        return self.path / "labels"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the records."""
        return self._setting("database_url") or f"sqlite:///{self.path / 'flywheel.db'}"

    @property
    def tables(self) -> str:
        """Root of the inference tables: a folder or a URL that delta-rs writes."""
        return self._setting("tables") or str(self.path / "tables")

    @property
    def tracking_uri(self) -> str | None:
        """The MLflow tracking URI that this home is bound to; None before the first `bind`."""
        return self._memory().get("tracking_uri")

    def batch_state(self, deployment: str) -> Path:
        """Return where a batch deployment remembers what it has scored."""
        return self.batch / deployment / "state"

    def log_file(self, process: str) -> Path:
        """Return where the supervised process writes its output."""
        return self.logs / f"{process}.log"

    def deployment(self, name: str) -> Path:
        """Return the folder of one deployment's files."""
        return self.deployments / name

    def label_folder(self, model: str) -> Path:
        """Return where it is kept what became of a model's label files."""
        return self.labels / quote(model, safe="@ ")

    def config_file(self, deployment: str) -> Path:
        """Return the JSON file that tells a deployment's master what to serve."""
        return self.deployment(deployment) / "config.json"

    def secrets(self, deployment: str) -> Path:
        """Return the private folder of a deployment's token."""
        return self.path / "secrets" / deployment

    def status_file(self, deployment: str) -> Path:
        """Return the file in which a deployment's master reports its generations."""
        return self.deployment(deployment) / "status.json"

    def socket(self) -> Path:
        """Return the supervisor's unix socket: in the home, or in a private temporary folder for long paths.

        Raises Unavailable when somebody else owns that temporary folder.
        """
        folder = self._socket_folder()
        if folder is None:
            return self.supervisor / _SOCKET
        if os.path.lexists(folder):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise Unavailable(
                    f"folder {str(folder)!r} for the supervisor's socket is not a private folder of yours; "
                    "remove it or use a home with a shorter path"
                )
        return folder / "s"

    def make_socket_folder(self) -> Path:
        """Make the folder that the socket will be in, without an old socket, and return the socket's path."""
        folder = self._socket_folder()
        if folder is not None:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._socket_memo.touch(mode=0o600)
            self._socket_memo.write_text(str(folder))
        socket = self.socket()
        socket.unlink(missing_ok=True)
        return socket

    def remove_socket(self) -> None:
        """Remove the socket, and its folder when that is a temporary one."""
        self.socket().unlink(missing_ok=True)
        folder = self._socket_folder()
        if folder is not None and folder.is_dir():
            folder.rmdir()
        self._socket_memo.unlink(missing_ok=True)

    def create(self) -> Home:
        """Make the folder, for its owner alone, and remember what it is bound to; idempotent."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.logs, self.supervisor, self.deployments):
                folder.mkdir(mode=0o700, exist_ok=True)
            if not self._memory_file.exists():
                self._remember()
        except OSError as error:
            raise BadInput(
                f"home folder {str(self.path)!r} cannot be made: {error.strerror or error}; "
                "set FLYWHEEL_HOME to a folder that you can write"
            ) from error
        return self

    def bind(self, tracking_uri: str, *, rebind: bool = False) -> str:
        """Remember the MLflow tracking URI, made absolute, and return it.

        Raises BadInput when the home is bound to another one, unless `rebind`.
        """
        wanted = absolute_uri(tracking_uri)
        self.create()
        bound = self.tracking_uri
        if bound is not None and bound != wanted and not rebind:
            raise BadInput(
                f"home {str(self.path)!r} is bound to the MLflow server {without_password(bound)!r}, but the "
                f"tracking URI is {without_password(wanted)!r}; set MLFLOW_TRACKING_URI to the first, move the "
                f"home with 'flywheel up --tracking-uri {without_password(wanted)}', or use another home "
                "(FLYWHEEL_HOME, or -t flywheel:/other/folder)"
            )
        if bound != wanted:
            self._remember(tracking_uri=wanted)
        return wanted

    @property
    def _memory_file(self) -> Path:
        return self.path / "home.json"

    @property
    def _socket_memo(self) -> Path:
        return self.supervisor / "socket-folder"

    def _socket_folder(self) -> Path | None:
        """Return the temporary folder for the socket, None when the home's path is short enough.

        It is remembered: another shell may have another TMPDIR, and must find the supervisor nevertheless.
        """
        if len(os.fsencode(self.supervisor / _SOCKET)) <= _SOCKET_PATH_LIMIT:
            return None
        if self._socket_memo.exists():
            return Path(self._socket_memo.read_text())
        key = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        chosen, shortest = (
            Path(root) / f"flywheel-{os.getuid()}-{key}" for root in (tempfile.gettempdir(), "/tmp")
        )
        return chosen if len(os.fsencode(chosen / "s")) <= _SOCKET_PATH_LIMIT else shortest

    def _memory(self) -> dict[str, str | None]:
        try:
            memory = json.loads(self._memory_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise BadInput(
                f"{str(self._memory_file)!r} cannot be read: {error.strerror or error}; make it readable "
                "for you, or use another home (FLYWHEEL_HOME)"
            ) from None
        except ValueError as error:
            raise BadInput(
                f"{str(self._memory_file)!r} is not valid JSON ({error}); restore it, or remove it and run "
                "'flywheel up --tracking-uri ...'"
            ) from None
        return dict(memory)

    def _remember(self, **values: str | None) -> None:
        with open(self.path / "home.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bindings = {name: self._setting(name) for name in HOME_VARIABLES}
            write_private(self._memory_file, json.dumps({**bindings, **self._memory(), **values}, indent=2))

    def _setting(self, name: str) -> str | None:
        memory = self._memory()
        return memory[name] if name in memory else _from_environment(name)

    def _check_environment(self) -> None:
        memory = self._memory()
        for name, variable in HOME_VARIABLES.items():
            value = _from_environment(name)
            if value and name in memory and memory[name] != value:
                kept = without_password(memory[name] or "its own folder")
                raise BadInput(
                    f"home {str(self.path)!r} keeps its {name.replace('_url', '')} in {kept!r}, but {variable} is "
                    f"{without_password(value)!r}; unset {variable} or use another home (FLYWHEEL_HOME)"
                )


def _from_environment(name: str) -> str | None:
    """Return a setting that means the same in every folder: the daemon works in another one than the caller."""
    value = os.environ.get(HOME_VARIABLES[name])
    return absolute_uri(value) if value else None


def absolute_uri(uri: str) -> str:
    """Return a URI or path as every process may use it: local paths absolute, no slash at the end of a server's."""
    sqlite = re.match(r"(sqlite(?:\+\w+)?:///)([^?]+)(.*)", uri)
    if sqlite:
        scheme, location, query = sqlite.groups()
        return uri if location == ":memory:" else f"{scheme}{Path(location).expanduser().absolute()}{query}"
    if uri.startswith("file:"):
        return Path(uri.removeprefix("file:").removeprefix("//")).absolute().as_uri()
    if re.match(r"[a-z][a-z0-9+.-]*:", uri, re.IGNORECASE) or uri == "databricks":
        return uri.rstrip("/")
    return str(Path(uri).expanduser().absolute())


def without_password(uri: str) -> str:
    """Return the URI fit for a message: a password in it is replaced by ***."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))

"""The bearer tokens that deployments need: taken from the caller once, then kept in private files of the home.

A web deployment's is what its callers must send, a stream deployment's is what its broker wants.

A deployment's processes outlive the shell that made it, and come back after a reboot, so a variable of that shell is no
place to keep a token. Its file is named in the deployment's configuration. Each new token gets a file of a new name:
another configuration makes another generation of workers, and until that serves, the old token is still there.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from mlflow_flywheel.pipelines.config import StreamConfig, WebConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, NotFound
from mlflow_flywheel.pipelines.tokens import checked_token, read_token

from .context import Context
from .home import Home
from .runners.processes import in_kept_process
from .spec import StreamSpec, WebSpec
from .spec_reading import parse_spec

TokenSpec = WebSpec | StreamSpec


def has_token(spec: TokenSpec) -> bool:
    """Tell whether the deployment needs a token."""
    return any(_source(spec))


def check_token(spec: TokenSpec, kept: Path | None) -> str | None:
    """Return the token that the deployment will use; None when it needs none.

    Raises BadInput, without the token, when there is none where the spec says it is, and none kept from before.
    """
    if not has_token(spec):
        return None
    token = _given(spec, kept)
    return read_token(kept) if token is None and kept is not None else token


def keep_token(home: Home, name: str, spec: TokenSpec, kept: Path | None = None) -> Path | None:
    """Return the private file with the deployment's token: `kept` when nothing has changed, else a new one.

    `kept` is the present file, if its token came from where the spec says. Raises BadInput as `check_token` does.
    """
    if not has_token(spec):
        return None
    token = _given(spec, kept)
    if kept is not None and (token is None or token == read_token(kept)):
        return kept
    assert token is not None
    folder = home.secrets(name)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{secrets.token_hex(4)}.token"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as private:
        private.write(token + "\n")
    return file


def forget_tokens(home: Home, name: str, but: Path | None = None) -> None:
    """Remove the deployment's token files, all or all but one."""
    folder = home.secrets(name)
    if but is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for file in folder.glob("*.token"):
        if file != but:
            file.unlink(missing_ok=True)


def kept_token(context: Context, name: str, spec: TokenSpec) -> Path | None:
    """Return the file with the token of the running deployment, unless `spec` takes it from elsewhere than before."""
    try:
        present = _token_file(context.home.config_file(name), spec)
        before = parse_spec(context.records.deployment(name).config)
    except NotFound:
        return None  # it is only being made
    same = isinstance(before, type(spec)) and _source(before) == _source(spec)
    return Path(present) if same and present is not None and Path(present).exists() else None


def _token_file(config: Path, spec: TokenSpec) -> str | None:
    if isinstance(spec, WebSpec):
        return load_config(WebConfig, config).auth_token_file
    return load_config(StreamConfig, config).broker_token_file


def _source(spec: TokenSpec) -> tuple[str | None, str | None]:
    """Return the environment variable and the file that the token may come from; at most one of them is given."""
    if isinstance(spec, WebSpec):
        return spec.auth_token_env, spec.auth_token_file
    return spec.broker_token_env, spec.broker_token_file


def _given(spec: TokenSpec, kept: Path | None) -> str | None:
    """Return the token that the caller gives now; None when the one that is kept stays."""
    if kept is not None and in_kept_process():
        return None  # the daemon rolls a deployment over: its environment is that of some older shell
    name, file = _source(spec)
    key = "auth_token" if isinstance(spec, WebSpec) else "broker_token"
    if file is not None:
        return read_token(file, f"{key}_file")
    assert name is not None
    text = os.environ.get(name)
    if text is None and kept is not None:
        return None
    variable = f"the environment variable {name} ({key}_env)"
    if text is None:
        raise BadInput(f"{variable} is not set; export it in the shell that creates the deployment")
    return checked_token(text, variable)

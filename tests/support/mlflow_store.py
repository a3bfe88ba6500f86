"""Empty MLflow stores without a wait: MLflow makes one by some seventy migrations, which take seconds."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path


def empty_store(file: Path) -> str:
    """Put an MLflow store (SQLite) without any content at `file`, and return its URI."""
    file.write_bytes(_empty())
    return f"sqlite:///{file}"


@cache
def _empty() -> bytes:
    """Return what MLflow itself makes of a new file, made once per test process."""
    from mlflow.db import upgrade

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        assert upgrade.callback is not None
        upgrade.callback(f"sqlite:///{file}")
        return file.read_bytes()

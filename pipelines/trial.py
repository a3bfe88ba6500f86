"""Try a model in a process of its own: it may exit, hang or be killed there without taking anybody along.

`python -m mlflow_flywheel.pipelines.trial MODEL.json ANSWER` loads the version that the file describes, lets it score
its input example, exits with 0, or writes what was wrong to the file ANSWER.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from .config import ModelRef, load_config
from .errors import FlywheelError, ModelError

_LAST_LINES = 12


def try_model(ref: ModelRef, timeout: float) -> None:
    """Return when the version can predict.

    Raises ModelError, with the model's own words, when it cannot, or not within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="flywheel-trial-") as folder:
        model, answer, log = (Path(folder) / name for name in ("model.json", "answer", "log"))
        ref.save(model)
        command = [sys.executable, "-m", "mlflow_flywheel.pipelines.trial", str(model), str(answer)]
        with log.open("wb") as output:
            try:
                code = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise ModelError(
                    f"it did not load and score its input example within {timeout:g} s"
                ) from None
        if code == 0:
            return
        if answer.exists():
            raise ModelError(answer.read_text())
        said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:])
        ended = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        raise ModelError(
            f"its process {ended} while it was tried{f', and said:{chr(10)}{said}' if said else ''}"
        )


def main(model: str, answer: str) -> int:
    """Try the model that a file describes; return the exit code."""
    from .model import load_scorer

    try:
        load_scorer(load_config(ModelRef, Path(model)))
    except FlywheelError as error:
        Path(answer).write_text(error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

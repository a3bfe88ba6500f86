"""A model is tried where it can take nobody along: it may exit, be killed or never come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import pytest
from mlflow.models import infer_signature
from support.models import ZooModel, numeric_frame

from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.pipelines.trial import try_model

FATES = {
    "raise RuntimeError('the weights are missing')": "model late version 1 .*the weights are missing",
    "print('no licence', flush=True); os._exit(7)": "its process exited with code 7 while it was tried, and said:(?s:.*)\nno licence",
    "os.kill(os.getpid(), signal.SIGKILL)": "its process was killed by signal 9 while it was tried",
    "signal.pause()": "did not load and score its input example within 4 s",
}


def save(folder: Path, fate: str) -> ModelRef:
    """Save a model whose loading ends so."""
    code = folder / "model.py"
    code.write_text(
        "import os, signal\nimport mlflow.pyfunc\nfrom mlflow.models import set_model\n\n"
        "class Fated(mlflow.pyfunc.PythonModel):\n"
        f"    def load_context(self, context):\n        if 'FATE' in os.environ:\n            {fate}\n\n"
        "    def predict(self, context, model_input, params=None):\n        return model_input['a']\n\n"
        "set_model(Fated())\n"
    )
    rows = numeric_frame(3)
    mlflow.pyfunc.save_model(
        folder / "saved",
        python_model=str(code),
        signature=infer_signature(rows, rows["a"]),
        pip_requirements=["mlflow"],
    )
    return ModelRef(name="late", version="1", path=str(folder / "saved"))


@pytest.mark.parametrize(("fate", "said"), FATES.items())
def test_a_model_that_cannot_serve_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, said: str
) -> None:
    model = save(tmp_path, fate)
    monkeypatch.setenv("FATE", "now")
    with pytest.raises(ModelError, match=said):
        try_model(model, 4 if "pause" in fate else 120)


def test_a_model_that_can_serve_passes(zoo: Callable[[str], ZooModel]) -> None:
    try_model(zoo("classifier").ref, 120)

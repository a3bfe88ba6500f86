"""A worker process whose behaviour is its model version's name; it tells a diary what it does.

`python scripted_worker.py CONFIG`: the diary is the file `model.path` of the configuration.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from mlflow_flywheel.pipelines.errors import ModelError
from mlflow_flywheel.pipelines.worker_channel import WorkerChannel

model = json.loads(Path(sys.argv[1]).read_text())["model"]


def note(what: str) -> None:
    with open(model["path"], "a") as diary:
        diary.write(f"{model['version']} {os.getpid()} {what}\n")


channel = WorkerChannel.from_environment()
behaviour = model["version"].split("-")[0]
if behaviour == "unloadable":
    channel.failed(ModelError("the file of this model is not a model"))
    sys.exit(1)
if behaviour == "crashing":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "hanging":
    threading.Event().wait()
note("prepared")
channel.prepared()
if not channel.wait_go():
    sys.exit(0)
stop = threading.Event()
signal.signal(
    signal.SIGTERM, (lambda *_: note("ignores")) if behaviour == "stubborn" else (lambda *_: stop.set())
)
if behaviour == "unservable" and os.path.exists(model["path"] + ".broker-is-away"):
    channel.failed(ModelError("the broker is away"))
    sys.exit(1)
note("serving")
channel.serving()
while not stop.wait(3600):
    pass
note("leaves")

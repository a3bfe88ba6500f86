"""The limit that the web benchmark compares with: the same Flask and server processes, answering a constant.

`python benchmarks/constant_server.py WORKERS` prints its URL and answers every request of /invocations until SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from flask import Flask, Response

from mlflow_flywheel.pipelines.web.drain import Drain
from mlflow_flywheel.pipelines.web.listening import listen, url_of
from mlflow_flywheel.pipelines.web.server import serve

_THREADS = 272  # a web worker's default


def work(descriptor: int) -> None:
    """Answer on the socket until SIGTERM."""
    app = Flask(__name__)
    app.add_url_rule("/ping", "ping", lambda: Response("\n"))
    app.add_url_rule("/invocations", "constant", lambda: Response('{"predictions": [1]}'), methods=["POST"])
    stop = told_to_stop()
    drain = Drain(app, shared=True)
    serve(drain, descriptor, threads=_THREADS, drain=drain, stop=stop, serving=lambda: None)


def told_to_stop() -> threading.Event:
    """Return an event that SIGTERM sets."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop.set).start())
    return stop


def main(workers: int) -> None:
    """Keep `workers` processes on one socket."""
    listener = listen("127.0.0.1", 0)
    descriptor = listener.fileno()
    processes = [
        subprocess.Popen([sys.executable, __file__, "--on", str(descriptor)], pass_fds=[descriptor])
        for _ in range(workers)
    ]
    stop = told_to_stop()
    print(url_of(listener), flush=True)
    stop.wait()
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1] == "--on":
        work(int(sys.argv[2]))
    else:
        main(int(sys.argv[1]))

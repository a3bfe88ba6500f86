"""`python -m mlflow_flywheel.pipelines.web --config FILE`: the master process of a web deployment.

It holds the listening socket and keeps one generation of workers answering on it. On SIGHUP it prepares the next one;
both answer for a moment, then the old one drains, so no request fails and no answer mixes versions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.generations import Generations
from mlflow_flywheel.pipelines.worker_process import Generation

from .exposure import check_config
from .listening import listen, url_of
from .metrics import start_anew


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the master; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_flywheel.pipelines.web")
    parser.add_argument("--config", type=Path, required=True, help="configuration file (WebConfig as JSON)")
    config_path = parser.parse_args(arguments).config
    try:
        config = load_config(WebConfig, config_path)
        check_config(config)
        start_anew(config.status_file)
        with listen(config.host, config.port) as listener:
            descriptor = listener.fileno()
            url = url_of(listener, _scheme(config))

            def read(path: Path) -> WebConfig:
                new = load_config(WebConfig, path)
                if (new.host, new.port, _scheme(new)) != (config.host, config.port, _scheme(config)):
                    raise BadInput(
                        f"{url} cannot become {_scheme(new)}://{new.host}:{new.port} while it serves; stop this process "
                        "and start it again"
                    )
                check_config(new)
                return new

            def command(generation: Generation, index: int) -> list[str]:
                module = "mlflow_flywheel.pipelines.web.worker"
                options = ["--config", str(generation.config_path), "--descriptor", str(descriptor)]
                return [sys.executable, "-m", module, *options]

            return Generations(
                config_path, read, command, handover="overlap", pass_fds=[descriptor], url=url
            ).run()
    except FlywheelError as error:
        print(error.message, file=sys.stderr)
        return 1


def _scheme(config: WebConfig) -> str:
    return "http" if config.tls_cert is None else "https"


if __name__ == "__main__":
    sys.exit(main())

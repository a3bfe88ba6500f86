"""Our pages in the MLflow server: `mlflow server --app-name flywheel`."""

from __future__ import annotations

import os
from typing import Any


def create_app() -> Any:
    """Return MLflow's own app with our pages in it: WSGI, or ASGI under its default server.

    MLflow calls this once per server process; a Flask app alone would answer 500 under uvicorn.
    """
    from mlflow.server import app

    from .navigation import add_link
    from .routes import blueprint

    if "flywheel" not in app.blueprints:
        app.register_blueprint(blueprint())
        add_link(app)
    if os.environ.get("_MLFLOW_SGI_NAME") != "uvicorn":
        return app
    from mlflow.server.fastapi_app import create_fastapi_app

    return create_fastapi_app(app)

"""Our pages in the MLflow server."""

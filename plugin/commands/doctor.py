"""doctor: whether a home is well, and what to do where it is not."""

from __future__ import annotations

from dataclasses import asdict

import click

from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, waiting


@click.command()
@command
def doctor(context: Context, as_json: bool) -> None:
    """Check the home, MLflow, processes, deployments and tables; exit 1 when something fails.

    Nothing is changed or started.
    """
    from mlflow_flywheel.plugin.doctor import examine

    with waiting("looking"):
        findings = examine(context)
    if as_json:
        print_json({"home": str(context.home.path), "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.level, finding.check, finding.said, finding.remedy) for finding in findings]
        print_table(f"home {context.home.path}", ["", "check", "found", "what to do"], rows)
    if any(finding.level == "fail" for finding in findings):
        raise SystemExit(1)

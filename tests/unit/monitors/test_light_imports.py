import subprocess
import sys

import pytest

HEAVY = {"mlflow", "evidently", "pandas", "sklearn", "plotly", "apscheduler"}


@pytest.mark.parametrize(
    ("modules", "more"),
    [
        ("policy verdicts windows floors all", {"numpy", "scipy", "pyarrow"}),
        ("drift performance quality latency freshness relevance reference reporting report_header", set()),
    ],
)
def test_importing_the_monitors_brings_in_nothing_heavy(modules, more):
    code = f"import sys\nfor name in {modules.split()!r}: __import__('mlflow_flywheel.monitors.' + name)\n"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not (HEAVY | more) & set(loaded.stdout.split())

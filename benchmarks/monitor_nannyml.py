"""Run by the Python of an environment that has NannyML: prints the columns that its defaults call drifted, per pair.

Its argument is a folder of Parquet files, `0-old.parquet`, `0-new.parquet`, `1-old.parquet` and so on.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import nannyml
import pandas as pd


def drifted(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the columns with an alert, the window being one chunk."""
    names = list(old.columns)
    calculator = nannyml.UnivariateDriftCalculator(column_names=names, chunk_size=len(new)).fit(old)
    found = calculator.calculate(new).filter(period="analysis").to_df()
    return [
        name
        for name in names
        if any(found[name, method, "alert"].any() for method in set(found[name].columns.get_level_values(0)))
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    pairs = sorted(folder.glob("*-old.parquet"), key=lambda path: int(path.name.split("-")[0]))
    both = [(path, path.with_name(path.name.replace("old", "new"))) for path in pairs]
    print(json.dumps([drifted(*(pd.read_parquet(path) for path in one)) for one in both]))

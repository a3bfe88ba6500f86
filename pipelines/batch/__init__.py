"""Batch mode: files in, answers and inference table rows out, exactly once."""

from .job import run_batch
from .outcome import BatchProgress, BatchResult

__all__ = ["BatchProgress", "BatchResult", "run_batch"]

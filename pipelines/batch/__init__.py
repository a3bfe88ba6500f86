"""Batch mode: files in, answers and inference table rows out, exactly once."""

from .job import BatchProgress, BatchResult, run_batch

__all__ = ["BatchProgress", "BatchResult", "run_batch"]

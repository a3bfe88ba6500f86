"""Web mode: the scoring core behind HTTP."""

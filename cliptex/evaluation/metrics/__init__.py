"""Metrics in NumPy, one module per kind of task, each with the per-image parts of its main metric."""

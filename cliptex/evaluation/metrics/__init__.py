"""Metrics in NumPy, a module per kind of task; each also has the per-image parts of its main metric."""

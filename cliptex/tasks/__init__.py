"""The tasks: what a pseudo-label is. One module a task; see `cliptex.tasks.base`."""

"""Files, paths, errors, progress, seeds, provenance, plugins and redaction, for all other folders.

In      plain values and paths.
Out     helpers that any stage may use.
Must not know the configuration or any other folder, and imports nothing heavy: the workflow imports it at every start.
"""

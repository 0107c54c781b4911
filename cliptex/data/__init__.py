"""Image-caption pairs and the data of the benchmarks: rendered, downloaded, or the user's own.

In      the configuration, the web, the user's tars and archives.
Out     results/shards with its index, and resources/{benchmark} in the official layout.
Must not know tasks, experts or models: it does not matter here what the data are used for.
"""

"""Benchmarks: readers of data sets in their official layouts, one module per benchmark. See `cliptex.benchmarks.base`.

In      a folder with the official files, or the miniature's rendered replacement in the same layout.
Out     samples of the training and evaluation split, class names, and the probe tasks that the data support.
Must not know models, experts or how probes use the samples.
"""

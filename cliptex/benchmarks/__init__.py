"""The benchmarks: where a model is judged. One module a benchmark; see `cliptex.benchmarks.base`."""

"""Evaluation of models on benchmarks: probes, fine-tuning, zero-shot classification, retrieval, clip_benchmark.

In      exported models or other encoders, and benchmarks.
Out     result JSONs (docs/results-json.md), per-image scores and predictions.
Must not know how a model was trained, or the report's page; a task brings its own titles and drawing for it.
"""

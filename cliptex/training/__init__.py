"""Training: contrastive loss and pseudo-label losses, data loading, checkpoints, validation, logging.

In      the shard index, label stores, and the sections `train` and `models.NAME`.
Out     results/models/{model}/seed{seed}: the exported model, train.json and metrics.jsonl.
Must not know the experts that made the labels, or the benchmarks' probes.
"""

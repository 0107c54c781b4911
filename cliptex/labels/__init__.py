"""Label stores: the pseudo-labels of one task by one expert, as Parquet files per shard.

In      the shard index and an expert, or a published label set.
Out     results/labels/{store} with its index, exports, published sets, and audits of existing stores.
Must not know the models that are trained on the labels.
"""

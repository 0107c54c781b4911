"""Experts: vision models that make pseudo-labels, one module per expert. See `cliptex.experts.base`.

In      images and weights: trained here, downloaded, or local.
Out     predictions of one task.
Must not know how labels are stored, or which model learns from them.
"""

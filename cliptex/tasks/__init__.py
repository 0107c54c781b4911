"""Tasks, i.e. kinds of pseudo-labels, one module per task. See `cliptex.tasks.base`.

In      an expert's raw prediction, or a stored label.
Out     the stored label, its crops, the training loss, metrics and a view for contact sheets.
Must not know which expert made a label, or which model learns from it.
"""

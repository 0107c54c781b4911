"""The CLIP model that is trained: towers, dense features, task heads, export, inference, other encoders.

In      the section `student`, a checkpoint or an exported folder, images and texts.
Out     features, predictions, exported and interpolated models.
Must not know how a model is trained or evaluated.
"""

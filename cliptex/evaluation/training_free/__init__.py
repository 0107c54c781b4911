"""Evaluation of frozen encoders without training: by text, or by comparing patch tokens. A file a task."""

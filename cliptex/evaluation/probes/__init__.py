"""Probe tasks, a file each, and what they share: views, features, their cache, training of heads."""

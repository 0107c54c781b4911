"""Metrics of stored predictions by VisBench: `python metrics.py predictions.npz`, in an environment that has it.

Its output for predictions.npz, with version 0.27.0, is metrics.json.
"""

import json
import sys

import numpy as np
import torch
import visbench
from visbench.metrics.dense import depth_metrics, surface_normal_metrics

arrays = {name: torch.from_numpy(values) for name, values in np.load(sys.argv[1]).items()}
found = {
    "visbench": visbench.__version__,
    "depth": depth_metrics(arrays["depth"], arrays["depth_truth"]),
    "normals": surface_normal_metrics(
        arrays["normals"].permute(0, 3, 1, 2), arrays["normals_truth"].permute(0, 3, 1, 2)
    ),
}
print(json.dumps(found, indent=1))

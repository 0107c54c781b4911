"""What the labels of a store have in common at each place of a picture, fitted before training starts.

Floors are below and far, whatever the picture. A head that has to learn that through the encoder teaches the encoder
where a patch lies: labels of OTHER images then give half of the gain in linear probes that an image's own labels give.
With this prior in the heads from the first step, as an offset a place, the encoder is taught only what its picture
tells beyond it (the same idea as logit adjustment, Menon et al. 2021, section 4, for each place of its own).
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.tasks.base import Task

BATCHES = 40
LEARNING_RATE = 0.3


def fit_label_prior(
    priors: torch.nn.ParameterDict, tasks: dict[str, Task], batches: Iterable[dict[str, np.ndarray]], size: int
) -> None:
    """Fit the offsets `priors`, a store each [channels, cells, cells], in place, to be the best single prediction.

    batches: per store the stacked targets of side `size`, about `BATCHES` of them. Adam with a rate that falls to
    zero, on each task's own loss, so that it works for any task.
    """
    optimizer = torch.optim.Adam(priors.parameters(), lr=LEARNING_RATE)
    for number, targets in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 2 * max(0, 1 - number / BATCHES))
        total = 0.0
        for store, prior in priors.items():
            target = torch.from_numpy(targets[store]).to(prior.device)
            prediction = F.interpolate(prior[None], size=(size, size), mode="bilinear")
            total = total + tasks[store].loss(prediction.expand(len(target), -1, -1, -1), target)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
    for prior in priors.values():
        prior.grad = None

"""Position prior: a bias per position of the heads, fitted to the labels before training starts.

In most images the floor is at the bottom, the far background at the top. If a head has to learn this from the encoder's
features, the encoder learns to encode the position of each patch: training on the labels of OTHER images then yields
half of the gain in linear probes that an image's own labels yield. With this prior, the encoder only learns what an
image's labels add to it. (The same idea as logit adjustment, Menon et al. 2021, section 4, for each position.)
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.tasks.base import Task
from cliptex.training.agreement import agreement_weights

BATCHES = 40
LEARNING_RATE = 0.3


def fit_position_prior(
    priors: torch.nn.ParameterDict,
    tasks: dict[str, Task],
    batches: Iterable[dict[str, np.ndarray]],
    by_agreement: bool = False,
) -> None:
    """Fit `priors`, [channels, cells, cells] per store, in place, to the constant prediction of lowest loss.

    batches: stacked targets by store, about `BATCHES` of them. Uses Adam, with a learning rate that decays to zero, on
    each task's own loss, so that it works for any task. by_agreement: with the weights of `agreement_weights`, as in
    training.
    """
    optimizer = torch.optim.Adam(priors.parameters(), lr=LEARNING_RATE)
    for number, targets in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, 2 * max(0, 1 - number / BATCHES))
        total = 0.0
        tensors = {store: torch.from_numpy(targets[store]).to(prior.device) for store, prior in priors.items()}
        weights = agreement_weights(tasks, tensors) if by_agreement else {}
        for store, prior in priors.items():
            target, weight = tensors[store], (weights[store],) if store in weights else ()
            prediction = F.interpolate(prior[None], size=target.shape[1:3], mode="bilinear")
            total = total + tasks[store].loss(prediction.expand(len(target), -1, -1, -1), target, *weight)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
    for prior in priors.values():
        prior.grad = None

"""Weights of pixels from the agreement of several label stores of one task (`models.*.weight_by_agreement`)."""

import torch

from cliptex.core.errors import CliptexError
from cliptex.tasks.base import Task
from cliptex.tasks.contact_sheet import class_names


def teachers(tasks: dict[str, Task]) -> dict[str, list[str]]:
    """Label store -> the other stores whose labels can be compared with its own: of the same task and classes."""
    kinds = {store: (task.name, class_names(task)) for store, task in tasks.items()}
    return {store: [other for other in tasks if other != store and kinds[other] == kinds[store]] for store in tasks}


def check_teachers(tasks: dict[str, Task], where: str) -> None:
    """Raise CliptexError, naming the key `where`, unless some labels can be compared."""
    if not any(teachers(tasks).values()):
        raise CliptexError(f"{where}: no two label stores of the model have the same task and classes; remove the key")


@torch.no_grad()
def agreement_weights(tasks: dict[str, Task], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the pixels, float32 [B, H, W] in 0..1, of each store that has others to compare with: the mean of its
    agreement (`Task.agreement`) with each of them."""
    return {
        store: torch.stack([tasks[store].agreement(targets[store], targets[other]) for other in others]).mean(dim=0)
        for store, others in teachers(tasks).items()
        if others
    }

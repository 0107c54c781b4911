"""The one way in which a dense loss is averaged, so that it means the same for one process and for many."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def batch_mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`total / count`; where several processes have parts of a batch, by the count of the whole batch. 0 without any.

    total: scalar, a sum over this process' valid pixels. count: their number (or the sum of their weights), without
    gradient. The mean of what this returns over the processes is the mean over all valid pixels of the batch, which a
    mean of their own means would not be.
    """
    from cliptex.distributed import sum_over_processes

    everywhere, processes = sum_over_processes(count)
    return total * processes / everywhere.clamp(min=1) if processes > 1 else total / count.clamp(min=1)

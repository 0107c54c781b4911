"""Mean of a dense loss over the global batch, for any number of data-parallel processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def batch_mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`total / count`, where `count` is summed over all data-parallel processes. 0 if the count is 0.

    total: scalar, a sum over this process' valid pixels. count: their number (or the sum of their weights), without
    gradient. The mean of the results over the processes is then the mean over all valid pixels of the global batch.
    """
    import torch.distributed as dist

    if _local_only or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return total / count.clamp(min=1)
    global_count = count.detach().double()
    dist.all_reduce(global_count)
    return total * dist.get_world_size() / global_count.float().clamp(min=1)


_local_only = False


@contextmanager
def local_only() -> Iterator[None]:
    """Compute on this process only: `batch_mean` does not communicate within this context."""
    global _local_only
    _local_only = True
    try:
        yield
    finally:
        _local_only = False

"""Data-parallel helpers: rank and world size, collectives, cross-rank batch norm.

Only torchrun's environment variables enable distributed training; those of SLURM, MPI or a cloud have no effect.
Without them, every function acts for a single process.
"""

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn

from cliptex.core.errors import CliptexError, environment_number

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The process group: this process' `rank`, the number of processes `size`, and this process' device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and logs, rank 0."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over all processes."""
        if self.size == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values / self.size

    def all_reduce_max(self, value: float) -> float:
        """Maximum of a number over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return float(tensor)

    def broadcast(self, number: int) -> int:
        """The integer of rank 0."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.broadcast(tensor, 0)
        return int(tensor)

    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite the parameters with those of rank 0."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks. It is pickled; tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_to_main(self, value: Any) -> list[Any]:
        """`gather` on rank 0; empty elsewhere."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            # not dist.barrier(), for which NCCL guesses the device
            self.mean(torch.zeros(1, device=self.device)).cpu()


@contextmanager
def init_distributed() -> Iterator[World]:
    """Join torchrun's process group; without torchrun, a group of one.

    Raises CliptexError if only some of torchrun's variables are set, or if they contradict each other.
    """
    missing = [name for name in (*RANKS, *RENDEZVOUS) if name not in os.environ]
    if missing and any(name in os.environ for name in RANKS):
        present = ", ".join(name for name in RANKS if name in os.environ)
        raise CliptexError(
            f"{present}: set without {', '.join(missing)}; start several processes with torchrun, or unset {present}"
        )
    rank, size, local_rank, _ = (environment_number(name, 0) for name in (*RANKS, "MASTER_PORT"))
    cuda = torch.cuda.is_available()
    if not missing and (rank >= size or (cuda and size > 1 and local_rank >= torch.cuda.device_count())):
        raise CliptexError(
            f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank}: not those of a process that torchrun starts with"
            " a GPU for each; start it with torchrun, or unset them"
        )
    if missing or size == 1:
        yield World(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # destroyed only at exit: torchrun's store keeps the addresses of this group, so no second one can be made
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    yield World(dist.get_rank(), dist.get_world_size(), device)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the global batch. Unlike torch's SyncBatchNorm it also runs on the CPU.

    Equal to `nn.BatchNorm2d` on the global batch in value, gradient and running statistics, if every process has the
    same number of rows. The variance is computed around the global mean, for numerical stability.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Self:
        """The same layer: it has the parameters and buffers of `norm`, not copies."""
        shared = cls(norm.num_features, norm.eps, norm.momentum)
        shared.weight, shared.bias = norm.weight, norm.bias
        shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
        shared.num_batches_tracked = norm.num_batches_tracked
        return shared.train(norm.training)

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(values_BCHW)
        from torch.distributed.nn.functional import all_reduce  # differentiable: all-reduces the gradients, too

        values = values_BCHW.float()
        count = values.numel() // values.shape[1] * dist.get_world_size()
        mean = all_reduce(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(values_BCHW.dtype)


def share_batch_norms(module: nn.Module) -> None:
    """Replace every `nn.BatchNorm2d` inside `module` by a SharedBatchNorm2d with the same parameters and names."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm2d.of(child))

"""Data-parallel helpers: rank and world size, collectives, cross-rank batch norm.

Only torchrun's environment variables enable distribution; those of SLURM, MPI or a cloud have no effect. Without them
every function acts for a single process.
"""

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from cliptex.core.errors import CliptexError

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes and logs."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        if self.size == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values / self.size

    def all_reduce_max(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)

    def broadcast(self, number: int) -> int:
        """The first process' number."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.broadcast(value, 0)
        return int(value)

    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the first one's values."""
        for parameter in parameters if self.size > 1 else ():
            dist.broadcast(parameter.data, 0)

    def barrier(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            # a barrier would have NCCL guess the device
            self.mean(torch.zeros(1, device=self.device)).cpu()


@contextmanager
def init_distributed() -> Iterator[World]:
    """This process' place among those that torchrun started; alone where it started none.

    Raises CliptexError when only some of torchrun's variables are set.
    """
    missing = [name for name in (*RANKS, *RENDEZVOUS) if name not in os.environ]
    if missing and any(name in os.environ for name in RANKS):
        found = ", ".join(name for name in RANKS if name in os.environ)
        raise CliptexError(
            f"{found}: set without {', '.join(missing)}; start several processes with torchrun, or unset {found}"
        )
    cuda = torch.cuda.is_available()
    if missing or int(os.environ["WORLD_SIZE"]) == 1:
        yield World(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # left at the end of the process, as torchrun's store still holds the addresses of a group that is made again
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    yield World(dist.get_rank(), dist.get_world_size(), device)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes; also on the CPU, where torch's SyncBatchNorm is not.

    Equal to `nn.BatchNorm2d` of the whole batch, in value, gradient and running statistics, as every process has the
    same number of rows. The variance is summed about the common mean, which keeps its digits.
    """

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(values_BCHW)
        from torch.distributed.nn.functional import all_reduce  # sums the gradients of all processes in backward

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
    """Make every batch normalisation in `module` one over all processes; names of weights stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d

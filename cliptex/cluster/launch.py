"""Several processes of one command: torchrun on this machine, or by srun on every node of a SLURM job.

Imports nothing heavy: the processes that it starts do.
"""

import logging
import os
import shlex
import shutil
import socket
import sys
from typing import NoReturn

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""What torchrun passes on to the processes."""


def launch(arguments: list[str], nodes: int, gpus: int, threads: int | None) -> None:
    """Become the launcher of `cliptex ARGUMENTS`; return where this process is all there is to be, or one of several.

    nodes: nodes of the SLURM job, each with the same number of processes. gpus: GPUs on all nodes together, a process
    each; 0 stands for those that can be seen here. A node without a GPU has one process (or as many as were asked
    for). threads: what the job has on a node, for all its processes.
    Raises CliptexError for more than one node outside a SLURM job, and for GPUs that do not spread evenly.
    """
    if "RANK" in os.environ:  # torchrun started this process
        return
    if gpus % nodes:
        raise CliptexError(f"--gpus {gpus}: not a multiple of --nodes {nodes}; name the GPUs of all nodes together")
    processes = gpus // nodes or max(1, _visible_gpus())
    if nodes * processes == 1:
        return
    command = torchrun(nodes, processes)
    if nodes > 1:
        command = srun(nodes, threads) + command
    # --: torchrun would take our --log for the beginning of one of its own
    _become([*command, "-m", "--", "cliptex", *arguments])


def torchrun(nodes: int, processes: int) -> list[str]:
    """torchrun's elastic launch of `processes` on each of `nodes`, which meet at this machine."""
    command = [sys.executable, "-m", "cliptex.cluster.launch", "--nproc-per-node", str(processes), *_signals()]
    if nodes == 1:
        return [*command, "--standalone"]
    # a batch script runs on the first node of its job
    meeting = f"{socket.gethostname()}:{_free_port()}"
    job = os.environ.get("SLURM_JOB_ID", "0")
    return [*command, "--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", job]


def _signals() -> list[str]:
    """To the processes goes SIGUSR1, too, by which SLURM warns of a preemption; older releases ask a variable."""
    from dataclasses import fields

    from torch.distributed.launcher import LaunchConfig

    if any(field.name == "signals_to_handle" for field in fields(LaunchConfig)):
        return ["--signals-to-handle", SIGNALS]
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = SIGNALS
    return []


def srun(nodes: int, threads: int | None) -> list[str]:
    """One task on each node of the SLURM job that this process runs in; if one fails, all end."""
    if "SLURM_JOB_ID" not in os.environ:
        raise CliptexError(
            f"--nodes {nodes}: this is no SLURM job; elsewhere start torchrun on each machine (docs/training.md)"
        )
    if shutil.which("srun") is None:
        raise CliptexError(f"--nodes {nodes}: srun is not on the PATH of this SLURM job; see `cliptex doctor`")
    command = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    # not inherited from the job since SLURM 22.05
    return [*command, *(["--cpus-per-task", str(threads)] if threads else [])]


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _become(command: list[str]) -> NoReturn:
    log.info("%s", shlex.join(command[: command.index("cliptex") + 1]))
    os.execvp(command[0], command)


def main() -> None:
    """torchrun, which ends as its processes do where it, or they, were asked to stop: with EXIT_STOPPED."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    from cliptex.training.checkpoints import EXIT_STOPPED, StopRequest

    try:
        run()
    except SignalException as asked:
        if asked.sigval not in StopRequest.SIGNALS:
            raise
        sys.exit(EXIT_STOPPED)
    except ChildFailedError as failed:
        if {failure.exitcode for failure in failed.failures.values()} != {EXIT_STOPPED}:
            raise
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()

"""Launch a command with several processes: torchrun on this machine, or srun and torchrun on the nodes of a SLURM job.

The module itself imports nothing heavy.
"""

import logging
import os
import shlex
import shutil
import signal
import socket
import sys

from cliptex.core.errors import CliptexError

log = logging.getLogger("cliptex")
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that torchrun forwards to the processes."""


def launch(arguments: list[str], nodes: int, gpus: int, threads: int | None) -> None:
    """Replace this process with the launcher of `cliptex ARGUMENTS`. Returns if one process is enough, or in torchrun.

    gpus: GPUs of all nodes together, one process each; 0: those visible here, or one process without a GPU.
    threads: CPU threads of the job per node, for all its processes.
    Raises CliptexError for more than one node outside a SLURM job, and if the GPUs are not a multiple of the nodes.
    """
    if "RANK" in os.environ:  # torchrun started this process
        return
    if gpus % nodes:
        remedy = "give the number of GPUs of all nodes together"
        raise CliptexError(f"--gpus {gpus}: not a multiple of --nodes {nodes}; {remedy}")
    processes = gpus // nodes or max(1, _visible_gpus())
    if nodes * processes == 1:
        return
    command = torchrun(nodes, processes)
    if nodes > 1:
        command = srun(nodes, threads) + command
    # --: otherwise torchrun parses our --log as an abbreviation of its own option
    command += ["-m", "--", "cliptex"]
    log.info("%s", shlex.join(command))
    os.execvp(command[0], [*command, *arguments])


def torchrun(nodes: int, processes: int) -> list[str]:
    """The torchrun command for `processes` on each of `nodes`, with this machine as rendezvous."""
    command = [sys.executable, "-m", "cliptex.cluster.launch", "--nproc-per-node", str(processes), *_signals()]
    if nodes == 1:
        return [*command, "--standalone"]
    # a batch script runs on the first node of its job
    endpoint = f"{socket.gethostname()}:{_free_port()}"
    job = os.environ.get("SLURM_JOB_ID", "0")
    return [*command, "--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", job]


def _signals() -> list[str]:
    """Also forward SIGUSR1, which SLURM sends before a preemption; older torch releases read it from a variable."""
    from dataclasses import fields

    from torch.distributed.launcher import LaunchConfig

    if any(field.name == "signals_to_handle" for field in fields(LaunchConfig)):
        return ["--signals-to-handle", SIGNALS]
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = SIGNALS
    return []


def srun(nodes: int, threads: int | None) -> list[str]:
    """The srun command for one task on each node of this SLURM job; if one fails, all are ended."""
    if "SLURM_JOB_ID" not in os.environ:
        remedy = "start torchrun on each machine instead (docs/training.md)"
        raise CliptexError(f"--nodes {nodes}: this is not a SLURM job; {remedy}")
    if shutil.which("srun") is None:
        raise CliptexError(f"--nodes {nodes}: srun is not on the PATH of this SLURM job; see `cliptex doctor`")
    command = ["srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    # since SLURM 22.05, srun does not inherit it from the job
    return [*command, *(["--cpus-per-task", str(threads)] if threads else [])]


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


def main() -> None:
    """Run torchrun; exit with EXIT_STOPPED if it, or its processes, were stopped by a signal."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    from cliptex.training.checkpoints import EXIT_STOPPED, StopRequest

    try:
        run()
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            sys.exit(128 + signal.SIGINT)
        if stopped.sigval not in StopRequest.SIGNALS:
            raise
    except ChildFailedError as failed:
        if {failure.exitcode for failure in failed.failures.values()} != {EXIT_STOPPED}:
            raise
    else:
        return
    sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()

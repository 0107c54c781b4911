"""The commands of the launcher; test_train.py and tests/slurm test training with it."""

import subprocess
import sys

import pytest

from cliptex.cluster import launch
from cliptex.core.errors import CliptexError


@pytest.fixture
def executed(monkeypatch):
    """The commands that would have replaced this process; outside any job."""
    commands = []
    monkeypatch.setattr("os.execvp", lambda program, command: commands.append(command))
    monkeypatch.setattr(launch, "_visible_gpus", lambda: 4)
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return commands


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Inside a SLURM job with srun."""
    srun = tmp_path / "srun"
    srun.touch()
    srun.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))


def option(command, name):
    return command[command.index(name) + 1]


def test_one_gpu_on_one_node_is_this_process(executed, monkeypatch):
    launch.launch(["train"], nodes=1, gpus=1, threads=8)
    monkeypatch.setattr(launch, "_visible_gpus", lambda: 0)
    launch.launch(["train"], nodes=1, gpus=0, threads=8)
    assert executed == []


def test_several_gpus_of_a_node_are_torchruns(executed):
    launch.launch(["train", "--gpus", "2"], nodes=1, gpus=2, threads=8)
    launch.launch(["train"], nodes=1, gpus=0, threads=8)
    assert [option(command, "--nproc-per-node") for command in executed] == ["2", "4"]
    assert executed[0][-6:] == ["-m", "--", "cliptex", "train", "--gpus", "2"]
    assert "--standalone" in executed[0]


def test_torchrun_leaves_our_options_alone(executed):
    from torch.distributed.run import parse_args

    arguments = ["--log", "some.log", "--threads", "2", "train", "--nodes", "1", "--gpus", "2"]
    launch.launch(arguments, nodes=1, gpus=2, threads=2)
    parsed = parse_args(executed[0][executed[0].index("cliptex.cluster.launch") + 1 :])
    assert (parsed.module, parsed.training_script, parsed.training_script_args) == (True, "cliptex", arguments)
    assert "SIGUSR1" in parsed.signals_to_handle.split(",")


def test_each_node_of_a_job_gets_one_torchrun_and_all_meet_at_one_place(executed, job):
    launch.launch(["train"], nodes=2, gpus=8, threads=16)
    launch.launch(["train"], nodes=2, gpus=0, threads=None)
    for command in executed:
        assert command[0] == "srun"
        assert [option(command, name) for name in ("--nodes", "--ntasks", "--ntasks-per-node")] == ["2", "2", "1"]
        assert [option(command, name) for name in ("--nnodes", "--nproc-per-node", "--rdzv-id")] == ["2", "4", "17"]
    assert option(executed[0], "--cpus-per-task") == "16"
    assert "--cpus-per-task" not in executed[1]


def test_a_process_of_torchruns_launches_nothing(executed, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    launch.launch(["train"], nodes=2, gpus=8, threads=8)
    assert executed == []


def test_nodes_need_a_job_and_gpus_spread_evenly(executed):
    with pytest.raises(CliptexError, match="this is not a SLURM job"):
        launch.launch(["train"], nodes=2, gpus=2, threads=1)
    with pytest.raises(CliptexError, match=r"--gpus 3: not a multiple of --nodes 2"):
        launch.launch(["train"], nodes=2, gpus=3, threads=1)


def test_processes_of_torchruns_share_the_threads():
    command = [sys.executable, "-c", "import os, sys; sys.argv = ['cliptex', '--threads', '6', 'config-reference'];"]
    command[-1] += "from cliptex.cli import app; app(standalone_mode=False); print(os.environ['OMP_NUM_THREADS'])"
    threads = []
    for processes in ("1", "64"):
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"LOCAL_WORLD_SIZE": processes, "PATH": ""}
        )
        threads.append(int(done.stdout.splitlines()[-1]))
    import os

    assert threads == [min(6, len(os.sched_getaffinity(0))), 1]

"""Sharing the GPUs of one machine, with an `nvidia-smi` that lists simulated ones."""

import os
import subprocess
import sys
import uuid
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from shown_output import agrees

from cliptex.cluster import gpu
from cliptex.core.errors import CliptexError

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
TAKE = "import sys, time; from cliptex.cluster import gpu; locks = gpu.take(int(sys.argv[1])); "
TAKE += "print(gpu.os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); "


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The UUIDs of a machine with two GPUs, which no other test has."""
    uuids = [f"GPU-{uuid.uuid4()}" for _ in range(2)]
    lines = [f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: {name})" for number, name in enumerate(uuids)]
    write_list(tmp_path / "bin", lines)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{SNAKEMAKE.parent}:{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return uuids


def write_list(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    (folder / "nvidia-smi").chmod(0o755)


def take(count, then="time.sleep(100)", **variables):
    command = [sys.executable, "-c", TAKE + then, str(count)]
    environ = {**os.environ, **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ)


def test_the_gpus_are_those_of_the_driver_or_of_the_user(machine, monkeypatch):
    first, second = machine
    assert gpu.cards() == machine
    for visible, expected in [
        ("1", [second]),
        ("1, 0", [second, first]),
        (second[:12], [second]),
        ("0,-1,1", [first]),
        ("", []),
    ]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu.cards() == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    with pytest.raises(CliptexError, match="CUDA_VISIBLE_DEVICES=0,2: no GPU 2 among the 2 of this machine"):
        gpu.cards()


def test_a_divided_gpu_is_its_parts(machine, tmp_path):
    part = "  MIG 3g.20gb     Device  {}: (UUID: MIG-{})"
    lines = [f"GPU 0: NVIDIA A100 (UUID: {machine[0]})", part.format(0, "a-0"), part.format(1, "b-1")]
    write_list(tmp_path / "bin", [*lines, f"GPU 1: NVIDIA A100 (UUID: {machine[1]})"])
    assert gpu.cards() == ["MIG-a-0", "MIG-b-1", machine[1]]
    with pytest.raises(CliptexError, match="--gpus 2: CUDA lets a process use only one MIG device"):
        gpu.take(2)


def test_without_nvidia_smi_the_driver_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "NVIDIA_GPUS", tmp_path)
    assert gpu.cards() == gpu.take(1) == []
    (tmp_path / "0000:3b:00.0").mkdir()
    text = "Model: \t\t NVIDIA A100\nIRQ:   \t\t 150\nGPU UUID: \t GPU-0a1b-2c\nVideo BIOS: \t 92.00\n"
    (tmp_path / "0000:3b:00.0/information").write_text(text)
    assert gpu.cards() == ["GPU-0a1b-2c"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpu.cards() == ["GPU-0a1b-2c"]


def test_commands_take_free_gpus_and_a_killed_one_frees_its_own(machine):
    holders = [take(1), take(1)]
    try:
        held = [holder.stdout.readline().strip() for holder in holders]
        assert sorted(held) == sorted(machine)
        waiting = take(1, "", CUDA_VISIBLE_DEVICES=held[0])
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        holders[0].kill()
        assert waiting.communicate(timeout=60)[0].strip() == held[0]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_the_log_is_as_the_how_to_shows(machine, monkeypatch, caplog):
    page = (ROOT / "docs/howto/workstation.md").read_text()
    caplog.set_level("INFO", "cliptex")
    first, second = gpu._lock(machine, 2).values()
    # in this module alone: other threads of the process may sleep
    monkeypatch.setattr(gpu, "time", SimpleNamespace(sleep=lambda _: second.close()))
    assert len(gpu.take(1)) == 1
    first.close()
    assert agrees(page.rpartition("```text\n")[2].removesuffix("```\n"), "\n".join(caplog.messages))


def test_gpus_stay_taken_when_the_launcher_replaces_the_process(machine):
    script = "import os; os.execv(sys.executable, [sys.executable, '-c', \"print(1, flush=True); input()\"])"
    command = [sys.executable, "-c", TAKE + script, "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as training:
        assert training.stdout.readline().strip() == ",".join(machine)
        assert training.stdout.readline().strip() == "1"
        assert gpu._lock(machine, 1) == {}
    assert list(gpu._lock(machine, 2)) == machine


def test_what_was_assigned_is_left_alone(machine, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert gpu.take(1) == []
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert gpu.take(2) == gpu.take(0) == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def cliptex(*arguments):
    command = [sys.executable, "-m", "cliptex", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_more_than_there_are_is_one_line(machine):
    result = cliptex("train", "--model", "clip", "--gpus", "3")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("--gpus 3: this machine has 2 GPUs; ask for at most 2")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--set-resources", "train:gpu=3"], "gpu=3: this machine has 2 GPUs; ask for at most 2"),
        (["--resources", "gpu=3"], "gpu=3: this machine has 2 GPUs; ask for at most 2"),
        (
            ["--resources", "gpu=1", "--set-resources", "train:gpu=2"],
            "train: gpu=2: more than --resources gpu=1 allows",
        ),
    ],
)
def test_snakemake_starts_nothing_if_more_are_asked_than_there_are(machine, tmp_path, options, sentence):
    command = [SNAKEMAKE, "--directory", tmp_path, "--cores", "4", *options, "--", "all"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_profile_of_a_workstation_is_planned(machine, tmp_path):
    command = [SNAKEMAKE, "--workflow-profile", ROOT / "workflow/profiles/workstation", "--cores", "32", "-np"]
    result = subprocess.run(
        [*map(str, command), "--directory", str(tmp_path), "results/models/clip/seed0/train.json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    training = result.stdout[result.stdout.index("rule train:") :]
    assert "gpu=1" in training.partition("resources: ")[2].partition("\n")[0]


WORKFLOW = """
import sys
from cliptex.cluster.gpu import cards, require_cards, require_whole_gpus
{limit}
limit_gpus()
sys.stderr.write(f"limit: gpu={{workflow.global_resources.get('gpu').value}}\\n")
rule all:
    input: [str(number) for number in range(5)], "train"
rule one:
    output: "{{n,[0-4]}}"
    resources: gpu=1
    shell: "{python} {job} 1 {{output}}"
rule train:
    output: "train"
    resources: gpu=1
    shell: "{python} {job} {{resources.gpu}} {{output}}"
"""
JOB = """
import sys, time
from cliptex.cluster import gpu
locks = gpu.take(int(sys.argv[1]))
start = time.monotonic()
time.sleep(0.3)
open(sys.argv[2], "w").write(f"{start} {time.monotonic()} {gpu.os.environ['CUDA_VISIBLE_DEVICES']}")
"""


def test_jobs_of_two_runs_never_overlap_on_a_gpu(machine, tmp_path):
    source = (ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8")
    limit = source[source.index("def limit_gpus") : source.index("def inherit_profile")]
    job = tmp_path / "job.py"
    job.write_text(JOB)
    (tmp_path / "Snakefile").write_text(WORKFLOW.format(limit=limit, python=sys.executable, job=job))
    command = [SNAKEMAKE, "--cores", "8", "--snakefile", tmp_path / "Snakefile", "--set-resources", "train:gpu=2"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([*map(str, command), "--directory", str(tmp_path / name)], env=environ, stderr=subprocess.PIPE)
        for name in ("a", "b")
    ]
    for run in runs:
        said = run.communicate(timeout=300)[1].decode()
        assert run.returncode == 0, said
        assert "limit: gpu=2" in said
    used = []
    for name in ("a", "b"):
        assert (tmp_path / name / "train").read_text().split()[2] == ",".join(machine)
        for path in (tmp_path / name).glob("[0-4t]*"):
            start, end, names = path.read_text().split()
            used += [(one, float(start), float(end)) for one in names.split(",")]
    assert len(used) == 14
    for one in machine:
        times = sorted((start, end) for name, start, end in used if name == one)
        assert all(end <= start for (_, end), (start, _) in pairwise(times))

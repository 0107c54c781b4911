"""What the profiles submit, with an sbatch that only records its arguments."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import GRES, PROFILES, ROOT, SLURM, YOURS, snakemake

pytestmark = pytest.mark.slurm

STORES = ("segmentation", "depth", "normals")
TRAINED = ("open_clip_model.safetensors", "open_clip_config.json", "heads.safetensors", "metrics.jsonl", "train.json")
READY = [
    *(f"results/shards/{number:05d}.tar" for number in range(2)),
    "results/shards/index.json",
    "resources/expert_renders/train.h5",
    "resources/expert_renders/val.h5",
    "results/backbone/backbone.json",
    *(f"results/experts/{name}/expert.json" for name in ("mask_rcnn", "dpt", "nll_angmf")),
    *(f"resources/{name}/miniature.json" for name in ("voc", "coco", "imagenet")),
    "resources/captions/00000.tar",
    *(f"results/labels/{store}/batch-{batch:03d}.json" for store in STORES for batch in range(2)),
    *(f"results/labels/{store}/index.json" for store in STORES),
    *(f"results/models/{name}/seed0/{file}" for name in ("clip", "clip_ft", "cliptex", "wise") for file in TRAINED),
]
"""Files that exist already, so that every target can be submitted at once."""
TARGETS = {
    "render_benchmark": "resources/nyuv2/miniature.json",
    "label": "results/labels/depth/batch-002.json",
    "train": "results/models/clip/seed1/train.json",
    "probe_voc_0": "results/probes/voc/clip/seed0/linear.json",
    "probe_voc_1": "results/probes/voc/cliptex/seed0/linear.json",
    "probe_coco_0": "results/probes/coco/clip/seed0/mask_rcnn.json",
    "zeroshot": "results/zeroshot/imagenet.json",
    "retrieval": "results/zeroshot/captions.json",
    **{f"doctor_{kind}": f"results/doctor/{kind}.json" for kind in ("cpu", "label", "train", "probe")},
}
"""Rule -> one of its outputs, on which nothing in READY depends."""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """SLURM commands that do nothing; sbatch writes a file with its arguments to the folder."""
    commands, calls = tmp_path / "bin", tmp_path / "calls"
    commands.mkdir()
    calls.mkdir()
    scripts = dict.fromkeys(("sinfo", "squeue", "sacct", "scontrol", "scancel", "srun"), "")
    scripts |= {"sacctmgr": "echo lab", "sbatch": f"printf '%s\\n' \"$@\" > {calls}/$$; echo $$"}
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return calls


def submitted(calls: Path, directory: Path, profile: tuple[str, ...], *more: str) -> dict[str, list[str]]:
    """Rule -> its sbatch options for account, partition and resources."""
    for name in READY:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    groups = ("--config", "probes={models_per_job: 3}")  # two jobs per benchmark
    options = [*groups, "--rerun-triggers", "mtime", "--immediate-submit", "--notemp"]
    options += ["--max-jobs-per-timespan", "100/1s"]
    run = snakemake(directory, *profile, *YOURS, *more, *options, "--", *TARGETS.values())
    run.process.wait(timeout=200)
    found = {}
    for call in calls.iterdir():
        arguments = call.read_text().splitlines()
        rule = re.match(r"rule_(\w+?)(_wildcards_.*)?$", arguments[arguments.index("--comment") + 1])[1]
        options_from_account = arguments[arguments.index("-A") :]
        found[rule] = [
            word for word in options_from_account if not word.startswith("--wrap") and word != str(directory)
        ]
        call.unlink()
    assert found.keys() == TARGETS.keys(), (directory / "output.txt").read_text()[-3000:]
    return found


def gpus(arguments: list[str]) -> list[str]:
    return [word for word in arguments if word.startswith(("--gpus", "--gres"))]


def test_the_two_ways_to_ask_for_gpus_submit_the_same_but_for_the_gpus(plugin, sbatch, tmp_path):
    plain = submitted(sbatch, tmp_path / "gpus", SLURM)
    gres = submitted(sbatch, tmp_path / "gres", GRES)
    for rule, arguments in plain.items():
        needs = rule not in ("render_benchmark", "doctor_cpu")
        assert gpus(arguments) == ["--gpus=1"] * needs, (rule, arguments)
        assert gpus(gres[rule]) == ["--gres=gpu:1"] * needs, (rule, gres[rule])
        assert [word for word in arguments if word not in gpus(arguments)] == [
            word for word in gres[rule] if word not in gpus(gres[rule])
        ]
        assert shlex.join(arguments).startswith("-A lab -p batch ")
        assert "--requeue" in arguments
        if needs and not rule.startswith("doctor"):
            assert "--cpus-per-task=8" in arguments


def test_the_gres_profile_says_of_memory_what_the_other_says():
    read = {name: yaml.safe_load((PROFILES / name / "config.yaml").read_text()) for name in ("slurm", "slurm-gres")}
    plain, gres = (profile["set-resources"] for profile in read.values())
    assert read["slurm-gres"].keys() == {"set-resources"}
    for rule, resources in plain.items():
        assert gres[rule] == resources | {"gpu": 0, "gres": "gpu:1"}, rule
    assert all(resources["gpu"] == 0 and resources["gres"] == "gpu:1" for resources in gres.values())
    rules = "\n".join(path.read_text() for path in (PROFILES.parent / "rules").glob("*.smk"))
    with_gpu = {
        name
        for name, body in re.findall(r"^ *rule (\w+):\n(.*?)(?=^ *rule\b|\Z)", rules, re.M | re.S)
        if re.search(r"^ +gpu=1,", body, re.M)
    }
    # rules generated in loops, e.g. finetune_voc: the profile has their first word
    with_gpu |= {
        name
        for name, body in re.findall(r'^ +name:\n +f"([a-z]+)_.*?"\n(.*?)(?=^ *rule\b|\Z)', rules, re.M | re.S)
        if re.search(r"^ +gpu=1,", body, re.M)
    }
    assert {"label", "probe", "finetune", "zeroshot"} <= with_gpu
    assert with_gpu - gres.keys() == set()


def documented() -> dict[tuple[str, ...], None]:
    """The commands of Snakemake and of the package in docs/slurm.md, each once, without --dry-run."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "docs/slurm.md").read_text(), re.M | re.S)
    blocks = [text for kind, text in found if not kind]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(("snakemake ", "cliptex "))]
    return dict.fromkeys(tuple(word for word in shlex.split(line) if word != "--dry-run") for line in lines)


@pytest.mark.parametrize("command", documented(), ids=shlex.join)
def test_commands_of_the_documentation_can_be_planned(plugin, sbatch, tmp_path, command):
    (tmp_path / "resources/cc3m").mkdir(parents=True)
    (tmp_path / "resources/cc3m/Train_GCC-training.tsv").touch()
    here = ["--dry-run", "--directory", str(tmp_path)] if command[0] == "snakemake" else []
    if here:  # the commands come after section 2, in which account and partition are set
        edited = tmp_path / "profiles"
        shutil.copytree(PROFILES, edited)
        path = edited / "slurm/config.yaml"
        path.write_text(path.read_text().replace("CHANGE_ME", "lab"))
        command = [word.replace("workflow/profiles", str(edited)) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *command, *here], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    if here:
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        assert re.search(r"^total +\d+", done.stdout + done.stderr, re.M)
    else:  # the profile as shipped
        assert done.returncode == 1 and "still the placeholder" in done.stdout, done.stderr


def test_account_and_partition_stand_in_one_place():
    text = {path.parent.name: path.read_text() for path in PROFILES.glob("*/config.yaml")}
    assert re.findall(r"slurm_account: (.*)", "".join(text.values())) == ["CHANGE_ME"]
    assert re.findall(r"slurm_partition: (.*)", "".join(text.values())) == ["CHANGE_ME"]

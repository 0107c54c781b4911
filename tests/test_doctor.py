"""The doctor on simulated machines; tests/slurm runs it on a real SLURM."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cliptex.cluster import doctor, gpu
from cliptex.cluster.doctor import Submission, examine, table
from cliptex.config import Config
from cliptex.core.errors import CliptexError

ROOT = Path(__file__).parent.parent
ANSWERS = {
    "sinfo": 'case "$*" in *version*) echo slurm 23.11.4;; *) echo "gpu|up|2-00:00:00|4|gpu:a100:4"; '
    'echo "old|drain|1:00:00|2|(null)";; esac',
    "squeue": "echo 1; echo 2",
    "sacct": "true",
    "sacctmgr": "echo lab; echo guests",
    "sbatch": 'echo "sbatch: Job 7 to start at ..." >&2',
    "srun": "true",
    "scancel": "true",
}
"""The commands of a healthy cluster."""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of commands, which is the whole PATH; tests overwrite some of them. Outside any job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in ANSWERS.items():
        command(folder, name, script)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(doctor, "_version", lambda package: "2.8.0" if "slurm" in package else real_version(package))
    for name in ("SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


real_version = doctor._version


def command(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def checks(submission=None, wants_gpu=False, config=None):
    found = examine(Config.load(config or {}), submission, None, wants_gpu)
    assert found["ok"] == all(check["status"] != "failed" for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def failed(found):
    return {name for name, check in found.items() if check["status"] == "failed"}


def test_a_healthy_cluster_has_nothing_to_mend(cluster):
    found = checks(Submission("lab", "gpu", "a100"))
    assert failed(found) == set()
    assert found["partition"]["found"] == "gpu: 4 nodes, gpu:a100:4, limit 2-00:00:00"
    assert found["queue"]["found"] == "2 jobs of yours"
    assert {name for name in found if found[name]["status"] == "ok"} >= {
        "scheduler",
        "accounting",
        "account",
        "submission",
    }


@pytest.mark.parametrize(
    ("submission", "check", "remedy"),
    [
        (Submission("elsewhere", "gpu"), "account", "yours: guests, lab"),
        (Submission("CHANGE_ME", "gpu"), "account", "yours: guests, lab"),
        (Submission("lab", "big"), "partition", "choose one of gpu, old"),
        (Submission("lab", "CHANGE_ME"), "partition", "choose one of gpu, old"),
        (Submission("lab", "old"), "partition", "choose another one of gpu, old"),
    ],
)
def test_a_wrong_account_or_partition_fails_and_the_right_ones_are_named(cluster, submission, check, remedy):
    found = checks(submission)
    assert failed(found) == {check}
    assert remedy in found[check]["remedy"]


@pytest.mark.parametrize(
    ("name", "script", "check", "remedy"),
    [
        ("sbatch", "echo 'allocation failure: Invalid qos' >&2; exit 1", "submission", "must be compatible"),
        ("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1", "queue", "slurmctld"),
    ],
)
def test_what_the_scheduler_refuses_is_said_in_its_own_words(cluster, name, script, check, remedy):
    command(cluster, name, script)
    found = checks(Submission("lab", "gpu"))
    assert failed(found) == {check}
    assert found[check]["found"] in script
    assert remedy in found[check]["remedy"]


def test_missing_accounting_is_noted_since_the_profile_does_without(cluster):
    command(cluster, "sacct", "echo 'accounting storage is disabled' >&2; exit 1")
    found = checks(Submission("lab", "gpu"))
    assert failed(found) == set()
    assert found["accounting"]["status"] == "note" and "storage is disabled" in found["accounting"]["found"]
    assert "slurm-status-command: squeue" in found["accounting"]["remedy"]


def test_a_missing_command_is_named(cluster):
    (cluster / "sacct").unlink()
    found = checks(Submission("lab", "gpu"))
    assert failed(found) == {"scheduler"}
    assert found["scheduler"]["found"] == "not on the PATH: sacct"


def test_without_a_scheduler_none_is_missed_unless_a_profile_wants_it(cluster):
    for name in ANSWERS:
        (cluster / name).unlink()
    assert failed(checks()) == set()
    assert failed(checks(Submission("lab", "gpu"))) == {"scheduler"}


def test_an_old_plugin_fails(cluster, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: "1.9" if "slurm" in package else real_version(package))
    found = checks(Submission("lab", "gpu"))
    assert failed(found) == {"plugin"}
    assert found["plugin"]["remedy"] == "pip install '.[slurm]'"


def test_a_job_says_where_it_runs(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    command(cluster, "squeue", 'echo "gpu|lab|node7|10:00"')
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.setattr(gpu, "loaded_driver", lambda: "CUDA")
    monkeypatch.setattr(gpu, "unusable_gpu", lambda: "has a GPU")
    found = checks()
    assert found["job"]["found"] == "42: partition gpu, account lab, node node7, limit 10:00, GPUs here: 1"
    assert failed(found) == {"gpu"} and found["account"]["found"] == "lab"
    assert found["partition"]["found"] == "gpu: 4 nodes, gpu:a100:4, limit 2-00:00:00"
    assert "scheduler" not in found and "submission" not in found


def test_in_a_job_too_a_wrong_account_or_partition_fails(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    command(cluster, "squeue", 'echo "gpu|lab|node7|10:00"')
    found = checks(Submission("elsewhere", "big"))
    assert failed(found) == {"account", "partition"}
    assert (
        "yours: guests, lab" in found["account"]["remedy"] and "choose one of gpu, old" in found["partition"]["remedy"]
    )
    for name in ("sinfo", "sacctmgr", "sbatch"):
        (cluster / name).unlink()
    found = checks(Submission("elsewhere", "big"))
    assert failed(found) == set()
    assert found["scheduler"]["found"] == "not on this node's PATH: sbatch, sinfo"


@pytest.mark.parametrize(("name", "value"), [("SLURM_JOB_GPUS", "0"), ("CUDA_VISIBLE_DEVICES", "0,1")])
def test_a_gpu_that_is_allotted_and_cannot_be_seen_is_named(cluster, monkeypatch, caplog, name, value):
    monkeypatch.setattr(gpu, "loaded_driver", lambda: None)
    monkeypatch.setenv(name, value)
    if name == "CUDA_VISIBLE_DEVICES":
        assert not gpu.missing_gpu(), "outside a job it means nothing"
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        command(cluster, "squeue", 'echo "gpu|lab|node7|10:00"')
    found = checks(config={"dataset": {"source": "webdataset", "shards": ["a.tar"]}})
    assert failed(found) == {"gpu"} and failed(checks()) == set(), "the miniature needs none"
    assert f"{name}={value}, but no GPU driver is visible here" in found["gpu"]["found"]
    with caplog.at_level("WARNING", "cliptex"):
        gpu.require_allocated_gpu()
    assert f"{name}={value}, but no GPU driver" in caplog.text
    monkeypatch.setenv(name, "-1")
    assert not gpu.missing_gpu()


def test_a_gpu_job_without_a_gpu_fails_but_for_the_miniature(cluster, monkeypatch):
    monkeypatch.setattr(gpu, "loaded_driver", lambda: None)
    assert failed(checks(wants_gpu=True)) == set()
    found = checks(wants_gpu=True, config={"dataset": {"source": "webdataset", "shards": ["a.tar"]}})
    assert failed(found) == {"gpu"}
    assert "partition that has them" in found["gpu"]["remedy"]


def test_a_gpu_beside_a_torch_that_cannot_use_it_fails_in_its_job_and_stops_the_stages(cluster, monkeypatch):
    monkeypatch.setattr(gpu, "loaded_driver", lambda: "CUDA")
    monkeypatch.setattr(gpu, "torch_build", lambda: ("2.6.0", "CPU"))
    assert checks()["gpu"]["status"] == "note"
    gpu.require_allocated_gpu()
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    found = checks()
    assert failed(found) == {"gpu"}
    assert found["gpu"]["found"] == "torch 2.6.0 (CPU) on a machine whose GPU needs a CUDA build"
    with pytest.raises(CliptexError, match="needs a CUDA build; install a matching build"):
        gpu.require_allocated_gpu()


def test_the_build_of_torch_is_read_without_loading_it():
    code = "import sys; from cliptex.cluster import gpu; print(gpu.torch_build(), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    import torch

    number, build = torch.__version__, torch.version.cuda
    assert said == f"{(number, f'CUDA {build}' if build else 'CPU')} False\n"


def test_a_full_disk_and_missing_packages_fail(cluster, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**8))
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy>=99", "no-such-package", "extra; extra == 'test'"])
    found = checks()
    assert failed(found) == {"results", "resources", "temporary", "packages"}
    assert "0.1 GB free" in found["results"]["found"]
    assert "no-such-package missing (needs any)" in found["packages"]["found"]
    assert "numpy" in found["packages"]["found"]


def test_the_disk_must_hold_the_labels(cluster, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**13, 0, 5 * 10**9))
    config = {
        "dataset": {"source": "urls", "urls": {"files": ["list.tsv"], "rows": 3_000_000}},
        "experts": {"dpt": {}},
        "label_stores": {"depth": {"task": "depth", "expert": "dpt"}},
    }
    found = checks(config=config)
    assert failed(found) == {"results"}
    assert "GB needed: make room" in found["results"]["remedy"]


def test_the_command_writes_what_it_found_shows_it_and_tells_by_its_exit_code(cluster, tmp_path):
    profile = tmp_path / "slurm"
    shutil.copytree(ROOT / "workflow/profiles/slurm", profile)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "cliptex", "doctor", "--config", "{}", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": str(cluster), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )
        return done.returncode, done.stdout + done.stderr

    code, said = run("--profile", str(profile), "--out", "found.json")
    assert code == 1
    assert "error: fix the checks marked FAILED above" in said
    assert "FAILED  account    still the placeholder" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert not found["ok"]
    code, said = run(
        "--profile", str(profile), "--account", "lab", "--partition", "gpu", "--out", "all.json", "found.json"
    )
    both = json.loads((tmp_path / "all.json").read_text())
    assert [place["ok"] for place in both["places"]][1:] == [False]
    assert code == 1
    named = {check["name"]: check for check in both["places"][0]["checks"]}
    assert {"account", "partition"} & failed(named) == set()
    code, said = run("--profile", str(tmp_path / "nowhere"))
    assert code == 1
    assert "nowhere: cannot be read" in said


def test_the_table_has_a_line_a_check_and_each_failure_its_remedy(cluster):
    place = examine(Config.load({}), Submission("CHANGE_ME", "gpu"), "label", False)
    shown = table([place])
    assert shown.startswith("label (")
    assert len(shown.splitlines()) == 1 + sum(1 + bool(check["remedy"]) for check in place["checks"])
    assert all(check["remedy"] for check in place["checks"] if check["status"] == "failed")

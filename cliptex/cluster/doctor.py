"""Whether a run can work here: Python and packages, scheduler, partition and account, GPU and PyTorch, disk.

Reads   the machine, the scheduler's answers, the configuration, a profile.
Writes  the JSON file that it is asked for.
Holds   nothing is submitted and nothing outlives it; what fails names its remedy.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import yaml

from cliptex import __version__
from cliptex.cluster import gpu
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "sinfo", "scancel")
LEAST_GB = 2.0
"""Free disk below which nothing is started, however little it needs."""
LEAST_FILES = 10_000
TIMEOUT_S = 30
PLACEHOLDER = "CHANGE_ME"
"""What the shipped profile has in place of the user's account and partition."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `note`: neither good nor bad, or not needed here."""

    name: str
    status: Literal["ok", "failed", "note"]
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Submission:
    """Where jobs are to go. None: the scheduler's default."""

    account: str | None = None
    partition: str | None = None
    constraint: str | None = None

    @classmethod
    def of_profile(cls, profile: Path) -> "Submission":
        """What a Snakemake profile (a folder, or its file) names in `default-resources`."""
        path = profile / "config.yaml" if profile.is_dir() else profile
        try:
            named = yaml.safe_load(path.read_text()).get("default-resources") or {}
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise CliptexError(
                f"--profile {profile}: cannot be read ({error}); name the folder of a profile"
            ) from error
        return cls(*(named.get(key) for key in ("slurm_account", "slurm_partition", "constraint")))


def examine(config: Config, submission: Submission | None, kind: str | None, wants_gpu: bool) -> dict[str, Any]:
    """What holds on this machine: `kind host time cliptex ok checks`.

    submission: where jobs will go, None where none will. kind: what kind of job this is, None for no job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    checks = [_python(), _packages(), *_machine(), _gpu(config, wants_gpu)]
    if job is not None:
        checks += _inside(job, submission)
    elif submission is not None or shutil.which("sbatch"):
        checks += _scheduler(submission)
    checks += [*_disk(config), _hub()]
    return {
        "schema_version": 1,
        "kind": kind or "here",
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cliptex": __version__,
        "ok": all(check.status != "failed" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def table(places: list[dict[str, Any]]) -> str:
    """What was found in some places, for reading."""
    lines = []
    for place in places:
        lines.append(f"{place['kind']} ({place['host']})")
        for check in place["checks"]:
            status = {"ok": "ok", "failed": "FAILED", "note": "-"}[check["status"]]
            lines.append(f"  {status:7} {check['name']:10} {check['found']}")
            if check["remedy"]:
                lines.append(f"  {'':7} {'':10} remedy: {check['remedy']}")
    return "\n".join(lines)


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")


def _packages() -> Check:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("cliptex") or []]
    except PackageNotFoundError:
        return Check("packages", "failed", "cliptex is not installed", "pip install .   in the clone")
    wrong, count = [], 0
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found or 'missing'} (needs {requirement.specifier or 'any'})")
    if wrong:
        return Check("packages", "failed", ", ".join(wrong), "pip install .   in the clone")
    return Check("packages", "ok", f"{count} as required")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> list[Check]:
    processors = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [Check("machine", "note", f"{processors} processors for this process, {memory:.0f} GB of memory")]


def _gpu(config: Config, wanted: bool) -> Check:
    number, build = gpu.torch_build()
    if not number:
        return Check("gpu", "failed", "torch is missing", "pip install .   in the clone")
    present, named = gpu.driver(), f"torch {number} ({build})"
    if reason := gpu.problem():
        # a login node may have a driver and no GPU to give away
        status = "failed" if wanted or gpu.allotted() else "note"
        return Check("gpu", status, reason, "install a fitting build, https://pytorch.org/get-started")
    if reason := gpu.unseen():
        remedy = "tell the administrators: `nvidia-smi`, or `rocm-smi`, must work in a job that has a GPU"
        # the miniature needs none, and runs on clusters whose GPUs are made up
        status = "failed" if config.dataset.source != "miniature" else "note"
        return Check("gpu", status, f"{named}; {reason}", remedy)
    if present is None:
        if wanted and config.dataset.source != "miniature":
            remedy = "ask for one: the profile's `gpu` or `gres`, and a partition that has them (sinfo -o '%P %G')"
            return Check("gpu", "failed", f"{named}, no GPU in this job", remedy)
        return Check("gpu", "note", f"{named}, no GPU here")
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    ones = torch.ones(64, 64, device="cuda")
    if float((ones @ ones).sum()) != 64**3:
        return Check("gpu", "failed", f"{named}, {', '.join(names)}: computes nonsense", "tell the administrators")
    return Check("gpu", "ok", f"{named}, {', '.join(names)}")


def _ask(*command: str) -> tuple[bool, str]:
    """Whether a command succeeds, and what it says; an error on one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return (True, done.stdout.strip()) if done.returncode == 0 else (False, " ".join(done.stderr.split()))


def _inside(job: str, submission: Submission | None) -> list[Check]:
    """Of a SLURM job, in it: where it runs, and where jobs will go, as far as the scheduler's commands are there.

    Nodes may lack some of them, or forbid to submit: what they cannot say is no failure.
    """
    fine, said = _ask("squeue", "--noheader", "--jobs", job, "--format", "%P|%a|%N|%l")
    if not fine:
        return [Check("job", "note", f"{job}; squeue cannot be asked here ({said})")]
    partition, account, nodes, limit = (part.strip() for part in (said.splitlines() or ["|||"])[0].split("|"))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    found = f"{job}: partition {partition}, account {account}, node {nodes}, limit {limit}, GPUs here: {gpus}"
    checks = [Check("job", "ok", found)]
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        checks.append(Check("scheduler", "note", f"not on this node's PATH: {', '.join(missing)}"))
    if submission is None:  # its own
        submission = Submission(account if account != "(null)" else None, partition)
    if shutil.which("sacctmgr"):
        checks.append(_account(submission))
    if shutil.which("sinfo"):
        checks.append(_partition(submission))
    return checks


def _scheduler(submission: Submission | None) -> list[Check]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        remedy = "log in to a node from which jobs are submitted, or load its module (module avail slurm)"
        return [Check("scheduler", "failed", f"not on the PATH: {', '.join(missing)}", remedy)]
    fine, said = _ask("sinfo", "--version")
    plugin = _version("snakemake-executor-plugin-slurm")
    checks = [Check("scheduler", "ok" if fine else "failed", said, "" if fine else "is slurmctld up? scontrol ping")]
    checks.append(_plugin(plugin))
    fine, said = _ask("squeue", "--noheader", "--user", getpass.getuser())
    if fine:
        checks.append(Check("queue", "ok", f"{len(said.splitlines())} jobs of yours"))
    else:
        checks.append(Check("queue", "failed", said, "is slurmctld up? scontrol ping"))
    fine, said = _ask("sacct", "--noheader", "--allocations", "--starttime", "now-1hour")
    if fine:
        checks.append(Check("accounting", "ok", "sacct answers"))
    else:
        # the shipped profile does without
        checks.append(Check("accounting", "note", said, "keep slurm-status-command: squeue in the profile"))
    if submission is None:
        checks.append(Check("partition", "note", "not checked", "cliptex doctor --profile workflow/profiles/slurm"))
        return checks
    return [*checks, _account(submission), _partition(submission), _submission(submission)]


def _plugin(found: str | None) -> Check:
    from packaging.specifiers import SpecifierSet

    if found is None or not SpecifierSet(">=2.8,<3").contains(found):
        return Check("plugin", "failed", f"snakemake-executor-plugin-slurm {found}", "pip install '.[slurm]'")
    return Check("plugin", "ok", f"snakemake-executor-plugin-slurm {found}")


def _account(submission: Submission) -> Check:
    user, account = getpass.getuser(), submission.account
    fine, said = _ask("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account")
    accounts = sorted(set(said.split())) if fine else []
    yours = f"yours: {', '.join(accounts)}" if accounts else "ask the administrators for yours"
    if account in (PLACEHOLDER, None):
        found = "still the placeholder" if account else "none named"
        status = "failed" if account else "note"
        return Check("account", status, found, f"slurm_account in the profile; {yours}")
    if not fine:
        return Check("account", "note", f"{account}; sacctmgr cannot say whether it is yours ({said})")
    if str(account).lower() not in accounts:
        return Check("account", "failed", f"{account} is not yours", f"slurm_account in the profile; {yours}")
    return Check("account", "ok", str(account))


def _partition(submission: Submission) -> Check:
    fine, said = _ask("sinfo", "--noheader", "--format", "%R|%a|%l|%D|%G")
    if not fine:
        return Check("partition", "failed", said, "is slurmctld up? scontrol ping")
    rows = [line.split("|") for line in said.splitlines()]
    there = ", ".join(dict.fromkeys(row[0] for row in rows))
    if submission.partition in (PLACEHOLDER, None):
        found = "still the placeholder" if submission.partition else "the cluster's default"
        remedy = f"slurm_partition in the profile; there are {there}"
        return Check("partition", "failed" if submission.partition else "note", found, remedy)
    checks = []
    for name in str(submission.partition).split(","):
        own = [row for row in rows if row[0] == name]
        if not own:
            return Check("partition", "failed", f"no {name}", f"slurm_partition in the profile; there are {there}")
        if all(row[1] != "up" for row in own):
            return Check("partition", "failed", f"{name} is {own[0][1]}", f"wait, or take another one of {there}")
        gpus = ", ".join(dict.fromkeys(row[4] for row in own if row[4] != "(null)")) or "no GPUs"
        checks.append(f"{name}: {sum(int(row[3]) for row in own)} nodes, {gpus}, limit {own[0][2]}")
    return Check("partition", "ok", "; ".join(checks))


def _submission(submission: Submission) -> Check:
    """Whether the scheduler would take a job, without giving it one."""
    command = ["sbatch", "--test-only", "--time=1", "--ntasks=1", "--wrap", "true"]
    named = {"account": submission.account, "partition": submission.partition, "constraint": submission.constraint}
    command[1:1] = [f"--{key}={value}" for key, value in named.items() if value]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("submission", "failed", str(error), "is slurmctld up? scontrol ping")
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode:
        remedy = "account, partition and constraint in the profile's default-resources must fit together"
        return Check("submission", "failed", said[-1].removeprefix("allocation failure: "), remedy)
    return Check("submission", "ok", "a job of one minute would be taken")


def _disk(config: Config) -> list[Check]:
    checks, wanted = [], max(LEAST_GB, _label_gb(config))
    folders = [("results", paths.RESULTS, wanted), ("resources", paths.RESOURCES, LEAST_GB)]
    for name, folder, least in [*folders, ("temporary", Path(tempfile.gettempdir()), LEAST_GB / 2)]:
        there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
        free, system = shutil.disk_usage(there).free / 1e9, os.statvfs(there)
        found = f"{free:.1f} GB free in {there}"
        if not os.access(there, os.W_OK):
            checks.append(Check(name, "failed", f"{there} cannot be written", "another folder: snakemake --directory"))
        elif free < least:
            remedy = f"at least {least:.1f} GB: make room, or another disk (snakemake --directory, TMPDIR)"
            checks.append(Check(name, "failed", found, remedy))
        elif system.f_files and system.f_favail < LEAST_FILES:
            checks.append(
                Check(name, "failed", f"{system.f_favail} files left in {there}", "remove files, or ask for more")
            )
        else:
            checks.append(Check(name, "ok", found))
    return checks


def _label_gb(config: Config) -> float:
    """GB that the labels will take, as far as it is known before any are made."""
    from cliptex.cluster.plan import make_plan

    if not config.label_stores:
        return 0.0
    return sum(store["bytes"] or 0 for store in make_plan(config, measure=False)["stores"].values()) / 1e9


def _hub() -> Check:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return Check("hub", "note", f"{'offline' if offline else 'online'}; cache in {home}")

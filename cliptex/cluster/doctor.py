"""Check the machine before a run: Python and packages, scheduler, partition and account, GPU and PyTorch, disk.

Reads   the machine, the scheduler's commands, the configuration, a Snakemake profile.
Holds   no job is submitted and nothing is changed; every failed check has a remedy.
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
MIN_FREE_GB = 2.0
"""Minimum free disk space of any run."""
MIN_FREE_FILES = 10_000
TIMEOUT_S = 30
CONTROLLER = "is slurmctld up? scontrol ping"
"""The remedy if the scheduler does not answer."""
PLACEHOLDER = "CHANGE_ME"
"""Placeholder for account and partition in the shipped profile."""


@dataclass(frozen=True)
class Check:
    """The result of one check. `note`: for information, or not needed here."""

    name: str
    status: Literal["ok", "failed", "note"]
    found: str
    remedy: str = ""


RECORD = {"kind": str, "host": str, "ok": bool, "checks": [dict.fromkeys(("name", "status", "found", "remedy"), str)]}
"""The form of the record of a machine (`cliptex.core.files.read_checked`)."""


@dataclass(frozen=True)
class Submission:
    """Where jobs are submitted. None: the scheduler's default."""

    account: str | None = None
    partition: str | None = None
    constraint: str | None = None

    @classmethod
    def of_profile(cls, profile: Path) -> "Submission":
        """Read `default-resources` of a Snakemake profile (a folder, or its file)."""
        path = profile / "config.yaml" if profile.is_dir() else profile
        try:
            if not path.is_file():  # reading a pipe would wait for ever
                raise FileNotFoundError(f"{path} is not a file")
            resources = yaml.safe_load(path.read_text(encoding="utf-8")).get("default-resources") or {}
            return cls(*(resources.get(key) for key in ("slurm_account", "slurm_partition", "constraint")))
        except (OSError, ValueError, RecursionError, TypeError, AttributeError, yaml.YAMLError) as error:
            problem = f"--profile {profile}: cannot be read ({error}); give the folder of a profile"
            raise CliptexError(problem) from error


def examine(config: Config, submission: Submission | None, kind: str | None, wants_gpu: bool) -> dict[str, Any]:
    """Run all checks on this machine: `kind host time cliptex ok checks`.

    submission: where jobs will be submitted; None: not checked. kind: the kind of job this runs in; None: in no job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    python = Check("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    checks = [python, _packages(), _machine(), _gpu(config, wants_gpu)]
    if job is not None:
        checks += _job(job, submission)
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
    """The checks of several machines as text."""
    lines = []
    for place in places:
        lines.append(f"{place['kind']} ({place['host']})")
        for check in place["checks"]:
            status = {"ok": "ok", "failed": "FAILED"}.get(check["status"], "-")
            lines.append(f"  {status:7} {check['name']:10} {check['found']}")
            if check["remedy"]:
                lines.append(f"  {'':7} {'':10} remedy: {check['remedy']}")
    return "\n".join(lines)


def _packages() -> Check:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in requires("cliptex") or []]
    except PackageNotFoundError:
        return Check("packages", "failed", "cliptex is not installed", "pip install .   in the clone")
    requirements = [one for one in requirements if not one.marker or one.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in requirements:
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'missing'} (needs {requirement.specifier or 'any'})")
    if wrong:
        return Check("packages", "failed", ", ".join(wrong), "pip install .   in the clone")
    return Check("packages", "ok", f"{len(requirements)} as required")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> Check:
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Check("machine", "note", f"{cpus} CPUs for this process, {memory:.0f} GB of memory")


def _gpu(config: Config, wants_gpu: bool) -> Check:
    version_number, build = gpu.torch_build()
    if not version_number:
        return Check("gpu", "failed", "torch is missing", "pip install .   in the clone")
    torch_name = f"torch {version_number} ({build})"
    if reason := gpu.unusable_gpu():
        # a login node may have a driver, but no GPU for its users
        status = "failed" if wants_gpu or gpu.is_allocated() else "note"
        return Check("gpu", status, reason, "install a matching build, https://pytorch.org/get-started")
    if reason := gpu.missing_gpu():
        remedy = "ask the administrators: `nvidia-smi`, or `rocm-smi`, must work in a job with a GPU"
        # the miniature needs no GPU, and is run on test clusters with fake ones
        status = "failed" if config.dataset.source != "miniature" else "note"
        return Check("gpu", status, f"{torch_name}; {reason}", remedy)
    if gpu.loaded_driver() is None:
        if wants_gpu and config.dataset.source != "miniature":
            remedy = "request one: the profile's `gpu` or `gres`, and a partition that has them (sinfo -o '%P %G')"
            return Check("gpu", "failed", f"{torch_name}, no GPU in this job", remedy)
        return Check("gpu", "note", f"{torch_name}, no GPU here")
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    ones = torch.ones(64, 64, device="cuda")
    if float((ones @ ones).sum()) != 64**3:
        return Check("gpu", "failed", f"{torch_name}, {', '.join(names)}: wrong results", "ask the administrators")
    return Check("gpu", "ok", f"{torch_name}, {', '.join(names)}")


def _ask(*command: str) -> tuple[bool, str]:
    """Whether a command succeeds, and its output; an error on one line."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return (True, process.stdout.strip()) if process.returncode == 0 else (False, " ".join(process.stderr.split()))


def _job(job: str, submission: Submission | None) -> list[Check]:
    """Checks run inside a SLURM job: node, partition, account.

    Compute nodes may lack the scheduler's commands, or not allow submission: neither is a failure.
    """
    succeeded, output = _ask("squeue", "--noheader", "--jobs", job, "--format", "%P|%a|%N|%l")
    if not succeeded:
        return [Check("job", "note", f"{job}; squeue does not work here ({output})")]
    partition, account, nodes, limit = (part.strip() for part in (output.splitlines() or ["|||"])[0].split("|"))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    found = f"{job}: partition {partition}, account {account}, node {nodes}, limit {limit}, GPUs here: {gpus}"
    checks = [Check("job", "ok", found)]
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        checks.append(Check("scheduler", "note", f"not on this node's PATH: {', '.join(missing)}"))
    if submission is None:  # check those of this job
        submission = Submission(account if account != "(null)" else None, partition)
    if shutil.which("sacctmgr"):
        checks.append(_account(submission))
    if shutil.which("sinfo"):
        checks.append(_partition(submission))
    return checks


def _scheduler(submission: Submission | None) -> list[Check]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        remedy = "log in to a node from which jobs can be submitted, or load its module (module avail slurm)"
        return [Check("scheduler", "failed", f"not on the PATH: {', '.join(missing)}", remedy)]
    succeeded, output = _ask("sinfo", "--version")
    checks = [_result("scheduler", succeeded, output, CONTROLLER), _plugin()]
    succeeded, output = _ask("squeue", "--noheader", "--user", getpass.getuser())
    found = f"{len(output.splitlines())} jobs of yours" if succeeded else output
    checks.append(_result("queue", succeeded, found, CONTROLLER))
    succeeded, output = _ask("sacct", "--noheader", "--allocations", "--starttime", "now-1hour")
    if succeeded:
        checks.append(Check("accounting", "ok", "sacct works"))
    else:
        # the shipped profile does not need it
        checks.append(Check("accounting", "note", output, "keep slurm-status-command: squeue in the profile"))
    if submission is None:
        checks.append(Check("partition", "note", "not checked", "cliptex doctor --profile workflow/profiles/slurm"))
        return checks
    return [*checks, _account(submission), _partition(submission), _submission(submission)]


def _result(name: str, is_ok: bool, found: str, remedy: str) -> Check:
    return Check(name, "ok", found) if is_ok else Check(name, "failed", found, remedy)


def _plugin() -> Check:
    from packaging.specifiers import SpecifierSet

    name = "snakemake-executor-plugin-slurm"
    number = _version(name)
    is_ok = number is not None and SpecifierSet(">=2.8,<3").contains(number)
    return _result("plugin", is_ok, f"{name} {number}", "pip install '.[slurm]'")


def _account(submission: Submission) -> Check:
    account, query = submission.account, f"show associations user={getpass.getuser()} format=account"
    succeeded, output = _ask("sacctmgr", "--noheader", "--parsable2", *query.split())
    accounts = sorted(set(output.split())) if succeeded else []
    yours = f"yours: {', '.join(accounts)}" if accounts else "ask the administrators for yours"
    if account in (PLACEHOLDER, None):
        found = "still the placeholder" if account else "none set"
        status = "failed" if account else "note"
        return Check("account", status, found, f"slurm_account in the profile; {yours}")
    if not succeeded:
        return Check("account", "note", f"{account}; sacctmgr cannot check it ({output})")
    is_yours = str(account).lower() in accounts
    found = str(account) if is_yours else f"{account} is not yours"
    return _result("account", is_yours, found, f"slurm_account in the profile; {yours}")


def _partition(submission: Submission) -> Check:
    succeeded, output = _ask("sinfo", "--noheader", "--format", "%R|%a|%l|%D|%G")
    if not succeeded:
        return Check("partition", "failed", output, CONTROLLER)
    rows = [line.split("|") for line in output.splitlines()]
    partitions = ", ".join(dict.fromkeys(row[0] for row in rows))
    remedy = f"slurm_partition in the profile; choose one of {partitions}"
    if submission.partition in (PLACEHOLDER, None):
        found = "still the placeholder" if submission.partition else "the cluster's default"
        return Check("partition", "failed" if submission.partition else "note", found, remedy)
    checks = []
    for name in str(submission.partition).split(","):
        own = [row for row in rows if row[0] == name]
        if not own:
            return Check("partition", "failed", f"no {name}", remedy)
        if all(row[1] != "up" for row in own):
            remedy = f"wait, or choose another one of {partitions}"
            return Check("partition", "failed", f"{name} is {own[0][1]}", remedy)
        gpus = ", ".join(dict.fromkeys(row[4] for row in own if row[4] != "(null)")) or "no GPUs"
        checks.append(f"{name}: {sum(int(row[3]) for row in own)} nodes, {gpus}, limit {own[0][2]}")
    return Check("partition", "ok", "; ".join(checks))


def _submission(submission: Submission) -> Check:
    """Whether the scheduler would accept a job; none is submitted."""
    command = ["sbatch", "--test-only", "--time=1", "--ntasks=1", "--wrap", "true"]
    options = {"account": submission.account, "partition": submission.partition, "constraint": submission.constraint}
    command[1:1] = [f"--{key}={value}" for key, value in options.items() if value]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("submission", "failed", str(error), CONTROLLER)
    lines = process.stderr.strip().splitlines() or [""]
    if process.returncode:
        remedy = "account, partition and constraint in the profile's default-resources must be compatible"
        return Check("submission", "failed", lines[-1].removeprefix("allocation failure: "), remedy)
    return Check("submission", "ok", "a job of one minute would be accepted")


def _disk(config: Config) -> list[Check]:
    checks, results_gb = [], max(MIN_FREE_GB, _label_gb(config))
    folders = [("results", paths.RESULTS, results_gb), ("resources", paths.RESOURCES, MIN_FREE_GB)]
    for name, folder, min_gb in [*folders, ("temporary", Path(tempfile.gettempdir()), MIN_FREE_GB / 2)]:
        existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
        free, system = shutil.disk_usage(existing).free / 1e9, os.statvfs(existing)
        found = f"{free:.1f} GB free in {existing}"
        if not os.access(existing, os.W_OK):
            remedy = "choose another folder: snakemake --directory"
            checks.append(Check(name, "failed", f"{existing} is not writable", remedy))
        elif free < min_gb:
            remedy = f"{min_gb:.1f} GB needed: make room, or use another disk (snakemake --directory, TMPDIR)"
            checks.append(Check(name, "failed", found, remedy))
        elif system.f_files and system.f_favail < MIN_FREE_FILES:
            found = f"{system.f_favail} inodes left in {existing}"
            checks.append(Check(name, "failed", found, "make room, or request more"))
        else:
            checks.append(Check(name, "ok", found))
    return checks


def _label_gb(config: Config) -> float:
    """Disk space of the labels in GB, as far as it is known in advance."""
    if not config.label_stores:
        return 0.0
    from cliptex.cluster.plan import make_plan

    return sum(store["bytes"] or 0 for store in make_plan(config, measure=False)["stores"].values()) / 1e9


def _hub() -> Check:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return Check("hub", "note", f"{'offline' if offline else 'online'}; cache in {home}")

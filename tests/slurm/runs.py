"""Runs of the workflow through the shipped profile."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster import ACCOUNT, PARTITION

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "workflow/profiles"
SLURM = ("--workflow-profile", str(PROFILES / "slurm"))
"""The shipped profile, as a user gives it."""
GRES = ("--profile", str(PROFILES / "slurm"), "--workflow-profile", str(PROFILES / "slurm-gres"))
"""The other one, laid over it."""
YOURS = ("--default-resources", f"slurm_account={ACCOUNT}", f"slurm_partition={PARTITION}")
"""What a user has to say, and all that the tests change in it."""


@dataclass
class Run:
    """A run of Snakemake in `directory` that has begun."""

    directory: Path
    process: subprocess.Popen

    def finish(self) -> str:
        """Wait for its end, which must be a good one; what it said."""
        code = self.process.wait(timeout=500)
        said = (self.directory / "said.txt").read_text()
        logs = [path.read_text()[-2000:] for path in self.directory.glob("logs/slurm/**/*.log")] if code else []
        assert code == 0, "\n".join([said[-6000:], *logs])
        return said


def snakemake(directory: Path, *arguments: str, config: tuple[str, ...] = ()) -> Run:
    """Begin a run in `directory` of the miniature, shrunk."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [str(ROOT / "config/test.yaml"), str(ROOT / "tests/slurm/config.yaml"), *config]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", *files]
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (directory / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=directory,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": bin_first},
        )
    return Run(directory, process)

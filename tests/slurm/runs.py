"""Runs of the workflow through the shipped profile."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
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
BEGUN: list["Run"] = []
PATIENCE_S = 1200
"""How long to wait for anything before it is given up; an idle machine takes a fifth of it."""


@dataclass
class Run:
    """A run of Snakemake in `directory` that has begun."""

    directory: Path
    process: subprocess.Popen

    def finish(self) -> str:
        """Wait for its end, which must be a good one; what it said."""
        try:
            code = self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = f"none after {PATIENCE_S} s"
        said = self.said()
        logs = [path.read_text()[-2000:] for path in self.directory.glob("logs/slurm/**/*.log")] if code else []
        assert code == 0, "\n".join([f"exit code: {code}", said[-6000:], *logs])
        return said

    def said(self) -> str:
        """What it said up to now."""
        return (self.directory / "said.txt").read_text()

    def until(self, holds: Callable[[], object]) -> None:
        """Wait while the run goes on, but not for ever."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert self.process.poll() is None, self.said()[-4000:]
            assert time.monotonic() < end, f"not after {PATIENCE_S} s\n{self.said()[-4000:]}"
            time.sleep(0.1)

    def end(self) -> None:
        """End it if it goes on: a test that failed leaves the cluster to the next."""
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=30)


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
    BEGUN.append(Run(directory, process))
    return BEGUN[-1]

"""Runs of the workflow with the shipped profile."""

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
"""The shipped profile, as in the documentation."""
GRES = ("--profile", str(PROFILES / "slurm"), "--workflow-profile", str(PROFILES / "slurm-gres"))
"""The shipped profile, overridden by the --gres one."""
YOURS = ("--default-resources", f"slurm_account={ACCOUNT}", f"slurm_partition={PARTITION}")
"""The values that users must set; the tests change nothing else in the profile."""
STARTED: list["Run"] = []
PATIENCE_S = 1200
"""Maximum wait for anything; an idle machine needs a fifth of it."""


@dataclass
class Run:
    """A started run of Snakemake in `directory`."""

    directory: Path
    process: subprocess.Popen

    def finish(self) -> str:
        """Wait for its end, assert success, and return its output."""
        try:
            code = self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = f"none after {PATIENCE_S} s"
        output = self.output()
        logs = [path.read_text()[-2000:] for path in self.directory.glob("logs/slurm/**/*.log")] if code else []
        assert code == 0, "\n".join([f"exit code: {code}", output[-6000:], *logs])
        return output

    def output(self) -> str:
        """Its output so far."""
        return (self.directory / "output.txt").read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition while the run continues, up to PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.output()[-4000:]
            assert time.monotonic() < end, f"not after {PATIENCE_S} s\n{self.output()[-4000:]}"
            time.sleep(0.1)

    def end(self) -> None:
        """End it if it is still running, so that a failed test does not disturb the next one."""
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=30)


def snakemake(directory: Path, *arguments: str, config: tuple[str, ...] = ()) -> Run:
    """Start a run of the small test configuration in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [str(ROOT / "config/test.yaml"), str(ROOT / "tests/slurm/config.yaml"), *config]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", *files]
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (directory / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=directory,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": bin_first},
        )
    STARTED.append(Run(directory, process))
    return STARTED[-1]

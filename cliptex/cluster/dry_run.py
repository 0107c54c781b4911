"""The jobs of a run, as Snakemake's dry run counts them, so that the plan cannot differ from the run."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cliptex.core.errors import CliptexError

STATS = re.compile(r"^Job stats:\njob +count\n[- ]+\n(.*?)\n\n", re.M | re.S)
ERROR = re.compile(r"^(\w+(?:Exception|Error)) in (?:rule|file) [^\n]*:\n(.*?)(?:\n +File \"[^\n]*)?\s*\Z", re.M | re.S)
PROBE = re.compile(r"probe_.*_\d+")
AFFECTED = re.compile(r"affected files:\n((?: +\S[^\n]*\n?)+)")


class MissingInput(CliptexError):
    """Files that no job makes are not there, so there is no plan yet."""


def workflow_dir(default_config: Path) -> Path | None:
    """The folder of the workflow whose default configuration this is; None if it has no Snakefile."""
    folder = default_config.resolve().parent.parent
    return folder if (folder / "Snakefile").is_file() else None


def planned_jobs(
    workflow: Path, files: Sequence[str | Path] = (), values: Sequence[str] = (), targets: Sequence[str] = ("all",)
) -> dict[str, int]:
    """Rule -> number of jobs that a run in the current folder would have; empty if nothing is to be done.

    files, values: of `--configfile` and `--config key=value`. Raises MissingInput, and CliptexError for what else
    Snakemake refuses.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", workflow / "Snakefile", "--directory", Path.cwd()]
    command += ["--dry-run", "--cores", "1", "--nocolor", "--quiet", "rules"]
    command += ["--configfile", *(Path(file).resolve() for file in files)] if files else []
    command += ["--config", *values] if values else []
    command = [*map(str, command), "--", *targets]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    said = done.stdout + done.stderr
    if done.returncode == 0:
        table = STATS.search(said)
        rows = [line.split() for line in table[1].splitlines()] if table else []
        return {name: int(count) for name, count in rows if name != "total"}
    error = ERROR.search(done.stdout) or ERROR.search(done.stderr)
    text = " ".join(error[2].split()) if error else " ".join(said.split()[-40:])
    text = text.partition(" Wildcards: ")[0].removeprefix("Error: ").removeprefix("WorkflowError: ")
    if error and error[1] == "MissingInputException" and (affected := AFFECTED.search(error[2])):
        names = affected[1].split()
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise MissingInput(f"{names[0]}{more}: does not exist, and no job makes it")
    raise CliptexError(text)


def described(jobs: dict[str, int] | str) -> str:
    """A line: the number of jobs, and of each rule. The rules of probes, one for each group of models, are one here.

    jobs: of `planned_jobs`, or why they are not known.
    """
    if isinstance(jobs, str):
        return f"jobs  ? ({jobs})"
    if not jobs:
        return "jobs  none: nothing is to be done"
    counts: Counter[str] = Counter()
    for rule, count in jobs.items():
        counts["probe" if PROBE.fullmatch(rule) else rule] += count
    return f"jobs  {sum(jobs.values()):,}: {', '.join(f'{rule} {count:,}' for rule, count in counts.items())}"

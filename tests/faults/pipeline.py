"""A finished run of config/test.yaml with more.yaml, its commands, and copies of it in which one is disturbed."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import yaml
from commands import Ended, command, content
from small_run import merged

ROOT = Path(__file__).parents[2]
CONFIGS = (ROOT / "config/config.yaml", ROOT / "config/test.yaml", Path(__file__).parent / "more.yaml")
BIN = Path(sys.executable).parent
SURVIVED: dict[str, list[bool]] = defaultdict(list)
"""Kind of fault -> whether each was survived."""
MINE = "the user's own\n"
PASSING = ("logs", "timings", ".snakemake", "tensorboard", "checkpoints")
"""Folders of what no result depends on."""
TREES = ("render_benchmark", "render_look", "fetch_benchmark")
"""Rules that make a benchmark's folder."""


SAID: list[str] = []
"""What was tried, moment by moment, for the end of the run."""


def say(text: str) -> None:
    """Print now, which is shown with `-s` or a failure, and at the end."""
    print(text, flush=True)
    SAID.append(text)


@contextmanager
def fault(kind: str, what: str):
    """Counts a fault as survived when the block ends without an error; the error is raised."""
    SURVIVED[kind].append(False)
    place = len(SURVIVED[kind]) - 1
    try:
        yield
    except BaseException as error:
        say(f"NOT survived: {kind}: {what}: {str(error)[:1500]}")
        raise
    SURVIVED[kind][place] = True
    say(f"survived: {kind}: {what}")


@dataclass
class Stage:
    """A command of the run: its rule, arguments and files by the plan; done, what it made and how long it took."""

    rule: str
    arguments: list[str]
    inputs: set[str]
    outputs: set[str]
    made: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0

    def __str__(self) -> str:
        given = self.arguments[: self.arguments.index("--config")] if "--config" in self.arguments else self.arguments
        return " ".join(given[4:])


def planned(folder: Path) -> list[Stage]:
    """The commands of the whole run and of the study, and some that users run on their results."""
    stages: dict[frozenset[str], Stage] = {}
    for target in ("all", "study"):
        plan = snakemake(folder, "--dry-run", "--printshellcmds", "--forceall", target, config=CONFIGS[1:]).stdout
        for rule, facts, line in re.findall(r"^rule (\w+):\n((?:    .*\n)+)Shell command: (.*)$", plan, re.M):
            of = dict(re.findall(r"^    (input|output): (.*)$", facts, re.M))
            inputs, outputs = (set(filter(None, of.get(kind, "").split(", "))) for kind in ("input", "output"))
            stages.setdefault(frozenset(outputs), Stage(rule, shlex.split(line)[1:], inputs, outputs))
        assert len(stages) > 40, plan[-3000:]
    whole = json.dumps(reduce(merged, (yaml.safe_load(path.read_text()) for path in CONFIGS)))
    model = "results/models/cliptex/seed0/"
    labels = {f"results/labels/{store}/index.json" for store in ("segmentation", "depth", "normals")}
    for line, inputs in (
        ("export --model cliptex --out exported", {f"{model}train.json", *labels}),
        ("labels export --out exported-labels", labels),
        ("labels inspect --out sheets/labels.png", labels),
        ("export-benchmark --name imagenet --out exported-benchmark", {"resources/imagenet/miniature.json"}),
    ):
        words = line.split()
        arguments = ["--log", f"logs/{words[0]}-{words[1]}.log", "--threads", "2", *words, "--config", whole]
        stages[frozenset(words)] = Stage(" ".join(words[: words.index("--out")]), arguments, inputs, set())
    return list(stages.values())


class Pipeline:
    """A run in `folder`, of whose commands each is done once, undisturbed, when it is asked for."""

    def __init__(self, folder: Path, stages: list[Stage]):
        self.folder, self.stages = folder, stages

    def _do(self, stage: Stage) -> None:
        """A command, after those that it needs."""
        if stage.made:
            return
        for other in self.stages:
            if other.outputs & stage.inputs:
                self._do(other)
        before = self._files()
        ended = command(self.folder, stage.arguments)
        stage.seconds = ended.seconds
        assert ended.code == 0, ended.said
        after = self._files()
        names = [name for name in after if after[name] != before.get(name)]
        stage.made = {name: held(self.folder, name) for name in names}
        stage.bytes = sum((self.folder / name).stat().st_size for name in names)
        say(f"undisturbed: {stage.seconds:5.1f} s {stage.bytes:9,} bytes  {stage}")

    def _files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if path.is_file() and not path.name.startswith(".") and not set(PASSING) & set(name.parts):
                found[str(name)] = (path.stat().st_mtime_ns, path.stat().st_ino)
        return found

    def stage(self, rule: str, *words: str) -> Stage:
        """The first command of a rule that has some words."""
        found = next(one for one in self.stages if one.rule == rule and set(words) <= set(one.arguments))
        self._do(found)
        return found

    def before(self, stage: Stage, folder: Path) -> Path:
        """A copy of the run as it was before a stage, with files of the user next to what the stage makes."""
        shutil.copytree(
            self.folder, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".snakemake")
        )
        for name in stage.made:
            (folder / name).unlink()
        if stage.rule in TREES:
            shutil.rmtree((folder / next(iter(stage.outputs))).parent)
        if stage.rule == "report":  # it has a section for each study, and there may have been none yet
            shutil.rmtree(folder / "results/studies", ignore_errors=True)
        for place in places(stage, folder):
            place.mkdir(parents=True, exist_ok=True)
            (place / "mine.txt").write_text(MINE)
        return folder


def places(stage: Stage, folder: Path) -> set[Path]:
    """Where a user may have files next to those of a stage: not in a benchmark's tree, which is the renderer's
    whole (and refused if it holds more), nor in results/report, which is declared as one output."""
    if stage.rule in TREES:
        return {folder / "resources"}
    if stage.rule == "report":
        return {folder / "results"}
    return {(folder / name).parent for name in stage.made if "features" not in Path(name).parts}  # a mere cache


def held(folder: Path, name: str) -> object:
    """What a file of a run holds, without the run's own path, which records of fetched weights name."""
    found = content(folder / name)
    return json.loads(json.dumps(found).replace(str(folder), "")) if name.endswith(".json") else found


def ends_as_ever(stage: Stage, folder: Path, ended: Ended) -> None:
    """A command has succeeded, with the files of the undisturbed run, and has left the user's files alone."""
    assert ended.code == 0, ended.said[-3000:]
    different = [name for name, value in stage.made.items() if held(folder, name) != value]
    assert not different, f"differ: {different}"
    for place in places(stage, folder):
        assert (place / "mine.txt").read_text() == MINE


def half_made(stage: Stage, folder: Path) -> list[str]:
    """Files under their final names that are not what they are to become."""
    there = [name for name in stage.made if (folder / name).exists()]
    return [name for name in there if held(folder, name) != stage.made[name]]


def at_a_time(work: Callable, items: list) -> None:
    """`work` for each item, as many at a time as there are processors; the first error is raised at the end."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in [pool.submit(work, item) for item in items]:
            done.result()


def moments(name: str, count: int) -> list[float]:
    """`count` random shares of a run, always the same for a name."""
    rng = random.Random(name)
    return sorted(rng.uniform(0.02, 0.98) for _ in range(count))


def arguments_of_snakemake(directory: Path, *arguments: str, config: Sequence[Path] = CONFIGS[1:2]) -> list[str]:
    command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", "--directory", directory]
    return list(map(str, [*command, *arguments[:-1], "--configfile", *config, "--", arguments[-1]]))


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def snakemake(directory: Path, *arguments: str, **how) -> subprocess.CompletedProcess:
    """Snakemake in `directory`; the last argument is the target."""
    command = arguments_of_snakemake(directory, *arguments, **how)
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)

"""Commands of `cliptex` in forks of one process that has imported what is slow to import.

Each can be killed for real, and pays for its work alone.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from forked_jobs import PRELOADED

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(PRELOADED["cliptex"])
PATIENCE_S = 900
"""A command that has not ended after so long hangs, however loaded the machine is."""
TIMES = (
    "seconds",
    "seconds_features",
    "cpu_seconds",
    "images_per_cpu_second",
    "resumed",
    "seconds_loading",
    "images_per_s",
    "images_per_second",
    "time_over_contrastive",
    "peak_memory_mb",
    "git",
)
"""Keys of results that differ from run to run: times, whether a labelling job found a shard done, and `git` where
somebody commits in between."""


def command_line(folder: Path, arguments: list[str], die_at: int | None, limits: dict, tell: Connection) -> None:
    """`cliptex ARGUMENTS` in `folder`, killed when it touches a file of the folder for the `die_at`-th time.

    A touch is to open a file, to write to it (before and after) or to rename it. At the end tells of each touch whether
    it was one that writes. die_at 0: nothing is watched, which is quicker. limits: `file_bytes`, no file may be larger;
    `said`, a file for what is printed.
    """
    os.chdir(folder)
    if "said" in limits:
        printed = os.open(limits["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
    if "file_bytes" in limits:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    touches = []

    def touched(path: object, writes: bool) -> None:
        if str(path).startswith("<"):  # <stderr>, to which a bar is written as often as time allows
            return
        if isinstance(path, (str, os.PathLike)) and (folder / path).is_relative_to(folder):
            touches.append(writes)
            if len(touches) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, values: tuple) -> None:
        if event in ("open", "os.rename"):
            touched(values[0], event == "os.rename")

    def watch_calls(frame: object, event: str, called: object) -> None:
        if event in ("c_call", "c_return") and called.__name__ == "write":
            touched(getattr(called.__self__, "name", None), True)

    if die_at != 0:
        sys.addaudithook(watch)
        sys.setprofile(watch_calls)
    sys.argv = ["cliptex", *arguments]
    from cliptex.cli import main

    try:
        main()  # ends in SystemExit
    finally:
        sys.setprofile(None)
        tell.send(touches)


def begin(folder: Path, arguments: list[str], die_at: int | None = 0, **limits) -> tuple[object, Connection]:
    """The process of a command that has begun, and what tells its touches."""
    hear, tell = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=command_line, args=(folder, arguments, die_at, limits, tell))
    process.start()
    tell.close()
    return process, hear


def run(folder: Path, arguments: list[str], die_at: int | None = None) -> list[bool]:
    """The touches of a run to its end; none of one that is killed, as it must be."""
    process, hear = begin(folder, arguments, die_at)
    process.join(PATIENCE_S)
    assert process.exitcode == (-signal.SIGKILL if die_at else 0)
    return [] if die_at else hear.recv()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, what it printed, and the processor time it took."""

    code: int
    said: str
    seconds: float


def command(folder: Path, arguments: list[str], kill_after_s: float | None = None, **limits) -> Ended:
    """Run a command to its end, or kill it after some seconds of processor time, which no other process stretches."""
    said = limits.pop("said", folder / ".said.txt")
    process, hear = begin(folder, arguments, said=said, **limits)
    end, seconds = time.monotonic() + PATIENCE_S, 0.0
    while process.is_alive():
        seconds = max(seconds, processor_seconds(process.pid))
        if time.monotonic() > end or (kill_after_s is not None and seconds >= kill_after_s):
            process.kill()
        process.join(0.005)
    hear.close()
    return Ended(process.exitcode, said.read_text(errors="replace") if said.exists() else "", seconds)


def processor_seconds(pid: int) -> float:
    """What a process has used; 0 when it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(outputs: list[Path]) -> dict[Path, object]:
    """Content of all files under their final names; of JSON without what differs from run to run."""
    found = {}
    for path in [path for output in outputs for path in ([output] if output.is_file() else output.rglob("*"))]:
        if path.is_file() and not path.name.startswith("."):
            found[path] = content(path)
    return found


def content(path: Path) -> object:
    """What a file holds, without what differs from run to run."""
    data = path.read_bytes()
    if path.suffix == ".json":
        return without_times(json.loads(data))
    return [without_times(json.loads(line)) for line in data.splitlines()] if path.suffix == ".jsonl" else data


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value

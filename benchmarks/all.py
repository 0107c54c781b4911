"""Run every benchmark, and write a table of their results.

    python benchmarks/all.py --quick                      # ten minutes in all on two cores
    python benchmarks/all.py                              # each with its own defaults: hours
    python benchmarks/all.py --gpu                        # benchmarks/gpu.py; a rehearsal: --gpu --device cpu --quick
    python benchmarks/all.py --quick --page docs/performance.md    # also replaces the page's table and its JSON file

Each file of this folder that measures something runs in a process of its own, one after the other, except for
default_run.py, which takes a quarter of an hour and is run by itself. One that fails, does
not end in time or prints no JSON is a row of the table, and is counted. The results are in `--out`, a JSON file
(default performance.json, or gpu.json): the machine, the seconds it took, and each benchmark's own records. `--page`
is a Markdown page with the marks `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is `ratios` or `gpu`. The
records are then next to it, in `performance.json` or `gpu.json`.

Exit code 1 if a benchmark failed; a goal that does not hold is no failure.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import ROOT, machine

HERE = Path(__file__).resolve().parent
NOT_RUN = {"all.py", "machine.py", "gpu.py", "probe_peers.py", "default_run.py"}
QUICK_S, LONGEST_S = 600, 6 * 3600
"""Seconds for all with --quick, and for each without."""
MARKS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)
ALSO = ("expert", "labels", "quantity", "side_px", "model", "part")
"""Keys that tell results of one benchmark apart."""


def files() -> list[Path]:
    """The benchmarks, by name."""
    return sorted(path for path in HERE.glob("*.py") if path.name not in NOT_RUN and not path.name.startswith("_"))


def run(path: Path, flags: Sequence[str], limit_s: float) -> dict[str, Any]:
    """`file`, `seconds`, and `results` of one benchmark or why there are none (`failed`)."""
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    record: dict[str, Any] = {"file": path.name}
    limit_s = max(limit_s, 1)
    command = [sys.executable, str(path), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            said, errors = process.communicate(timeout=limit_s)
            code = process.returncode
        except BaseException as ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its subprocesses, which hold the pipes open
            if not isinstance(ended, subprocess.TimeoutExpired):
                raise
            said, _ = process.communicate()
            errors, code = f"not done in {limit_s:.0f} s", 1
    record["seconds"] = round(time.monotonic() - start, 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    record["processor_seconds"] = round(taken, 1)
    results = parsed(said)
    if results is not None:  # some print what they have after each measure
        record["results"] = results
    if code or results is None:
        lines = errors.strip().splitlines() or ["it printed no JSON"]
        record["failed"] = f"exit code {code}: {lines[-1][:200]}" if code else "its last line is not JSON"
    return record


def parsed(said: str) -> list[dict[str, Any]] | None:
    """The records in the last line of what a benchmark printed; None if there are none."""
    try:
        value = json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return value if isinstance(value, list) else [value]


def run_all(
    paths: Sequence[Path], flags: Sequence[str], quick: bool, device: str, limit_s: float = QUICK_S
) -> dict[str, Any]:
    """The records of all, with the machine. limit_s: of all together, with `quick`."""
    start, runs = time.monotonic(), []
    for number, path in enumerate(paths):
        left = limit_s - (time.monotonic() - start)
        # what a benchmark does not need is shared by the following; one that is slow leaves them most of theirs
        later = len(paths) - number - 1
        limit = min(left - 20 * later, 2.5 * left / (later + 1)) if quick and path.name != "gpu.py" else LONGEST_S
        runs.append(run(path, flags, limit))
        outcome = runs[-1].get("failed") or f"{len(runs[-1]['results'])} results"
        print(f"{path.name}: {runs[-1]['seconds']:.0f} s, {outcome}", file=sys.stderr, flush=True)
    return {
        "machine": machine(device),
        "quick": quick,
        "only": [path.stem for path in paths] if set(paths) < set(files()) else [],
        "seconds": round(time.monotonic() - start),
        "processor_seconds": round(sum(one["processor_seconds"] for one in runs)),
        "failed": [one["file"] for one in runs if "failed" in one],
        "runs": runs,
    }


# ---- tables


def name_of(result: dict[str, Any]) -> str:
    """The benchmark and what tells this result from its others."""
    more = [str(result[key]) for key in ALSO if isinstance(result.get(key), str | int)]
    return ", ".join([f"`{result.get('benchmark', '?')}`", *more])


def figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def ratios(record: dict[str, Any]) -> str:
    """A Markdown table of ratios: a line for each result, and for each benchmark that failed."""
    lines = ["| benchmark | ratio | spread | goal | holds | measured |", "|---|---:|---:|---|---|---|"]
    for one in record["runs"]:
        for result in one.get("results", ()):
            spread = " to ".join(map(figure, result.get("spread") or [])) or "–"
            holds = {True: "yes", False: "**no**"}.get(result.get("holds"), "–")
            cells = [name_of(result), figure(result.get("ratio")), spread, result.get("goal") or "–", holds]
            lines.append(_row([*cells, result.get("what", "–")]))
        if "failed" in one:
            lines.append(_row([f"`{one['file']}`", *["–"] * 4, f"failed: {one['failed']}"]))
    return "\n".join([about(record), "", *lines])


def gpu(record: dict[str, Any]) -> str:
    """A Markdown table of `gpu.py`'s rows."""
    lines = ["| measure | images/s | waiting for data | cores used | peak memory, MB | ratio | to |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for one in record["runs"]:
        for row in one.get("results", ()):
            if "error" in row:
                lines.append(_row([f"`{row['benchmark']}`", f"failed: {row['error']}", *["–"] * 5]))
                continue
            waiting = f"{100 * row['waiting']:.0f} %"
            cells = [row["cores"], row["peak_memory_mb"], row.get("ratio"), row.get("against")]
            rate = f"{row['images_per_s']:,.4g}"
            lines.append(_row([f"`{row['benchmark']}`", rate, waiting, *map(figure, cells)]))
        if "failed" in one:
            lines.append(_row([f"`{one['file']}`", f"failed: {one['failed']}", *["–"] * 5]))
    return "\n".join([about(record), "", *lines])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def about(record: dict[str, Any]) -> str:
    """The machine, in a line."""
    at, how = record["machine"], ", `--quick`" if record["quick"] else ""
    device = "" if at["device"] == "cpu" else f"{at['device']}, "
    how += f", only {', '.join(record['only'])}" if record["only"] else ""
    failed = f"; **{len(record['failed'])} failed**" if record["failed"] else ""
    return (
        f"{device}{at['processor']}, {at['cores']} cores, Python {at['python']}, PyTorch {at['torch']}, commit"
        f" {at['commit']}, {at['date']}{how}: {record['seconds']} s by the clock, {record['processor_seconds']} of"
        f" processor{failed}."
    )


TABLES = {"ratios": ratios, "gpu": gpu}


def replaced(page: str, name: str, table: str) -> str:
    """A page with its table `name` replaced. Raises ValueError if it has no marks for it."""
    if name not in [match[2] for match in MARKS.finditer(page)]:
        raise ValueError(f"the page has no <!-- table: {name} --> and <!-- end of table -->")
    return MARKS.sub(lambda match: f"{match[1]}\n{table}\n\n{match[3]}" if match[2] == name else match[0], page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; ten minutes in all on two cores")
    parser.add_argument("--gpu", action="store_true", help="benchmarks/gpu.py instead of the others")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="of --gpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="files of this folder, without .py")
    parser.add_argument("--limit", type=int, default=QUICK_S, help="seconds for all with --quick; more if others work")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is replaced")
    options = parser.parse_args(argv)
    kind, file_name = ("gpu", "gpu.json") if options.gpu else ("ratios", "performance.json")
    paths = [HERE / "gpu.py"] if options.gpu else files()
    if options.only:
        if unknown := set(options.only) - {path.stem for path in paths}:
            parser.error(f"--only {' '.join(sorted(unknown))}: choose from {' '.join(path.stem for path in paths)}")
        paths = [path for path in paths if path.stem in options.only]
    page = options.page.read_text(encoding="utf-8") if options.page else None
    flags = ["--quick"] if options.quick else []
    device = options.device if options.gpu else "cpu"
    flags += ["--device", device] if options.gpu else []
    record = run_all(paths, flags, options.quick, device, options.limit)
    table = TABLES[kind](record)
    out = options.out or (options.page.with_name(file_name) if options.page else Path(file_name))
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        options.page.write_text(replaced(page, kind, table), encoding="utf-8")
    print(table)
    return int(bool(record["failed"]))


if __name__ == "__main__":
    sys.exit(main())

"""Tables of time, code, packages and weights."""

from collections.abc import Iterable, Sequence
from typing import Any

from cliptex.core.provenance import code
from cliptex.report import names
from cliptex.report.gather import Results
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, text_table
from cliptex.report.tables.cells import count_cell
from cliptex.report.timings import Timing, by_rule, run_times

STAGES = ("Data", "Experts", "Labels", "Training", "Probes", "Fine-tuning", "Zero-shot", "Without training", "Report")
MOST_MACHINES = 3
WORDS = {
    "training_free": "Without training",
    "zeroshot": "Zero-shot",
    "retrieval": "Zero-shot",
    "probe": "Probes",
    "finetune": "Fine-tuning",
}
WORDS |= {"label": "Labels", **dict.fromkeys(("render", "fetch", "download", "retrieve", "unpack", "shard"), "Data")}
WORDS |= {"expert": "Experts", "train": "Training", "report": "Report"}
"""Part of a rule's name -> its stage; the first match counts."""


def timing_table(results: Results) -> Table | None:
    """Wall and CPU seconds by stage; None without timings."""
    if not (timings := by_rule(results.jobs)):
        return None
    stages: dict[str, list[Timing]] = {}
    for timing in timings:
        stages.setdefault(stage_of(timing.rule), []).append(timing)
    order = [*(stage for stage in STAGES if stage in stages), *(stage for stage in stages if stage not in STAGES)]
    total = sum(timing.wall for timing in timings)
    rows = []
    for stage in order:
        rules = ", ".join(timing.rule for timing in stages[stage])
        rows.append({"stage": Cell(stage, note=rules), **_seconds(stages[stage], total)})
    rows.append({"stage": Cell("All"), **_seconds(timings, total), "share": Cell("100 %", 100.0)})
    columns = [Column("stage", "Stage", numeric=False), Column("jobs", "Jobs"), Column("wall", "Job seconds")]
    columns += [Column("share", "Share"), Column("cpu", "CPU seconds")]
    notes = ["Seconds are summed over jobs. Jobs run in parallel, so the run took less time than their sum."]
    if any(timing.sampled for timing in timings):
        notes.append("≥: of some jobs only Snakemake's last sample of the CPU seconds is known, which is too low.")
    return Table("timings", "Time by stage", columns, [Group(rows)], notes)


def _seconds(timings: Sequence[Timing], total: float) -> Row:
    wall, cpu = sum(timing.wall for timing in timings), [timing.cpu for timing in timings]
    return {
        "jobs": count_cell(sum(timing.jobs for timing in timings)),
        "wall": count_cell(wall),
        "share": Cell(f"{100 * wall / total:.0f} %", 100 * wall / total) if total else Cell(MISSING),
        "cpu": Cell(MISSING) if None in cpu else _cpu_cell(sum(cpu), any(timing.sampled for timing in timings)),
    }


def _cpu_cell(seconds: float, sampled: bool) -> Cell:
    cell = count_cell(seconds)
    return Cell(f"≥ {cell.text}", seconds) if sampled else cell


def stage_of(rule: str) -> str:
    return next((stage for word, stage in WORDS.items() if word in rule), rule)


def about_run(results: Results) -> dict[str, str]:
    """Date, duration, machine and code of the run, for the head of the page; what is not recorded is left out."""
    out, sources = {"Date": "not recorded"}, _provenances(results)
    if times := run_times(results.jobs):
        began, ended = (f"{at.day} {at:%B %Y, %H:%M}" for at in (times.began, times.ended))
        same_day = times.began.date() == times.ended.date()
        out["Date"] = f"{began} to {f'{times.ended:%H:%M}' if same_day else ended} UTC"
        span = (times.ended - times.began).total_seconds()
        pauses = f", in a span of {_duration(span)}" if span > 1.1 * times.seconds + 60 else ""
        out["Duration"] = _duration(times.seconds) + pauses
    elif results.jobs:
        out["Duration"] = f"not recorded; {_duration(sum(job.wall or 0.0 for job in results.jobs))} summed over jobs"
    machines = times.machines if times and times.machines else _distinct(one.get("machine") for one in sources)
    out["Machine"] = "; ".join(machines[:MOST_MACHINES])
    if len(machines) > MOST_MACHINES:
        out["Machine"] += f" and {len(machines) - MOST_MACHINES} more"
    commits = _distinct(one.get("git") for one in sources)
    out["Commit"] = ", ".join(commits) or f"none (modules {', '.join(_distinct(map(code, sources)))})"
    return {key: value for key, value in out.items() if value}


def _distinct(values: Iterable[str | None]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values) if value]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def provenance_table(results: Results) -> Table:
    """The code and configuration that made each result."""
    kinds = {"probe": "Probes", "finetuned": "Fine-tuning", "zeroshot": "Zero-shot"}
    kinds["training_free"] = "Without training"
    rows = [
        _provenance_row(f"{kinds[kind]}, {names.benchmark(scores.benchmark, scores.source)}", scores.provenance)
        for kind, scores in results.all_scores
    ]
    rows += [
        _provenance_row(f"Training, {names.model(name)}, seed {seed}", run.record.get("provenance", {}))
        for name, runs in results.runs.items()
        for seed, run in runs.items()
    ]
    headings = ["Result", "cliptex", "Code", "Configuration (SHA-256)", "Python", "Machine"]
    table = text_table("provenance", "Code and configuration of each result", headings, rows)
    table.notes.append(
        "Code: the commit or, for an installed package, the first digits of its modules' SHA-256. The configuration's "
        "hash covers the keys that the stage received."
    )
    return table


def _provenance_row(what: str, source: dict[str, Any]) -> list[str | Cell]:
    digest = source.get("config_sha256")
    configuration = Cell(str(digest)[:12], digest) if digest else None
    cells = source.get("cliptex"), code(source), configuration, source.get("python"), source.get("machine")
    return [what, *(cell or MISSING for cell in cells)]


def packages_table(results: Results) -> Table:
    """Versions of the packages behind the results; several if they differ."""
    versions: dict[str, set[str]] = {}
    for source in _provenances(results):
        for package, version in source.get("packages", {}).items():
            versions.setdefault(package, set()).add(version)
    rows = [(package, ", ".join(sorted(used))) for package, used in sorted(versions.items())]
    return text_table("packages", "Package versions", ["Package", "Version"], rows)


def weights_table(results: Results) -> Table | None:
    """SHA-256 of every model's exported weights, as recorded by training or else by the probes; None without any."""
    rows = [
        (f"{names.model(name)}, seed {seed}", run.record["model_sha256"])
        for name, runs in results.runs.items()
        for seed, run in runs.items()
        if isinstance(run.record.get("model_sha256"), str)
    ]
    if not rows:
        digests: dict[str, str] = {}
        for source in _provenances(results):
            digests |= {str(name): str(digest) for name, digest in source.get("model_sha256", {}).items()}
        rows = sorted(digests.items())
    return text_table("weights", "Exported weights", ["Model", "SHA-256"], rows) if rows else None


def _provenances(results: Results) -> list[dict[str, Any]]:
    of_scores = [scores.provenance for _, scores in results.all_scores]
    return of_scores + [run.record.get("provenance", {}) for runs in results.runs.values() for run in runs.values()]

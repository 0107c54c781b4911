"""Which data the benchmarks need, what of them is there, what will be downloaded, and what must be got by hand.

Imports nothing heavy: the workflow asks at every start.
"""

from pathlib import Path
from typing import Any

from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.data.official.archives import archives, locate


def chosen_variant(config: Config, name: str) -> str | None:
    """The variant of a benchmark's official data; None where it has none. Raises CliptexError for an unknown one."""
    known = find("benchmarks", name).variants
    given = config.benchmark_source(name).variant
    if given is not None and given not in known:
        choice = f"is not one of {', '.join(known)}" if known else f"cannot be chosen; {name} has no variants"
        raise CliptexError(f"benchmark_data.benchmarks.{name}.variant: {given!r} {choice}")
    return given or next(iter(known), None)


def benchmarks_in_use(config: Config) -> list[str]:
    """The benchmarks on which this configuration judges models."""
    watched = [config.train.watch.zero_shot] if config.train.watch.zero_shot else []
    sets = [given.benchmark for given in config.zeroshot.retrieval.values() if given and given.benchmark]
    tuned = config.finetune.benchmarks
    return list(dict.fromkeys([*config.probes.benchmarks, *config.zeroshot.benchmarks, *tuned, *sets, *watched]))


def benchmark_marks(config: Config) -> dict[str, str]:
    """By benchmark, the file whose being there says that its data are. Raises CliptexError for a wrong choice."""
    names = dict.fromkeys([*benchmarks_in_use(config), *config.miniature.benchmarks, *config.benchmark_data.benchmarks])
    out = {}
    for name in names:
        chosen_variant(config, name)
        out[name] = str(paths.benchmark_mark(name, config.benchmark_source(name).source))
    return out


def official_files(config: Config) -> dict[str, list[dict[str, Any]]]:
    """By benchmark of which the official data are wanted, its archives that are not in place yet.

    Each with `file`, `how` (as in `cliptex.data.official.archives.Place`), `bytes` (None where not known), `gives` and `terms`. Of a
    benchmark of which no archive is known, one without a file stands for its data.
    """
    out = {}
    for name in benchmarks_in_use(config):
        source = config.benchmark_source(name)
        if source.source != "official" or paths.benchmark_mark(name, "official").exists():
            continue
        root = paths.benchmark(name)
        rows = archives(name, chosen_variant(config, name), config.benchmark_data.archives)
        found = [(row, locate(row, root, source.path)) for row in rows]
        out[name] = [
            {"file": row.file, "how": place.how, "bytes": row.bytes, "gives": row.gives, "terms": row.terms}
            for row, place in found
            if place.how not in ("done", "superfluous")
        ]
        if not rows:
            how = "tree" if source.path else "in place" if root.exists() else "missing"
            out[name] = [{"file": "its data", "how": how, "bytes": None, "gives": "", "terms": ""}]
    return out


def missing_data(config: Config) -> list[str]:
    """A line for each list of urls that is not there, and for each benchmark of which something must be got by hand."""
    lists = config.dataset.urls.files if config.dataset.source == "urls" and config.dataset.urls else []
    lines = [
        f"{name}: not there yet; the download needs this list of urls (dataset.urls.files, docs/data.md)"
        for name in lists
        if not Path(name).exists()
    ]
    for name, files in official_files(config).items():
        wanted = [file["file"] for file in files if file["how"] == "missing"]
        key, path = f"benchmark_data.benchmarks.{name}.path", config.benchmark_source(name).path
        if path and not Path(path).is_dir():
            lines.append(f"{key}: {path} is not a folder")
        elif wanted:
            lines.append(
                f"{name}: {', '.join(wanted)} must be got by hand; put them, or what they unpack to, into a folder and"
                f" name it in {key} (docs/data.md)"
            )
    return lines


def is_published(student: Student) -> bool:
    """Whether the student starts from a tag of published weights, not from random ones or a file or folder here."""
    return student.pretrained is not None and not Path(student.pretrained).exists()

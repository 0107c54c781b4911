"""Status of the benchmarks' data: installed, to be downloaded, or to be downloaded manually by the user.

Imports nothing heavy, since the workflow uses it at every start.
"""

from pathlib import Path
from typing import Any

from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked
from cliptex.core.plugins import find
from cliptex.data.official.archives import archives, locate


def chosen_variant(config: Config, name: str) -> str | None:
    """The variant of a benchmark's official data; None if it has none. Raises CliptexError for an unknown variant."""
    variants = find("benchmarks", name).variants
    variant = config.benchmark_source(name).variant
    if variant is not None and variant not in variants:
        problem = f"is not one of {', '.join(variants)}" if variants else f"is not allowed; {name} has no variants"
        raise CliptexError(f"benchmark_data.benchmarks.{name}.variant: {variant!r} {problem}")
    return variant or next(iter(variants), None)


def benchmarks_in_use(config: Config) -> list[str]:
    """The benchmarks on which this configuration evaluates models."""
    names = [*config.probes.benchmarks, *config.zeroshot.benchmarks, *config.finetune.benchmarks]
    names += [captions.benchmark for captions in config.zeroshot.retrieval.values() if captions]
    return list(dict.fromkeys(name for name in (*names, config.train.watch.zero_shot) if name))


def evaluation_only(config: Config, name: str) -> bool:
    """Whether the official data of a benchmark are installed without archives that only its training split needs: no
    probe and no fine-tuning trains on it, and that split is not there already."""
    if name in (*config.probes.benchmarks, *config.finetune.benchmarks) or name not in benchmarks_in_use(config):
        return False
    mark = paths.benchmark_mark(name, "official")
    if mark.exists():
        return bool(read_checked(mark, dict).get("evaluation_only"))
    rows = archives(name, chosen_variant(config, name), config.benchmark_data.archives)
    return any(row.part == "train" for row in rows)


def benchmark_marks(config: Config) -> dict[str, str]:
    """Benchmark -> the file that marks its data as complete. Raises CliptexError for an unknown variant."""
    out = {}
    for name in (*benchmarks_in_use(config), *config.miniature.benchmarks, *config.benchmark_data.benchmarks):
        chosen_variant(config, name)
        out[name] = str(paths.benchmark_mark(name, config.benchmark_source(name).source))
    return out


def official_files(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Benchmark with official data -> its archives that are not installed yet: `file`, `how` (see `ArchiveLocation`),
    `bytes` (None if unknown), `gives` and `terms`. One entry stands for all data of a benchmark without archives."""
    out = {}
    for name in benchmarks_in_use(config):
        source = config.benchmark_source(name)
        if source.source != "official" or paths.benchmark_mark(name, "official").exists():
            continue
        benchmark_dir = paths.benchmark(name)
        rows = archives(name, chosen_variant(config, name), config.benchmark_data.archives)
        if evaluation_only(config, name):
            rows = [row for row in rows if row.part != "train"]
        locations = [(row, locate(row, benchmark_dir, source.path)) for row in rows]
        out[name] = [
            {"file": row.file, "how": location.how, "bytes": row.bytes, "gives": row.gives, "terms": row.terms}
            for row, location in locations
            if location.how not in ("done", "superfluous")
        ]
        if not rows:
            how = "tree" if source.path else "in place" if benchmark_dir.exists() else "missing"
            out[name] = [{"file": "its data", "how": how, "bytes": None, "gives": "", "terms": ""}]
    return out


def missing_data(config: Config) -> list[str]:
    """One line per missing URL list, and per benchmark of which the user must download archives manually."""
    lists = config.dataset.urls.files if config.dataset.source == "urls" and config.dataset.urls else []
    problem = "does not exist; the download needs this URL list (dataset.urls.files, docs/data.md)"
    lines = [f"{name}: {problem}" for name in lists if not Path(name).exists()]
    for name, files in official_files(config).items():
        manual = [file["file"] for file in files if file["how"] == "missing"]
        key, path = f"benchmark_data.benchmarks.{name}.path", config.benchmark_source(name).path
        if path and not Path(path).is_dir():
            lines.append(f"{key}: {path} is not a folder")
        elif manual:
            remedy = f"put the archives, or their unpacked contents, into a folder and set {key} to it (docs/data.md)"
            lines.append(f"{name}: download {', '.join(manual)} manually; {remedy}")
    return lines


def is_published(student: Student) -> bool:
    """Whether the student starts from published weights (a tag), not from random weights or a local file or folder."""
    return student.pretrained is not None and not Path(student.pretrained).exists()

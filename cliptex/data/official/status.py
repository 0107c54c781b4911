"""Status of the benchmarks' data: installed, to be downloaded, or to be downloaded manually by the user.

Imports nothing heavy, since the workflow uses it at every start.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked
from cliptex.core.plugins import find
from cliptex.data.official.archives import Archive, ArchiveLocation, archives, locate, unpacked_by_hand
from cliptex.data.shard_paths import is_remote, shard_sources

LAYOUTS = Path(__file__).parent.parent / "miniature" / "layouts"
"""Folder with a module for each benchmark that can be rendered; importing it would take long."""


def chosen_variant(config: Config, name: str) -> str | None:
    """The variant of a benchmark's official data; None if it has none. Raises CliptexError for an unknown variant."""
    variants = find("benchmarks", name).variants
    variant = config.benchmark_source(name).variant
    if variant is not None and variant not in variants:
        problem = f"is not one of {', '.join(variants)}" if variants else f"is not allowed; {name} has no variants"
        raise CliptexError(f"benchmark_data.benchmarks.{name}.variant: {variant!r} {problem}")
    return variant or next(iter(variants), None)


def trains_models(config: Config) -> bool:
    """Whether any model, also of a study, is trained on pairs."""
    models = [*config.models.values(), *(config.study.models.values() if config.study else ())]
    return any(model.is_trained for model in models)


def needs_pairs(config: Config) -> bool:
    """Whether the image-caption pairs are needed: to train a model, or to label them."""
    stores = [*config.label_stores, *(config.study.label_stores if config.study else ())]
    return bool(stores) or trains_models(config)


def benchmarks_in_use(config: Config) -> list[str]:
    """The benchmarks on which this configuration evaluates models, and validates their training."""
    names = [*config.probes.benchmarks, *config.zeroshot.benchmarks, *config.finetune.benchmarks]
    names += config.training_free.benchmarks
    names += [captions.benchmark for captions in config.zeroshot.retrieval.values() if captions]
    validated = config.train.watch.zero_shot if trains_models(config) else None
    return list(dict.fromkeys(name for name in (*names, validated) if name))


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


def parts_in_use(config: Config, name: str) -> list[str]:
    """The optional parts of a benchmark's official data that its resolved protocol needs: `panoptic`, or none.

    Raises CliptexError if the data are rendered, which have no such part.
    """
    entry = config.training_free.benchmarks.get(name, {})
    for task, section in entry.items():
        if isinstance(section, Mapping) and section.get("classes") == "panoptic":
            if config.benchmark_source(name).source == "miniature":
                remedy = f"set it to things, or benchmark_data.benchmarks.{name}.source to official"
                key = f"training_free.benchmarks.{name}.{task}.classes"
                raise CliptexError(f"{key}: the rendered {name} has no panoptic annotations; {remedy}")
            return ["panoptic"]
    return []


def part_marks(config: Config) -> dict[str, list[str]]:
    """Benchmark -> the marks of the optional parts that it needs, see `parts_in_use`. A part without archives, and one
    that the user unpacked in the benchmark's folder, needs no mark."""
    marks: dict[str, list[str]] = {}
    for name in config.training_free.benchmarks:
        for part in parts_in_use(config, name):
            mark = paths.part_mark(name, part)
            if mark.exists() or _missing_rows(config, name, part):
                marks.setdefault(name, []).append(str(mark))
    return marks


def _missing_rows(config: Config, name: str, part: str) -> list[Archive]:
    """The archives of an optional part that is not installed yet."""
    if paths.part_mark(name, part).exists():
        return []
    rows = archives(name, chosen_variant(config, name), config.benchmark_data.archives, part)
    return [row for row in rows if not unpacked_by_hand(row, paths.benchmark(name))]


def benchmark_marks(config: Config) -> dict[str, str]:
    """Benchmark -> the file that marks its data as complete. Raises CliptexError for an unknown variant, and if the
    folder of a benchmark in use has data of another source."""
    out, in_use = {}, benchmarks_in_use(config)
    for name in (*in_use, *config.miniature.benchmarks, *config.benchmark_data.benchmarks):
        chosen_variant(config, name)
        source = config.benchmark_source(name).source
        if name in in_use:
            _require_rendered(name, source)
            _require_same_source(name, source)
        out[name] = str(paths.benchmark_mark(name, source))
    return out


def _require_rendered(name: str, source: str) -> None:
    """Raise CliptexError if the data are to be rendered, and there is no layout for them."""
    if source == "miniature" and not (LAYOUTS / f"{name}.py").exists():
        key = f"benchmark_data.benchmarks.{name}.source"
        raise CliptexError(f"{key}: 'miniature' has no rendered {name}; set it to official (docs/data.md)")


def _require_same_source(name: str, source: str) -> None:
    """Raise CliptexError if the data there are rendered, a subset or official, and the configuration has others."""
    rendered, mark = paths.benchmark_mark(name, "miniature"), paths.benchmark_mark(name, "official")
    if source != "miniature" and rendered.exists():
        mark, there = rendered, "miniature"
    elif mark.exists():
        there = read_checked(mark, dict).get("source")
        if there == source or ("subset" not in (there, source) and source != "miniature"):
            return
    else:
        return
    remedy = f"use another directory (snakemake --directory), or move {mark.parent} away"
    raise CliptexError(f"{mark}: has source {there!r}, the configuration {source!r}; {remedy}")


def official_files(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Benchmark with official data -> its archives that are not installed yet: `file`, `how` (see `ArchiveLocation`),
    `bytes` (None if unknown), `gives` and `terms`. One entry stands for all data of a benchmark without archives."""
    out = {}
    for name in benchmarks_in_use(config):
        source = config.benchmark_source(name)
        is_there = paths.benchmark_mark(name, "official").exists()
        parts = [row for part in parts_in_use(config, name) for row in _missing_rows(config, name, part)]
        if source.source == "miniature" or (is_there and not parts):
            continue
        benchmark_dir = paths.benchmark(name)
        rows = [] if is_there else archives(name, chosen_variant(config, name), config.benchmark_data.archives)
        if evaluation_only(config, name):
            rows = [row for row in rows if row.part != "train"]
        rows += parts
        locations = [(row, locate(row, benchmark_dir, source.path)) for row in rows]
        if source.source == "subset":  # nothing of all images is used in place of what the user's folder lacks
            usable = ("done", "superfluous", "tree")
            locations = [(row, at if at.how in usable else ArchiveLocation("missing")) for row, at in locations]
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
    """One line per missing URL list, for missing tars, and per benchmark with archives to download manually."""
    is_list = config.dataset.source == "urls" and config.dataset.urls is not None and needs_pairs(config)
    lists = config.dataset.urls.files if is_list else []
    problem = "does not exist; the download needs this URL list (dataset.urls.files, docs/data.md)"
    lines = [f"{name}: {problem}" for name in lists if not Path(name).exists()]
    lines += _missing_tars(config)
    for name, files in official_files(config).items():
        manual = [file["file"] for file in files if file["how"] == "missing"]
        key, path = f"benchmark_data.benchmarks.{name}.path", config.benchmark_source(name).path
        if path and not Path(path).is_dir():
            lines.append(f"{key}: {path} is not a folder")
        elif manual and config.benchmark_source(name).source == "subset":
            gives = ", ".join(file["gives"] for file in files if file["how"] == "missing")
            lines.append(f"{key}: {path} has no {gives}, which a subset needs in the official layout, unpacked")
        elif manual:
            remedy = f"put the archives, or their unpacked contents, into a folder and set {key} to it (docs/data.md)"
            lines.append(f"{name}: download {', '.join(manual)} manually; {remedy}")
    return lines


def _missing_tars(config: Config) -> list[str]:
    """A line for the user's own tars that are not there, before they are indexed."""
    if config.dataset.source != "webdataset" or not needs_pairs(config) or paths.SHARD_INDEX.exists():
        return []
    tars = [tar for tar in shard_sources(config) if not is_remote(tar) and not Path(tar).exists()]
    more = f" and {len(tars) - 1} more" if len(tars) > 1 else ""
    return [f"{tars[0]}{more}: does not exist; correct dataset.shards, or put it in place"] if tars else []


def weights_to_fetch(config: Config) -> list[str]:
    """The experts of label stores, `student` and released models whose published weights are to be downloaded first."""
    fetched = []
    for name in dict.fromkeys(store.expert for store in config.label_stores.values() if store.expert):
        is_there = (paths.expert(name) / "expert.json").exists()
        if config.experts[name].weights in ("url", "hub") and not is_there:
            fetched.append(name)
    if is_published(config.student) and starts_from_student(config) and not paths.STUDENT.exists():
        fetched.append("student")
    for name, model in config.models.items():
        given = model.pretrained is not None and is_published(config.student_of(name))
        if given and not paths.released(name).exists():
            fetched.append(f"models.{name}")
    return fetched


def starts_from_student(config: Config) -> bool:
    """Whether any model starts from `student`."""
    models = [*config.models.values(), *(config.study.models.values() if config.study else ())]
    return any(not model.sources() and model.pretrained is None for model in models)


def is_published(student: Student) -> bool:
    """Whether the student starts from published weights (a tag), not from random weights or a local file or folder."""
    return student.pretrained is not None and not Path(student.pretrained).exists()

"""Paths of the workflow, and of all inputs and results relative to the working directory (docs/architecture.md)."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"
"""The workflow that comes with the package: Snakefile, rules, configurations, profiles, environments. In a clone links
to the files at its top, in an installed package copies."""
RESOURCES = Path("resources")
RESULTS = Path("results")
SHARDS = RESULTS / "shards"
SHARD_INDEX = SHARDS / "index.json"
EXPERT_RENDERS = RESOURCES / "expert_renders"
BACKBONE = RESULTS / "backbone" / "backbone.safetensors"
LABELS = RESULTS / "labels"
FEATURES = RESULTS / "features"
REPORT = RESULTS / "report"
CLIP_BENCHMARK = RESULTS / "clip_benchmark" / "table.json"
TIMINGS = RESULTS / "timings"
LOGS = Path("logs")
WEIGHTS = RESOURCES / "weights"
STUDENT = WEIGHTS / "student.json"
ARCHIVES = RESOURCES / "archives"


def job_usage(log: Path) -> Path | None:
    """The record of a job's processor seconds, next to Snakemake's own of that job; None if `log` is not in `logs`."""
    if log.parts[:1] != LOGS.parts or len(log.parts) < 2:
        return None
    rule, *rest = log.with_suffix("").parts[1:]
    return TIMINGS / rule / f"{'-'.join(rest) or 'all'}.json"


def shard(number: int) -> Path:
    return SHARDS / f"{number:05d}.tar"


def expert(name: str) -> Path:
    return RESULTS / "experts" / name


def labels(store: str) -> Path:
    return RESULTS / "labels" / store


def published_labels(store: str) -> Path:
    """What is known of the published label set that a store is taken from, and its files if they come from a URL."""
    return RESOURCES / "published_labels" / store


def released(model: str) -> Path:
    """The record of the downloaded weights of a model that names its own."""
    return WEIGHTS / "models" / f"{model}.json"


def model(name: str, seed: int) -> Path:
    return RESULTS / "models" / name / f"seed{seed}"


def probe(benchmark: str, name: str, seed: int) -> Path:
    return RESULTS / "probes" / benchmark / name / f"seed{seed}"


def finetuned(benchmark: str, name: str, seed: int) -> Path:
    """Results on a benchmark after fine-tuning on it."""
    return RESULTS / "finetuned" / benchmark / name / f"seed{seed}"


def benchmark(name: str) -> Path:
    """Folder of a benchmark's data in the official layout."""
    return RESOURCES / name


def study(name: str) -> Path:
    """Folder of a study's results; its page is next to the folder."""
    return RESULTS / "studies" / name


def clip_benchmark(slug: str, name: str, seed: int) -> Path:
    """Result of clip_benchmark for one data set and model."""
    return RESULTS / "clip_benchmark" / slug / name / f"seed{seed}.json"


def few_shot(slug: str, name: str, seed: int) -> Path:
    """Result of the few-shot linear probes of one data set and model."""
    return RESULTS / "few_shot" / slug / name / f"seed{seed}.json"


def benchmark_mark(name: str, source: str) -> Path:
    """The file that marks the benchmark's folder as complete. source: as in the configuration; data that are not
    rendered have one mark."""
    return benchmark(name) / ("miniature.json" if source == "miniature" else "official.json")


def part_mark(name: str, part: str) -> Path:
    """The file that marks an optional part of the benchmark's official data as complete."""
    return benchmark(name) / f"{part}.json"

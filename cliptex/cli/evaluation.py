"""Commands that evaluate models, and report the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cliptex.cli.common import (
    DEFAULT,
    ConfigFiles,
    Count,
    Model,
    Seed,
    echo,
    load_config,
    load_config_with_protocols,
    require_model,
)
from cliptex.core import paths

if TYPE_CHECKING:
    from cliptex.evaluation.corruptions import CorruptedBenchmark

Corruptions = Annotated[
    str, typer.Option(help="JSON of a study's `corruptions`: evaluate on clean and on corrupted images.")
]
Limit = Annotated[float | None, typer.Option(min=0)]
Probed = Annotated[str, typer.Option("--benchmark", help="Name of an entry in `probes.benchmarks`.")]
Tuned = Annotated[str, typer.Option("--benchmark", help="Name of an entry in `finetune.benchmarks`.")]


def probe(
    benchmark: Probed,
    models: str,
    config_files: ConfigFiles = DEFAULT,
    seed: Seed = 0,
    out: Path | None = None,
    corruptions: Corruptions = "null",
    cache_gb: Limit = None,
    memory_gb: Limit = None,
) -> None:
    """Train the probes of a benchmark on frozen encoders and evaluate them.

    Args:
        models: Models and baselines, separated by commas.
        out: Folder for the results; default: that of the main run.
        cache_gb: Overrides `probes.cache_gb`.
        memory_gb: Overrides `probes.memory_gb`.
    """
    from cliptex.evaluation import probe
    from cliptex.evaluation.job import Job

    config = load_config_with_protocols(config_files)
    limits = {"cache_gb": cache_gb, "memory_gb": memory_gb}
    limits = {name: value for name, value in limits.items() if value is not None}
    config = config.model_copy(update={"probes": config.probes.model_copy(update=limits)})
    for name in models.split(","):
        require_model(config, name, config.probes.baselines)
    data = _corrupted(benchmark, corruptions)
    probe.run(config, Job(name=benchmark, models=tuple(models.split(",")), seeds=(seed,), out=out, data=data))


def tabulate_probes(benchmark: Probed, config_files: ConfigFiles = DEFAULT) -> None:
    """Gather a benchmark's probes over models, seeds and heads into one table."""
    from cliptex.evaluation.results import tabulate
    from cliptex.evaluation.targets import probe_files

    config = load_config_with_protocols(config_files)
    tabulate(benchmark, probe_files(config, benchmark), paths.RESULTS / "probes" / f"{benchmark}.json")


def finetune(benchmark: Tuned, model: str, config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Train a model's encoder end to end with the heads of a benchmark, and evaluate it.

    Args:
        model: Name of an entry in `models`, or random.
    """
    from cliptex.evaluation import finetune
    from cliptex.evaluation.job import Job

    config = load_config_with_protocols(config_files)
    require_model(config, model, config.finetune.baselines)
    finetune.run(config, Job(name=benchmark, models=(model,), seeds=(seed,)))


def tabulate_finetuned(benchmark: Tuned, config_files: ConfigFiles = DEFAULT) -> None:
    """Gather a benchmark's fine-tuned models over seeds and heads into one table."""
    from cliptex.evaluation.results import tabulate
    from cliptex.evaluation.targets import finetune_files

    config = load_config_with_protocols(config_files)
    tabulate(benchmark, finetune_files(config, benchmark), paths.RESULTS / "finetuned" / f"{benchmark}.json")


def zeroshot(
    benchmark: str, config_files: ConfigFiles = DEFAULT, out: Path | None = None, corruptions: Corruptions = "null"
) -> None:
    """Evaluate zero-shot classification with the class names of a benchmark.

    Args:
        benchmark: Name of an entry in `zeroshot.benchmarks`.
        out: File for the results; default: that of the main run.
    """
    from cliptex.evaluation import zeroshot
    from cliptex.evaluation.job import Job

    zeroshot.run(load_config(config_files), Job(name=benchmark, out=out, data=_corrupted(benchmark, corruptions)))


def retrieval(name: str, config_files: ConfigFiles = DEFAULT) -> None:
    """Evaluate image-text retrieval on a set of captioned images.

    Args:
        name: Name of an entry in `zeroshot.retrieval`.
    """
    from cliptex.evaluation import retrieval
    from cliptex.evaluation.job import Job

    retrieval.run(load_config(config_files), Job(name=name))


def training_free(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `training_free.benchmarks`.")],
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Evaluate frozen encoders on a benchmark without training: by text, or by comparing patch tokens."""
    from cliptex.evaluation.job import Job
    from cliptex.evaluation.training_free import run

    run.run(load_config_with_protocols(config_files), Job(name=benchmark))


def export_benchmark(
    name: str, out: Path, config_files: ConfigFiles = DEFAULT, splits: str = "test", per_tar: Count = 10_000
) -> None:
    """Write a benchmark as tars that the clip_benchmark command reads, with our class names and prompts.

    Args:
        name: A classification benchmark, or an entry of `zeroshot.retrieval`.
        out: Folder for the tars, which is the root for clip_benchmark.
        splits: test, or test,train; test is the evaluation split.
        per_tar: Maximum number of samples in one tar.
    """
    from cliptex.evaluation.export_benchmark import export_benchmark

    counts = export_benchmark(load_config(config_files), name, out, splits.split(","), per_tar)
    echo(f"{out}: {', '.join(f'{count} samples ({split})' for split, count in counts.items())}")


def clip_benchmark(
    dataset: str, model: Model, task: str = "auto", config_files: ConfigFiles = DEFAULT, seed: Seed = 0
) -> None:
    """Evaluate a model on one data set with the clip_benchmark command.

    Args:
        dataset: Data set as clip_benchmark names it, such as wds/vtab/cifar10.
        task: auto, zeroshot_classification or zeroshot_retrieval.
    """
    from cliptex.config import dataset_slug
    from cliptex.evaluation.clip_benchmark import run_clip_benchmark

    out = paths.clip_benchmark(dataset_slug(dataset), model, seed)
    whole = load_config(config_files)
    require_model(whole, model)
    config = whole.clip_benchmark
    run_clip_benchmark(config, dataset, task, model, seed, paths.model(model, seed), out)


def few_shot(dataset: str, model: Model, config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Train and evaluate few-shot linear probes (`clip_benchmark.shots`) of a model on one data set.

    Args:
        dataset: Data set as clip_benchmark names it, such as wds/vtab/cifar10.
    """
    from cliptex.config import dataset_slug
    from cliptex.evaluation.few_shot import run_few_shot

    config = load_config(config_files)
    require_model(config, model)
    out = paths.few_shot(dataset_slug(dataset), model, seed)
    run_few_shot(config.clip_benchmark, dataset, model, seed, paths.model(model, seed), out)


def tabulate_clip_benchmark(config_files: ConfigFiles = DEFAULT) -> None:
    """Gather the results of clip_benchmark over data sets, models and seeds into one table."""
    from cliptex.evaluation.clip_benchmark import clip_benchmark_files, write_table

    config = load_config(config_files)
    write_table(clip_benchmark_files(config), paths.CLIP_BENCHMARK, config)


def report(config_files: ConfigFiles = DEFAULT) -> None:
    """Write the tables, the figures and results/report.html."""
    from cliptex.report import build_report

    build_report(load_config(config_files))


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B")],
    out: Path = Path("compare.html"),
) -> None:
    """Compare two runs: what differs between them, and which results changed by more than the noise.

    Args:
        first: Folder of a run (Snakemake's --directory), or its results folder.
        second: The other run; changes are those from RUN_A to RUN_B.
        out: Page to write.
    """
    from cliptex.report.compare import compare_runs

    echo(compare_runs(first, second, out))
    echo(f"Open {out}")


def export_visbench(out: Path, config_files: ConfigFiles = DEFAULT) -> None:
    """Write the results of probes as records of VisBench's boards (JSON Lines).

    Args:
        out: File to write; `visbench.results.read_records` reads it.
    """
    from cliptex.report.visbench import export_records

    benchmarks = load_config(config_files).probes.benchmarks
    for sentence in export_records([paths.RESULTS / "probes" / f"{name}.json" for name in benchmarks], out):
        echo(f"left out: {sentence}")


def import_visbench(records: Path, out: Path) -> None:
    """Write records of VisBench's boards as rows with the metrics and units of results here (JSON).

    Args:
        records: A file of VisBench, such as its results/visbench.jsonl.
        out: File to write.
    """
    from cliptex.report.visbench import import_records

    for task, count in import_records(records, out).items():
        echo(f"left out: {count} records of {task}")


def study_page(config_files: ConfigFiles = DEFAULT) -> None:
    """Write the page of a finished study: results/studies/<name>.html, its table and its plot."""
    from cliptex.report.studies.page import build_study

    build_study(load_config(config_files))


def _corrupted(benchmark: str, corruptions: str) -> "CorruptedBenchmark | None":
    """The benchmark with corrupted evaluation images; None for the benchmark as it is."""
    if corruptions == "null":
        return None
    from cliptex.config import Corruptions
    from cliptex.config.explain import validated
    from cliptex.config.files import dotted, parse
    from cliptex.evaluation.corruptions import CorruptedBenchmark

    values = parse(corruptions, "--corruptions").values
    section = validated(Corruptions, values, lambda path: f"--corruptions: {dotted(path)}: ")
    return CorruptedBenchmark.of(benchmark, section, paths.RESOURCES)

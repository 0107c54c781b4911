"""The command line: `cliptex <stage> ...`, one command a stage, each importing only what it needs."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from cliptex.cluster import gpu
from cliptex.config import Config, dataset_slug
from cliptex.core import paths, progress
from cliptex.core.errors import CliptexError
from cliptex.core.files import unwritable
from cliptex.core.redact import Formatter, harmless

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
log = logging.getLogger("cliptex")
DATA, LABELS, MODELS = "Pairs and benchmarks", "Experts and labels", "Models"
JUDGING, PROJECT = "Judging", "Configuration"

ConfigOption = Annotated[str, typer.Option("--config", help="YAML file, or JSON text starting with {.")]
MinYieldOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least share of usable samples; dataset.min_yield by default.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")]
DEFAULT = "config/config.yaml"
ON_A_GPU = {
    "train-backbone",
    "train-expert",
    "label",
    "train",
    "probe",
    "finetune",
    "zeroshot",
    "retrieval",
    "clip-benchmark",
}
"""Stages that compute where the GPU is."""


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    log_file: Annotated[Path | None, typer.Option("--log", help="Also write the log to this file.")] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Compute threads, of all processes on this machine; all by default."),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="CLIPTEX_DEBUG", help="Show the traceback of an error, and more in the log."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the versions of the package and of what it computes with, and exit."),
    ] = False,
) -> None:
    """Turn image-caption pairs and public vision experts into a better CLIP, and prove that it is better.

    The options below stand before the stage's name: cliptex --threads 2 train --model cliptex.
    """
    if version:
        from cliptex.core.provenance import versions

        typer.echo("\n".join(f"{name} {value}" for name, value in versions().items()))
        raise typer.Exit
    context.obj = threads
    if threads is not None:
        # more than there are processors for make each other wait; several processes of torchrun share them
        threads = min(threads, len(os.sched_getaffinity(0))) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) or 1
        # read by OpenMP, MKL and OpenBLAS when they are loaded, which is later
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
    terminal = logging.StreamHandler()
    terminal.addFilter(lambda record: debug or not hasattr(record, "is_traceback"))
    handlers: list[logging.Handler] = [terminal]
    # of processes that torchrun started together, the first one writes the log
    if log_file is not None and os.environ.get("RANK", "0") == "0":
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w"))
        # several jobs share the terminal: lines instead of bars, and only errors where nobody watches
        progress.bars = False
        terminal.setLevel(logging.INFO if sys.stderr.isatty() else logging.ERROR)
    for handler in handlers:
        handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)
    if context.invoked_subcommand in ON_A_GPU:
        gpu.require_allotted()


def _say(text: str) -> None:
    """Print what may have text of others in it: keys, reasons, names of classes."""
    typer.echo(harmless(text))


def _store(config: Config, name: str, option: str = "--store") -> str:
    if name not in config.label_stores:
        raise CliptexError(f"{option}: {name!r} is not one of {sorted(config.label_stores)}")
    return name


@app.command(rich_help_panel=DATA)
def render_pairs(
    shard: Annotated[int, typer.Option(min=0, help="Number of the shard.")], config: ConfigOption = DEFAULT
) -> None:
    """Render a shard of image-caption pairs (the miniature's stand-in for CC3M)."""
    from cliptex.data.miniature import render_pairs

    render_pairs(Config.load(config).miniature, shard, paths.shard(shard))


@app.command(rich_help_panel=DATA)
def render_experts(part: Annotated[str, typer.Option(help="train or val.")], config: ConfigOption = DEFAULT) -> None:
    """Render the labelled scenes on which the experts are trained."""
    from cliptex.data.miniature import render_expert_set

    render_expert_set(Config.load(config).miniature, part, paths.EXPERT_RENDERS / f"{part}.h5")


@app.command(rich_help_panel=DATA)
def render_benchmark(
    name: Annotated[str, typer.Option(help="voc, ade20k, coco, nyuv2, imagenet or places365.")],
    config: ConfigOption = DEFAULT,
    look: Annotated[str, typer.Option(help="dusk: the evaluation scenes alone, in another light.")] = "",
) -> None:
    """Render a benchmark in its official layout."""
    from cliptex.data.miniature import render_benchmark

    folder = paths.benchmark(f"{name}_{look}" if look else name)
    render_benchmark(Config.load(config).miniature, name, folder, look or "benchmark")


@app.command(rich_help_panel=DATA)
def render_captions(
    name: Annotated[str, typer.Option(help="Name of an entry in `zeroshot.retrieval` that has `rendered`.")],
    config: ConfigOption = DEFAULT,
) -> None:
    """Render held-out captioned pictures, on which retrieval is judged."""
    from cliptex.data.miniature import render_captions

    settings = Config.load(config)
    given = settings.zeroshot.retrieval.get(name)
    if given is None or given.rendered is None:
        raise CliptexError(f"zeroshot.retrieval.{name}.rendered: says how many to render, and is not there")
    render_captions(settings.miniature, given.rendered, paths.benchmark(name))


@app.command(rich_help_panel=DATA)
def fetch(
    benchmark: Annotated[str, typer.Option(help="Name of a benchmark, e.g. voc.")], config: ConfigOption = DEFAULT
) -> None:
    """Put a benchmark's official data in place: downloaded, or from a folder of yours; check and describe them."""
    from cliptex.data.official.fetch import fetch

    fetch(Config.load(config), benchmark, paths.benchmark(benchmark))


@app.command(rich_help_panel=DATA)
def download_pairs(
    batch: Annotated[int, typer.Option(min=0, help="Which batch of download.shards_per_job shards.")],
    config: ConfigOption = DEFAULT,
    processes: Annotated[int, typer.Option(min=1, help="Processes of img2dataset.")] = 1,
) -> None:
    """Download a batch of web images with img2dataset, in the environment named in download.python."""
    from cliptex.data.download import run_img2dataset

    run_img2dataset(Config.load(config), batch, processes)


@app.command(rich_help_panel=DATA)
def build_shards(
    batch: Annotated[int, typer.Option(min=0, help="Which batch of download.shards_per_job shards.")],
    config: ConfigOption = DEFAULT,
    workers: Annotated[int, typer.Option(min=1, help="Images converted at a time.")] = 1,
    min_yield: MinYieldOption = None,
) -> None:
    """Build a batch of shards from its download, or fetch and check existing tars."""
    from cliptex.data.download import build_shards

    build_shards(Config.load(config), batch, workers, min_yield)


@app.command(rich_help_panel=DATA)
def index_shards(config: ConfigOption = DEFAULT, min_yield: MinYieldOption = None) -> None:
    """Check that keys are unique and enough samples usable; write results/shards/index.json."""
    from cliptex.data.download import built_shards
    from cliptex.data.shard_paths import num_downloads, shard_paths
    from cliptex.data.shards import index_shards, write_index

    settings = Config.load(config)
    dataset = settings.dataset
    wanted = dataset.min_yield if min_yield is None else min_yield
    if dataset.source == "miniature":
        index_shards(shard_paths(settings), paths.SHARD_INDEX, wanted, dataset.max_repeats)
    else:
        write_index(built_shards(num_downloads(settings)), paths.SHARD_INDEX, wanted, dataset.max_repeats)


@app.command(rich_help_panel=LABELS)
def train_backbone(config: ConfigOption = DEFAULT, seed: SeedOption = 0) -> None:
    """Pre-train the encoder that the experts trained here start from."""
    from cliptex.experts.backbone import train_backbone

    train_backbone(Config.load(config), paths.EXPERT_RENDERS / "train.h5", paths.BACKBONE, seed)


@app.command(rich_help_panel=LABELS)
def train_expert(
    name: Annotated[str, typer.Option(help="Name of an entry in `experts`.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
) -> None:
    """Train an expert on labelled renders (or check the weights it is given), and write down its quality."""
    from cliptex.experts.training import train_expert

    train_expert(Config.load(config), name, paths.EXPERT_RENDERS, paths.expert(name), seed)


@app.command(rich_help_panel=MODELS)
def fetch_student(config: ConfigOption = DEFAULT) -> None:
    """Download the published weights that training starts from, where student.pretrained is a tag."""
    from cliptex.models import clip as student

    student.fetch(Config.load(config).student, paths.STUDENT)


@app.command(rich_help_panel=LABELS)
def label(
    store: Annotated[str, typer.Option(help="Name of an entry in `label_stores`.")],
    batch: Annotated[int, typer.Option(min=0, help="Which batch of labels.shards_per_job shards.")],
    config: ConfigOption = DEFAULT,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode and encode; default: --threads beside a GPU, else none."),
    ] = None,
) -> None:
    """Label a batch of shards with one expert."""
    from cliptex.labels.label import label_batch

    settings = Config.load(config)
    expert = settings.label_stores[_store(settings, store)].expert
    label_batch(settings, store, batch, paths.SHARD_INDEX, paths.expert(expert), paths.labels(store), workers)


@app.command(rich_help_panel=LABELS)
def index_labels(
    store: Annotated[str, typer.Option(help="Name of an entry in `label_stores`.")], config: ConfigOption = DEFAULT
) -> None:
    """Check every file of a label store against its shard; write its index.json."""
    from cliptex.labels.label import index_labels

    settings = Config.load(config)
    index_labels(settings, _store(settings, store), paths.SHARD_INDEX, paths.labels(store))


@app.command(rich_help_panel=LABELS)
def plan(
    config: ConfigOption = DEFAULT,
    measure: Annotated[
        bool, typer.Option(help="Look at tars on the web, and run untrained experts, for what is not known yet.")
    ] = True,
) -> None:
    """Before any job: shards, jobs, bytes of images, labels and features, and the experts' time."""
    from cliptex.cluster.plan import make_plan, shown
    from cliptex.evaluation.protocols import folders_near, with_protocols

    _say(shown(make_plan(with_protocols(Config.load(config), folders_near(config)), measure)))


@app.command(rich_help_panel=PROJECT)
def doctor(
    found: Annotated[
        list[Path] | None, typer.Argument(help="What doctors in jobs wrote; shown, and judged, too.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Snakemake profile whose account, partition and constraint are checked.")
    ] = None,
    account: Annotated[str | None, typer.Option(help="Account to check, in place of the profile's.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition to check, in place of the profile's.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Constraint to check, in place of the profile's.")] = None,
    wants_gpu: Annotated[bool, typer.Option("--gpu", help="A GPU is expected here.")] = False,
    kind: Annotated[str | None, typer.Option(help="Kind of job that this is, for the record.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for what was found.")] = None,
    config: ConfigOption = DEFAULT,
) -> None:
    """Check packages, scheduler, account, partition, GPU and disk; exit code 1 where something must be mended."""
    from cliptex.cluster.doctor import Submission, examine, table
    from cliptex.core.files import read_json, write_json

    submission = Submission.of_profile(profile) if profile else None
    if account or partition or constraint:
        base = submission or Submission()
        submission = Submission(account or base.account, partition or base.partition, constraint or base.constraint)
    here = examine(Config.load(config), submission, kind, wants_gpu)
    places = [here, *(read_json(path) for path in found or [])]
    fine = all(place["ok"] for place in places)
    if out is not None:
        write_json(out, {"schema_version": 1, "ok": fine, "places": places} if found else here)
    _say(table(places))
    if not fine:
        raise CliptexError("something must be mended first, see FAILED above")


labels_app = typer.Typer(help="Look at finished label stores, check them, and hand them on.", no_args_is_help=True)
app.add_typer(labels_app, name="labels", rich_help_panel=LABELS)
StoresOption = Annotated[
    str, typer.Option("--stores", help="Names in `label_stores`, separated by commas; all if empty.")
]


def _stores(config: Config, names: str) -> list[str]:
    stores = [name for name in names.split(",") if name] or list(config.label_stores)
    return [_store(config, name, "--stores") for name in stores]


@labels_app.command("export")
def export_labels(
    out: Annotated[Path, typer.Option(help="Folder for the tars.")],
    stores: StoresOption = "",
    form: Annotated[str, typer.Option("--format", help="png (small) or npy (exact).")] = "png",
    images: Annotated[bool, typer.Option(help="Whether images and captions go in.")] = True,
    shards: Annotated[str, typer.Option(help="First and last shard, as 0-9; all if empty.")] = "",
    config: ConfigOption = DEFAULT,
) -> None:
    """Write WebDataset tars of images, captions and labels, and labels.json, which says what is in them."""
    from cliptex.labels.export import Export, export_labels

    if form not in ("png", "npy"):
        raise CliptexError(f"--format: {form!r} is neither png nor npy")
    settings = Config.load(config)
    chosen = None
    if shards:
        first, _, last = shards.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise CliptexError(f"--shards: {shards!r} is not a range such as 0-9")
        chosen = range(int(first), int(last or first) + 1)
    export = Export(_stores(settings, stores), form, images, chosen)
    record = export_labels(settings, export, paths.SHARD_INDEX, paths.LABELS, out)
    _say(f"{out}: {len(record['files'])} tars, {sum(file['samples'] for file in record['files'])} samples")


@labels_app.command("inspect")
def inspect_labels(
    out: Annotated[Path, typer.Option(help="Where the contact sheet goes.")] = paths.RESULTS / "labels.png",
    stores: StoresOption = "",
    images: Annotated[int, typer.Option(min=1, help="Rows of the sheet.")] = 8,
    config: ConfigOption = DEFAULT,
) -> None:
    """Draw images beside their labels, and print the statistics of each store."""
    from cliptex.labels.inspect import contact_sheet, statistics

    settings = Config.load(config)
    names = _stores(settings, stores)
    contact_sheet(settings, names, paths.SHARD_INDEX, paths.LABELS, out, images)
    _say("\n".join([*(statistics(settings, name, paths.LABELS) for name in names), f"contact sheet: {out}"]))


@labels_app.command("audit")
def audit_labels(
    stores: StoresOption = "",
    samples: Annotated[int, typer.Option(min=1, help="Images labelled again in each store.")] = 8,
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
) -> None:
    """Label random images again with the experts and compare; exit code 1 where a label cannot be made again."""
    from cliptex.experts.training import load_expert
    from cliptex.labels.audit import audit_labels, report

    settings = Config.load(config)
    differing = []
    for name in _stores(settings, stores):
        expert = settings.label_stores[name].expert
        loaded = load_expert(expert, settings.experts[expert], paths.expert(expert))
        found = audit_labels(settings, name, paths.SHARD_INDEX, loaded, paths.labels(name), samples, seed)
        _say(report(found, name))
        differing += [paths.labels(name)] * (not all(one.agrees for one in found))
    if differing:
        folders = " ".join(map(str, differing))
        raise CliptexError(f"{folders}: labels cannot be made again; run: rm -r {folders}   and then the workflow")


@app.command(rich_help_panel=MODELS)
def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name of an entry in `models`.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode; default: --threads beside a GPU, else none."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the SLURM job to train on, by srun and torchrun.")] = 1,
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs on all nodes together, a process each; 0: those that are visible.")
    ] = 1,
) -> None:
    """Train a model, or go on with it, and export it for open_clip. Exit code 75: asked to stop, state saved."""
    settings = Config.load(config)
    if model in settings.models and settings.models[model].interpolate is not None:
        raise CliptexError(f"models.{model}: is interpolated, not trained; run: cliptex interpolate --model {model}")
    if (nodes, gpus) != (1, 1):
        from cliptex.cluster.launch import launch

        launch(sys.argv[1:], nodes, gpus, context.obj)
    from cliptex.training.run import train

    train(settings, model, seed, workers=workers)


@app.command(rich_help_panel=MODELS)
def interpolate(
    model: Annotated[str, typer.Option(help="Name of an entry in `models` that has `interpolate`.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
) -> None:
    """Make a model from the weights of two others, without training."""
    from cliptex.models.interpolate import interpolate

    interpolate(Config.load(config), model, seed)


@app.command(rich_help_panel=MODELS)
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images to draw, a row each.")],
    model: Annotated[Path, typer.Option(help="Folder of a trained model that has its heads.")],
    out: Annotated[Path, typer.Option(help="Where the sheet goes, a .png file.")] = Path("predictions.png"),
) -> None:
    """Draw images beside what a model's heads say of them: segmentation, depth, normals."""
    from cliptex.models.inference import TrainedModel
    from cliptex.models.predict import draw_predictions

    found = draw_predictions(TrainedModel(model), images, out)
    _say("\n".join([*(f"{store}: {', '.join(classes)}" for store, classes in found.items()), f"sheet: {out}"]))


@app.command("export", rich_help_panel=MODELS)
def export_model(
    model: Annotated[str, typer.Option(help="Name of an entry in `models`.")],
    out: Annotated[Path, typer.Option(help="Folder for the exported model; what is in it stays.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
    heads: Annotated[bool, typer.Option(help="Whether the heads go with it.")] = True,
    licence: Annotated[str, typer.Option(help="Licence in the model card, as the Hugging Face hub writes it.")] = "",
) -> None:
    """Copy a trained model to a folder that can be published: open_clip's files and a model card."""
    from cliptex.report.model_card import export_model

    export_model(Config.load(config), model, seed, out, heads=heads, licence=licence)
    _say(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


CorruptionsOption = Annotated[
    str, typer.Option(help="JSON of a study's `corruptions`: evaluation images are judged clean and made worse.")
]


def _judged_on(benchmark: str, corruptions: str) -> Any:
    """The benchmark whose evaluation images are corrupted; None for the benchmark as it is."""
    if corruptions == "null":
        return None
    from cliptex.config import Corruptions
    from cliptex.evaluation.corruptions import Corrupted

    return Corrupted.of(benchmark, Corruptions.model_validate_json(corruptions), paths.RESOURCES)


@app.command(rich_help_panel=JUDGING)
def probe(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `probes.benchmarks`.")],
    models: Annotated[str, typer.Option(help="Models and baselines, separated by commas.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; by default of the main run.")] = None,
    corruptions: CorruptionsOption = "null",
    cache_gb: Annotated[float | None, typer.Option(min=0, help="In place of `probes.cache_gb`.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0, help="In place of `probes.memory_gb`.")] = None,
) -> None:
    """Train the probes of a benchmark on frozen encoders and judge them."""
    from cliptex.evaluation.probe import probe
    from cliptex.evaluation.protocols import folders_near, with_protocols

    root = paths.benchmark(benchmark)
    out = out or paths.RESULTS / "probes" / benchmark
    settings = with_protocols(Config.load(config), folders_near(config))
    limits = {"cache_gb": cache_gb, "memory_gb": memory_gb}
    limits = {name: value for name, value in limits.items() if value is not None}
    settings = settings.model_copy(update={"probes": settings.probes.model_copy(update=limits)})
    data = _judged_on(benchmark, corruptions)
    probe(settings, benchmark, models.split(","), seed, paths.RESULTS / "models", root, out, paths.FEATURES, data)


@app.command(rich_help_panel=JUDGING)
def tabulate_probes(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `probes.benchmarks`.")],
    config: ConfigOption = DEFAULT,
) -> None:
    """Gather a benchmark's probes over models, seeds and heads into one table."""
    from cliptex.evaluation.protocols import folders_near, with_protocols
    from cliptex.evaluation.tabulate import probe_files, tabulate

    settings = with_protocols(Config.load(config), folders_near(config))
    tabulate(benchmark, probe_files(settings, benchmark), paths.RESULTS / "probes" / f"{benchmark}.json")


@app.command(rich_help_panel=JUDGING)
def finetune(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `finetune.benchmarks`.")],
    model: Annotated[str, typer.Option(help="Name of an entry in `models`, or random.")],
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
) -> None:
    """Train a model's encoder end to end with the heads of a benchmark, and judge it."""
    from cliptex.evaluation.finetune import finetune
    from cliptex.evaluation.protocols import folders_near, with_protocols

    settings = with_protocols(Config.load(config), folders_near(config))
    out = paths.RESULTS / "finetuned" / benchmark
    finetune(settings, benchmark, model, seed, paths.RESULTS / "models", paths.benchmark(benchmark), out)


@app.command(rich_help_panel=JUDGING)
def tabulate_finetuned(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `finetune.benchmarks`.")],
    config: ConfigOption = DEFAULT,
) -> None:
    """Gather a benchmark's fine-tuned models over seeds and heads into one table."""
    from cliptex.evaluation.finetune_targets import finetune_files
    from cliptex.evaluation.protocols import folders_near, with_protocols
    from cliptex.evaluation.tabulate import tabulate

    settings = with_protocols(Config.load(config), folders_near(config))
    tabulate(benchmark, finetune_files(settings, benchmark), paths.RESULTS / "finetuned" / f"{benchmark}.json")


@app.command(rich_help_panel=JUDGING)
def zeroshot(
    benchmark: Annotated[str, typer.Option(help="Name of an entry in `zeroshot.benchmarks`.")],
    config: ConfigOption = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="File of the results; by default of the main run.")] = None,
    corruptions: CorruptionsOption = "null",
) -> None:
    """Zero-shot classification with the class names of a benchmark."""
    from cliptex.evaluation.zeroshot import zeroshot

    settings = Config.load(config)
    out = out or paths.RESULTS / "zeroshot" / f"{benchmark}.json"
    data = _judged_on(benchmark, corruptions)
    zeroshot(settings, benchmark, paths.RESULTS / "models", paths.benchmark(benchmark), out, data=data)


@app.command(rich_help_panel=JUDGING)
def retrieval(
    name: Annotated[str, typer.Option(help="Name of an entry in `zeroshot.retrieval`.")],
    config: ConfigOption = DEFAULT,
) -> None:
    """Image-text retrieval on a set of captioned images."""
    from cliptex.evaluation.retrieval import retrieval

    out = paths.RESULTS / "zeroshot" / f"{name}.json"
    retrieval(Config.load(config), name, paths.RESULTS / "models", out)


@app.command(rich_help_panel=JUDGING)
def export_benchmark(
    name: Annotated[str, typer.Option(help="A classification benchmark, or an entry of `zeroshot.retrieval`.")],
    out: Annotated[Path, typer.Option(help="Folder for the tars, the root that clip_benchmark is given.")],
    config: ConfigOption = DEFAULT,
    splits: Annotated[str, typer.Option(help="test, or test,train; test is the evaluation split.")] = "test",
    per_tar: Annotated[int, typer.Option(min=1, help="Most samples in one tar.")] = 10_000,
) -> None:
    """Write a benchmark as tars that the clip_benchmark command reads, with our class names and prompts."""
    from cliptex.evaluation.export_benchmark import export_benchmark

    counts = export_benchmark(Config.load(config), name, out, splits.split(","), per_tar)
    _say(f"{out}: {', '.join(f'{count} samples ({split})' for split, count in counts.items())}")


@app.command(rich_help_panel=JUDGING)
def clip_benchmark(
    dataset: Annotated[str, typer.Option(help="Data set as clip_benchmark names it, such as wds/vtab/cifar10.")],
    model: Annotated[str, typer.Option(help="Name of an entry in `models`.")],
    task: Annotated[str, typer.Option(help="auto, zeroshot_classification or zeroshot_retrieval.")] = "auto",
    config: ConfigOption = DEFAULT,
    seed: SeedOption = 0,
) -> None:
    """Judge a model by the clip_benchmark command on one data set."""
    from cliptex.evaluation.clip_benchmark import run_clip_benchmark

    out = paths.clip_benchmark(dataset_slug(dataset), model, seed)
    settings = Config.load(config).clip_benchmark
    run_clip_benchmark(settings, dataset, task, model, seed, paths.model(model, seed), out)


@app.command(rich_help_panel=JUDGING)
def tabulate_clip_benchmark(config: ConfigOption = DEFAULT) -> None:
    """Gather what clip_benchmark found over data sets, models and seeds into one table."""
    from cliptex.evaluation.clip_benchmark import suite_files, tabulate_suite

    tabulate_suite(suite_files(Config.load(config)), paths.RESULTS / "clip_benchmark" / "table.json")


@app.command(rich_help_panel=JUDGING)
def report(config: ConfigOption = DEFAULT) -> None:
    """Write the tables, the figures and results/report.html."""
    from cliptex.report import build_report

    build_report(Config.load(config))


@app.command(rich_help_panel=JUDGING)
def study_page(config: ConfigOption = DEFAULT) -> None:
    """Write the page of a finished study: results/studies/<name>.html, its table and its plot."""
    from cliptex.report.studies.page import build_study

    build_study(Config.load(config))


@app.command(rich_help_panel=PROJECT)
def config_schema() -> None:
    """Print the JSON schema of the configuration (workflow/schemas/config.schema.json)."""
    import json

    typer.echo(json.dumps(Config.model_json_schema(), indent=1))


@app.command(rich_help_panel=PROJECT)
def config_reference() -> None:
    """Print the table of all configuration keys (config/README.md)."""
    from cliptex.config.reference import reference

    typer.echo(reference(), nl=False)


def main() -> None:
    """Run a command. Exit code 1: an error the user can mend; 2: a wrong command line, or an error nobody foresaw.

    An error is one line. Its traceback is in the log file, for an unforeseen one, and on the terminal with --debug.
    """
    try:
        code = app(prog_name="cliptex", standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        known = error if isinstance(error, CliptexError) else unwritable(error)
        code = _mendable(known) if known else _failed(error)
    sys.exit(code)


def _mendable(error: CliptexError) -> int:
    """Say what the user can mend; the exit code."""
    if log.isEnabledFor(logging.DEBUG):
        log.error("%s", traceback.format_exc(), extra={"is_traceback": True})
    log.error("error: %s", error)
    return 1


def _failed(error: Exception) -> int:
    """Say what is wrong with the command line, or what nobody foresaw; the exit code."""
    if hasattr(error, "format_message"):  # typer's errors have no public base class
        typer.echo(_usage_error(error), err=True)
        return error.exit_code
    said = str(error).strip().partition("\n")[0]
    files = [handler.baseFilename for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    where = f"the traceback is in {files[0]}" if files else "cliptex --debug ... shows the traceback"
    log.error("%s", traceback.format_exc(), extra={"is_traceback": True})
    log.error("error: %s%s (%s)", type(error).__name__, f": {said}" if said else "", where)
    return 2


def _usage_error(error: Any) -> str:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return context.get_help()
    root = context.find_root() if context else None
    if root and getattr(error, "option_name", None) in {name for param in root.command.params for name in param.opts}:
        hint = f"it stands before the stage's name: cliptex {error.option_name} ..."
    else:
        hint = f"see {context.command_path if context else 'cliptex'} --help"
    return f"error: {error.format_message().rstrip('.')} ({hint})"

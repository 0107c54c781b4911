"""Commands that train experts, label the shards, and plan both."""

from functools import partial
from typing import Annotated

import typer

from cliptex.cli import common
from cliptex.cli.common import DEFAULT, ConfigFiles, Index, Seed, Store, echo, load_config, require_store
from cliptex.core import paths
from cliptex.core.cache import cached
from cliptex.core.errors import CliptexError


def train_backbone(config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Pre-train the encoder that the experts trained here start from."""
    config, renders = load_config(config_files), paths.EXPERT_RENDERS / "train.h5"

    def make() -> None:
        from cliptex.experts.backbone import train_backbone

        train_backbone(config, renders, paths.BACKBONE, seed)

    cached(["train-backbone", config.subset("backbone"), seed], paths.BACKBONE.parent, make, [renders])


def train_expert(name: str, config_files: ConfigFiles = DEFAULT, seed: Seed = 0) -> None:
    """Train an expert on labelled renders, or verify its given weights; record its quality.

    Args:
        name: Name of an entry in `experts`.
    """
    from cliptex.experts.training import train_expert

    config, folder = load_config(config_files), paths.expert(name)
    make = partial(train_expert, config, name, paths.EXPERT_RENDERS, folder, seed)
    expert = config.experts.get(name)
    if expert is not None and expert.weights == "trained" and ":" not in (expert.plugin or name):
        settings = ["train-expert", name, config.subset(f"experts.{name}", "backbone", "miniature"), seed]
        inputs = [paths.EXPERT_RENDERS / f"{part}.h5" for part in ("train", "val")]
        cached(settings, folder, make, [*inputs, *([paths.BACKBONE] if config.backbone else [])])
    else:  # nothing is trained, or by the user's own code, which no version identifies
        make()


def fit_pca(name: str, config_files: ConfigFiles = DEFAULT) -> None:
    """Fit the principal components of an expert's dense features to a sample of the shards.

    Args:
        name: Name of an entry in `experts`.
    """
    from cliptex.labels.fit_pca import fit_pca

    config = load_config(config_files)
    if name not in config.experts:
        raise CliptexError(f"--name {name!r}: not one of experts, {sorted(config.experts)}")
    fit_pca(config, name, paths.SHARD_INDEX, paths.expert(name))


def label(
    store: Store,
    batch: Index,
    config_files: ConfigFiles = DEFAULT,
    workers: Annotated[int | None, typer.Option(min=0)] = None,
) -> None:
    """Label a batch of shards with one expert, or from a published label set.

    Args:
        batch: Number of the batch of labels.shards_per_job shards.
        workers: Processes that decode and encode; default: --threads on a GPU, none on a CPU.
    """
    from cliptex.labels.label import label_batch

    config = load_config(config_files)
    expert = config.label_stores[require_store(config, store)].expert
    if expert is None:
        from cliptex.labels.take import take_batch

        take_batch(config, store, batch, paths.SHARD_INDEX, paths.published_labels(store), paths.labels(store))
        return
    label_batch(config, store, batch, paths.SHARD_INDEX, paths.expert(expert), paths.labels(store), workers)


def fetch_labels(store: Store, config_files: ConfigFiles = DEFAULT) -> None:
    """Download and check the published label set that `label_stores.*.from` names."""
    from cliptex.labels.published import fetch_labels

    config = load_config(config_files)
    if config.label_stores[require_store(config, store)].from_ is None:
        raise CliptexError(f"label_stores.{store}: an expert makes its labels; set `from` to take published ones")
    fetch_labels(config, store, paths.published_labels(store))


def index_labels(store: Store, config_files: ConfigFiles = DEFAULT) -> None:
    """Check every file of a label store against its shard; write the store's index.json."""
    from cliptex.labels.index import index_labels

    config = load_config(config_files)
    index_labels(config, require_store(config, store), paths.SHARD_INDEX, paths.labels(store))


def plan(config_files: ConfigFiles = DEFAULT, measure: bool = True) -> None:
    """Estimate a run before it starts: jobs, downloads, bytes of images, labels and features, and the experts' time.

    The jobs are those of Snakemake's dry run of the target `all`.

    Args:
        measure: Read tars on the web, and run untrained experts, for numbers that are not known yet.
    """
    from cliptex.cluster.dry_run import MissingInput, planned_jobs, workflow_dir
    from cliptex.cluster.plan import make_plan
    from cliptex.cluster.plan_text import shown

    config = common.load_config_with_protocols(config_files)
    if not (config.label_stores or config.models or config.probes.benchmarks):
        raise CliptexError("configuration: no label stores, models or benchmarks, so there is nothing to plan")
    jobs: dict[str, int] | str = "there is no Snakefile next to the folder of the default configuration"
    workflow = workflow_dir(common.default_files()[0])
    if any(text.lstrip().startswith("{") for text in config_files):
        jobs = "the configuration is JSON text; write it to a file"
    elif workflow is not None:
        try:
            jobs = planned_jobs(workflow, *common.files_and_values(config_files))
        except MissingInput as error:
            jobs = str(error)
    echo(shown(make_plan(config, measure) | {"jobs": jobs}))

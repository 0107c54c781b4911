"""What all rules share: the checked configuration, names of things, and how many jobs run at a time."""

import os
import re
import shutil
import sys
from os.path import exists
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import available_cpu_count

from cliptex import versions
from cliptex.config import Config, dataset_slug
from cliptex.data.official.status import benchmark_marks, is_published, missing_data
from cliptex.core.errors import CliptexError
from cliptex.evaluation.finetune_targets import finetune_files, tuned_heads, tuned_models
from cliptex.labels.lost import batches_to_redo
from cliptex.core.plugins import put_on_path
from cliptex.evaluation.probes import heads, kinds
from cliptex.evaluation.protocols import protocol_of, with_protocols
from cliptex.data.shard_paths import (
    caption_tars,
    is_remote,
    num_batches,
    num_downloads,
    shard_paths,
    shard_sources,
    shards_of_download,
)
from cliptex.report.studies import study_config, study_of
from cliptex.evaluation.clip_benchmark import suite_files

try:
    # a protocol's values in place of its name, so that a changed file redoes the probes that use it
    CONFIG = with_protocols(
        Config.load(config), [Path(workflow.basedir) / "config" / "protocols"]
    )
    # of a study's jobs, and the same where there is none
    STUDY = study_config(CONFIG)
    shard_paths(CONFIG)
    MARKS = benchmark_marks(CONFIG)
except CliptexError as error:
    raise WorkflowError(str(error)) from None

# `--cores 8` on a machine with two must not start eight jobs there. On a cluster (--jobs) nothing is capped.
if workflow.nodes is None and workflow._cores is not None:
    workflow.register_resource("_cores", min(workflow._cores, available_cpu_count()))

# snakemake called by its path, without the virtual environment being active
if shutil.which("cliptex") is None:
    os.environ.update(
        PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    )

# A cluster's nodes may have no internet: what comes from there is fetched by local rules, and jobs say at once what they
# miss in place of waiting for a network.
if workflow.remote_exec:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

# a user's own modules, for all jobs
if CONFIG.plugins:
    found = [
        str(
            Path(
                folder if exists(folder) else Path(workflow.basedir) / folder
            ).resolve()
        )
        for folder in CONFIG.plugins
    ]
    put_on_path(found)

MODELS = list(CONFIG.models)
INTERPOLATED = [name for name, model in STUDY.models.items() if model.interpolate]
TRAINED = [name for name in STUDY.models if name not in INTERPOLATED]
COMPARED = CONFIG.probes.models or MODELS
PROBED = [*CONFIG.probes.baselines, *COMPARED]
# models that one probing job does
GROUPS = [
    PROBED[start : start + CONFIG.probes.models_per_job]
    for start in range(0, len(PROBED), CONFIG.probes.models_per_job)
]
FETCHED = [
    name for name, expert in STUDY.experts.items() if expert.weights in ("url", "hub")
]
FETCHED_STUDENT = (
    ["resources/weights/student.json"] if is_published(CONFIG.student) else []
)
MINIATURE = CONFIG.dataset.source == "miniature"
FETCHED_SHARDS = (
    ["results/shards/index.json"]
    if CONFIG.dataset.source == "urls" or any(map(is_remote, CONFIG.dataset.shards))
    else []
)
DOWNLOAD = CONFIG.subset("download")
# what says which shards there are, and what is in them before any repeated image is dropped
SHARDS = (
    "dataset.source",
    "dataset.shards",
    "dataset.sha256",
    "dataset.urls",
    "download.shards_per_job",
)


def as_for(kind, names):
    """What a profile sets for `kind` holds for all `names`, too; what it sets for one of them by name goes before."""
    settings = workflow.resource_settings
    for name in names:
        if kind in settings.overwrite_threads:
            settings.overwrite_threads.setdefault(
                name, settings.overwrite_threads[kind]
            )
        if kind in settings.overwrite_resources:
            resources = settings.overwrite_resources[kind].copy()
            resources.update(settings.overwrite_resources.get(name, {}))
            settings.overwrite_resources[name] = resources


# before the first rule, by which what the profile says is taken as read
as_for(
    "probe",
    [
        f"probe_{benchmark}_{number}"
        for benchmark in CONFIG.probes.benchmarks
        for number in range(len(GROUPS))
    ],
)
as_for("finetune", [f"finetune_{name}" for name in CONFIG.finetune.benchmarks])
if CONFIG.study:
    as_for("probe", [f"probe_study_{name}" for name in CONFIG.study.probes])
    as_for("zeroshot", [f"zeroshot_study_{name}" for name in CONFIG.study.zeroshot])

# a pattern that no name fits
NONE = r"(?!)"


wildcard_constraints:
    shard=r"\d+",
    part="train|val",
    benchmark="|".join(MARKS),
    expert="|".join(STUDY.experts),
    store="|".join(STUDY.label_stores),
    batch=r"\d\d\d+",
    model="|".join(STUDY.models),
    seed=r"\d+",


def weights(model, seed):
    """The exported weights of a model."""
    return f"results/models/{model}/seed{seed}/open_clip_model.safetensors"


def lineage(model):
    """A model and all that it is made from."""
    found = {model: None}
    for source in STUDY.models[model].sources():
        found |= dict.fromkeys(lineage(source))
    return list(found)


def subset(*keys, of=CONFIG):
    """JSON of the configuration keys a job uses; wildcards in them are filled in."""
    return lambda wildcards: of.subset(*(key.format(**wildcards) for key in keys))


def own_tars(batch):
    """The user's own tars among those that a job checks; the others are downloaded."""
    sources = shard_sources(CONFIG)
    return [
        sources[number]
        for number in shards_of_download(CONFIG, batch)
        if not is_remote(sources[number])
    ]


def encoders(models, seed):
    """Weights that the probes of some models and baselines need; an untrained one has the first model's shape."""
    return sorted(
        {weights(model if model in MODELS else MODELS[0], seed) for model in models}
    )


def submission(wildcards, resources):
    """What the profile says of where jobs go, as options."""
    keys = {
        "account": "slurm_account",
        "partition": "slurm_partition",
        "constraint": "constraint",
    }
    return [
        f"--{option}={resources.get(key)}"
        for option, key in keys.items()
        if resources.get(key)
    ]


def study_inputs(benchmark):
    """Marks of a benchmark, and of its scenes in other looks."""
    looks = [f"resources/{benchmark}_{look}/miniature.json" for look in LOOKS]
    return [MARKS[benchmark], *looks]


def asked_pages():
    """The page of the study. Raises WorkflowError where there is none."""
    try:
        return f"results/studies/{study_of(CONFIG).name}.html"
    except CliptexError as error:
        raise WorkflowError(str(error)) from None

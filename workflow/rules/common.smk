"""Shared by all rules: the checked configuration, names and paths, and the number of parallel jobs."""

import os
import re
import shutil
import sys
from os.path import exists
from pathlib import Path
from site import getsitepackages

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import available_cpu_count

from cliptex import versions
from cliptex.cluster.gpu import cards, require_cards, require_whole_gpus
from cliptex.cluster.precheck import require_checked
from cliptex.config import Config, dataset_slug
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import put_on_path
from cliptex.core.provenance import code_sha256, require_code
from cliptex.data.official.status import (
    benchmark_marks,
    benchmarks_in_use,
    evaluation_only,
    is_published,
    missing_data,
    needs_pairs,
    part_marks,
    trains_models,
)
from cliptex.data.shard_paths import (
    INDEX_KEYS,
    SHARD_KEYS,
    caption_tars,
    is_remote,
    num_batches,
    num_downloads,
    shard_paths,
    shard_sources,
    shards_of_download,
)
from cliptex.evaluation.clip_benchmark import clip_benchmark_files, few_shot_files
from cliptex.evaluation.protocols.resolve import protocol_of, with_protocols
from cliptex.evaluation.targets import (
    finetune_files,
    heads,
    kinds,
    tuned_heads,
    tuned_models,
)
from cliptex.evaluation.suites import datasets_of, few_shot_datasets
from cliptex.labels.agreement import pairs_of_stores
from cliptex.labels.lost import batches_to_redo
from cliptex.report.studies import study_config, study_of

# the folder of the package, whose modules this process plans with
PACKAGE = Path(versions.__file__).parent

# Snakemake's internals. These functions change attributes of `workflow` that Snakemake does not document, so a new
# version of Snakemake may break them; tests/test_workflow.py fails then. The rules also read `workflow.remote_exec` and
# `workflow.is_main_process`, which are undocumented, too.


def limit_cores():
    """Make `--cores 8` at most the number of this machine's processors; a cluster's --jobs are not limited.

    Snakemake does not compare --cores with the machine.
    """
    if workflow.nodes is None and workflow._cores is not None:
        workflow.register_resource(
            "_cores", min(workflow._cores, available_cpu_count())
        )


def limit_gpus():
    """Let local jobs share this machine's GPUs, `gpu` of each rule, and no two jobs one GPU.

    Nothing on a cluster, or without a GPU. Raises CliptexError if a profile or an option asks for more than there are.
    """
    if workflow.nodes is not None or not workflow.is_main_process:
        return
    limit = workflow.global_resources.get("gpu").value
    asked = {"--resources": limit} | {
        f"set-resources: {rule}": resources["gpu"].value
        for rule, resources in workflow.resource_settings.overwrite_resources.items()
        if "gpu" in resources and not resources["gpu"].is_evaluable()
    }
    for option, count in asked.items():
        if isinstance(count, int):
            require_cards(count, f"{option}: gpu={count}")
            if option != "--resources":
                require_whole_gpus(count, f"{option}: gpu={count}")
            if isinstance(limit, int) and count > limit:
                # Snakemake would give the job fewer without a word
                raise CliptexError(
                    f"{option}: gpu={count}: more than --resources gpu={limit} allows; change one of them"
                )
    if limit is None and (count := len(cards())):
        workflow.register_resource("gpu", count)


def inherit_profile(kind, names):
    """Apply a profile's set-threads and set-resources for `kind` to the rules `names`.

    Values for one of the names take precedence. A profile can only name rules, and a rule in a loop has a name for each
    benchmark. Snakemake reads the profile's values where a rule is defined, so this is called before the first rule.
    """
    profile = workflow.resource_settings
    for name in names:
        if kind in profile.overwrite_threads:
            profile.overwrite_threads.setdefault(name, profile.overwrite_threads[kind])
        if kind in profile.overwrite_resources:
            resources = profile.overwrite_resources[kind].copy()
            resources.update(profile.overwrite_resources.get(name, {}))
            profile.overwrite_resources[name] = resources


def checked_config():
    """The configuration, checked.

    Its files are read again, as Snakemake merges them: its own reader accepts keys given twice and other mistakes, and
    does not keep the lines, which an error names. The Snakefile's own files come before those of `--configfile`: the
    default, and in a folder made by `cliptex init` one that overrides it.
    """
    given = workflow.overwrite_configfiles
    default, *overrides = workflow.configfiles[len(given) :] or [
        f"{workflow.basedir}/config/config.yaml"
    ]
    if workflow.config_settings.replace_workflow_config:
        default, overrides = None, []
    return Config.from_files(
        [*overrides, *given], workflow.config_settings.config, default
    )


def require_own_config():
    """Raise CliptexError if a Snakefile that uses this one as a module gives it another configuration than its own,
    which is the one that `checked_config` reads."""
    if workflow.modifier_stack[0].globals["config"] is not config:
        raise CliptexError(
            f"{workflow.main_snakefile}: module {__name__}: config: must be the whole configuration; write"
            " `config: config`"
        )


def require_clone_for_conda():
    """Raise CliptexError if conda is to install this package into a job's environment, and there is no clone."""
    methods = workflow.deployment_settings.deployment_method
    has_package = (Path(workflow.basedir) / "pyproject.toml").is_file()
    if DeploymentMethod.CONDA in methods and not has_package:
        raise CliptexError(
            "--software-deployment-method conda: its environments install the package from a clone; run Snakemake in a"
            " clone, or leave the option out to use the active environment"
        )


try:
    require_own_config()
    require_clone_for_conda()
    CONFIG = checked_config()
    # the user's own modules, for this process and all jobs
    put_on_path(CONFIG.plugin_folders(workflow.basedir))
    # the values of a protocol instead of its name, so that a changed file reruns the probes that use it
    CONFIG = with_protocols(CONFIG, [Path(workflow.basedir) / "config" / "protocols"])
    # the configuration of a study's jobs; equal to CONFIG without a study
    STUDY = study_config(CONFIG)
    shard_paths(CONFIG)
    MARKS = benchmark_marks(CONFIG)
    # of optional parts, such as COCO's panoptic annotations
    PART_MARKS = part_marks(CONFIG)
    limit_gpus()
except CliptexError as error:
    raise WorkflowError(str(error)) from None

limit_cores()

# a profile that nobody has edited: one error instead of one per job
if placeholders := [
    name
    for name, value in (workflow.resource_settings.default_resources or {}).items()
    if value.raw == "CHANGE_ME"
]:
    raise WorkflowError(
        f"default-resources: {', '.join(placeholders)}: still CHANGE_ME; set your cluster's values in the profile"
        " (docs/slurm.md)"
    )

# The modules of this clone plan, and the installed package works: they must be the same code. The package of this
# environment is compared now; `cliptex` compares itself in every job, whose environment may be another.
if (clone := Path(workflow.basedir) / "cliptex").is_dir():
    os.environ.update(CLIPTEX_CODE=f"{code_sha256(clone)}:{workflow.basedir}")
    # sys.path also has folders of this clone, put there by Snakemake
    search = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *getsitepackages()]
    for package_dir in (Path(entry) / "cliptex" for entry in search if entry):
        if (package_dir / "cli").is_dir():
            try:
                require_code(code_sha256(clone), workflow.basedir, package_dir)
            except CliptexError as error:
                raise WorkflowError(str(error)) from None
            break

# for snakemake called by its path, in a virtual environment that is not active
if shutil.which("cliptex") is None:
    os.environ.update(
        PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    )

# The nodes of a cluster may have no internet: local rules fetch everything from there, and a job with a missing file
# fails at once instead of waiting for a network.
if workflow.remote_exec:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # nobody reads the logs of a cluster's jobs while they run, so errors also go to the scheduler's
    os.environ.pop("CLIPTEX_CONSOLE", None)

if workflow.is_main_process:
    try:
        require_checked(CONFIG)
        if CONFIG.study:
            require_checked(STUDY)
    except CliptexError as error:
        raise WorkflowError(str(error)) from None

MODELS = list(CONFIG.models)
INTERPOLATED = [name for name, model in STUDY.models.items() if model.interpolate]
TRAINED = [name for name, model in STUDY.models.items() if model.is_trained]
UNTRAINED = [name for name in STUDY.models if name not in (*TRAINED, *INTERPOLATED)]
COMPARED = CONFIG.probes.models or MODELS
PROBED = [*CONFIG.probes.baselines, *COMPARED]


def groups(benchmark):
    """The models of each probing job of a benchmark."""
    alone = benchmark in CONFIG.probes.one_model_per_job
    size = 1 if alone else CONFIG.probes.models_per_job
    return [PROBED[start : start + size] for start in range(0, len(PROBED), size)]


FETCHED = [
    name for name, expert in STUDY.experts.items() if expert.weights in ("url", "hub")
]
TAKEN = [name for name, store in STUDY.label_stores.items() if store.from_]
FETCHED_STUDENT = (
    ["resources/weights/student.json"] if is_published(CONFIG.student) else []
)


def fetched_student(model):
    """The record of the downloaded weights that a model starts from, if they are to be downloaded."""
    if STUDY.models[model].pretrained is None:
        return FETCHED_STUDENT
    return (
        [f"resources/weights/models/{model}.json"]
        if is_published(STUDY.student_of(model))
        else []
    )


MINIATURE = CONFIG.dataset.source == "miniature"
FETCHED_SHARDS = (
    ["results/shards/index.json"]
    if CONFIG.dataset.source == "urls" or any(map(is_remote, CONFIG.dataset.shards))
    else []
)
inherit_profile(
    "probe",
    [
        f"probe_{benchmark}_{number}"
        for benchmark in CONFIG.probes.benchmarks
        for number in range(len(groups(benchmark)))
    ],
)
inherit_profile("finetune", [f"finetune_{name}" for name in CONFIG.finetune.benchmarks])
if CONFIG.study:
    inherit_profile("probe", [f"probe_study_{name}" for name in CONFIG.study.probes])
    inherit_profile(
        "zeroshot", [f"zeroshot_study_{name}" for name in CONFIG.study.zeroshot]
    )

# a pattern that matches no name
NONE = r"(?!)"


wildcard_constraints:
    shard=r"\d+",
    part="train|val",
    benchmark="|".join(MARKS) or NONE,
    expert="|".join(STUDY.experts) or NONE,
    store="|".join(STUDY.label_stores) or NONE,
    batch=r"\d\d\d+",
    model="|".join(STUDY.models) or NONE,
    seed=r"\d+",


def weights(model, seed):
    """The exported weights of a model."""
    return f"results/models/{model}/seed{seed}/open_clip_model.safetensors"


def labelling_config(store):
    """A param: the configuration of a store's labels, with that of its expert if it has one."""
    expert = STUDY.label_stores[store].expert
    experts = [f"experts.{expert}"] if expert else []
    return STUDY.subset(f"label_stores.{store}", *experts, "labels")


def labels_source(store):
    """What is there before a store's labels: its expert, or the published set that it is taken from."""
    if store in TAKEN:
        return f"resources/published_labels/{store}/set.json"
    return f"results/experts/{STUDY.label_stores[store].expert}/expert.json"


def lineage(model):
    """A model and all models that it is made from."""
    models = {model: None}
    for source in STUDY.models[model].sources():
        models |= dict.fromkeys(lineage(source))
    return list(models)


def is_copy(wildcards):
    """Whether a model without training steps is the same as that of the first seed."""
    return STUDY.is_seedless(wildcards.model) and int(wildcards.seed) != CONFIG.seeds[0]


def subset(*keys, of=CONFIG, naming=""):
    """A param: JSON of the configuration keys that a job uses, with the wildcards in them filled in.

    naming: the benchmark that a job reads, where none of the keys names it.

    A function, since Snakemake would take braces in a plain string for wildcards.
    """
    return lambda wildcards: of.subset(
        *(key.format(**wildcards) for key in keys), naming=naming.format(**wildcards)
    )


def unrecorded(value):
    """A resource that passes `value` to a job's command without rerunning finished jobs when it changes.

    Snakemake records params and reruns a job when they differ; it does not record resources. So a value that changes no
    result, such as a limit or the location of data, is a resource. It is a function for the same reason as in `subset`.
    """
    return lambda wildcards: value


def probe_config(benchmark, config):
    """A param: the configuration of a benchmark's probes."""
    return subset(
        f"probes.benchmarks.{benchmark}",
        "probes.holdout",
        "probes.save_predictions",
        "dataset.source",
        of=config,
    )


def own_tars(batch):
    """The user's own tars of a batch; the others are downloaded."""
    sources = shard_sources(CONFIG)
    return [
        sources[number]
        for number in shards_of_download(CONFIG, batch)
        if not is_remote(sources[number])
    ]


def encoders(models, seed):
    """Weights that the probes of models and baselines need; an untrained one has the shape of the first model."""
    if not MODELS:
        raise WorkflowError("models: there are none to evaluate; add at least one")
    return sorted(
        {
            weights(model if model in STUDY.models else MODELS[0], seed)
            for model in models
        }
    )


def submission(wildcards, resources):
    """The profile's account, partition and constraint as options."""
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
    """Marks of a benchmark and of its scenes in other looks."""
    looks = [f"resources/{benchmark}_{look}/miniature.json" for look in LOOKS]
    return [MARKS[benchmark], *looks]


def study_page_path():
    """The page of the study. Raises WorkflowError without a study."""
    try:
        return f"results/studies/{study_of(CONFIG).name}.html"
    except CliptexError as error:
        raise WorkflowError(str(error)) from None

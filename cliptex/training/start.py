"""What a training starts from, and the export of a model that is not trained.

Reads   the exported model that it starts from, or the student's weights; nothing of the image-caption pairs.
Writes  the same files in results/models/{model}/seed{seed}/ as a training, train.json last.
"""

import logging
import shutil
import time

import torch

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, replacing, write_json
from cliptex.core.provenance import provenance
from cliptex.labels.store import task_of_store
from cliptex.models import clip as student
from cliptex.models.dense_features import width as feature_width
from cliptex.models.heads import DenseHeads, own_codecs, save_heads
from cliptex.tasks.base import Task
from cliptex.training import cost
from cliptex.training.agreement import check_teachers

log = logging.getLogger("cliptex")


def tasks_of(config: Config, name: str) -> dict[str, Task]:
    """The tasks of a model, by label store, with the options of its losses."""
    model = config.models[name]
    tasks = {
        store: task_of_store(config, store, paths.labels(store) / "index.json").with_loss(
            model.losses.get(store, {}), f"models.{name}.losses.{store}"
        )
        for store in model.tasks
    }
    if model.weight_by_agreement:
        check_teachers(tasks, f"models.{name}.weight_by_agreement")
    return tasks


def initial_network(config: Config, name: str, seed: int) -> tuple[torch.nn.Module, dict[str, str]]:
    """The CLIP that a model starts from, and what train.json records of it: its name and, of a model, its digest."""
    init = config.models[name].init
    if init is not None:
        network = student.load(paths.model(init, seed))
        return network, {"init": init, "init_sha256": network.weights_sha256}
    given = config.student_of(name)
    return student.build(given, seed), {"init": given.pretrained or "random weights"}


def new_heads(config: Config, name: str, seed: int, network: torch.nn.Module, tasks: dict[str, Task]) -> DenseHeads:
    """A model's multi-scale module and heads with random weights drawn from `seed`."""
    model, train = config.models[name], config.train
    torch.manual_seed(seed)
    return DenseHeads(
        feature_width(network.visual),
        {store: task.channels for store, task in tasks.items()},
        (model.multi_scale or train.multi_scale) if tasks else "none",
        train.multi_scale_channels,
        model.heads or train.heads,
        train.multi_scale_rates,
        train.label_prior_cells,
    )


def export_untrained(config: Config, name: str, seed: int) -> None:
    """Export a model without training steps: the weights that it starts from, and the random heads of its tasks."""
    start, model, folder = time.monotonic(), config.models[name], paths.model(name, seed)
    network, started_from = initial_network(config, name, seed)
    tasks = tasks_of(config, name)
    heads = new_heads(config, name, seed, network, tasks)
    weights_sha256 = student.export(network, config.student_of(name), folder)
    stores = {store: config.label_stores[store].task for store in model.tasks}
    heads_sha256 = save_heads(heads, folder / student.HEADS_FILE, stores, model.losses, own_codecs(tasks))
    with replacing(folder / "metrics.jsonl") as scratch:
        scratch.touch()
    flops = cost.forward_flops(network, heads, student.tokenizer(config.student)(["a"]))
    record = {
        "schema_version": 1,
        "model": name,
        "seed": seed,
        "source": config.dataset.source,
        **started_from,
        "steps": 0,
        "tasks": dict(model.tasks),
        "losses": dict(model.losses),
        "images_seen": 0,
        "seconds": round(time.monotonic() - start, 2),
        "images_per_s": None,
        "peak_memory_mb": round(cost.peak_memory_mb(), 1),
        "parameters": cost.parameters_of(network, heads),
        "flops": flops,
        "flops_over_contrastive": round(sum(flops.values()) / (flops["encoder"] + flops["text"]), 4),
        "alarms": [],
        "model_sha256": weights_sha256,
        "heads_sha256": heads_sha256,
        "provenance": provenance(config.plain()),
    }
    write_json(folder / "train.json", record)


def copy_untrained(config: Config, name: str, seed: int, from_seed: int) -> None:
    """Copy the export of another seed, for a model that is the same for every seed.

    Raises CliptexError for any other model, and if there is no such export.
    """
    if not config.is_seedless(name):
        raise CliptexError(f"models.{name}: depends on the seed; leave out --same-as-seed")
    source, folder = paths.model(name, from_seed), paths.model(name, seed)
    record = read_checked(source / "train.json", {"model_sha256": str})
    student.require_recorded(source / student.WEIGHTS_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    # files alone, train.json last: a tokenizer's are among them, checkpoints and loggers have folders
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "train.json":
            with replacing(folder / path.name) as scratch:
                shutil.copyfile(path, scratch)
    log.info("%s seed %d: the export of seed %d", name, seed, from_seed)
    write_json(folder / "train.json", record | {"seed": seed})

"""Train an expert on labelled renders, or take given weights, and judge it.

Reads   resources/expert_renders/{train,val}.h5, or the weights that the config names (docs/experts.md).
Writes  results/experts/{expert}/: `weights.safetensors` where made here, `quality.json` where trained; `expert.json`
        last, always.
Holds   `expert.json` names the weights in use by path and SHA-256; a folder without it is not an expert yet.
"""

import logging
import time
from pathlib import Path
from typing import Any

from cliptex import versions
from cliptex.config import Config
from cliptex.config import Expert as ExpertConfig
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.provenance import provenance
from cliptex.experts.base import Expert
from cliptex.experts.weights import digests, resolve

log = logging.getLogger("cliptex")
BATCH = 64


def train_expert(config: Config, name: str, renders: Path, out: Path, seed: int) -> None:
    """Make the folder `out` of the expert `name`.

    renders: folder of `train.h5` and `val.h5`; read only where the expert is trained here. `expert.json` holds
    `schema_version expert plugin task source ("miniature", "url", "hub", "local", "random" or "none") origin files
    licence weights weights_sha256 num_parameters network quality miniature provenance`: `origin` says from where the
    weights came, `files` has the SHA-256 of each file that is read. `quality.json` holds the held-out metrics
    (`quality`), those of a label that needs no image (`prior`), and how it was trained.
    Raises CliptexError for an unknown expert, and for given weights that are missing, are not those of `sha256`, hold
    anything but tensors, or do not fit.
    """
    if name not in config.experts:
        raise CliptexError(f"experts: {name!r} is not one of {sorted(config.experts)}")
    settings = config.experts[name]
    plugin = settings.plugin or name
    expert = _build(plugin, settings, config.miniature.model_dump(mode="json"))
    record: dict[str, Any] = {
        "schema_version": 1,
        "version": versions.EXPERT,
        "expert": name,
        "plugin": plugin,
        "task": expert.task,
        "licence": settings.licence_name,
        "origin": {},
        "files": {},
        "weights": None,
        "weights_sha256": None,
        "num_parameters": 0,
        "network": settings.network,
        "quality": None,
        "miniature": None,
    }
    if not expert.trainable:
        expert.load(None)
        # what stands in for weights: a second rendering is a function of the section, others of their settings
        miniature = config.miniature.model_dump(mode="json") if expert.uses_miniature else None
        identity = miniature or {"plugin": plugin, "network": settings.network}
        record |= {"source": "none", "miniature": miniature, "weights_sha256": sha256_json(identity)}
    elif settings.weights in ("url", "hub", "local"):
        weights = resolve(name, settings)
        expert.load(weights.path)
        record |= {"source": settings.weights, "origin": weights.origin, "files": weights.files}
        record |= {"weights": str(weights.path), "weights_sha256": weights.sha256}
        record["num_parameters"] = _num_parameters(expert)
    elif settings.weights == "random":
        expert.randomise(seed)
        _save(expert, out / "weights.safetensors")
        log.warning("%s: RANDOM weights, for tests and benchmarks only", name)
        record |= {"source": "random", "weights": "weights.safetensors", "num_parameters": _num_parameters(expert)}
        record["weights_sha256"] = sha256_file(out / "weights.safetensors")
    else:
        if config.backbone is not None:
            expert.settings["backbone"] = str(paths.BACKBONE)
        quality = _train(expert, name, settings, renders, out, seed)
        keys = ("weights_sha256", "num_parameters")
        record |= {"source": "miniature", "weights": "weights.safetensors", "quality": quality["quality"]}
        record |= {key: quality[key] for key in keys}
    write_json(out / "expert.json", record | {"provenance": provenance(config.plain())})


def _train(expert: Expert, name: str, settings: ExpertConfig, renders: Path, out: Path, seed: int) -> dict[str, Any]:
    start, cpu_start = time.monotonic(), time.process_time()
    fitted = expert.fit(renders / "train.h5", seed)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
    weights = out / "weights.safetensors"
    _save(expert, weights)
    expert.load(weights)  # what is judged is what will be used
    quality, prior, speed = _judge(expert, renders)
    shown = ", ".join(f"{metric} {value:.3g}" for metric, value in quality.items())
    log.info("%s: %s; %.0f s, %.0f cpu-s", name, shown, seconds, cpu_seconds)
    record = {
        "schema_version": 1,
        "expert": name,
        "task": expert.task,
        "source": "miniature",
        "split": "val",
        "quality": quality,
        "prior": prior,
        "images_per_cpu_second": speed,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "seed": seed,
        "num_parameters": _num_parameters(expert),
        "weights_sha256": sha256_file(weights),
        "licence": settings.licence_name,
        "network": settings.network,
        "training": settings.training | fitted,
        "renders_sha256": {part: sha256_file(renders / f"{part}.h5") for part in ("train", "val")},
        "provenance": provenance(settings.model_dump(mode="json")),
    }
    write_json(out / "quality.json", record)
    return record


def _judge(expert: Expert, renders: Path) -> tuple[dict[str, float], dict[str, float], float]:
    """On the held-out renders: the task's metrics and the expert's own; the task's for the best label that needs no
    image, learned from the training renders; labelled images a second of processor time."""
    from cliptex.experts.fitting import read_renders
    from cliptex.experts.prior import prior_label
    from cliptex.experts.truth import true_label

    held_out = renders / "val.h5"
    data = read_renders(held_out, ("image", "instance", "instance_class", "depth", "normals"))
    images = list(data.pop("image"))
    expert.predict(images[:BATCH], [""] * len(images[:BATCH]))  # the first batch pays for start-up
    start = time.process_time()
    labels = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        labels += expert.predict(part, [str(first + index) for index in range(len(part))])
    speed = len(images) / (time.process_time() - start)
    truths = [
        true_label(expert.task, {name: array[index] for name, array in data.items()}) for index in range(len(images))
    ]
    task = find("tasks", expert.task)()
    quality = task.quality(list(zip(labels, truths, strict=True))) | expert.own_quality(held_out)
    prior = prior_label(expert.task, renders / "train.h5")
    return quality, {} if prior is None else task.quality([(prior, truth) for truth in truths]), speed


def _save(expert: Expert, path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as scratch:
        save_file(expert.state(), scratch)


def load_expert(name: str, settings: ExpertConfig, folder: Path) -> Expert:
    """The expert in `folder`, with its weights, ready to predict.

    It has the attribute `weights_sha256`. Raises CliptexError when the folder is not complete, the weights are not
    those that were recorded, or they do not fit `settings`.
    """
    record = read_json(folder / "expert.json")
    expert = _build(settings.plugin or name, settings, record.get("miniature"))
    path = folder / record["weights"] if record["weights"] else None  # a given file's path is absolute
    if path is not None:
        if not path.exists():
            raise CliptexError(f"{path}: the weights of {name!r} are gone; delete {folder}/expert.json and run again")
        files = digests(path)
        if (sha256_json(files) if path.is_dir() else files[path.name]) != record["weights_sha256"]:
            raise CliptexError(
                f"{path}: not the weights that {folder}/expert.json records; delete that file and run again"
            )
    expert.load(path)
    expert.weights_sha256 = record["weights_sha256"]
    return expert


def _build(plugin: str, settings: ExpertConfig, miniature: dict[str, Any] | None) -> Expert:
    plain = settings.model_dump(mode="json")
    if miniature is not None:
        plain["miniature"] = miniature
    return find("experts", plugin)(plain)


def _num_parameters(expert: Expert) -> int:
    import torch

    # running statistics are state, not parameters; what a plugin outside the package keeps is counted as it is
    module = getattr(expert, "module", None)
    if isinstance(module, torch.nn.Module):
        return sum(parameter.numel() for parameter in module.parameters())
    return sum(tensor.numel() for tensor in expert.state().values())

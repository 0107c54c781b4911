"""Make an expert's folder: train and evaluate it on labelled renders, or fetch its published weights.

Reads   resources/expert_renders/{train,val}.h5, or the weights that the config names (docs/experts.md).
Writes  results/experts/{expert}/: `weights.safetensors` if trained or initialised here, `quality.json` if trained
        here, and `expert.json` last.
Holds   `expert.json` has the path and SHA-256 of the weights; a folder without it is incomplete.
"""

import logging
import time
from pathlib import Path
from typing import Any

from cliptex import versions
from cliptex.config import Config, ExpertConfig
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import read_checked, replacing, sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.provenance import provenance
from cliptex.experts.base import Expert
from cliptex.experts.trained_on import recorded
from cliptex.experts.weights import Weights, digests, resolve

log = logging.getLogger("cliptex")
BATCH = 64


def train_expert(config: Config, name: str, renders: Path, out: Path, seed: int) -> None:
    """Make the folder `out` of the expert `name`.

    renders: folder of `train.h5` and `val.h5`; read only if the expert is trained here. In `expert.json`, `source` is
    "miniature", "url", "hub", "local", "random" or "none", `files` has the SHA-256 of each file of the weights, and
    `trained_on` their training sets (`cliptex.experts.trained_on`).
    `quality.json` has the metrics on held-out renders (`quality`) and those of `prior_label` (`prior`). Raises
    CliptexError for an unknown expert, and for weights that are missing, or do not match `sha256` or the network.
    """
    if name not in config.experts:
        raise CliptexError(f"experts: {name!r} is not one of {sorted(config.experts)}")
    expert_config = config.experts[name]
    plugin = expert_config.plugin or name
    expert = _build(plugin, expert_config, config.miniature.model_dump(mode="json"))
    with working_on(f"experts.{name}"):
        expert.check_methods(expert_config.weights, config.backbone is not None)
    record: dict[str, Any] = {
        "schema_version": 1,
        "version": versions.EXPERT,
        "expert": name,
        "plugin": plugin,
        "task": expert.task,
        "licence": expert_config.licence_name,
        "origin": {},
        "files": {},
        "weights": None,
        "weights_sha256": None,
        "num_parameters": 0,
        "network": expert_config.network,
        "quality": None,
        "miniature": None,
    }
    if not expert.trainable:
        expert.load(None)
        # identifies the expert in place of weights
        miniature = config.miniature.model_dump(mode="json") if expert.uses_miniature else None
        identity = miniature or {"plugin": plugin, "network": expert_config.network}
        record |= {"source": "none", "miniature": miniature, "weights_sha256": sha256_json(identity)}
    elif expert_config.weights in ("url", "hub", "local"):
        weights = resolve(name, expert_config)
        expert.load(weights.path)
        expert.check(weights.path)
        record |= {"task": expert.task}  # some know it from their weights only
        record |= {"source": expert_config.weights, "origin": weights.origin, "files": weights.files}
        record |= {"weights": str(weights.path), "weights_sha256": weights.sha256}
        record["num_parameters"] = _num_parameters(expert)
    elif expert_config.weights == "random":
        expert.randomise(seed)
        _save(expert, out / "weights.safetensors")
        log.warning("%s: RANDOM weights, for tests and benchmarks only", name)
        record |= {"source": "random", "weights": "weights.safetensors", "num_parameters": _num_parameters(expert)}
        record["weights_sha256"] = sha256_file(out / "weights.safetensors")
    else:
        if config.backbone is not None:
            expert.settings["backbone"] = str(paths.BACKBONE)
        quality = _train(expert, name, expert_config, renders, out, seed)
        keys = ("weights_sha256", "num_parameters")
        record |= {"source": "miniature", "weights": "weights.safetensors", "quality": quality["quality"]}
        record |= {key: quality[key] for key in keys}
    record |= recorded(expert_config.trained_on, plugin, record["source"], record["origin"])
    write_json(out / "expert.json", record | {"provenance": provenance(config.plain())})


def _train(
    expert: Expert, name: str, expert_config: ExpertConfig, renders: Path, out: Path, seed: int
) -> dict[str, Any]:
    start, cpu_start = time.monotonic(), time.process_time()
    fitted = expert.fit(renders / "train.h5", seed)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
    weights = out / "weights.safetensors"
    _save(expert, weights)
    identity = {"num_parameters": _num_parameters(expert), "weights_sha256": sha256_file(weights)}
    if expert.fitted_to_shards:
        return identity | {"quality": None}
    expert.load(weights)  # evaluate the weights as they will be loaded for labelling
    quality, prior, speed = _evaluate(expert, renders)
    metrics = ", ".join(f"{metric} {value:.3g}" for metric, value in quality.items())
    log.info("%s: %s; %.0f s, %.0f cpu-s", name, metrics, seconds, cpu_seconds)
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
        **identity,
        "licence": expert_config.licence_name,
        "network": expert_config.network,
        "training": expert_config.training | fitted,
        "renders_sha256": {part: sha256_file(renders / f"{part}.h5") for part in ("train", "val")},
        "provenance": provenance(expert_config.model_dump(mode="json")),
    }
    write_json(out / "quality.json", record)
    return record


def _evaluate(expert: Expert, renders: Path) -> tuple[dict[str, float], dict[str, float], float]:
    """On the held-out renders: metrics of the task and the expert's own; metrics of `prior_label`, made from the
    training renders; images labelled per second of CPU time."""
    from cliptex.experts.fitting import read_renders
    from cliptex.experts.truth import prior_label, true_label

    held_out = renders / "val.h5"
    data = read_renders(held_out, ("image", "instance", "instance_class", "depth", "normals"))
    images = list(data.pop("image"))
    expert.predict(images[:BATCH], [""] * len(images[:BATCH]))  # warm-up, not timed
    start = time.process_time()
    labels = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        labels += expert.predict(part, [str(first + index) for index in range(len(part))])
    speed = len(images) / (time.process_time() - start)
    truths = [true_label(expert.task, dict(zip(data, maps, strict=True))) for maps in zip(*data.values(), strict=True)]
    task = find("tasks", expert.task).from_codec(expert.task_parameters())
    quality = task.quality(list(zip(labels, truths, strict=True))) | expert.own_quality(held_out)
    prior = prior_label(expert.task, renders / "train.h5")
    return quality, {} if prior is None else task.quality([(prior, truth) for truth in truths]), speed


def _save(expert: Expert, path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as scratch:
        save_file(expert.state(), scratch)


def load_expert(name: str, expert_config: ExpertConfig, folder: Path) -> Expert:
    """The expert in `folder` with its weights loaded and the attributes `weights_sha256` and `folder` set. Raises
    CliptexError if the folder is incomplete, or if the weights differ from those recorded or do not match
    `expert_config`."""
    record = read_checked(folder / "expert.json", {"weights": str | None, "weights_sha256": str})
    expert = _build(expert_config.plugin or name, expert_config, record.get("miniature"))
    path = folder / record["weights"] if record["weights"] else None  # absolute if not in the folder
    if path is not None:
        again = f"restore them, or run: mv {folder} {folder}.old   and then the workflow, which makes them again"
        if not path.exists():
            raise CliptexError(f"{path}: the weights of {name!r} are missing; {again}")
        if Weights(path, digests(path), {}).sha256 != record["weights_sha256"]:
            raise CliptexError(f"{path}: not the weights that {folder}/expert.json records; {again}")
    expert.load(path)
    expert.weights_sha256, expert.folder = record["weights_sha256"], folder
    return expert


def _build(plugin: str, expert_config: ExpertConfig, miniature: dict[str, Any] | None) -> Expert:
    plain = expert_config.model_dump(mode="json")
    if miniature is not None:
        plain["miniature"] = miniature
    return find("experts", plugin)(plain)


def _num_parameters(expert: Expert) -> int:
    import torch

    # without buffers; of an expert without a `module`, all of its state; 0, which is unknown, without either
    module = getattr(expert, "module", None)
    if isinstance(module, torch.nn.Module):
        return sum(parameter.numel() for parameter in module.parameters())
    if type(expert).state is Expert.state:
        return 0
    return sum(tensor.numel() for tensor in expert.state().values())

"""Zero-shot classification: class names become text, the nearest text wins.

Reads   results/models/{model}/seed{seed}/ and the evaluation split of resources/{benchmark}/.
Writes  results/zeroshot/{benchmark}.json, and beside it {benchmark}.per_image.npz (see `cliptex.evaluation.per_image`) and
        {benchmark}.npz, with the first `probes.save_predictions` evaluation samples: `ids` [n], `image_{i}` (uint8
        [H, W, 3] as in the data set), `truth` [n], `rows` [M] (model/seed), `prediction` [M, n, 5], best class first
Holds   nothing is trained or chosen; images go through open_clip's own preprocessing of the exported folder.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import source
from cliptex.config import AS_PUBLISHED, Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.evaluation.metrics import top_metrics
from cliptex.evaluation.per_image import (
    check,
    per_image_path,
    ranking_statistics,
    stacked_rows,
    write_per_image,
    write_predictions,
)
from cliptex.evaluation.probes.features import seed_of
from cliptex.models.clip import WEIGHTS_FILE, exported_config, exported_preprocessing, load, parameters
from cliptex.models.encoders import in_order, sha256_weights, untrained

log = logging.getLogger("cliptex")
TEMPLATES = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
BATCH_SIZE = 64


@dataclass(frozen=True)
class Contender:
    """A model in evaluation mode with its tokenizer and preprocessing."""

    name: str
    seed: int
    model: torch.nn.Module
    tokenizer: Any
    preprocess: PreprocessCfg
    sha256: str
    quick_gelu: bool


def contender(name: str, seed: int, folder: Path) -> Contender:
    """Load an exported model; `random` is an untrained one of the architecture in `folder`."""
    if name == "random":
        model = untrained(folder, seed_of("random encoder", seed))
        sha256 = sha256_weights(model)
    else:
        model, sha256 = load(folder), sha256_file(folder / WEIGHTS_FILE)
    described = exported_config(folder)
    preprocess = exported_preprocessing(folder, model)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    quick_gelu = bool(described["model_cfg"].get("quick_gelu"))
    return Contender(name, seed, model, tokenizer, preprocess, sha256, quick_gelu)


def contenders(config: Config, models_dir: Path) -> list[Contender]:
    """The models of the configuration, every seed, and `random` where it is among the baselines."""
    names = config.probes.models or list(config.models)
    if not names:
        raise CliptexError("models: there are none, so nothing can be judged; name at least one")
    baselines = [name for name in config.probes.baselines if name == "random"]
    return [
        contender(name, seed, Path(models_dir) / (names[0] if name in baselines else name) / f"seed{seed}")
        for name in [*baselines, *names]
        for seed in config.seeds
    ]


def shown_preprocessing(one: Contender) -> dict[str, Any]:
    """What a result says of how images were prepared, and of the activation: `preprocess`, `activation`."""
    return {
        "preprocess": {name: getattr(one.preprocess, name) for name in ("interpolation", "resize_mode", "size")},
        "activation": "quick_gelu" if one.quick_gelu else "gelu",
    }


RESIZED = {
    "shortest": "the shorter side of images resized, then the centre cropped",
    "longest": "the longer side of images resized, then padded",
    "squash": "images squashed",
}


def described_preprocessing(one: Contender) -> str:
    """How images were prepared, in words."""
    size = one.preprocess.size if isinstance(one.preprocess.size, int) else " x ".join(map(str, one.preprocess.size))
    return f"{RESIZED[one.preprocess.resize_mode]} to {size} pixels ({one.preprocess.interpolation})"


@torch.inference_mode()
def rankings(
    contenders: list[Contender], samples: Any, classifiers: list[torch.Tensor]
) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """The samples' ids, the five best classes [N, 5] of each contender, best first, and the labels [N].

    Images are decoded once.

    classifiers: [D, K] of each contender.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transforms = {str(one.preprocess): image_transform_v2(one.preprocess, is_train=False) for one in contenders}
    best: list[list[torch.Tensor]] = [[] for _ in contenders]
    ids: list[str] = []
    labels: list[int] = []

    def read(index: int) -> tuple[str, int, dict[str, torch.Tensor]]:
        sample = samples[index]
        image = Image.fromarray(sample["image"])
        return sample["id"], sample["label"], {name: transform(image) for name, transform in transforms.items()}

    batch: list[dict[str, torch.Tensor]] = []
    read_ahead = in_order(range(len(samples)), read)
    for number, (name, label, views) in enumerate(track(read_ahead, "zero-shot", len(samples)), start=1):
        ids.append(name)
        labels.append(label)
        batch.append(views)
        if len(batch) < BATCH_SIZE and number < len(samples):
            continue
        for index, one in enumerate(contenders):
            images = torch.stack([views[str(one.preprocess)] for views in batch]).to(device)
            scores = one.model.encode_image(images, normalize=True) @ classifiers[index]
            best[index].append(scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu())
        batch = []
    return ids, [torch.cat(parts).numpy() for parts in best], np.array(labels)


def prompts(names: Sequence[str], templates: Sequence[Callable[[str], str]]) -> list[list[str]]:
    """The texts of each class."""
    return [[template(name) for template in templates] for name in names]


def check_published(one: Contender, benchmark: str, top1: float, published: float) -> None:
    """Raises CliptexError where the top-1 accuracy of a released model, in percent, is not the published one."""
    if abs(top1 - published) > AS_PUBLISHED:
        shown = shown_preprocessing(one)
        raise CliptexError(
            f"zeroshot.published.{one.name}.{benchmark}: {published:g} % is published, {top1:.2f} % measured (seed "
            f"{one.seed}; {described_preprocessing(one)}, {shown['activation']}), which is more than {AS_PUBLISHED} "
            "points apart; compare weights, prompts (zeroshot.templates), preprocessing and activation with the "
            "publication's, or remove the key"
        )


def zeroshot(
    config: Config, benchmark: str, models_dir: Path, root: Path, out: Path, data: Benchmark | None = None
) -> None:
    """Judge every model and seed of the configuration on a classification benchmark's evaluation split.

    data: what is judged on, in place of the benchmark at root, for a study.
    """
    figures = config.zeroshot.published if data is None else {}
    data = data or find("benchmarks", benchmark)(root)
    if data.tasks != ("classification",):
        raise CliptexError(f"zeroshot.benchmarks: {benchmark!r} is not a classification benchmark; remove it")
    names, templates = data.class_names, TEMPLATES[config.zeroshot.templates]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judged = contenders(config, models_dir)
    start = time.perf_counter()
    classifiers = []
    for one in judged:
        one.model.to(device)
        classifiers.append(
            open_clip.build_zero_shot_classifier(one.model, one.tokenizer, names, templates, device=device)
        )
    samples, keep = data.samples("eval"), config.probes.save_predictions
    ids, ranked, labels = rankings(judged, samples, classifiers)
    wanted = data.expected("eval")
    if wanted is not None and len(ids) != wanted:
        raise CliptexError(f"{root}: {len(ids):,} images were judged, not {wanted:,}; put the data in place again")
    seconds = (time.perf_counter() - start) / len(judged)
    how = f"the class nearest by cosine to the image, each class the mean of {len(templates)} prompts"
    how += f" ({config.zeroshot.templates})"
    rows, hits, published = [], [], {}
    for one, ranking in zip(judged, ranked, strict=True):
        metrics = top_metrics(ranking, labels)
        hits.append(ranking_statistics(ranking, labels))
        check("zero_shot_classification", hits[-1], metrics)
        if (figure := figures.get(one.name, {}).get(benchmark)) is not None:
            check_published(one, benchmark, metrics["top1"], figure)
            published[one.name] = figure
        log.info("%s %s seed %d: top1 %.2f top5 %.2f", benchmark, one.name, one.seed, metrics["top1"], metrics["top5"])
        rows.append(
            {
                "task": "zero_shot_classification",
                "model": one.name,
                "seed": one.seed,
                "head": "zero_shot",
                "metrics": metrics,
                "num_parameters": parameters(one.model),
                "seconds": seconds,
                "protocol": f"{how}; {described_preprocessing(one)}",
            }
        )
    settings = {"benchmark": benchmark, "templates": config.zeroshot.templates, "seeds": config.seeds}
    shas = {f"{one.name}/seed{one.seed}": one.sha256 for one in judged}
    result = {
        "schema_version": 1,
        "benchmark": benchmark,
        "source": source(root),
        "variant": data.variant,
        "split": data.eval_split,
        "num_train": 0,
        "num_eval": len(labels),
        "class_names": names,
        "chance": {"top1": 100 / len(names), "top5": 100 * min(5, len(names)) / len(names)},
        "templates": config.zeroshot.templates,
        "num_templates": len(templates),
        "prompts_sha256": sha256_json(prompts(names, templates)),
        "published": published,
        **shown_preprocessing(judged[-1]),
        "results": rows,
        "provenance": provenance(settings) | {"model_sha256": shas},
    }
    if keep:
        kept = {"truth": labels[:keep], "rows": np.array(list(shas)), "prediction": np.stack(ranked)[:, :keep]}
        images = [samples[index]["image"] for index in range(min(keep, len(ids)))]
        write_predictions(out.with_suffix(".npz"), ids[:keep], images, kept)
    write_per_image(per_image_path(out), ids, {"zero_shot_classification": stacked_rows(hits)}, rows=list(shas))
    write_json(out, result)

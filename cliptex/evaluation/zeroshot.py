"""Zero-shot classification: class names become text, and the class of the nearest text wins.

Reads   results/models/{model}/seed{seed}/ and the evaluation split of resources/{benchmark}/.
Writes  results/zeroshot/{benchmark}.json, and next to it {benchmark}.per_image.npz (see `cliptex.evaluation.per_image`)
        and {benchmark}.npz, with the first `probes.save_predictions` evaluation samples: `ids` [n], `image_{i}` (uint8
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

from cliptex.benchmarks.reading import source
from cliptex.config import PUBLISHED_TOLERANCE, Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file, sha256_json
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.core.seeds import seed_of
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import ZERO_SHOT
from cliptex.evaluation.metrics.ranking import ranking_statistics, top_metrics
from cliptex.evaluation.per_image import check, per_image_path, stacked_rows, write_per_image, write_predictions
from cliptex.evaluation.results import Row, ZeroShotResult, write_result
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


def contenders(config: Config, job: Job) -> list[Contender]:
    """The models of the job, every seed, and `random` where it is among the baselines of the configuration."""
    names = job.models_of(config)
    if not names:
        raise CliptexError("models: there are none, so nothing can be evaluated; name at least one")
    baselines = [name for name in config.probes.baselines if name == "random"]
    return [
        contender(name, seed, job.models_dir / (names[0] if name in baselines else name) / f"seed{seed}")
        for name in [*baselines, *names]
        for seed in job.seeds_of(config)
    ]


def shown_preprocessing(one: Contender) -> dict[str, Any]:
    """Keys of a result for how images were prepared, and for the activation: `preprocess`, `activation`."""
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
    if abs(top1 - published) > PUBLISHED_TOLERANCE:
        shown = shown_preprocessing(one)
        raise CliptexError(
            f"zeroshot.published.{one.name}.{benchmark}: {published:g} % is published, {top1:.2f} % measured (seed "
            f"{one.seed}; {described_preprocessing(one)}, {shown['activation']}), which is more than "
            f"{PUBLISHED_TOLERANCE} points apart; compare weights, prompts (zeroshot.templates), preprocessing and activation with the "
            "publication's, or remove the key"
        )


def run(config: Config, job: Job) -> None:
    """Evaluate every model and seed on a classification benchmark's evaluation split.

    The file of the results is `results/zeroshot/{benchmark}.json` by default.
    """
    figures = config.zeroshot.published if job.data is None else {}
    data, out = job.benchmark(), job.out or paths.RESULTS / "zeroshot" / f"{job.name}.json"
    if data.tasks != ("classification",):
        raise CliptexError(f"zeroshot.benchmarks: {job.name!r} is not a classification benchmark; remove it")
    names, templates = data.class_names, TEMPLATES[config.zeroshot.templates]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = contenders(config, job)
    start = time.perf_counter()
    classifiers = []
    for model in models:
        model.model.to(device)
        classifiers.append(
            open_clip.build_zero_shot_classifier(model.model, model.tokenizer, names, templates, device=device)
        )
    samples, keep = data.samples("eval"), config.probes.save_predictions
    ids, ranked, labels = rankings(models, samples, classifiers)
    expected = data.expected("eval")
    if expected is not None and len(ids) != expected:
        raise CliptexError(
            f"{job.folder}: {len(ids):,} images were evaluated, not {expected:,}; put the data in place again"
        )
    seconds = (time.perf_counter() - start) / len(models)
    method = f"the class nearest by cosine to the image, each class the mean of {len(templates)} prompts"
    method += f" ({config.zeroshot.templates})"
    rows, hits, published = [], [], {}
    for model, ranking in zip(models, ranked, strict=True):
        metrics = top_metrics(ranking, labels)
        hits.append(ranking_statistics(ranking, labels))
        check(ZERO_SHOT.name, hits[-1], metrics)
        if (figure := figures.get(model.name, {}).get(job.name)) is not None:
            check_published(model, job.name, metrics["top1"], figure)
            published[model.name] = figure
        log.info(
            "%s %s seed %d: top1 %.2f top5 %.2f", job.name, model.name, model.seed, metrics["top1"], metrics["top5"]
        )
        rows.append(
            Row(
                task=ZERO_SHOT.name,
                model=model.name,
                seed=model.seed,
                head="zero_shot",
                metrics=metrics,
                num_parameters=parameters(model.model),
                seconds=seconds,
                protocol=f"{method}; {described_preprocessing(model)}",
            )
        )
    settings = {"benchmark": job.name, "templates": config.zeroshot.templates, "seeds": config.seeds}
    digests = {f"{model.name}/seed{model.seed}": model.sha256 for model in models}
    result = ZeroShotResult(
        schema_version=1,
        benchmark=job.name,
        source=source(job.folder),
        variant=data.variant,
        split=data.eval_split,
        num_train=0,
        num_eval=len(labels),
        class_names=names,
        chance={"top1": 100 / len(names), "top5": 100 * min(5, len(names)) / len(names)},
        templates=config.zeroshot.templates,
        num_templates=len(templates),
        prompts_sha256=sha256_json(prompts(names, templates)),
        published=published,
        **shown_preprocessing(models[-1]),
        results=rows,
        provenance=provenance(settings) | {"model_sha256": digests},
    )
    if keep:
        kept = {"truth": labels[:keep], "rows": np.array(list(digests)), "prediction": np.stack(ranked)[:, :keep]}
        images = [samples[index]["image"] for index in range(min(keep, len(ids)))]
        write_predictions(out.with_suffix(".npz"), ids[:keep], images, kept)
    write_per_image(per_image_path(out), ids, {ZERO_SHOT.name: stacked_rows(hits)}, rows=list(digests))
    write_result(out, result)

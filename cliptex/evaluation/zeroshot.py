"""Zero-shot classification: an image gets the class whose prompts have the nearest text embedding.

Reads   results/models/{model}/seed{seed}/ and the evaluation split of resources/{benchmark}/.
Writes  results/zeroshot/{benchmark}.json, and next to it {benchmark}.per_image.npz (see `cliptex.evaluation.per_image`)
        and {benchmark}.npz, with the first `probes.save_predictions` evaluation samples: `ids` [n], `image_{i}` (uint8
        [H, W, 3] as in the data set), `truth` [n], `rows` [M] (model/seed), `prediction` [M, n, 5], best class first
Holds   nothing is trained or chosen; images are preprocessed by open_clip as the exported folder defines it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize

from cliptex.benchmarks.reading import read_mark, source
from cliptex.config import PUBLISHED_TOLERANCE, Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_json
from cliptex.core.finite import require_finite
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.core.seeds import seed_of
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import ZERO_SHOT
from cliptex.evaluation.metrics.ranking import ranking_statistics, top_metrics
from cliptex.evaluation.per_image import check, stacked_rows, write_evaluation
from cliptex.evaluation.probes.training import default_device
from cliptex.evaluation.results import Row, ZeroShotResult
from cliptex.experts.precision import frozen_precision, mixed_precision
from cliptex.models.clip import exported_config, exported_preprocessing, exported_tokenizer, load, parameters
from cliptex.models.encoders import in_order, sha256_weights, untrained

log = logging.getLogger("cliptex")
TEMPLATES = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
BATCH_SIZE = 64
BROKEN = "check its weights"


@dataclass(frozen=True)
class ZeroShotModel:
    """A model in evaluation mode with its tokenizer and preprocessing."""

    name: str
    seed: int
    model: torch.nn.Module
    tokenizer: Any
    preprocess: PreprocessCfg
    sha256: str
    quick_gelu: bool


def load_zero_shot_model(name: str, seed: int, folder: Path) -> ZeroShotModel:
    """Load an exported model; `random` is an untrained model with the architecture in `folder`."""
    if name == "random":
        model = untrained(folder, seed_of("random encoder", seed))
        sha256 = sha256_weights(model)
    else:
        model = load(folder)
        sha256 = model.weights_sha256
    preprocess, tokenizer = exported_preprocessing(folder, model.visual), exported_tokenizer(folder)
    quick_gelu = bool(exported_config(folder)["model_cfg"].get("quick_gelu"))
    return ZeroShotModel(name, seed, model, tokenizer, preprocess, sha256, quick_gelu)


def load_zero_shot_models(config: Config, job: Job) -> list[ZeroShotModel]:
    """Load the models of the job for every seed, and `random` if it is a baseline of the configuration."""
    names = job.models_of(config)
    if not names:
        raise CliptexError("models: there are none to evaluate; add at least one")
    baselines = [name for name in config.probes.baselines if name == "random"]
    return [
        load_zero_shot_model(name, seed, job.models_dir / (names[0] if name in baselines else name) / f"seed{seed}")
        for name in [*baselines, *names]
        for seed in job.seeds_of(config)
    ]


def preprocessing_keys(model: ZeroShotModel) -> dict[str, Any]:
    """The keys `preprocess` and `activation` of a result."""
    return {
        "preprocess": {name: getattr(model.preprocess, name) for name in ("interpolation", "resize_mode", "size")},
        "activation": "quick_gelu" if model.quick_gelu else "gelu",
    }


RESIZED = {
    "shortest": "the shorter side of images resized, then the centre cropped",
    "longest": "the longer side of images resized, then padded",
    "squash": "images squashed",
}


def described_preprocessing(model: ZeroShotModel) -> str:
    """The preprocessing in words, for the key `protocol` of a row."""
    options = model.preprocess
    size = options.size if isinstance(options.size, int) else " x ".join(map(str, options.size))
    return f"{RESIZED[options.resize_mode]} to {size} pixels ({options.interpolation})"


def transforms_of(models: Sequence[ZeroShotModel]) -> dict[str, Callable[[Image.Image], torch.Tensor]]:
    """The preprocessing of all models, by `str(model.preprocess)`: from an image to one view."""
    return {str(model.preprocess): image_transform_v2(model.preprocess, is_train=False) for model in models}


def encode_images(
    models: Sequence[ZeroShotModel],
    batch: Sequence[dict[str, torch.Tensor]],
    ids: Sequence[str],
    precision: str = "fp32",
) -> Iterator[torch.Tensor]:
    """Each model's unit embeddings float32 [B, D] of the images `ids`, whose views are by `transforms_of`.
    precision: in which the towers run. Raises CliptexError for one that is not finite."""
    for model in models:
        with working_on(f"{model.name}/seed{model.seed}, images {ids[0]} to {ids[-1]}"):
            images = torch.stack([views[str(model.preprocess)] for views in batch])
            with mixed_precision(precision_of(model, precision)):
                embeddings = model.model.encode_image(images.to(default_device()))
            embeddings = normalize(embeddings.float(), dim=-1)
        if not embeddings.isfinite().all():
            for name, embedding in zip(ids, embeddings, strict=True):
                require_finite(embedding, f"{model.name}/seed{model.seed}: its embedding of image {name}", BROKEN)
        yield embeddings


def precision_of(model: ZeroShotModel, precision: str) -> str:
    """`precision`, an option of `zeroshot`, for a model's images: "auto" is the machine's."""
    size = model.preprocess.size
    return frozen_precision(precision, (size, size) if isinstance(size, int) else tuple(size))


def described_precision(model: ZeroShotModel, precision: str) -> str:
    """The precision in words, for the key `protocol` of a row; empty for fp32."""
    actual = precision_of(model, precision)
    return "" if actual == "fp32" else f", towers in {actual}"


@torch.no_grad()  # inference_mode would make bf16 several times slower on a CPU
def rankings(
    models: list[ZeroShotModel],
    samples: Any,
    classifiers: list[torch.Tensor],
    benchmark: str = "zero-shot",
    precision: str = "fp32",
) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """The samples' ids, the five best classes [N, 5] of each model, best first, and the labels [N].
    Images are decoded once for all models. classifiers: text embeddings [D, K] of each model."""
    transforms = transforms_of(models)
    best: list[list[torch.Tensor]] = [[] for _ in models]
    ids: list[str] = []
    labels: list[int] = []

    def read(index: int) -> tuple[str, int, dict[str, torch.Tensor]]:
        with working_on(f"{benchmark}, eval sample {index}"):
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
        for chunks, embeddings, classifier in zip(
            best, encode_images(models, batch, ids[-len(batch) :], precision), classifiers, strict=True
        ):
            scores = embeddings @ classifier
            chunks.append(scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu())
        batch = []
    return ids, [torch.cat(parts).numpy() for parts in best], np.array(labels)


def row_of(model: ZeroShotModel, benchmark: str, task: str, metrics: dict[str, float], method: str) -> Row:
    """A row of results, without the seconds. method: first part of its key `protocol`."""
    log.info("%s %s seed %d %s: %s", benchmark, model.name, model.seed, task, metrics)
    return Row(
        task=task,
        model=model.name,
        seed=model.seed,
        head="zero_shot",
        metrics=metrics,
        num_parameters=parameters(model.model),
        seconds=None,
        protocol=f"{method}; {described_preprocessing(model)}",
    )


def prompts(names: Sequence[str], templates: Sequence[Callable[[str], str]]) -> list[list[str]]:
    """The prompts of each class."""
    return [[template(name) for template in templates] for name in names]


def text_classifier(
    model: ZeroShotModel, names: Sequence[str], templates: Sequence[Callable[[str], str]], precision: str
) -> torch.Tensor:
    """Unit float32 [D, K]: the mean of the unit embeddings of each name's prompts. precision: an option of `zeroshot`.
    Raises CliptexError for one that is not finite."""
    network = model.model.to(default_device())
    with mixed_precision(precision_of(model, precision)):
        classifier = open_clip.build_zero_shot_classifier(
            network, model.tokenizer, names, templates, device=default_device()
        )
    if classifier.dtype != torch.float32:
        classifier = normalize(classifier.float(), dim=0)  # in bf16 lengths are rounded, too
    require_finite(classifier, f"{model.name}/seed{model.seed}: its embeddings of the class names", BROKEN)
    return classifier


def check_published(model: ZeroShotModel, benchmark: str, top1: float, published: float) -> None:
    """Raise CliptexError if the top-1 accuracy of a released model, in percent, differs from the published one."""
    if abs(top1 - published) > PUBLISHED_TOLERANCE:
        activation = preprocessing_keys(model)["activation"]
        raise CliptexError(
            f"zeroshot.published.{model.name}.{benchmark}: {published:g} % is published, {top1:.2f} % measured (seed "
            f"{model.seed}; {described_preprocessing(model)}, {activation}), which is more than "
            f"{PUBLISHED_TOLERANCE} points apart; compare weights, prompts (zeroshot.templates), preprocessing and "
            "activation with the publication's, or remove the key"
        )


def run(config: Config, job: Job) -> None:
    """Evaluate every model and seed on the evaluation split of a classification benchmark.
    The results file is `results/zeroshot/{benchmark}.json` by default."""
    # published figures are of all images
    is_whole = job.data is None and read_mark(job.folder).get("source") != "subset"
    published_top1 = config.zeroshot.published if is_whole else {}
    data, out = job.benchmark(), job.out or paths.RESULTS / "zeroshot" / f"{job.name}.json"
    if data.tasks != ("classification",):
        raise CliptexError(f"zeroshot.benchmarks: {job.name!r} is not a classification benchmark; remove it")
    names, templates = data.class_names, TEMPLATES[config.zeroshot.templates]
    if empty := [number for number, name in enumerate(names) if not name.strip()]:
        raise CliptexError(
            f"{job.name}: class {empty[0]} has an empty name, which no prompt can be made of; correct it"
        )
    models = load_zero_shot_models(config, job)
    # a model that is not trained may have the same weights for every seed: those are evaluated once
    distinct = list({(model.name, model.sha256): model for model in reversed(models)}.values())[::-1]
    start = time.perf_counter()
    precision = config.zeroshot.precision
    classifiers = [text_classifier(model, names, templates, precision) for model in distinct]
    samples, keep = data.samples("eval"), config.probes.save_predictions
    ids, found, labels = rankings(distinct, samples, classifiers, job.name, precision)
    rankings_of = {(model.name, model.sha256): ranking for model, ranking in zip(distinct, found, strict=True)}
    ranked = [rankings_of[model.name, model.sha256] for model in models]
    expected = data.expected("eval")
    if expected is not None and len(ids) != expected:
        raise CliptexError(f"{job.folder}: {len(ids):,} images were evaluated, not {expected:,}; restore the data")
    seconds = (time.perf_counter() - start) / len(models)
    method = f"the class nearest by cosine to the image, each class the mean of {len(templates)} prompts"
    method += f" ({config.zeroshot.templates}){described_precision(models[0], precision)}"
    rows, hits, published = [], [], {}
    for model, ranking in zip(models, ranked, strict=True):
        metrics = top_metrics(ranking, labels)
        hits.append(ranking_statistics(ranking, labels))
        check(ZERO_SHOT.name, hits[-1], metrics)
        if (figure := published_top1.get(model.name, {}).get(job.name)) is not None:
            check_published(model, job.name, metrics["top1"], figure)
            published[model.name] = figure
        rows.append(row_of(model, job.name, ZERO_SHOT.name, metrics, method))
    dependencies = {"benchmark": job.name, "templates": config.zeroshot.templates, "seeds": config.seeds}
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
        **preprocessing_keys(models[-1]),
        results=[row.model_copy(update={"seconds": seconds}) for row in rows],
        provenance=provenance(dependencies) | {"model_sha256": digests},
    )
    predictions = {
        "truth": labels[:keep],
        "rows": np.array(list(digests)),
        "prediction": np.stack(ranked)[:, :keep],
    }
    images = [samples[index]["image"] for index in range(min(keep, len(ids)))]
    parts = {ZERO_SHOT.name: stacked_rows(hits)}
    write_evaluation(out, result, ids, parts, images, predictions, rows=list(digests))

"""Image-text retrieval: rank captions for each image, and images for each caption.

Reads   results/models/{model}/seed{seed}/ and a set of captioned images (`cliptex.evaluation.captioned_images`).
Writes  results/zeroshot/{name}.json, and next to it {name}.per_image.npz (see `cliptex.evaluation.per_image`) and
        {name}.npz, with the first `probes.save_predictions` images: `ids` [n], `image_{i}` (uint8 [H, W, 3]), their
        `captions` [m] and the image of each, `image_of_caption` [m]; for the R names in `rows` (model/seed) the five
        nearest, best first: `nearest_captions` [R, n, 5], texts, and `nearest_images` [R, m, 5], ids
Holds   nothing is trained or chosen; images are preprocessed by open_clip as the exported folder defines it.

R@k is the fraction of queries with a correct item among the k nearest, as in Karpathy and Fei-Fei 2015 (arXiv
1412.2306) and in CLIP's papers: for an image with five captions, any one of them is correct.
"""

import time
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_json
from cliptex.core.finite import require_finite
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.images import BadImage, open_image
from cliptex.evaluation.captioned_images import CaptionedImages, open_captioned_images
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.metrics.ranking import retrieval_statistics
from cliptex.evaluation.per_image import check, stacked_rows, write_evaluation
from cliptex.evaluation.probes.training import default_device
from cliptex.evaluation.results import RetrievalResult
from cliptex.evaluation.zeroshot import (
    BATCH_SIZE,
    BROKEN,
    ZeroShotModel,
    described_precision,
    encode_images,
    load_zero_shot_models,
    precision_of,
    preprocessing_keys,
    row_of,
    transforms_of,
)
from cliptex.experts.precision import mixed_precision

KS = (1, 5, 10)
TASKS = (IMAGE_TO_TEXT.name, TEXT_TO_IMAGE.name)
RANKED = "the nearest by cosine; one right answer among the k is enough, wrong ones as near as it count before it"
CHUNK = 1024
NEAREST = 5
MOST_CHARACTERS = 4096
"""Characters of a caption that its model sees; a context of 77 tokens holds about 400."""


class Embeddings(NamedTuple):
    """One model's unit embeddings: images [N, D] and captions [M, D], float32 on the CPU."""

    images: torch.Tensor
    captions: torch.Tensor


class ReadSet(NamedTuple):
    """The set that was read: ids of the images [N], captions [M], the image of each caption, int64 [M], and the first
    images."""

    ids: list[str]
    captions: list[str]
    image_of_caption: np.ndarray
    images: list[np.ndarray]


def ranks(
    queries_QD: torch.Tensor, others_MD: torch.Tensor, image_of_query: np.ndarray, image_of_other: np.ndarray
) -> np.ndarray:
    """Rank of the nearest correct item for each query, int64 [Q]; 0 is best.

    An item is correct if it is of the same image. Wrong items at exactly the same distance count as nearer, so that a
    model with a constant output has the worst rank.
    """
    for embeddings in (queries_QD, others_MD):  # comparisons with NaN are false, which would be rank 0
        require_finite(embeddings, "embeddings", BROKEN)
    ranks_of_chunks = []
    query, other = torch.from_numpy(image_of_query), torch.from_numpy(image_of_other)
    for start in range(0, len(queries_QD), CHUNK):
        scores = queries_QD[start : start + CHUNK] @ others_MD.T
        correct = query[start : start + CHUNK, None] == other[None]
        best = scores.masked_fill(~correct, -torch.inf).amax(1, keepdim=True)
        ranks_of_chunks.append(((scores >= best) & ~correct).sum(1))
    return torch.cat(ranks_of_chunks).numpy()


def recalls(ranks_Q: np.ndarray) -> dict[str, float]:
    """`R@1 R@5 R@10` in percent."""
    return {f"R@{k}": 100 * float(np.mean(ranks_Q < k)) for k in KS}


def chances(correct_Q: Sequence[int], others: int) -> dict[str, float]:
    """`R@1 R@5 R@10` in percent for a random ranking. correct_Q: number of correct items per query, of `others`."""
    values, counts = np.unique(np.asarray(correct_Q), return_counts=True)
    out = {}
    for k in KS:
        drawn = min(k, others)
        missed = [comb(others - correct, drawn) / comb(others, drawn) for correct in values.tolist()]
        out[f"R@{k}"] = 100 * (1 - float(np.average(missed, weights=counts)))
    return out


def nearest(queries_QD: torch.Tensor, others_MD: torch.Tensor) -> np.ndarray:
    """The `NEAREST` nearest items of each query, or all if there are fewer, nearest first: int64 [Q, 5]."""
    return (queries_QD @ others_MD.T).topk(min(NEAREST, len(others_MD)), dim=1).indices.numpy()


def kept_predictions(read: ReadSet, embedded: Sequence[Embeddings]) -> dict[str, np.ndarray]:
    """The arrays of {name}.npz except `ids` and the images; see the head of this module."""
    first = len(read.images)
    of_first = np.flatnonzero(read.image_of_caption < first)
    captions, ids = np.array(read.captions), np.array(read.ids)
    return {
        "captions": captions[of_first],
        "image_of_caption": read.image_of_caption[of_first],
        "nearest_captions": captions[np.stack([nearest(model.images[:first], model.captions) for model in embedded])],
        "nearest_images": ids[np.stack([nearest(model.captions[of_first], model.images) for model in embedded])],
    }


@torch.no_grad()
def embed(
    models: Sequence[ZeroShotModel], captioned: CaptionedImages, name: str, keep: int, precision: str = "fp32"
) -> tuple[list[Embeddings], ReadSet]:
    """The embeddings of each model, and the set that was read. Images are decoded once. keep: number of images kept.
    precision: in which the towers run."""
    device, transforms = default_device(), transforms_of(models)
    for model in models:
        model.model.to(device)
    images: list[list[torch.Tensor]] = [[] for _ in models]
    ids, image_of_caption, captions, first_images, batch = [], [], [], [], []

    def flush() -> None:
        for chunks, embeddings in zip(images, encode_images(models, batch, ids[-len(batch) :], precision), strict=True):
            chunks.append(embeddings.cpu())
        batch.clear()

    for number, item in enumerate(track(captioned.items, f"read {name}", captioned.count)):
        with working_on(f"{name}, image {item.id}"):
            try:
                image = open_image(item.image)
            except BadImage as error:
                where = f"zeroshot.retrieval.{name}"
                raise CliptexError(f"{where}: the image of {item.id} cannot be used: {error}") from error
            if number < keep:
                first_images.append(np.asarray(image))
            batch.append({key: transform(image) for key, transform in transforms.items()})
        ids.append(item.id)
        captions += item.captions
        image_of_caption += [number] * len(item.captions)
        if len(batch) == BATCH_SIZE:
            flush()
    if batch:
        flush()
    if not captions:
        raise CliptexError(f"zeroshot.retrieval.{name}: has no images")
    if captioned.count is not None and len(ids) != captioned.count:
        raise CliptexError(f"zeroshot.retrieval.{name}: {len(ids):,} images were read, not {captioned.count:,}")
    embedded = []
    for chunks, model in zip(images, models, strict=True):
        texts = []
        for start in range(0, len(captions), 256):
            tokens = model.tokenizer([_shortened(text) for text in captions[start : start + 256]]).to(device)
            with mixed_precision(precision_of(model, precision)):
                embeddings = model.model.encode_text(tokens)
            texts.append(normalize(embeddings.float(), dim=-1).cpu())
            require_finite(texts[-1], f"{model.name}/seed{model.seed}: its embeddings of captions of {name}", BROKEN)
        embedded.append(Embeddings(torch.cat(chunks), torch.cat(texts)))
    return embedded, ReadSet(ids, captions, np.array(image_of_caption), first_images)


def _shortened(caption: str) -> str:
    """A caption as the tokenizer gets it: without the end that no context holds, since the time that CLIP's tokenizer
    takes is quadratic in the length of a word."""
    return caption if len(caption) <= MOST_CHARACTERS else " ".join(caption.split())[:MOST_CHARACTERS]


def run(config: Config, job: Job) -> None:
    """Evaluate every model and seed on a set of captioned images, an entry of `zeroshot.retrieval`.
    The results file is `results/zeroshot/{name}.json` by default."""
    out = job.out or paths.RESULTS / "zeroshot" / f"{job.name}.json"
    captions = open_captioned_images(config, job.name)
    models = load_zero_shot_models(config, job)
    start = time.perf_counter()
    keep = config.probes.save_predictions
    precision = config.zeroshot.precision
    embedded, read = embed(models, captions, job.name, keep, precision)
    image_of_caption = read.image_of_caption
    images = np.arange(len(embedded[0].images))
    rows = []
    statistics: dict[str, list[Arrays]] = {task: [] for task in TASKS}
    for model, embeddings in zip(models, embedded, strict=True):
        directions = (
            (embeddings.images, embeddings.captions, images, image_of_caption),
            (embeddings.captions, embeddings.images, image_of_caption, images),
        )
        for task, direction in zip(TASKS, directions, strict=True):
            ranked = ranks(*direction)
            metrics = recalls(ranked)
            statistics[task].append(retrieval_statistics(ranked, direction[2], len(images), KS))
            check(task, statistics[task][-1], metrics)
            rows.append(row_of(model, job.name, task, metrics, RANKED + described_precision(model, precision)))
    seconds = (time.perf_counter() - start) / len(rows)
    captions_per_image = np.bincount(image_of_caption, minlength=len(images))
    dependencies = {"retrieval": config.plain()["zeroshot"]["retrieval"][job.name], "seeds": config.seeds}
    digests = {f"{model.name}/seed{model.seed}": model.sha256 for model in models}
    result = RetrievalResult(
        schema_version=1,
        benchmark=job.name,
        source=captions.source,
        split=captions.split,
        num_train=0,
        num_eval=len(images),
        num_captions=len(read.captions),
        class_names=[],
        chance={
            TASKS[0]: chances(captions_per_image, len(read.captions)),
            TASKS[1]: chances([1] * len(read.captions), len(images)),
        },
        captions_sha256=sha256_json(read.captions),
        **preprocessing_keys(models[-1]),
        results=[row.model_copy(update={"seconds": seconds}) for row in rows],
        provenance=provenance(dependencies) | {"model_sha256": digests},
    )
    predictions = kept_predictions(read, embedded) | {"rows": np.array(list(digests))} if keep else {}
    stacked = {task: stacked_rows(of_models) for task, of_models in statistics.items()}
    write_evaluation(out, result, read.ids, stacked, read.images, predictions, rows=list(digests))

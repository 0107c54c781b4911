"""Read a benchmark split once and extract features: views of the images, ground truth, cached encoder features.

Each image is decoded once for all encoders; only features and ground truth are kept.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from cliptex.benchmarks.base import Benchmark
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.progress import track
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.feature_cache import FeatureCache, FeatureSource, Writer, bytes_of, fingerprint
from cliptex.evaluation.probes.features import split_holdout
from cliptex.evaluation.probes.views import (
    ImageView,
    Size,
    crop_view,
    evaluation_views,
    random_crops,
    random_views,
)
from cliptex.evaluation.protocols.base import DenseTask, ProbeSection, views_of_each
from cliptex.experts.precision import frozen_precision, mixed_precision
from cliptex.models.encoders import Encoder, batch_size, centre_crop, in_order

log = logging.getLogger("cliptex")

TruthOf = Callable[[dict[str, Any], ImageView | None], Any]
"""(sample, view of a training image or None for evaluation) -> the ground truth that a task keeps of it."""


@dataclass
class Part:
    """One part of a benchmark. The views of all samples are concatenated; `owner` is the sample of each view.
    truths: by task, one per view in training, one per sample in evaluation."""

    ids: list[str] = field(default_factory=list)
    shapes: list[Size] = field(default_factory=list)
    views: list[ImageView | None] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    truths: dict[str, list[Any]] = field(default_factory=dict)

    def split(self, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the views of the samples for fitting, and of those of the held-out samples, drawn from `seed`."""
        owner = np.array(self.owner)
        return tuple(np.flatnonzero(np.isin(owner, part)) for part in split_holdout(len(self.ids), holdout, seed))


class ReadSample(NamedTuple):
    """What is read of one sample. images: the encoder's input for each view. truths: by task."""

    id: str
    shape: Size
    views: list[ImageView | None]
    images: list[np.ndarray]
    truths: dict[str, list[Any]]


class Reader:
    """Reads the samples `indices` of a part of a benchmark, for tasks with equal input, augmentation and features.

    part: "train" or "eval". size: height and width of the encoder's input. interpolation: how images are resized.
    fill: RGB beyond the image's border. truths: by task.
    """

    def __init__(
        self,
        data: Benchmark,
        part: str,
        indices: Sequence[int],
        section: ProbeSection,
        encoder: Encoder,
        truths: Mapping[str, TruthOf],
    ):
        self.data, self.part, self.section, self.truths = data, part, section, truths
        self.samples = data.samples(part)
        self.indices = list(indices)
        self.size = encoder.input_size(section.input.size_px)
        self.interpolation = encoder.interpolation
        self.fill = tuple(round(255 * value) for value in encoder.mean)
        self.dense = isinstance(section, DenseTask)
        self.cropped = self.dense and section.input.fit == "crop"
        self.augmented = part == "train" and section.augment.views > 0

    def views(self, index: int, shape: Size) -> list[ImageView | None]:
        """The views of the sample `index`, whose image has this height and width; the same on every call."""
        if self.augmented:
            rng = np.random.default_rng([seed_of(self.data.name, "views"), index])
            if self.dense:
                return random_views(shape, self.section.input, self.size, self.section.augment, rng)
            return random_crops(shape, self.section.augment, rng)
        return evaluation_views(shape, self.section.input, self.size) if self.dense else [None]

    def pixels(self, image: np.ndarray, view: ImageView | None) -> np.ndarray:
        """A view as the encoder's input, uint8 [*size, 3]."""
        if view is None:
            return centre_crop(image, self.size[0], self.interpolation, self.section.input.resize_px or self.size[0])
        return crop_view(image, view, self.size, self.interpolation, self.fill)

    def encode(self, encoder: Encoder, images_BHWC: np.ndarray) -> torch.Tensor:
        """The features float32 [B, T, C] that the section asks for. An encoder in training runs in fp32."""
        precision = frozen_precision(self.section.features.encoder_precision, self.size)
        with mixed_precision(precision if encoder.is_frozen else "fp32"):
            return self._encode(encoder, encoder.normalised(images_BHWC)).float()

    def _encode(self, encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
        options = self.section.features
        if self.dense:
            return encoder.tokens(images, options.layers, options.norm, options.cls)
        if options.point == "tokens":
            return encoder.summary(images, options.blocks)[:, None]
        return (encoder.pooled(images) if options.point == "pooled" else encoder.embedding(images))[:, None]

    def depends_on(self, encoder: Encoder) -> dict[str, Any]:
        """Everything that the features depend on."""
        features = self.section.features.model_dump(mode="json", exclude={"standardise"})
        if "encoder_precision" in features:  # what `auto` is depends on the machine
            features["encoder_precision"] = frozen_precision(features["encoder_precision"], self.size)
        return {
            "encoder": [type(encoder).__name__, encoder.sha256, encoder.config_sha256],
            "size": self.size,
            "pixels": [self.interpolation, list(encoder.mean), list(encoder.std)],
            "benchmark": [*self.data.identity, self.part],
            "samples": [fingerprint(self.samples), self.indices],
            "input": self.section.input.model_dump(mode="json"),
            "augment": self.section.augment.model_dump(mode="json") if self.augmented else None,
            "features": features,
        }

    def _read(self, index: int, with_images: bool, with_truths: bool) -> ReadSample:
        with working_on(f"{self.data.name}, {self.part} sample {index}"):
            sample = self.samples[index]
        with working_on(f"{self.data.name}, {self.part} image {sample['id']}"):
            image = sample["image"]
            shape = image.shape[:2]
            views = self.views(index, shape)
            images = [self.pixels(image, view) for view in views] if with_images else []
            truths = {}
            if with_truths:
                truth_views = views if self.part == "train" else [None]
                truths = {task: [truth(sample, view) for view in truth_views] for task, truth in self.truths.items()}
                if self.part == "eval" and self.cropped:
                    truths = {task: [value[views[0].slices()] for value in values] for task, values in truths.items()}
            return ReadSample(sample["id"], shape, views, images, truths)

    def read(self, sinks: Mapping[str, tuple[Encoder, Writer]], truths: bool = True) -> tuple[Part, dict[str, float]]:
        """Read the part in one pass and append the features of each encoder to its writer.
        truths: whether to keep the ground truth. Returns the part, and the seconds that each encoder took."""
        part = Part(truths={task: [] for task in self.truths} if truths else {})
        pending: list[tuple[str, np.ndarray]] = []
        rows = batch_size(self.size, next(iter(sinks.values()))[0].device) if sinks else 1
        seconds = dict.fromkeys(sinks, 0.0)

        def flush() -> None:
            ids, batch = zip(*pending[:rows], strict=True)
            images = np.stack(batch)
            del pending[:rows]
            for name, (encoder, writer) in sinks.items():
                start = time.perf_counter()
                subject = f"features of {name} for {self.data.name}, {self.part} images {ids[0]} to {ids[-1]}"
                with working_on(subject):
                    writer.append(self.encode(encoder, images), subject)
                seconds[name] += time.perf_counter() - start

        read = partial(self._read, with_images=bool(sinks), with_truths=truths)
        label = f"read {self.data.name} {self.part}"
        for number, sample in enumerate(track(in_order(self.indices, read), label, len(self.indices))):
            part.ids.append(sample.id)
            part.shapes.append(sample.shape)
            part.views += sample.views
            part.owner += [number] * len(sample.views)
            for task, values in sample.truths.items():
                part.truths[task] += values
            pending += ((sample.id, image) for image in sample.images)
            while len(pending) >= rows:
                flush()
        if pending:
            flush()
        return part, seconds


class ComputedFeatures(FeatureSource):
    """Features that are too large to keep: the encoder runs on every read."""

    computed = True

    def __init__(self, reader: Reader, part: Part, encoder: Encoder):
        self._reader, self._part, self._encoder = reader, part, encoder
        self._owner = np.array(part.owner)
        self.shape = (len(part.views), *self._tokens(np.arange(1)).shape[1:])

    def _tokens(self, index: np.ndarray) -> torch.Tensor:
        decoded: dict[int, np.ndarray] = {}
        images = []
        for view in index.tolist():
            sample = self._owner[view]
            with working_on(f"{self._reader.data.name}, {self._reader.part} image {self._part.ids[sample]}"):
                if sample not in decoded:
                    decoded[sample] = self._reader.samples[self._reader.indices[sample]]["image"]
                images.append(self._reader.pixels(decoded[sample], self._part.views[view]))
        return self._reader.encode(self._encoder, np.stack(images)).float().cpu()

    def load(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        index = np.asarray(index)
        # the same rounding as stored features, so that the results do not depend on where features are kept
        writer = Writer(self._reader.section.features.precision)
        rows = batch_size(self._reader.size, self._encoder.device)
        for start in range(0, len(index), rows):
            writer.append(self._tokens(index[start : start + rows]))
        return writer.finish({}).load(np.arange(len(index)))


class EncoderFeatures(NamedTuple):
    """The features of one encoder for both parts, and the seconds that it took to compute them."""

    train: FeatureSource
    eval: FeatureSource
    seconds: float


def features_of(
    readers: tuple[Reader, Reader], encoders: Mapping[str, Encoder], cache: FeatureCache, memory_bytes: float
) -> Iterator[tuple[Part, Part, EncoderFeatures]]:
    """Yield both parts of a benchmark with the features of one model at a time, in the order of `encoders`.

    Cached features are used. The others are computed for as many models at a time as fit in the cache, so that each
    image is decoded once for all of them. If the features of one model do not fit, they are held in memory; if they do
    not fit there either, they are computed whenever they are read.
    """
    parts: list[Part | None] = [None, None]
    waiting = list(encoders)
    while waiting:
        group, place = _next_group(readers, {model: encoders[model] for model in waiting}, cache, memory_bytes)
        waiting = waiting[len(group) :]
        sources: dict[str, list[FeatureSource]] = {model: [] for model in group}
        seconds = dict.fromkeys(group, 0.0)
        keys: list[str] = []
        for number, reader in enumerate(readers):
            parts[number], found, took, in_use = _extract(reader, group, place, cache, parts[number])
            keys += in_use
            for model in group:
                sources[model].append(found.pop(model))
                seconds[model] += took.get(model, 0.0)
        for model in group:
            yield parts[0], parts[1], EncoderFeatures(*sources.pop(model), seconds[model])
        cache.release(keys)


def _next_group(
    readers: Sequence[Reader], encoders: Mapping[str, Encoder], cache: FeatureCache, memory_bytes: float
) -> tuple[dict[str, Encoder], str]:
    """The first of the encoders whose features are kept at the same time, and where: "disk", "memory" or "nowhere"."""
    group: dict[str, Encoder] = {}
    place, free = "disk", cache.limit_bytes
    for model, encoder in encoders.items():
        size = sum(bytes_needed(reader, encoder) for reader in readers)
        if not group:
            place = "disk" if size <= free else "memory" if size <= memory_bytes else "nowhere"
            free = {"disk": free, "memory": memory_bytes, "nowhere": size}[place]
            if place != "disk":
                _log_place(readers[0], model, size, place)
        if size > free:
            break
        free -= size
        group[model] = encoder
    return group, place


def _extract(
    reader: Reader, encoders: Mapping[str, Encoder], place: str, cache: FeatureCache, part: Part | None
) -> tuple[Part, dict[str, FeatureSource], dict[str, float], list[str]]:
    """The features of one part for several encoders, from the cache or computed in one pass over the images.

    part: the part if it has been read before; otherwise it is read with its ground truth. Returns the part, features by
    model, the seconds of the encoders that ran, and the cache keys in use.
    """
    if place == "nowhere":
        if part is None:
            part, _ = reader.read({})
        computed = {model: ComputedFeatures(reader, part, encoder) for model, encoder in encoders.items()}
        return part, computed, {}, []
    precision = reader.section.features.precision
    keys: dict[str, str] = {}
    sources: dict[str, FeatureSource | None] = {}
    sinks: dict[str, tuple[Encoder, Writer]] = {}
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        for model, encoder in encoders.items():
            dependencies = reader.depends_on(encoder)
            keys[model] = cache.key(dependencies)
            sources[model] = cache.find(keys[model]) if place == "disk" else None
            if sources[model] is not None:
                continue
            if place == "disk":
                size = bytes_needed(reader, encoder)
                writer = stack.enter_context(cache.new(keys[model], precision, size, dependencies))
            else:
                writer = Writer(precision)
            sinks[model] = encoder, writer
        if sinks or part is None:
            read_part, seconds = reader.read(sinks, truths=part is None)
            part = read_part if part is None else part
    for model, (_, writer) in sinks.items():
        sources[model] = cache.find(keys[model]) if place == "disk" else writer.finish({})
        if sources[model] is None:
            raise CliptexError(f"{cache.folder}: features are not read back as they were written; check the disk")
    return part, sources, seconds, list(keys.values())


def bytes_needed(reader: Reader, encoder: Encoder) -> int:
    """Bytes of the features of a part; for windows an estimate."""
    _, tokens, channels = reader.encode(encoder, np.zeros((1, *reader.size, 3), np.uint8)).shape
    views = len(reader.indices) * views_of_each(reader.section, reader.part)
    return bytes_of((views, tokens, channels), reader.section.features.precision)


def _log_place(reader: Reader, model: str, size: float, place: str) -> None:
    if place == "memory":
        log.info("%s: the features of %s, %.3g MB, are held in memory", reader.data.name, model, size / 1e6)
        return
    log.warning(
        "%s: the features of %s take %.3g GB, more than probes.cache_gb and probes.memory_gb allow, so the encoder runs"
        " in every step of every head, which takes many times as long; set probes.cache_gb to %.1f, or"
        " features.precision to int8, or a smaller input.size_px",
        reader.data.name,
        model,
        size / 1e9,
        size / 1e9 + 0.1,
    )

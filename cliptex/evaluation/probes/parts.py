"""A benchmark's parts as probes see them: what of each image is seen, the truths, and the features of encoders.

Each image is decoded once for all encoders; only features and truths are kept.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from cliptex.benchmarks.base import Benchmark
from cliptex.core.progress import track
from cliptex.core.seeds import seed_of
from cliptex.evaluation.probes.feature_cache import FeatureCache, Rows, Writer, bytes_of, fingerprint
from cliptex.evaluation.probes.features import split_holdout
from cliptex.evaluation.probes.views import (
    ImageView,
    Size,
    cut,
    cut_centre,
    evaluation_views,
    random_crops,
    random_views,
)
from cliptex.evaluation.protocols.base import DenseTask, ProbeSection, views_of_each
from cliptex.models.encoders import BATCH_SIZE, Encoder, in_order

log = logging.getLogger("cliptex")

TruthOf = Callable[[dict[str, Any], ImageView | None], Any]
"""(sample, view of a training image or None for evaluation) -> the truth that a task keeps of it."""


@dataclass
class Part:
    """One part of a benchmark. Views of all samples lie one after another; `owner` is the sample of each.

    truths: by task, of each view in training, of each sample in evaluation.
    """

    ids: list[str] = field(default_factory=list)
    shapes: list[Size] = field(default_factory=list)
    views: list[ImageView | None] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    truths: dict[str, list[Any]] = field(default_factory=dict)

    def split(self, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the samples for fitting, and of those held out, drawn from `seed`."""
        owner = np.array(self.owner)
        return tuple(np.flatnonzero(np.isin(owner, part)) for part in split_holdout(len(self.ids), holdout, seed))


class Reader:
    """Reads the samples `indices` of a part of a benchmark as tasks of equal input, augmentation and features see it.

    part: "train" or "eval". size: height and width of what encoders see. interpolation: how images are resized.
    fill: RGB of what lies beyond an image. truths: by task.
    """

    def __init__(
        self,
        data: Benchmark,
        part: str,
        indices: Sequence[int],
        task: ProbeSection,
        encoder: Encoder,
        truths: Mapping[str, TruthOf],
    ):
        self.data, self.part, self.task, self.truths = data, part, task, truths
        self.samples = data.samples(part)
        self.indices = list(indices)
        self.size = encoder.input_size(task.input.size_px)
        self.interpolation = encoder.interpolation
        self.fill = tuple(round(255 * value) for value in encoder.mean)
        self.dense = isinstance(task, DenseTask)
        self.cropped = self.dense and task.input.fit == "crop"
        self.augmented = part == "train" and task.augment.views > 0

    def views(self, index: int, shape: Size) -> list[ImageView | None]:
        """What is seen of the sample `index`, whose image has this height and width; the same at every call."""
        if self.augmented:
            rng = np.random.default_rng([seed_of(self.data.name, "views"), index])
            if self.dense:
                return random_views(shape, self.task.input, self.size, self.task.augment, rng)
            return random_crops(shape, self.task.augment, rng)
        return evaluation_views(shape, self.task.input, self.size) if self.dense else [None]

    def pixels(self, image: np.ndarray, view: ImageView | None) -> np.ndarray:
        """A view as the encoder's input, uint8 [*size, 3]."""
        if view is None:
            return cut_centre(image, self.task.input, self.size[0], self.interpolation)
        return cut(image, view, self.size, self.interpolation, self.fill)

    def encode(self, encoder: Encoder, images_BHWC: np.ndarray) -> torch.Tensor:
        """The features [B, T, C] that the task wants."""
        images, wanted = encoder.normalised(images_BHWC), self.task.features
        if self.dense:
            return encoder.tokens(images, wanted.layers, wanted.norm, wanted.cls)
        if wanted.point == "tokens":
            return encoder.summary(images, wanted.blocks)[:, None]
        return (encoder.pooled(images) if wanted.point == "pooled" else encoder.embedding(images))[:, None]

    def expected_views(self) -> int:
        """About how many views there will be; exact but for windows."""
        return len(self.indices) * views_of_each(self.task, self.part)

    def depends_on(self, encoder: Encoder) -> dict[str, Any]:
        """All that the features depend on."""
        wanted = self.task.features.model_dump(mode="json", exclude={"standardise"})
        return {
            "encoder": [type(encoder).__name__, encoder.sha256, encoder.config_sha256],
            "size": self.size,
            "pixels": [self.interpolation, list(encoder.mean), list(encoder.std)],
            "benchmark": [*self.data.identity, self.part],
            "samples": [fingerprint(self.samples), self.indices],
            "input": self.task.input.model_dump(mode="json"),
            "augment": self.task.augment.model_dump(mode="json") if self.augmented else None,
            "features": wanted,
        }

    def _read(self, index: int, pixels: bool, truths: bool) -> tuple[str, Size, list[ImageView | None], list, dict]:
        sample = self.samples[index]
        image = sample["image"]
        shape = image.shape[:2]
        views = self.views(index, shape)
        seen = [self.pixels(image, view) for view in views] if pixels else []
        kept = {}
        if truths:
            of = views if self.part == "train" else [None]
            kept = {task: [truth(sample, view) for view in of] for task, truth in self.truths.items()}
            if self.part == "eval" and self.cropped:
                kept = {task: [value[views[0].slices()] for value in values] for task, values in kept.items()}
        return sample["id"], shape, views, seen, kept

    def read(self, sinks: Mapping[str, tuple[Encoder, Writer]], truths: bool = True) -> tuple[Part, dict[str, float]]:
        """One pass: the part, and into each sink the features of its encoder. The seconds that each encoder took."""
        part = Part(truths={task: [] for task in self.truths} if truths else {})
        waiting: list[np.ndarray] = []
        seconds = dict.fromkeys(sinks, 0.0)

        def flush() -> None:
            images = np.stack(waiting[:BATCH_SIZE])
            del waiting[:BATCH_SIZE]
            for name, (encoder, writer) in sinks.items():
                start = time.perf_counter()
                writer.append(self.encode(encoder, images))
                seconds[name] += time.perf_counter() - start

        read = partial(self._read, pixels=bool(sinks), truths=truths)
        what = f"read {self.data.name} {self.part}"
        for number, sample in enumerate(track(in_order(self.indices, read), what, len(self.indices))):
            name, shape, views, seen, kept = sample
            part.ids.append(name)
            part.shapes.append(shape)
            part.views += views
            part.owner += [number] * len(views)
            for task, values in kept.items():
                part.truths[task] += values
            waiting += seen
            while len(waiting) >= BATCH_SIZE:
                flush()
        if waiting:
            flush()
        return part, seconds


class Computed(Rows):
    """Features computed whenever they are asked for, where they are too many to be kept."""

    computed = True

    def __init__(self, reader: Reader, part: Part, encoder: Encoder):
        self._reader, self._part, self._encoder = reader, part, encoder
        self._owner = np.array(part.owner)
        self.shape = (len(part.views), *self._tokens(np.arange(1)).shape[1:])

    def _tokens(self, index: np.ndarray) -> torch.Tensor:
        images: dict[int, np.ndarray] = {}
        seen = []
        for view in index.tolist():
            sample = self._owner[view]
            if sample not in images:
                images[sample] = self._reader.samples[self._reader.indices[sample]]["image"]
            seen.append(self._reader.pixels(images[sample], self._part.views[view]))
        return self._reader.encode(self._encoder, np.stack(seen)).float().cpu()

    def read(self, index: np.ndarray) -> torch.Tensor:
        index = np.asarray(index)
        parts = [self._tokens(index[start : start + BATCH_SIZE]) for start in range(0, len(index), BATCH_SIZE)]
        # through the same rounding as kept ones, so that where features are kept changes no result
        writer = Writer(self._reader.task.features.precision)
        for part in parts:
            writer.append(part)
        return writer.finish({}).read(np.arange(len(index)))


@dataclass(frozen=True)
class Kept:
    """The features of one encoder in both parts, and the seconds that it took to compute them."""

    train: Rows
    eval: Rows
    seconds: float


def features_of(
    readers: tuple[Reader, Reader], encoders: Mapping[str, Encoder], cache: FeatureCache, memory_bytes: float
) -> Iterator[tuple[Part, Part, Kept]]:
    """Both parts of a benchmark, and the features of one model after another, in the order of `encoders`.

    Features that the cache has are used. Others are computed for as many models at a time as fit into it, each image
    being decoded once for all of them. Where those of one model do not fit, they stay in memory; where they do not fit
    there either, they are computed whenever they are needed.
    """
    parts: list[Part] = []
    waiting = list(encoders)
    while waiting:
        place, room = "disk", cache.limit_bytes
        group: list[str] = []
        for model in waiting:
            size = sum(bytes_needed(reader, encoders[model]) for reader in readers)
            if not group:
                place = "disk" if size <= room else "memory" if size <= memory_bytes else "nowhere"
                room = {"disk": room, "memory": memory_bytes, "nowhere": size}[place]
                if place != "disk":
                    _say_where(readers[0], model, size, place)
            if size > room:
                break
            room -= size
            group.append(model)
        waiting = waiting[len(group) :]
        made: dict[str, list[Rows]] = {model: [] for model in group}
        seconds = dict.fromkeys(group, 0.0)
        keys = []
        for number, reader in enumerate(readers):
            found, sinks = {}, {}
            with ExitStack() as stack:
                for model in group if place != "nowhere" else []:
                    about = reader.depends_on(encoders[model])
                    key = cache.key(about)
                    keys.append(key)
                    found[model] = cache.find(key) if place == "disk" else None
                    if found[model] is None:
                        precision, size = reader.task.features.precision, bytes_needed(reader, encoders[model])
                        new = cache.new(key, precision, size, about) if place == "disk" else None
                        sinks[model] = encoders[model], stack.enter_context(new) if new else Writer(precision)
                if sinks or len(parts) <= number:
                    part, took = reader.read(sinks, truths=len(parts) <= number)
                    parts = parts if len(parts) > number else [*parts, part]
                    seconds = {model: seconds[model] + took.get(model, 0.0) for model in group}
            for model in group:
                if place == "nowhere":
                    made[model].append(Computed(reader, parts[number], encoders[model]))
                elif place == "memory":
                    made[model].append(sinks[model][1].finish({}))
                else:
                    made[model].append(found[model] or cache.find(cache.key(reader.depends_on(encoders[model]))))
        for model in group:
            yield parts[0], parts[1], Kept(*made.pop(model), seconds[model])
        cache.release(keys)


def bytes_needed(reader: Reader, encoder: Encoder) -> int:
    """Bytes of the features of a part."""
    _, tokens, channels = reader.encode(encoder, np.zeros((1, *reader.size, 3), np.uint8)).shape
    return bytes_of((reader.expected_views(), tokens, channels), reader.task.features.precision)


def _say_where(reader: Reader, model: str, size: float, place: str) -> None:
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

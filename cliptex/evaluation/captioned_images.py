"""Images with captions for retrieval: tars, a benchmark's captions, or rendered pairs.

Reads   the tars or the benchmark that an entry of `zeroshot.retrieval` names.
Holds   every image has at least one caption; an unusable sample is an error that names it, it is never skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cliptex.benchmarks.reading import source
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.data.shard_paths import caption_tars


@dataclass(frozen=True)
class CaptionedImage:
    """An encoded image and its captions, at least one."""

    id: str
    image: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True)
class CaptionedImages:
    """A set of captioned images. count: number of images, if it is known before reading; a mismatch is an error."""

    source: str
    """`miniature`, `official`, or `own` for the user's tars."""
    split: str
    count: int | None
    items: Iterator[CaptionedImage]


def open_captioned_images(config: Config, name: str) -> CaptionedImages:
    """The captioned images of an entry of `zeroshot.retrieval`. Raises CliptexError if there is no such entry."""
    entry = config.zeroshot.retrieval.get(name)
    if entry is None:
        known = sorted(key for key, value in config.zeroshot.retrieval.items() if value is not None)
        raise CliptexError(f"zeroshot.retrieval: {name!r} is not one of {known}")
    if entry.benchmark is not None:
        benchmark_dir = paths.benchmark(entry.benchmark)
        data = find("benchmarks", entry.benchmark)(benchmark_dir)
        if not hasattr(data, "captions"):
            raise CliptexError(f"zeroshot.retrieval.{name}.benchmark: {entry.benchmark!r} has no captions; use coco")
        captions, expected = data.captions("eval"), data.expected("eval")
        if expected is not None and len(captions) != expected:
            raise CliptexError(
                f"{benchmark_dir}: captions of {len(captions):,} images, the split has {expected:,}; restore the data"
            )
        items = (CaptionedImage(path.stem, path.read_bytes(), tuple(texts)) for path, texts in captions)
        images = CaptionedImages(source(benchmark_dir), data.eval_split, len(captions), items)
    else:
        tars = caption_tars(config, name)
        origin = "miniature" if (tars[0].parent / "miniature.json").exists() else "own"
        images = CaptionedImages(origin, "held out" if entry.rendered else "test", entry.rendered, _from_tars(tars))
    count = entry.images
    if count is None:
        return images
    if images.count is not None and count > images.count:
        raise CliptexError(f"zeroshot.retrieval.{name}.images: {count:,} is more than the {images.count:,} there are")
    return CaptionedImages(images.source, f"{images.split}, first {count}", count, islice(images.items, count))


def _from_tars(tars: list[Path]) -> Iterator[CaptionedImage]:
    from cliptex.data.shards import iterate_shard

    for tar in tars:
        for pair in iterate_shard(tar):
            captions = lines_of(pair.caption or "")
            if pair.problem or not captions:
                problem = pair.problem or "no caption (.txt, one per line)"
                raise CliptexError(f"{tar}: sample {pair.key} cannot be used: {problem}; correct it, or remove it")
            yield CaptionedImage(pair.key, pair.image, captions)


def lines_of(text: str) -> tuple[str, ...]:
    """The captions in a text, one per line, without outer spaces and empty lines. U+2028 and the like, at which
    `str.splitlines` would split, do not end a line, as for clip_benchmark."""
    return tuple(line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip())

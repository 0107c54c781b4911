"""Images with captions on which retrieval is judged: tars, a benchmark's captions, or pairs rendered for it.

Reads   the tars or the benchmark that an entry of `zeroshot.retrieval` names.
Holds   an image has at least one caption; a sample that cannot be used is an error that names it, never left out.
"""

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
class Captioned:
    """An encoded image and its captions, at least one."""

    id: str
    image: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """A set that is being read. count: images, where it is known before they are read; another number is an error."""

    source: str
    """`miniature`, `official`, or `own` for tars of the user's."""
    split: str
    count: int | None
    items: Iterator[Captioned]


def open_captions(config: Config, name: str) -> Captions:
    """The captioned images of an entry of `zeroshot.retrieval`. Raises CliptexError for one that does not exist."""
    given = config.zeroshot.retrieval.get(name)
    if given is None:
        known = sorted(key for key, value in config.zeroshot.retrieval.items() if value is not None)
        raise CliptexError(f"zeroshot.retrieval: {name!r} is not one of {known}")
    if given.benchmark is not None:
        root = paths.benchmark(given.benchmark)
        data = find("benchmarks", given.benchmark)(root)
        if not hasattr(data, "captions"):
            raise CliptexError(f"zeroshot.retrieval.{name}.benchmark: {given.benchmark!r} has no captions; name coco")
        captions, read = data.captions("eval"), lambda path: path.read_bytes()
        wanted = data.expected("eval")
        if wanted is not None and len(captions) != wanted:
            raise CliptexError(
                f"{root}: captions of {len(captions):,} images, the split has {wanted:,}; put the data in place again"
            )
        items = (Captioned(path.stem, read(path), tuple(texts)) for path, texts in captions)
        known = Captions(source(root), data.eval_split, len(captions), items)
    else:
        tars = caption_tars(config, name)
        where = "miniature" if (tars[0].parent / "miniature.json").exists() else "own"
        known = Captions(where, "held out" if given.rendered else "test", given.rendered, _from_tars(tars))
    if given.images is None:
        return known
    if known.count is not None and given.images > known.count:
        raise CliptexError(f"zeroshot.retrieval.{name}.images: {given.images:,}, and there are {known.count:,}")
    count = given.images
    return Captions(known.source, f"{known.split}, first {count}", count, islice(known.items, count))


def _from_tars(tars: list[Path]) -> Iterator[Captioned]:
    from cliptex.data.shards import iterate_shard

    for tar in tars:
        for pair in iterate_shard(tar):
            captions = tuple(line.strip() for line in (pair.caption or "").splitlines() if line.strip())
            if pair.image is None or not captions:
                lacks = "image" if pair.image is None else "caption (.txt, a line each)"
                raise CliptexError(f"{tar}: sample {pair.key} has no {lacks}; leave it out of the tar")
            yield Captioned(pair.key, pair.image, captions)

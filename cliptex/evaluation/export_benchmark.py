"""Write images with their classes, or with their captions, as tars in the layout that clip_benchmark reads.

Reads   resources/{benchmark}/ in its official layout, or a set of captioned images (`cliptex.evaluation.captioned_images`).
Writes  {out}/classnames.txt and zeroshot_classification_templates.txt (with captions dataset_type.txt), then for each
        split {split}/{n}.tar, split.json (what it was made of) and, last, nshards.txt.
Holds   images, labels, class names and prompts are those of zero-shot classification here; a split without
        nshards.txt is not finished, and clip_benchmark refuses it.

Members of a sample: an image (.jpg, .png or .webp) and .cls (the label as text) or .txt (captions, a line each). Files
of these formats are copied byte for byte, all else is written as lossless PNG.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from PIL import Image

from cliptex.benchmarks.reading import source
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing, sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.images import BadImage, encode_png, has_orientation, open_image
from cliptex.data.shards import write_tar
from cliptex.evaluation.captioned_images import CaptionedImage, open_captioned_images
from cliptex.evaluation.zeroshot import TEMPLATES, prompts

PARTS = {"test": "eval", "train": "train"}
"""Split as clip_benchmark calls it -> part of a benchmark."""
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that clip_benchmark decodes, by Pillow's names."""
PLAIN = ("RGB", "L")
"""Modes whose pixels do not depend on who converts them to RGB."""

Member = tuple[str, bytes]
Sample = tuple[Member, Member]


def export_benchmark(
    config: Config, name: str, out: Path, splits: Sequence[str] = ("test",), per_tar: int = 10_000
) -> dict[str, int]:
    """Export a classification benchmark, or a set of `zeroshot.retrieval`; returns the number of samples by split.

    splits: of "test" and "train"; captions have "test" alone. per_tar: samples in one tar; clip_benchmark reads with
    no more processes than there are tars. Raises CliptexError for what has neither one class an image nor captions,
    and for names that the layout cannot hold.
    """
    captioned = config.zeroshot.retrieval.get(name) is not None
    known = ["test"] if captioned else list(PARTS)
    if unknown := [split for split in splits if split not in known]:
        raise CliptexError(f"--splits: {unknown[0]!r} is not one of {known}, which is what {name} has")
    if captioned:
        given = open_captioned_images(config, name)
        _write_lines(out / "dataset_type.txt", ["retrieval"], "")
        about = {"benchmark": name, "source": given.source, "split": given.split}
        samples = (_captioned(name, one) for one in given.items)
        return {"test": _write_split(out / "test", samples, given.count, per_tar, about)}
    root = paths.benchmark(name)
    data = find("benchmarks", name)(root)
    if data.tasks != ("classification",):
        raise CliptexError(f"{name}: has neither one class an image nor captions (zeroshot.retrieval); choose another")
    templates = TEMPLATES[config.zeroshot.templates]
    _write_lines(out / "classnames.txt", data.class_names, f"{name}: class name")
    lines = [template("{c}") for template in templates]
    _write_lines(out / "zeroshot_classification_templates.txt", lines, "zeroshot.templates:")
    (out / "dataset_type.txt").unlink(missing_ok=True)
    about = {
        "benchmark": name,
        "source": source(root),
        "templates": config.zeroshot.templates,
        "prompts_sha256": sha256_json(prompts(data.class_names, templates)),
    }
    counts = {}
    for split in splits:
        part = PARTS[split]
        here = about | {"split": data.eval_split if part == "eval" else "train"}
        samples = data.samples(part)
        counts[split] = _write_split(out / split, map(_classified, _each(samples)), len(samples), per_tar, here)
    return counts


def _each(samples: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    # by index: iterating a Sequence would take an IndexError inside a reader for its end
    return (samples[index] for index in range(len(samples)))


def _classified(sample: dict[str, Any]) -> Sample:
    label = ("cls", str(sample["label"]).encode())
    if "file" in sample:
        data = Path(sample["file"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.format in SUFFIXES:
                return (SUFFIXES[image.format], data), label
    return ("png", encode_png(sample["image"])), label


def _captioned(name: str, one: CaptionedImage) -> Sample:
    """As retrieval sees it: upright, without transparency."""
    captions = ("txt", "\n".join(one.captions).encode())
    try:
        image = open_image(one.image)
    except BadImage as error:
        raise CliptexError(f"zeroshot.retrieval.{name}: the image of {one.id} cannot be used: {error}") from error
    with Image.open(io.BytesIO(one.image)) as stored:
        if stored.format in SUFFIXES and stored.mode in PLAIN and not has_orientation(stored):
            return (SUFFIXES[stored.format], one.image), captions
    out = io.BytesIO()
    image.save(out, "PNG")
    return ("png", out.getvalue()), captions


def _write_split(
    folder: Path, samples: Iterable[Sample], total: int | None, per_tar: int, about: dict[str, Any]
) -> int:
    """Write one split; what lies in `folder` from before is replaced. Returns the number of samples."""
    (folder / "nshards.txt").unlink(missing_ok=True)
    numbered = enumerate(track(samples, f"export {folder.name}", total))
    files: list[dict[str, Any]] = []
    for number in count():
        first = next(numbered, None)
        if first is None:
            break
        path = folder / f"{number}.tar"
        keys: list[int] = []
        write_tar(path, _members(chain([first], islice(numbered, per_tar - 1)), keys))
        files.append({"file": path.name, "samples": len(keys), "sha256": sha256_file(path)})
    if not files:
        raise CliptexError(f"{folder}: there is no sample to export")
    for stale in folder.glob("*.tar"):
        if stale.stem.isdigit() and int(stale.stem) >= len(files):
            stale.unlink(missing_ok=True)
    samples_written = sum(file["samples"] for file in files)
    write_json(
        folder / "split.json", about | {"samples": samples_written, "files": files, "provenance": provenance(about)}
    )
    _write_text(folder / "nshards.txt", f"{len(files)}\n")
    return samples_written


def _members(numbered: Iterable[tuple[int, Sample]], keys: list[int]) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of every member; the numbers of the samples go to `keys`."""
    for number, members in numbered:
        keys.append(number)
        yield from ((f"{number:08d}.{suffix}", data) for suffix, data in members)


def _write_lines(path: Path, lines: Sequence[str], what: str) -> None:
    """A file of one text a line, which clip_benchmark strips."""
    for line in lines:
        if line != line.strip() or len(line.splitlines()) != 1:
            raise CliptexError(f"{what} {line!r} cannot be a line of {path.name}: mind its ends and line breaks")
    _write_text(path, "".join(f"{line}\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as scratch:
        scratch.write_text(text)

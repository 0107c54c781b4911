"""Export images with classes or captions as tars in clip_benchmark's layout.

Reads   resources/{benchmark}/ in its official layout, or captioned images (`cliptex.evaluation.captioned_images`).
Writes  {out}/classnames.txt and zeroshot_classification_templates.txt (with captions dataset_type.txt), then for each
        split {split}/{n}.tar, split.json (its source) and, last, nshards.txt.
Holds   images, labels, class names and prompts are those of zero-shot classification here; a split without
        nshards.txt is not finished, and clip_benchmark refuses it.

Members of a sample: an image (.jpg, .png or .webp) and .cls (the label as text) or .txt (captions, one per line). Files
in these formats are copied byte for byte; other images are written as PNG.
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
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import replacing, sha256_file, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.data.images import BadImage, encode_png, has_orientation, open_image
from cliptex.data.shards import write_tar
from cliptex.evaluation.captioned_images import CaptionedImage, open_captioned_images
from cliptex.evaluation.zeroshot import TEMPLATES, prompts

PARTS = {"test": "eval", "train": "train"}
"""Name of a split in clip_benchmark -> part of a benchmark."""
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that clip_benchmark decodes, by Pillow's names."""
PLAIN = ("RGB", "L")
"""Modes that every library converts to RGB in the same way."""

Member = tuple[str, bytes]
Sample = tuple[Member, Member]


def export_benchmark(
    config: Config, name: str, out: Path, splits: Sequence[str] = ("test",), per_tar: int = 10_000
) -> dict[str, int]:
    """Export a classification benchmark, or an entry of `zeroshot.retrieval`; returns the number of samples by split.
    splits: "test", "train" or both; only "test" for captions. per_tar: samples; clip_benchmark reads them by tar."""
    captioned = config.zeroshot.retrieval.get(name) is not None
    known = ["test"] if captioned else list(PARTS)
    if unknown := [split for split in splits if split not in known]:
        raise CliptexError(f"--splits: {unknown[0]!r} is not one of {known}, the splits of {name}")
    if captioned:
        images = open_captioned_images(config, name)
        _write_lines(out / "dataset_type.txt", ["retrieval"], "")
        description = {"benchmark": name, "source": images.source, "split": images.split}
        samples = (_captioned(name, item) for item in images.items)
        return {"test": _write_split(out / "test", samples, images.count, per_tar, description)}
    benchmark_dir = paths.benchmark(name)
    data = find("benchmarks", name)(benchmark_dir)
    if data.tasks != ("classification",):
        raise CliptexError(f"{name}: has neither one class per image nor captions (zeroshot.retrieval); choose another")
    templates = TEMPLATES[config.zeroshot.templates]
    _write_lines(out / "classnames.txt", data.class_names, f"{name}: class name")
    lines = [template("{c}") for template in templates]
    _write_lines(out / "zeroshot_classification_templates.txt", lines, "zeroshot.templates:")
    (out / "dataset_type.txt").unlink(missing_ok=True)
    description = {
        "benchmark": name,
        "source": source(benchmark_dir),
        "templates": config.zeroshot.templates,
        "prompts_sha256": sha256_json(prompts(data.class_names, templates)),
    }
    counts = {}
    for split in splits:
        part = PARTS[split]
        split_description = description | {"split": data.eval_split if part == "eval" else "train"}
        samples = data.samples(part)
        # by index: iterating a Sequence would treat an IndexError inside a reader as its end
        classified = (_classified(samples, index, f"{name}, {split}") for index in range(len(samples)))
        counts[split] = _write_split(out / split, classified, len(samples), per_tar, split_description)
    return counts


def _classified(samples: Sequence[dict[str, Any]], index: int, where: str) -> Sample:
    with working_on(f"{where} sample {index}"):
        sample = samples[index]
    with working_on(f"{where} image {sample['id']}"):
        return _members_of(sample)


def _members_of(sample: dict[str, Any]) -> Sample:
    label = ("cls", str(sample["label"]).encode())
    if "file" in sample:
        data = Path(sample["file"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.format in SUFFIXES:
                return (SUFFIXES[image.format], data), label
    return ("png", encode_png(sample["image"])), label


def _captioned(name: str, item: CaptionedImage) -> Sample:
    """The image as retrieval uses it: upright, without transparency."""
    captions = ("txt", "\n".join(item.captions).encode())
    try:
        image = open_image(item.image)
    except BadImage as error:
        raise CliptexError(f"zeroshot.retrieval.{name}: the image of {item.id} cannot be used: {error}") from error
    with Image.open(io.BytesIO(item.image)) as stored:
        if stored.format in SUFFIXES and stored.mode in PLAIN and not has_orientation(stored):
            return (SUFFIXES[stored.format], item.image), captions
    out = io.BytesIO()
    image.save(out, "PNG")
    return ("png", out.getvalue()), captions


def _write_split(
    folder: Path, samples: Iterable[Sample], total: int | None, per_tar: int, description: dict[str, Any]
) -> int:
    """Write one split, replacing an earlier one in `folder`. Returns the number of samples."""
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
        raise CliptexError(f"{folder}: there are no samples to export")
    for stale in folder.glob("*.tar"):
        if stale.stem.isdigit() and int(stale.stem) >= len(files):
            stale.unlink(missing_ok=True)
    samples_written = sum(file["samples"] for file in files)
    description |= {"samples": samples_written, "files": files, "provenance": provenance(description)}
    write_json(folder / "split.json", description)
    _write_text(folder / "nshards.txt", f"{len(files)}\n")
    return samples_written


def _members(numbered: Iterable[tuple[int, Sample]], keys: list[int]) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of every member, and append the samples' numbers to `keys`."""
    for number, members in numbered:
        keys.append(number)
        yield from ((f"{number:08d}.{suffix}", data) for suffix, data in members)


def _write_lines(path: Path, lines: Sequence[str], label: str) -> None:
    """Write a text file; clip_benchmark strips its lines, so whitespace at their ends is an error."""
    for line in lines:
        if line != line.strip() or len(line.splitlines()) != 1:
            raise CliptexError(f"{label} {line!r} cannot be a line of {path.name}: remove line breaks and outer spaces")
    _write_text(path, "".join(f"{line}\n" for line in lines))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")

"""The albums of the page: labelled pairs, evaluation images, and the images that differ most."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import reading
from cliptex.core.plugins import find
from cliptex.data.images import decode_image
from cliptex.data.shards import iterate_shard
from cliptex.evaluation.drawing import (
    Drawing,
    LegendEntry,
    PageImage,
    data_uri,
    normals_sphere,
    page_image,
    swatch,
)
from cliptex.evaluation.measures import metric_of
from cliptex.evaluation.per_image import PerImage, read_per_image
from cliptex.evaluation.probes.base import ProbeTask
from cliptex.evaluation.probes.tasks import known_tasks
from cliptex.evaluation.thumbnails import thumbnails_path
from cliptex.evaluation.training_free.base import TrainingFreeTask
from cliptex.evaluation.training_free.tasks import task_of_measure
from cliptex.labels.store import LabelFile, open_store, task_of_store
from cliptex.report import names
from cliptex.report.differences import Comparison
from cliptex.report.gather import PUT_BACK, Results
from cliptex.report.integrity import check_thumbnails
from cliptex.report.table import MISSING
from cliptex.tasks.base import Task

MAX_NAMED = 3
"""Contents of an image that are listed below it."""


@dataclass(frozen=True)
class GalleryItem:
    """One page of an album: images in a row, their legend, and for a training pair its caption."""

    title: str
    images: list[PageImage]
    legend: list[LegendEntry]
    caption: str = ""


@dataclass(frozen=True)
class Album:
    title: str
    note: str
    items: list[GalleryItem]


# ---- training pairs


def labelled_pairs(results: Results) -> Album | None:
    """`report.gallery` pairs from shards at even distances, with the label of every store; None without pairs."""
    keys_of_shards = _spread(results.shards["shards"], results.config.report.gallery)
    tasks = {
        store: task_of_store(results.config, store, results.workdir / paths.labels(store) / "index.json")
        for store in results.config.label_stores
    }
    items = []
    for shard, keys in keys_of_shards.items():
        with working_on(f"{results.workdir / paths.SHARD_INDEX}, shard {shard}"):
            items += _items(results, tasks, shard, keys)
    if not items:
        return None
    note = "The first pairs of shards at even distances in the data set, not hand-picked, with their original captions."
    return Album("Training pairs and their pseudo-labels", note, items)


def _items(results: Results, tasks: dict[str, Task], shard: str, keys: Sequence[str]) -> Iterator[GalleryItem]:
    entry = next(item for item in results.shards["shards"] if item["shard"] == shard)
    pairs = _read_pairs(results.workdir / entry["path"], keys)
    stores = {
        name: open_store(results.workdir / paths.labels(name) / "index.json", entry, task)
        for name, task in tasks.items()
    }
    for key in keys:
        image, caption = pairs[key]
        row = [page_image(decode_image(image), "photo", f"Image of the pair {key}", "image")]
        legend = []
        for name, task in tasks.items():
            label_image, entries = _label_image(stores[name], task, key, name)
            row.append(label_image)
            legend += entries
        yield GalleryItem(f"Pair {key}", row, legend, caption)


def _spread(entries: Sequence[dict], count: int) -> dict[str, list[str]]:
    """Shard -> keys: the first usable keys of shards at even distances."""
    entries = [entry for entry in entries if entry["keys"]]
    if not entries:
        return {}
    num_keys = Counter(np.linspace(0, len(entries) - 1, count).round().astype(int).tolist())
    return {entries[index]["shard"]: entries[index]["keys"][:number] for index, number in num_keys.items()}


def _read_pairs(path: Path, keys: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """Image bytes and caption of some keys of a shard, in the order of the shard."""
    pairs: dict[str, tuple[bytes, str]] = {}
    for pair in iterate_shard(path):
        if pair.key in keys:
            pairs[pair.key] = pair.image, pair.caption
        if len(pairs) == len(keys):
            return pairs
    missing = next(key for key in keys if key not in pairs)
    raise CliptexError(f"{path}: {missing!r} is not in it; the shard has changed since it was indexed")


def _label_image(file: LabelFile, task: Task, key: str, store: str) -> tuple[PageImage, list[LegendEntry]]:
    row = file.keys.index(key)
    if (label := file.label(row)) is None:
        return PageImage("", f"no label: {file.column('error')[row]}", title=store), []
    contents, legend = "", []
    if task.codec().get("class_names"):
        codes, counts = np.unique(task.classes(label), return_counts=True)
        classes = [_class_name(task, code) for code in codes.tolist() if code != task.codec()["invalid"]]
        classes = [name for name in classes if name != "background"]
        contents = f": {', '.join(classes)}" if classes else ": background only"
        order = codes[np.argsort(-counts, kind="stable")]
        colours = task.picture(order[None])[0]
        class_names = (_class_name(task, code) for code in order.tolist())
        legend = [LegendEntry(swatch(colour), name) for colour, name in zip(colours, class_names, strict=True)]
    elif task.name == "depth":
        ramp = np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(12, axis=0)
        legend = [LegendEntry(data_uri(task.picture(ramp), "flat"), f"{store}: far to near", "wide")]
    elif task.name == "normals":
        legend = [normals_sphere()]
    kind = "flat" if label.dtype.kind == "u" else "smooth"
    alt = f"Pseudo-label {store} of the pair {key}{contents}"
    return page_image(task.picture(label), kind, alt, store), legend


def _class_name(task: Task, code: int) -> str:
    class_names = task.codec()["class_names"]
    return class_names[code] if code < len(class_names) else "no label"


# ---- evaluation images


@dataclass(frozen=True)
class EvaluatedImage:
    """A sample of a benchmark, and each model's prediction (`thumbnails.unpacked`) and metric as text."""

    sample: dict[str, Any]
    predictions: dict[str, dict[str, np.ndarray]]
    values: dict[str, str]

    @property
    def name(self) -> str:
        return str(self.sample["id"])


class Albums(NamedTuple):
    """Evaluation images at even distances, those that differ most, and notes on benchmarks without images."""

    spread: list[Album]
    extremes: list[Album]
    missing: list[str]


def evaluation_albums(results: Results, comparisons: Sequence[Comparison]) -> Albums:
    """Predictions of the first seed. A benchmark whose data were deleted has no album."""
    out = Albums([], [], [])
    for comparison in comparisons:
        task = _task_of(comparison.task)
        if task is None or task.drawing() is None:
            continue
        benchmark = comparison.scores.benchmark
        folder = results.workdir / paths.benchmark(benchmark)
        if not folder.exists():
            out.missing.append(f"No images of {names.benchmark(benchmark)}: {folder} does not exist.")
            continue
        with working_on(f"{comparison.scores.path}, images of {comparison.task}"):
            _add_albums(out, results, comparison, find("benchmarks", benchmark)(folder).samples("eval"))
    return out


def _task_of(name: str) -> ProbeTask | TrainingFreeTask | None:
    """What draws the rows of that name; None for those without images."""
    return known_tasks().get(name) or task_of_measure(name)


def _predictions(comparison: Comparison, model: str, seed: int) -> tuple[Path, str]:
    """The file with a model's thumbnails, and the name of its arrays in there."""
    scores, head = comparison.scores, comparison.head
    if scores.folder is None:
        return thumbnails_path(scores.path), f"{comparison.task}/{head}/{model}/seed{seed}"
    return thumbnails_path(scores.folder / model / f"seed{seed}/{head}.json"), comparison.task


def _add_albums(out: Albums, results: Results, comparison: Comparison, samples: Sequence[dict]) -> None:
    models = [model for model in results.models if model in names.MODELS] or results.models
    seed = results.config.seeds[0]
    places = {model: _predictions(comparison, model, seed)[0] for model in models}
    for row in comparison.scores.results:
        if (row.head, row.seed) == (comparison.head, seed) and row.model in places:
            check_thumbnails(comparison.scores.path, places[row.model], row)
    read = {path: read_per_image(path) for path in places.values()}
    files = {model: read[path] for model, path in places.items()}
    for model, file in files.items():
        if _predictions(comparison, model, seed)[1] not in file.tasks or len(file.ids) != comparison.scores.num_eval:
            raise CliptexError(f"{places[model]}: not of {comparison.task} and the images of the results; {PUT_BACK}")
    drawing = _task_of(comparison.task).drawing()
    how = "without training" if comparison.scores.folder is None else "heads"
    note = f"{names.head(comparison.head)} {how}, models of seed {seed}"
    if len(results.config.seeds) > 1:
        note += "; the numbers are means over seeds"
    note += f". {drawing.note}"

    def items(indices: Sequence[int], shown: Sequence[str], prefixes: Sequence[str]) -> list[GalleryItem]:
        kept = {model: files[model] for model in shown}
        images = [_evaluated(comparison, samples[index], kept, seed, index) for index in indices]
        drawn = draw(drawing, comparison.scores.class_names, images)
        titles = [f"{prefix}{image.name}" for prefix, image in zip(prefixes, images, strict=True)]
        return [GalleryItem(title, *row) for title, row in zip(titles, drawn, strict=True)]

    count = len(files[models[0]].ids)
    chosen = np.unique(np.linspace(0, count - 1, results.config.report.gallery).round().astype(int)).tolist()
    where = f"{len(chosen)} images at even distances in the {comparison.scores.split} split"
    out.spread.append(Album(comparison.title, f"{where}; {note}", items(chosen, models, [""] * len(chosen))))

    helped, hurt = comparison.extremes(results.config.report.extremes)
    if not helped and not hurt:
        return
    prefixes = [f"CLIPTeX helps, {rank} of {len(helped)}: " for rank in range(1, len(helped) + 1)]
    prefixes += [f"CLIPTeX hurts, {rank} of {len(hurt)}: " for rank in range(1, len(hurt) + 1)]
    where = (
        f"The evaluation images with the largest difference in {comparison.metric_title} between CLIP-FT and CLIPTeX, "
        "first those where CLIPTeX is better"
    )
    pair = (names.REFERENCE, names.SUBJECT)
    out.extremes.append(Album(comparison.title, f"{where}; {note}", items([*helped, *hurt], pair, prefixes)))


def _evaluated(
    comparison: Comparison, sample: dict[str, Any], files: dict[str, PerImage], seed: int, index: int
) -> EvaluatedImage:
    metric = metric_of(comparison.task, comparison.metric)
    unit = f" {metric.unit}" if metric.unit not in ("", "°") else metric.unit
    predictions, values = {}, {}
    for model, file in files.items():
        if str(file.ids[index]) != str(sample["id"]):
            raise CliptexError(
                f"{comparison.scores.path}: was made with other images than are in place now ({sample['id']} where it "
                f"has {file.ids[index]}); run the probe again"
            )
        path, name = _predictions(comparison, model, seed)
        with reading(path, f"thumbnails of {comparison.task}"):
            predictions[model] = _task_of(comparison.task).thumbnail(file.tasks[name], index)
        value = comparison.values[model][index]
        values[model] = f"{metric.title} {f'{metric.format(value)}{unit}' if np.isfinite(value) else MISSING}"
    return EvaluatedImage(sample, predictions, values)


def draw(
    drawing: type[Drawing], class_names: Sequence[str], images: Sequence[EvaluatedImage]
) -> list[tuple[list[PageImage], list[LegendEntry]]]:
    """For each image a row (image, ground truth, a prediction for each model) and its legend."""
    drawer = drawing(class_names, [(image.sample, list(image.predictions.values())) for image in images])
    rows = []
    for image in images:
        row = [page_image(image.sample["image"], "photo", f"Image {image.name}", "image")]
        shown = {"truth": drawer.truth(image.sample)}
        shown |= {model: drawer.visible(image.sample, labels) for model, labels in image.predictions.items()}
        for model, labels in shown.items():
            contents = drawer.contents(labels)
            alt = f"{names.model(model)}: {drawer.content} {image.name}"
            alt += f": {', '.join(contents)}" if contents else ""
            note = [image.values.get(model, "")]
            if drawer.lists_contents:
                more = f" and {len(contents) - MAX_NAMED} more" if len(contents) > MAX_NAMED else ""
                note.append(", ".join(contents[:MAX_NAMED]) + more if contents else "nothing")
            pixels, kind = drawer.pixels(image.sample, labels)
            row.append(page_image(pixels, kind, alt, names.model(model), ": ".join(filter(None, note))))
        rows.append((row, drawer.legend(image.sample, list(shown.values()))))
    return rows

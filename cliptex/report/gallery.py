"""The albums that one can page through: labelled pairs, evaluation images, and those that differ most."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.data.images import decode_image
from cliptex.data.shards import iterate_shard
from cliptex.evaluation.per_image import PerImage, read_per_image
from cliptex.evaluation.thumbnails import MASK_SIDE_PX, shrunk, thumbnails_path, unpacked
from cliptex.labels.label import LabelFile, open_store
from cliptex.report import names
from cliptex.report.differences import Comparison
from cliptex.report.gather import Results, Scores
from cliptex.report.pictures import (
    IGNORE,
    ClassColours,
    Key,
    Picture,
    data_uri,
    depth_legend,
    depth_pixels,
    hemisphere,
    normals_legend,
    normals_pixels,
    occurring,
    picture,
    swatch,
    with_boxes,
)
from cliptex.tasks.base import Task

MAX_NAMED = 3


@dataclass(frozen=True)
class Item:
    """One page of an album: pictures side by side, what is said about them, and what their colours mean."""

    title: str
    pictures: list[Picture]
    legend: list[Key]
    caption: str = ""


@dataclass(frozen=True)
class Album:
    """Items under one heading, and what holds for all of them."""

    title: str
    note: str
    items: list[Item]


# ---- pairs


def labelled_pairs(results: Results) -> Album | None:
    """`report.gallery` pairs from shards spread over the data set, with every store's label; None without any."""
    wanted = _spread(results.shards["shards"], results.config.report.gallery)
    tasks = {name: find("tasks", store.task)() for name, store in results.config.label_stores.items()}
    items = []
    for shard, keys in wanted.items():
        entry = next(item for item in results.shards["shards"] if item["shard"] == shard)
        samples = _read_pairs(results.root / entry["path"], keys)
        stores = {}
        for name, task in tasks.items():
            stores[name] = open_store(results.root / paths.labels(name) / "index.json", entry, task)
        for key in keys:
            image, caption = samples[key]
            row = [picture(decode_image(image), "photo", f"The image of the pair {key}", "image")]
            legend = []
            for name, task in tasks.items():
                shown, keys_of_it = _label_picture(stores[name], task, key, name)
                row.append(shown)
                legend += keys_of_it
            items.append(Item(f"Pair {key}", row, legend, caption))
    if not items:
        return None
    note = "The first pairs of shards spread over the data set, not chosen by eye. Their captions came with them."
    return Album("Training pairs and their pseudo-labels", note, items)


def _spread(entries: Sequence[dict], count: int) -> dict[str, list[str]]:
    """Shard -> keys: the first usable keys of shards at even distances."""
    entries = [entry for entry in entries if entry["keys"]]
    if not entries:
        return {}
    taken: Counter = Counter()
    for place in np.linspace(0, len(entries) - 1, count).round().astype(int):
        taken[int(place)] += 1
    return {entries[place]["shard"]: entries[place]["keys"][:number] for place, number in taken.items()}


def _read_pairs(path: Path, keys: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """Image bytes and caption of some keys of a shard, in whatever order it has them."""
    found: dict[str, tuple[bytes, str]] = {}
    for pair in iterate_shard(path):
        if pair.key in keys:
            found[pair.key] = pair.image, pair.caption
        if len(found) == len(keys):
            return found
    missing = next(key for key in keys if key not in found)
    raise CliptexError(f"{path}: {missing!r} is not in it; it is no longer the shard that was indexed")


def _label_picture(file: LabelFile, task: Task, key: str, store: str) -> tuple[Picture, list[Key]]:
    row = file.keys.index(key)
    if (label := file.label(row)) is None:
        return Picture("", f"no label: {file.column('error')[row]}", title=store), []
    seen, legend = "", []
    if task.codec().get("class_names"):
        values, counts = np.unique(task.classes(label), return_counts=True)
        present = [_class_name(task, value) for value in values.tolist() if value not in (0, IGNORE)]
        seen = f": {', '.join(present)}" if present else ": background only"
        order = values[np.argsort(-counts, kind="stable")]
        colours = task.picture(order[None].astype(np.uint8))[0]
        names_of = [_class_name(task, value) for value in order.tolist()]
        legend = [Key(swatch(colour), name) for colour, name in zip(colours, names_of, strict=True)]
    elif task.name == "depth":
        ramp = np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(12, axis=0)
        legend = [Key(data_uri(task.picture(ramp), "flat"), f"{store}: far to near", "wide")]
    elif task.name == "normals":
        legend = [hemisphere()]
    kind = "flat" if label.dtype == np.uint8 else "smooth"
    return picture(task.picture(label), kind, f"Pseudo-label {store} of the pair {key}{seen}", store), legend


def _class_name(task: Task, value: int) -> str:
    class_names = task.codec()["class_names"]
    return class_names[value] if value < len(class_names) else "no label"


# ---- evaluation images


@dataclass(frozen=True)
class Judged:
    """An evaluation image as its benchmark gives it, and each model's prediction (`thumbnails.unpacked`) and value."""

    sample: dict[str, Any]
    predictions: dict[str, dict[str, np.ndarray]]
    values: dict[str, str]

    @property
    def name(self) -> str:
        """Its id."""
        return str(self.sample["id"])


@dataclass(frozen=True)
class Albums:
    """Evaluation images spread over each split, those that differ most, and sentences on what cannot be shown."""

    spread: list[Album]
    extremes: list[Album]
    missing: list[str]


def evaluation_albums(results: Results, comparisons: Sequence[Comparison]) -> Albums:
    """Pictures are of the first seed. Of a benchmark whose data are no longer there nothing can be shown."""
    out = Albums([], [], [])
    for one in comparisons:
        if one.task not in _DRAW:
            continue
        folder = results.root / paths.benchmark(one.scores.benchmark)
        if not folder.exists():
            out.missing.append(f"No image of {names.benchmark(one.scores.benchmark)} is shown: {folder} is gone.")
            continue
        _add_albums(out, results, one, find("benchmarks", one.scores.benchmark)(folder).samples("eval"))
    return out


def _add_albums(out: Albums, results: Results, one: Comparison, samples: Sequence[dict]) -> None:
    models = [model for model in results.models if model in names.MODELS] or results.models
    seed = results.config.seeds[0]
    files = {model: _thumbnails(one, model, seed) for model in models}
    about = f"{names.head(one.head)} heads, models of seed {seed}"
    if len(results.config.seeds) > 1:
        about += ", while the numbers are means over the seeds"

    def items(indices: Sequence[int], shown: Sequence[str], titles: Sequence[str]) -> list[Item]:
        images = [_judged(one, samples, {model: files[model] for model in shown}, index) for index in indices]
        drawn = _DRAW[one.task](one.scores, images)
        return [Item(f"{word}{x.name}", *made) for word, x, made in zip(titles, images, drawn, strict=True)]

    count = len(files[models[0]].ids)
    chosen = np.unique(np.linspace(0, count - 1, results.config.report.gallery).round().astype(int)).tolist()
    note = f"{len(chosen)} images at even distances in the {one.scores.split} split; {about}. {_NOTES[one.task]}"
    out.spread.append(Album(one.title, note, items(chosen, models, [""] * len(chosen))))

    helped, hurt = one.extremes(results.config.report.extremes)
    if not helped and not hurt:
        return
    words = [f"CLIPTeX helps, {rank} of {len(helped)}: " for rank in range(1, len(helped) + 1)]
    words += [f"CLIPTeX hurts, {rank} of {len(hurt)}: " for rank in range(1, len(hurt) + 1)]
    note = (
        f"Of all evaluation images those in which {names.metric(one.metric)} differs most between CLIP-FT and CLIPTeX: "
        f"first where CLIPTeX is better, then where it is worse; {about}. {_NOTES[one.task]}"
    )
    out.extremes.append(Album(one.title, note, items([*helped, *hurt], (names.REFERENCE, names.SUBJECT), words)))


def _thumbnails(one: Comparison, model: str, seed: int) -> PerImage:
    return read_per_image(thumbnails_path(one.scores.folder / model / f"seed{seed}" / f"{one.head}.json"))


def _judged(one: Comparison, samples: Sequence[dict], files: dict[str, PerImage], index: int) -> Judged:
    sample = samples[index]
    predictions, values = {}, {}
    for model, file in files.items():
        if str(file.ids[index]) != str(sample["id"]):
            raise CliptexError(
                f"{one.scores.path}: was made with other images than are in place now ({sample['id']} where it has "
                f"{file.ids[index]}); probe again"
            )
        predictions[model] = unpacked(one.task, file.tasks[one.task], index)
        value = one.values[model][index]
        unit = names.unit(one.task, one.metric)
        between = " " if unit and unit != "°" else ""
        shown = f"{names.number(value, one.task, one.metric)}{between}{unit}" if np.isfinite(value) else "–"
        values[model] = f"{names.metric(one.metric)} {shown}"
    return Judged(sample, predictions, values)


Drawn = list[tuple[list[Picture], list[Key]]]
Labels = dict[str, np.ndarray]


def _pages(
    images: Sequence[Judged],
    truth: Callable[[Judged], Labels],
    pixels: Callable[[Judged, Labels], tuple[np.ndarray, str]],
    legend: Callable[[Judged, list[Labels]], list[Key]],
    what: str,
    seen: Callable[[Labels], list[str]] = lambda labels: [],
    written: bool = False,
) -> Drawn:
    """Each image beside its truth and what each model says of it.

    pixels: a drawing and its kind. what: `depth of`. seen: what there is in it, for those who do not see it; written:
    for all.
    """
    out = []
    for image in images:
        row = [picture(image.sample["image"], "photo", f"Image {image.name}", "image")]
        everything = {"truth": truth(image), **image.predictions}
        for model, labels in everything.items():
            who, words = names.model(model), seen(labels)
            drawn, kind = pixels(image, labels)
            alt = f"{who}: {what} {image.name}" + (f": {', '.join(words)}" if words else "")
            some = ", ".join(words[:MAX_NAMED]) + (f" and {len(words) - MAX_NAMED} more" * (len(words) > MAX_NAMED))
            note = [image.values.get(model, ""), (some or "nothing") if written else ""]
            row.append(picture(drawn, kind, alt, who, ": ".join(filter(None, note))))
        out.append((row, legend(image, list(everything.values()))))
    return out


def draw_segmentation(scores: Scores, images: Sequence[Judged]) -> Drawn:
    def truth(image: Judged) -> Labels:
        return {"mask": shrunk(image.sample["mask"], MASK_SIDE_PX)}

    masks = [labels["mask"] for image in images for labels in (truth(image), *image.predictions.values())]
    colours = ClassColours(scores.class_names, occurring(masks))
    return _pages(
        images,
        truth,
        lambda image, labels: (colours.of[labels["mask"]], "flat"),
        lambda image, every: colours.legend(labels["mask"] for labels in every),
        "classes in",
        lambda labels: [scores.class_names[v] for v in np.unique(labels["mask"]) if v < len(scores.class_names)],
    )


def draw_depth(scores: Scores, images: Sequence[Judged]) -> Drawn:
    def bounds(image: Judged) -> tuple[float, float]:
        known = image.sample["depth"][np.isfinite(image.sample["depth"])]
        return tuple(np.percentile(known, [1, 99]).tolist()) if known.size else (0.0, 1.0)

    return _pages(
        images,
        lambda image: {"depth": image.sample["depth"]},
        lambda image, labels: (depth_pixels(labels["depth"], *bounds(image)), "smooth"),
        lambda image, every: depth_legend(*bounds(image)),
        "depth of",
    )


def draw_normals(scores: Scores, images: Sequence[Judged]) -> Drawn:
    keys = normals_legend()
    return _pages(
        images,
        lambda image: {"normals": image.sample["normals"]},
        lambda image, labels: (normals_pixels(labels["normals"]), "smooth"),
        lambda image, every: keys,
        "normals of",
    )


def draw_detections(scores: Scores, images: Sequence[Judged]) -> Drawn:
    """Of each model as many boxes as the truth has objects: weak detectors have scores below any threshold."""

    def shown(image: Judged, labels: Labels) -> Labels:
        wanted = max(1, int((~image.sample["crowd"]).sum()))
        return {name: values[:wanted] for name, values in labels.items()}

    def truth(image: Judged) -> Labels:
        return {name: image.sample[name] for name in ("boxes", "labels")}

    images = [
        replace(image, predictions={model: shown(image, one) for model, one in image.predictions.items()})
        for image in images
    ]
    labels = [one["labels"].astype(int) for image in images for one in (truth(image), *image.predictions.values())]
    colours = ClassColours(scores.class_names, occurring(labels))

    def seen(one: Labels) -> list[str]:
        named = [scores.class_names[int(label)] for label in one["labels"]]
        return [f"{x} {y:.2f}" for x, y in zip(named, one["scores"], strict=True)] if "scores" in one else named

    def drawn(image: Judged, one: Labels) -> tuple[np.ndarray, str]:
        return with_boxes(image.sample["image"], one["boxes"], colours.of[one["labels"].astype(int)]), "photo"

    return _pages(
        images,
        truth,
        drawn,
        lambda image, every: colours.legend(one["labels"].astype(int) for one in every),
        "boxes in",
        seen,
        written=True,
    )


_DRAW: dict[str, Callable[[Scores, Sequence[Judged]], Drawn]] = {
    "semantic_segmentation": draw_segmentation,
    "detection": draw_detections,
    "depth": draw_depth,
    "normals": draw_normals,
}
_NOTES = {
    "semantic_segmentation": "One colour a class, the same in the whole album.",
    "detection": (
        "Of each model the boxes with the highest scores, as many as the truth has objects in the image (at least "
        "one); below, their classes and scores. AP ranks the boxes of each class by themselves, and counts those "
        "that are not drawn, too. One colour a class, the same in the whole album."
    ),
    "depth": "The pictures of an image share one range, the 1st to the 99th percentile of its truth.",
    "normals": "Red, green, blue: the surface faces right, up, the viewer.",
}

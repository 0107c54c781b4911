"""Pictures for the page: labelled pairs, and predictions beside the truth, as data URIs."""

import base64
import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cliptex import paths
from cliptex.errors import CliptexError
from cliptex.images import decode_image
from cliptex.labels import LabelFile, open_store
from cliptex.plugins import find
from cliptex.report import names
from cliptex.report.gather import Results, Scores
from cliptex.shards import IMAGE_SUFFIXES
from cliptex.tasks.base import Task
from cliptex.tasks.grid import INVALID_COLOUR
from cliptex.tasks.segmentation import BACKGROUND_COLOUR, palette

MAX_SIDE_PX = 256
MAX_LEGEND = 24
MAX_NAMED = 3
IGNORE = 255
PREFERRED_HEADS = ("pspnet", "deeplabv3", "linear")


@dataclass(frozen=True)
class Picture:
    """An image of the page. Without `src`, the alt text is shown in its place."""

    src: str
    alt: str
    width: int = 0
    height: int = 0
    label: bool = False
    title: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a swatch, and what it means. shape: "", "wide" or "tall"."""

    src: str
    text: str
    shape: str = ""


@dataclass(frozen=True)
class LabelledPair:
    """A caption, and the image beside its pseudo-labels."""

    caption: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Strip:
    """Rows of: image, truth, one prediction a model."""

    title: str
    caption: str
    note: str
    columns: list[str]
    rows: list[list[Picture]]
    legend: list[Key] = field(default_factory=list)


def data_uri(pixels: np.ndarray, kind: str) -> str:
    """uint8 [H, W, 3] as a data URI. kind: "photo" (JPEG), "smooth" (WebP) or "flat" (PNG; few colours, exact)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > MAX_SIDE_PX:
        resample = Image.Resampling.NEAREST if kind == "flat" else Image.Resampling.LANCZOS
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), resample)
    out = io.BytesIO()
    if kind == "photo":
        image.save(out, "JPEG", quality=88)
    elif kind == "smooth":
        image.save(out, "WEBP", quality=88)
    else:
        image.save(out, "PNG", optimize=True)
    mime = {"photo": "image/jpeg", "smooth": "image/webp", "flat": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(out.getvalue()).decode()}"


def picture(pixels: np.ndarray, kind: str, alt: str, title: str = "") -> Picture:
    """A Picture of uint8 [H, W, 3]."""
    return Picture(data_uri(pixels, kind), alt, pixels.shape[1], pixels.shape[0], kind != "photo", title)


def labelled_pairs(results: Results) -> tuple[list[LabelledPair], list[Key]]:
    """`report.gallery` pairs from shards spread over the data set, with every store's label; and the legend."""
    wanted = _spread(results.shards["shards"], results.config.report.gallery)
    tasks = {name: find("tasks", store.task)() for name, store in results.config.label_stores.items()}
    pairs, classes = [], {name: Counter() for name in tasks}
    for shard, keys in wanted.items():
        entry = next(item for item in results.shards["shards"] if item["shard"] == shard)
        samples = _read_pairs(results.root / entry["path"], keys)
        stores = {}
        for name, task in tasks.items():
            stores[name] = open_store(results.root / paths.labels(name) / "index.json", entry, task)
        for key in keys:
            image, caption = samples[key]
            row = [picture(decode_image(image), "photo", f"The image of the pair {key}", "image")]
            for name, task in tasks.items():
                row.append(_label_picture(stores[name], task, key, name, classes[name]))
            pairs.append(LabelledPair(caption, row))
    legend = [key for name, task in tasks.items() for key in _task_legend(task, classes[name])] if pairs else []
    return pairs, legend


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
    """Image bytes and caption of the first keys of a shard; the rest of the tar is not read."""
    found: dict[str, dict[str, bytes]] = {key: {} for key in keys}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                if key > keys[-1]:  # keys are in order
                    break
                if key in found:
                    found[key]["image" if suffix in IMAGE_SUFFIXES else suffix] = tar.extractfile(member).read()
        return {key: (parts["image"], parts["txt"].decode("utf-8", "replace").strip()) for key, parts in found.items()}
    except (OSError, tarfile.TarError, KeyError) as error:
        raise CliptexError(
            f"{path}: shard cannot be read ({error!r}); delete it and run the same command again"
        ) from error


def _label_picture(file: LabelFile, task: Task, key: str, store: str, classes: Counter) -> Picture:
    row = file.keys.index(key)
    if (label := file.label(row)) is None:
        return Picture("", f"no label: {file.column('error')[row]}", title=store)
    seen = ""
    if task.codec().get("class_names"):
        values, counts = np.unique(task.classes(label), return_counts=True)
        classes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        present = [_class_name(task, value) for value in values.tolist() if value not in (0, IGNORE)]
        seen = f": {', '.join(present)}" if present else ": background only"
    kind = "flat" if label.dtype == np.uint8 else "smooth"
    return picture(task.picture(label), kind, f"Pseudo-label {store} of the pair {key}{seen}", store)


def _class_name(task: Task, value: int) -> str:
    class_names = task.codec()["class_names"]
    return class_names[value] if value < len(class_names) else "no label"


def _task_legend(task: Task, classes: Counter) -> list[Key]:
    """Class names beside their colours; the scale of depth; the hemisphere of normals. Foreign tasks have none."""
    if classes:
        shown = [value for value, _ in classes.most_common(MAX_LEGEND)]
        swatches = task.picture(np.array([shown], np.uint8))[0]
        return [Key(_swatch(c), _class_name(task, value)) for value, c in zip(shown, swatches, strict=True)]
    if task.name == "depth":
        ramp = np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(12, axis=0)
        return [Key(data_uri(task.picture(ramp), "flat"), f"{names.task(task.name)}: far to near", "wide")]
    if task.name == "normals":
        return [_hemisphere()]
    return []


def _swatch(colour: Sequence[int]) -> str:
    return data_uri(np.full((8, 8, 3), colour, np.uint8), "flat")


def _hemisphere() -> Key:
    """Colours of the normals of a ball: what faces left, right, up, down and the viewer."""
    v, u = np.mgrid[-1:1:96j, -1:1:96j]
    square = u**2 + v**2
    # on a ball the outward normal at (u, v) points right by u and down by v; the stored one points inward
    inward = np.stack([-u, -v, np.sqrt(np.clip(1 - square, 0, None))], axis=-1)
    pixels = _normals_picture(inward)
    rgba = np.concatenate([pixels, np.where(square <= 1, 255, 0)[..., None].astype(np.uint8)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(rgba).save(out, "PNG", optimize=True)
    src = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Key(src, "Normals: the colours of a ball", "tall")


def _normals_picture(normals_HWC: np.ndarray) -> np.ndarray:
    task = find("tasks", "normals")()
    kappa = np.ones((*normals_HWC.shape[:2], 1), np.float32)
    return task.picture(np.concatenate([normals_HWC[..., :3].astype(np.float32), kappa], axis=-1))


def prediction_strips(results: Results) -> list[Strip]:
    """Predictions of the first seed's models beside the truth, for every dense task whose probes kept some."""
    models = [model for model in results.models if model in names.MODELS] or results.models
    strips = []
    for name, scores in results.probes.items():
        heads: dict[str, list[str]] = {}
        for task, head in scores.cells():
            heads.setdefault(task, []).append(head)
        for task, choices in heads.items():
            if task not in _STRIPS:
                continue
            head = next((head for head in PREFERRED_HEADS if head in choices), choices[0])
            seed = results.config.seeds[0]
            files = [results.root / paths.probe(name, model, seed) / f"{head}.npz" for model in models]
            if not all(path.exists() for path in files):
                continue
            saved = [_read_predictions(path) for path in files]
            count = min(results.config.report.gallery, *(len(arrays["ids"]) for arrays in saved))
            if count:
                rows, legend, note = _STRIPS[task](scores, saved, count, [names.model(model) for model in models])
                title = f"{names.benchmark(name)}: {names.task(task).lower()}, {names.head(head)} head"
                caption = f"The first {count} images of the {scores.split} split, models of seed {seed}"
                columns = ["Image", "Truth", *map(names.model, models)]
                strips.append(Strip(title, caption, note, columns, rows, legend))
    return strips


def _read_predictions(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        arrays["ids"]
    except (OSError, ValueError, KeyError) as error:
        raise CliptexError(f"{path}: not a file of predictions ({error}); delete it and run the probe again") from error
    return arrays


Saved = Sequence[dict[str, np.ndarray]]
Rows = tuple[list[list[Picture]], list[Key], str]


def _segmentation_strip(scores: Scores, saved: Saved, count: int, models: Sequence[str]) -> Rows:
    masks = [[saved[0][f"truth_{i}"], *(arrays[f"prediction_{i}"] for arrays in saved)] for i in range(count)]
    pixels = np.bincount(np.concatenate([mask.ravel() for row in masks for mask in row]), minlength=256)
    colours, legend = _class_colours(scores.class_names, pixels)
    rows = []
    for i, row in enumerate(masks):
        name, first = _image(saved[0], i)
        shown = zip(["truth", *models], row, strict=True)
        rows.append([first, *(picture(colours[mask], "flat", f"{who}: classes in {name}") for who, mask in shown)])
    return rows, legend, "One colour a class, over all rows."


def _class_colours(class_names: Sequence[str], pixels: np.ndarray) -> tuple[np.ndarray, list[Key]]:
    """uint8 [256, 3] for class numbers, the most frequent of `pixels` farthest apart; and their legend."""
    colours = np.full((256, 3), INVALID_COLOUR, np.uint8)
    legend, free = [], iter(palette()[1:])
    order = [int(value) for value in np.argsort(-pixels, kind="stable") if pixels[value]]
    for value in order:
        if value >= len(class_names):
            continue
        colours[value] = BACKGROUND_COLOUR if class_names[value] == "background" else next(free)
        legend.append(Key(_swatch(colours[value]), class_names[value]))
    if len(legend) > MAX_LEGEND:
        rest = len(legend) - MAX_LEGEND
        more = Key(_swatch(BACKGROUND_COLOUR), f"and {rest} rarer classes in colours of their own")
        legend = [*legend[:MAX_LEGEND], more]
    if pixels[IGNORE]:
        legend.append(Key(_swatch(INVALID_COLOUR), "left out of the metric"))
    return colours, legend


def _depth_strip(scores: Scores, saved: Saved, count: int, models: Sequence[str]) -> Rows:
    from matplotlib import colormaps

    rows = []
    for i in range(count):
        name, first = _image(saved[0], i)
        truth = saved[0][f"depth_truth_{i}"].astype(np.float64)
        valid = np.isfinite(truth)
        low, high = np.percentile(truth[valid], [1, 99]) if valid.any() else (0.0, 1.0)
        row = [first]
        for who, depth in zip(["truth", *models], [truth, *(a[f"depth_prediction_{i}"] for a in saved)], strict=True):
            # near is bright, as in the pseudo-labels
            shares = np.clip((high - depth) / max(high - low, 1e-6), 0, 1)
            pixels = colormaps["viridis"](np.nan_to_num(shares), bytes=True)[..., :3].copy()
            pixels[~np.isfinite(depth)] = INVALID_COLOUR
            title = f"{low:.1f}–{high:.1f} m" if who == "truth" else ""
            row.append(picture(pixels, "smooth", f"{who}: depth of {name}", title))
        rows.append(row)
    ramp = (colormaps["viridis"](np.linspace(0, 1, 128)[None].repeat(12, axis=0), bytes=True))[..., :3]
    legend = [Key(data_uri(ramp, "flat"), "far to near", "wide"), Key(_swatch(INVALID_COLOUR), "no truth")]
    return rows, legend, "A row's pictures share one range, the 1st to 99th percentile of its truth."


def _normals_strip(scores: Scores, saved: Saved, count: int, models: Sequence[str]) -> Rows:
    rows = []
    for i in range(count):
        name, first = _image(saved[0], i)
        normals = [saved[0][f"normals_truth_{i}"], *(arrays[f"normals_prediction_{i}"] for arrays in saved)]
        shown = zip(["truth", *models], normals, strict=True)
        rows.append([first, *(picture(_normals_picture(n), "smooth", f"{who}: normals of {name}") for who, n in shown)])
    legend = [_hemisphere(), Key(_swatch(INVALID_COLOUR), "no truth")]
    return rows, legend, "Red, green, blue: the surface faces right, up, the viewer."


def _detection_strip(scores: Scores, saved: Saved, count: int, models: Sequence[str]) -> Rows:
    """Of each model as many boxes as the truth has objects: weak detectors have scores below any threshold."""
    found: list[list[tuple[np.ndarray, np.ndarray, str]]] = []
    for i in range(count):
        truth = saved[0][f"truth_boxes_{i}"], saved[0][f"truth_labels_{i}"]
        wanted = max(1, int((~saved[0][f"truth_crowd_{i}"]).sum()))
        row = [(*truth, "")]
        for arrays in saved:
            sure = np.argsort(-arrays[f"prediction_scores_{i}"], kind="stable")[:wanted]
            boxes, labels = arrays[f"prediction_boxes_{i}"][sure], arrays[f"prediction_labels_{i}"][sure]
            seen = [
                f"{scores.class_names[int(label)]} {score:.2f}"
                for label, score in zip(labels, arrays[f"prediction_scores_{i}"][sure], strict=True)
            ]
            more = f" and {len(seen) - MAX_NAMED} more" if len(seen) > MAX_NAMED else ""
            row.append((boxes, labels, ", ".join(seen[:MAX_NAMED]) + more or "no box"))
        found.append(row)
    labels = np.concatenate([labels for row in found for _, labels, _ in row]).astype(int)
    colours, legend = _class_colours(scores.class_names, np.bincount(labels, minlength=256))
    rows = []
    for i, row in enumerate(found):
        name, first = _image(saved[0], i)
        pictures = [first]
        for who, (boxes, classes, title) in zip(["truth", *models], row, strict=True):
            drawn = _with_boxes(saved[0][f"image_{i}"], boxes, colours[classes.astype(int)])
            seen = ", ".join(scores.class_names[c] for c in classes.astype(int)) or "nothing"
            pictures.append(picture(drawn, "photo", f"{who}: boxes in {name}: {seen}", title))
        rows.append(pictures)
    note = (
        "Of each model the boxes with the highest scores, as many as the truth has objects in the image (at least "
        "one); below, their classes and scores."
    )
    return rows, legend, note


def _with_boxes(image: np.ndarray, boxes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with the outlines of boxes (xyxy), enlarged so that the lines are thin."""
    scale = max(1, round(MAX_SIDE_PX / max(image.shape[:2])))
    size = (image.shape[1] * scale, image.shape[0] * scale)
    drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(max(size) / 100))
    for box, colour in zip(boxes, colours, strict=True):
        left, top, right, bottom = (float(edge) * scale for edge in box)
        if right > left and bottom > top:
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=width + 2)
            pen.rectangle((left, top, right, bottom), outline=tuple(int(c) for c in colour), width=width)
    return np.asarray(drawn)


def _image(arrays: dict[str, np.ndarray], index: int) -> tuple[str, Picture]:
    name = str(arrays["ids"][index])
    return name, picture(arrays[f"image_{index}"], "photo", f"Image {name}")


_STRIPS = {
    "semantic_segmentation": _segmentation_strip,
    "detection": _detection_strip,
    "depth": _depth_strip,
    "normals": _normals_strip,
}

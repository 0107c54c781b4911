"""COCO 2017: train2017, val2017 and annotations/instances_{train,val}2017.json."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.core.progress import track
from cliptex.data.miniature.kinds import KIND_ID, KINDS, THINGS
from cliptex.data.miniature.layouts import Renderer, save_jpeg
from cliptex.data.miniature.scenes import Scene, SceneOptions

CROWD = 0.3
"""Share of images whose most frequent class, if it has several objects, is annotated as a crowd."""


def polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Outlines of a bool mask [H, W] along pixel edges, as [x, y, x, y, ...]; None if it has holes."""
    padded = np.pad(mask, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    inside = padded[1:-1, 1:-1]
    # edges between inside and outside, directed with the inside on the right (y points down)
    edges = (
        (inside & ~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (inside & ~padded[1:-1, 2:], (1, 0), (0, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1), (-1, 0)),
        (inside & ~padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for where, (dx, dy), step in edges:
        for y, x in zip(*np.nonzero(where), strict=True):
            steps.setdefault((int(x) + dx, int(y) + dy), []).append(step)
    out = []
    while steps:
        start = point = min(steps)
        outline, area, last = [], 0, None
        while True:
            choices = steps[point]
            # if two pixels touch at a corner, turn right, so that they become separate outlines
            step = choices[0] if last is None or len(choices) == 1 else (-last[1], last[0])
            choices.remove(step)
            if not choices:
                del steps[point]
            if step != last:
                outline.append(point)
            area += point[0] * step[1] - point[1] * step[0]
            point, last = (point[0] + step[0], point[1] + step[1]), step
            if point == start:
                break
        if area < 0:
            return None
        out.append([float(value) for corner in outline for value in corner])
    return out


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE: lengths of alternating runs of zeros and ones, in column-major order."""
    flat = mask.ravel(order="F")
    counts = [len(list(run)) for _, run in groupby(flat.tolist())]
    if flat[0]:
        counts.insert(0, 0)
    return {"counts": counts, "size": list(mask.shape)}


def _annotation(mask: np.ndarray, kind: str, image_id: int, crowd: bool) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    outline = None if crowd else polygons(mask)
    category = next(number for number, name, _ in coco_categories() if name == KINDS[KIND_ID[kind]].coco)
    return {
        "segmentation": outline if outline is not None else run_lengths(mask),
        "area": float(mask.sum()),
        "iscrowd": int(crowd),
        "image_id": image_id,
        "bbox": [float(v) for v in (left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)],
        "category_id": category,
    }


def annotate(scene: Scene, image_id: int, crowded: bool) -> list[dict[str, Any]]:
    """The annotations of a scene. crowded: the most frequent class, if it has several objects, becomes one crowd."""
    kinds = [seen.kind for seen in scene.objects]
    most = max(kinds, key=kinds.count, default=None)
    merge = [i for i, kind in enumerate(kinds) if kind == most] if crowded and kinds.count(most) > 1 else []
    objects = [(scene.instances == i + 1, kind, False) for i, kind in enumerate(kinds) if i not in merge]
    if merge:
        objects.append((np.isin(scene.instances, [i + 1 for i in merge]), most, True))
    return [_annotation(mask, kind, image_id, crowd) for mask, kind, crowd in objects]


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. Image ids are not contiguous."""
    categories = [{"supercategory": group, "id": number, "name": name} for number, name, group in coco_categories()]
    for split in ("train", "val"):
        rng = np.random.default_rng([renderer.seed, renderer.stream(split)])
        gaps = rng.integers(1, 12, renderer.counts[split])
        crowded = rng.random(renderer.counts[split]) < CROWD
        # odd ids for training and even ids for validation, so that no id is in both
        ids = 2 * np.cumsum(gaps) + (split == "train")
        images, annotations = [], []
        for index in track(range(renderer.counts[split]), f"render coco {split}"):
            scene = renderer.scene(split, index, SceneOptions(subject=THINGS[index % len(THINGS)], things=(0, 3)))
            number = int(ids[index])
            name = f"{number:012d}.jpg"
            save_jpeg(benchmark_dir / f"{split}2017" / name, scene)
            height, width = scene.instances.shape
            images.append({"license": 1, "file_name": name, "height": height, "width": width, "id": number})
            for annotation in annotate(scene, number, bool(crowded[index])):
                annotations.append({**annotation, "id": len(annotations) + 1})
        content = {
            "info": {"description": "miniature in the layout of COCO 2017", "version": "1.0", "year": 2017},
            "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        path = benchmark_dir / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

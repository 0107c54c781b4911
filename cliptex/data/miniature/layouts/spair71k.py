"""SPair-71k: JPEGImages, ImageAnnotation and PairAnnotation by category and split, and Layout with the lists of pairs.

A pair has two views of one object, not two objects of a category, so that its correspondences are exact.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cliptex.benchmarks.spair71k import CATEGORIES
from cliptex.core.progress import track
from cliptex.data.miniature.kinds import KINDS
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_text
from cliptex.data.miniature.layouts.voc import boxes
from cliptex.data.miniature.scenes import SceneOptions
from cliptex.data.miniature.sequences import Shot, ViewPair

SUBJECTS = tuple((kind.name, kind.voc) for kind in KINDS if kind.voc in CATEGORIES)
SPLITS = {"train": "trn", "val": "test"}
YEARS = {"trn": 2008, "test": 2010}
"""The first part of images' names, which differ between the splits."""
NUM_IDS = 30
"""Keypoint ids of a category; an image has null for those that it does not show."""
SHARE = (0.6, 1.0)


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. The pairs of `val` are the official `test`."""
    folder = benchmark_dir / "SPair-71k"
    for split, official in SPLITS.items():
        names = []
        for index in track(range(renderer.counts[split]), f"render spair71k {split}"):
            kind, category = SUBJECTS[index % len(SUBJECTS)]
            pair = renderer.pair(split, index, SceneOptions(subject=kind, things=(0, 2), share=SHARE))
            names.append(_write_pair(folder, official, index, category, pair))
        for layout in ("large", "small"):
            save_text(folder / "Layout" / layout / f"{official}.txt", names)


def _write_pair(folder: Path, split: str, index: int, category: str, pair: ViewPair) -> str:
    """Write a pair. Returns its name."""
    images = [f"{YEARS[split]}_{2 * index + view:06d}" for view in (0, 1)]
    name = f"{index + 1:06d}-{images[0]}-{images[1]}:{category}"
    frames = [_box(shot, pair.instance) for shot in pair.shots]
    points = [[[round(float(x), 2), round(float(y), 2)] for x, y in view] for view in pair.points]
    for image, shot, frame, places in zip(images, pair.shots, frames, points, strict=True):
        save_jpeg(folder / "JPEGImages" / category / f"{image}.jpg", shot)
        height, width = shot.instances.shape
        known = dict(enumerate(places))
        content = {
            "filename": f"{image}.jpg",
            "image_width": width,
            "image_height": height,
            "category": category,
            "bndbox": frame,
            "kps": {str(number): known.get(number) for number in range(NUM_IDS)},
        }
        _save_json(folder / "ImageAnnotation" / category / f"{image}.json", content)
    sizes = [[shot.instances.shape[1], shot.instances.shape[0], 3] for shot in pair.shots]
    cut = [_is_cut(frame, size) for frame, size in zip(frames, sizes, strict=True)]
    areas = [(frame[2] - frame[0] + 1) * (frame[3] - frame[1] + 1) for frame in frames]
    content = {
        "pair_id": index + 1,
        "filename": name,
        "category": category,
        "src_imname": f"{images[0]}.jpg",
        "trg_imname": f"{images[1]}.jpg",
        "src_imsize": sizes[0],
        "trg_imsize": sizes[1],
        "src_bndbox": frames[0],
        "trg_bndbox": frames[1],
        "src_kps": points[0],
        "trg_kps": points[1],
        "kps_ids": [str(number) for number in range(len(points[0]))],
        "mirror": 0,
        # 0 easy, 1 medium, 2 hard
        "viewpoint_variation": int(np.searchsorted([np.pi / 8, np.pi / 4], pair.turn)),
        "scale_variation": int(np.searchsorted([1.5, 3], max(areas) / min(areas))),
        # 0 none, 1 source, 2 target, 3 both
        "truncation": cut[0] + 2 * cut[1],
        "occlusion": pair.occluded[0] + 2 * pair.occluded[1],
    }
    _save_json(folder / "PairAnnotation" / split / f"{name}.json", content)
    return name


def _box(shot: Shot, instance: int) -> list[int]:
    """The object's box, 1-based and inclusive like PASCAL VOC's: xmin, ymin, xmax, ymax."""
    left, top, right, bottom = boxes((shot.instances == instance).astype(np.uint8), 1)[0]
    return [left + 1, top + 1, right, bottom]


def _is_cut(frame: list[int], size: list[int]) -> bool:
    return frame[0] == 1 or frame[1] == 1 or frame[2] == size[0] or frame[3] == size[1]


def _save_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")

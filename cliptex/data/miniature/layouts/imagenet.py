"""ImageNet-1k: train/<wnid>/, val/ flat, the development kit's ground truth and meta.mat, LOC_synset_mapping.txt."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliptex.core.progress import track
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_mat, save_text
from cliptex.data.miniature.scenes import SceneOptions


@dataclass(frozen=True)
class Synset:
    """An ImageNet class, and the object that is rendered for it."""

    wnid: str
    words: str
    kind: str
    name: str  # specific name of the object, as given by its builder


SYNSETS = (
    Synset("n01558993", "robin, American robin, Turdus migratorius", "bird", "robin"),
    Synset("n02802426", "basketball", "sports ball", "basketball"),
    Synset("n03201208", "dining table, board", "dining table", "dining table"),
    Synset("n03376595", "folding chair", "chair", "folding chair"),
    Synset("n03388549", "four-poster", "bed", "four-poster"),
    Synset("n03991062", "pot, flowerpot", "potted plant", "flowerpot"),
    Synset("n04070727", "refrigerator, icebox", "refrigerator", "refrigerator"),
    Synset("n04146614", "school bus", "bus", "school bus"),
    Synset("n04254680", "soccer ball", "sports ball", "soccer ball"),
    Synset("n04285008", "sports car, sport car", "car", "sports car"),
    Synset("n04344873", "studio couch, day bed", "couch", "studio couch"),
    Synset("n04404412", "television, television system", "tv", "television"),
    Synset("n04507155", "umbrella", "umbrella", "umbrella"),
    Synset("n04591713", "wine bottle", "bottle", "wine bottle"),
    Synset("n04612504", "yawl", "boat", "yawl"),
    Synset("n06874185", "traffic light, traffic signal, stoplight", "traffic light", "traffic light"),
)
"""Sorted by wnid, which is the order of labels."""

PARENTS = (("n00001740", "entity"), ("n00001930", "physical entity"))
"""Synsets with children. The development kit lists them after the classes; they are not classes."""


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree. Images have a large main object; classes are equally frequent."""
    classes = len(SYNSETS)
    rng = np.random.default_rng([renderer.seed, renderer.stream("train")])
    ids = (rng.permutation(classes) + 1).tolist()  # ILSVRC ids are not in the order of the wnids
    for index in track(range(renderer.counts["train"]), "render imagenet train"):
        synset = SYNSETS[index % classes]
        path = benchmark_dir / "train" / synset.wnid / f"{synset.wnid}_{index + 1}.JPEG"
        save_jpeg(path, _scene(renderer, "train", index, synset))
    labels = rng.permutation(np.arange(renderer.counts["val"]) % classes).tolist()
    for index, label in enumerate(track(labels, "render imagenet val")):
        scene = _scene(renderer, "val", index, SYNSETS[label])
        save_jpeg(benchmark_dir / "val" / f"ILSVRC2012_val_{index + 1:08d}.JPEG", scene)
    devkit = benchmark_dir / "ILSVRC2012_devkit_t12" / "data"
    save_text(devkit / "ILSVRC2012_validation_ground_truth.txt", [str(ids[label]) for label in labels])
    counts = [len(range(label, renderer.counts["train"], classes)) for label in range(classes)]
    rows = [(ids[i], s.wnid, s.words, 0, counts[i]) for i, s in enumerate(SYNSETS)]
    rows += [(classes + 1 + i, wnid, words, 1, 0) for i, (wnid, words) in enumerate(PARENTS)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("num_train_images", "O")]
    synsets = np.array(sorted(rows), dtype=fields).reshape(-1, 1)
    save_mat(devkit / "meta.mat", {"synsets": synsets})
    save_text(benchmark_dir / "LOC_synset_mapping.txt", [f"{synset.wnid} {synset.words}" for synset in SYNSETS])


def _scene(renderer: Renderer, split: str, index: int, synset: Synset):
    options = SceneOptions(subject=synset.kind, name=synset.name, things=(0, 2), scenery=0.7, share=(0.5, 1.0))
    return renderer.scene(split, index, options)

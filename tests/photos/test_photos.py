"""Real photographs, their truth and a real network through the package's commands, as its users run them.

53 photographs from COCO 2017 and 1,000 from Flickr8k, in the folder named by CLIPTEX_PHOTOS (its README has sources and
licences; none of it is in this repository). Figures of so few images, and of a model trained for seconds, prove nothing
about quality: what is tested is that real files are read as they are, that a real network labels as well here as in
its authors' code, and that all later stages take what comes.
"""

import csv
import hashlib
import io
import json
import math
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml
from commands import command
from espnetv2 import COCO_OF_VOC
from PIL import Image

from cliptex.benchmarks.coco import FOLDERS, Coco
from cliptex.core.files import sha256_file

PHOTOS = Path(os.environ.get("CLIPTEX_PHOTOS") or "/nonexistent")
COCO, FLICKR = PHOTOS / "open" / "coco", PHOTOS / "research-only" / "flickr8k"
WEIGHTS = PHOTOS / "open" / "weights" / "espnetv2_s_2.0_pascal_256x256.pth"
GOLDEN = {"mIoU": 27.10, "accuracy": 83.46, "person": 79.01}
"""Of the authors' own network on the same 53 photographs, percent."""
TOLERANCE = 0.05
"""Percentage points; the figures are rounded to 0.01, and kernels of other processors round differently."""
IMAGES, OBJECTS = {"train": 26, "eval": 27}, {"train": 181, "eval": 174}

pytestmark = [
    pytest.mark.photos,
    pytest.mark.skipif("CLIPTEX_PHOTOS" not in os.environ, reason="CLIPTEX_PHOTOS does not name the photographs"),
]
needs_flickr = pytest.mark.skipif(not FLICKR.is_dir(), reason="CLIPTEX_PHOTOS has no research-only/flickr8k")


def config(shards: list[str], per_job: int) -> dict:
    """Laid over the default configuration: these tars, this network as the expert, and a model of four blocks."""
    expert = {"plugin": "espnetv2:Espnetv2Expert", "weights": "local", "path": str(WEIGHTS), "licence": "MIT"}
    return {
        "dataset": {"source": "webdataset", "shards": shards},
        "experts": {"espnetv2": {**expert, "batch_size": 1, "precision": "fp32"}},
        "label_stores": {"segmentation": {"task": "segmentation", "expert": "espnetv2"}},
        "labels": {"shards_per_job": per_job},
        "download": {"shards_per_job": len(shards)},
        # without the prior of the labels' position, from which a few steps would not lower the loss
        "train": {"batch_size": 50, "warmup_steps": 4, "log_every": 1, "label_prior_cells": 0},
        "models": {"photos": {"steps": 40, "learning_rate": 2e-3, "tasks": {"segmentation": 1.0}}},
        "benchmark_data": {"benchmarks": {"coco": {"source": "subset", "path": str(COCO)}}},
        "probes": {"benchmarks": {"coco": {"detection": {"heads": {"mask_rcnn": {"steps": 20}}}}}},
    }


class Run:
    """A working directory with tars of photographs, in which commands run as in a terminal."""

    def __init__(self, folder: Path, tars: list[list[dict]], shards_per_job: int = 1):
        self.folder = folder
        self.config = folder / "photos.yaml"
        self.batches = math.ceil(len(tars) / shards_per_job)
        shards = [str(folder / f"photos-{number}.tar") for number in range(len(tars))]
        for path, samples in zip(shards, tars, strict=True):
            with webdataset.TarWriter(path) as writer:
                for sample in samples:
                    writer.write(sample)
        self.config.write_text(yaml.safe_dump(config(shards, shards_per_job)), encoding="utf-8")

    def commands(self, *lines: str) -> list[str]:
        """Run commands at the same time, on one thread each; what they print."""

        def one(numbered: tuple[int, str]) -> str:
            number, line = numbered
            arguments = ["--threads", "1", *line.split(), "--config", str(self.config)]
            ended = command(self.folder, arguments, said=self.folder / f".said-{number}.txt")
            print(f"{ended.seconds:6.1f} s of processor time: {line}")
            assert ended.code == 0, f"{line}: {ended.said}"
            return ended.said

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, enumerate(lines)))

    def label(self) -> None:
        """Everything from the tars to an indexed label store."""
        self.commands("build-shards --batch 0", "train-expert --name espnetv2")
        self.commands("index-shards")
        self.commands(*(f"label --store segmentation --batch {batch}" for batch in range(self.batches)))
        self.commands("index-labels --store segmentation")

    def index(self) -> dict:
        return json.loads((self.folder / "results/labels/segmentation/index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def coco() -> Coco:
    return Coco(COCO)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory, coco) -> Run:
    """The 53 photographs of COCO as two tars, labelled."""
    tars = []
    for part, folder in FOLDERS.items():
        samples = []
        for name, sample in zip(coco.names(part), coco.samples(part), strict=True):
            caption = " and ".join(sorted({coco.class_names[label] for label in sample["labels"]})) or "a scene"
            image = (COCO / folder / name).read_bytes()
            samples.append({"__key__": Path(name).stem, "jpg": image, "txt": f"a photograph of {caption}"})
        tars.append(samples)
    run = Run(tmp_path_factory.mktemp("coco"), tars)
    run.label()
    return run


def test_the_files_are_those_of_the_golden_figures():
    lines = (PHOTOS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    expected = {name.removeprefix("./"): digest for digest, name in (line.split(maxsplit=1) for line in lines)}
    present = {str(path.relative_to(PHOTOS)) for path in PHOTOS.rglob("*") if path.is_file()}
    assert set(expected) == present - {"SHA256SUMS"}
    assert [name for name, digest in expected.items() if sha256_file(PHOTOS / name) != digest] == []


@pytest.mark.parametrize("part", ["train", "eval"])
def test_the_coco_reader_reads_photographs_as_they_are(coco, part):
    samples = list(coco.samples(part))
    assert len(samples) == IMAGES[part]
    assert sum(len(sample["boxes"]) for sample in samples) == OBJECTS[part]
    for sample in samples:
        height, width = sample["image"].shape[:2]
        assert sample["masks"].shape == (len(sample["boxes"]), height, width) and sample["masks"].any(axis=(1, 2)).all()
        for (left, top, right, bottom), mask in zip(sample["boxes"], sample["masks"], strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            inside = np.array([columns[0] - left, rows[0] - top, right - columns[-1] - 1, bottom - rows[-1] - 1])
            assert (inside > -2).all(), f"{sample['id']}: the box is not around its mask"


def exported(tar: Path) -> dict[str, np.ndarray]:
    """Key -> label of a tar that `labels export` wrote."""
    with tarfile.open(tar) as file:
        return {
            member.name.partition(".")[0]: np.array(Image.open(io.BytesIO(file.extractfile(member).read())))
            for member in file
            if member.name.endswith(".segmentation.png")
        }


def truth(coco: Coco, folder: str, key: str) -> np.ndarray:
    """COCO's classes 1..80 of the 20 that the network knows, 0 other, 255 unknown; uint8 [H, W]."""
    panoptic = np.array(Image.open(COCO / "masks" / folder / f"{key}.png"))
    classes = np.zeros(256, np.uint8)
    for index, number in enumerate(coco.category_ids, start=1):
        classes[number] = index if index in COCO_OF_VOC else 0
    return np.where(panoptic == 0, np.uint8(255), classes[panoptic])


def test_a_real_network_labels_as_well_as_in_its_authors_code(labelled, coco):
    (said,) = labelled.commands("labels export --stores segmentation --out exported")
    assert "2 tars, 53 samples" in said
    counts = np.zeros((81, 81), np.int64)
    for shard, folder in enumerate(FOLDERS.values()):
        labels = exported(labelled.folder / f"exported/{shard:05d}.tar")
        assert len(labels) == (26, 27)[shard]
        for key, label in labels.items():
            expected = truth(coco, folder, key)
            np.add.at(counts, (expected[expected != 255], label[expected != 255]), 1)
    hits, present = np.diag(counts), counts.sum(axis=1) > 0
    shares = 100 * hits / np.maximum(counts.sum(axis=0) + counts.sum(axis=1) - hits, 1)
    found = {"mIoU": shares[present].mean(), "accuracy": 100 * hits.sum() / counts.sum(), "person": shares[1]}
    print({name: round(float(value), 3) for name, value in found.items()})
    assert found == pytest.approx(GOLDEN, abs=TOLERANCE)


def test_labels_can_be_inspected(labelled):
    index = labelled.index()
    assert (index["labelled"], index["images"], index["failures"]) == (53, 53, {})
    assert index["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() and index["licence"] == "MIT"
    assert {"person", "dog", "car"} <= set(index["statistics"]["classes"])
    (said,) = labelled.commands("labels inspect --stores segmentation --images 12")
    assert "53 of 53 images labelled (100.0%)" in said and "person: " in said
    sheet = Image.open(labelled.folder / "results/labels.png")
    assert sheet.height > 12 * 64 and np.asarray(sheet.convert("RGB")).std() > 20


def test_labels_are_the_same_when_made_again(labelled):
    (said,) = labelled.commands("labels audit --stores segmentation --samples 6")
    assert "segmentation" in said


@needs_flickr
def test_a_model_learns_from_photographs_and_is_probed_on_others(tmp_path_factory):
    captions: dict[str, str] = {}
    with (FLICKR / "captions.tsv").open(encoding="utf-8", newline="") as file:
        for name, caption in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            captions.setdefault(name, caption)  # the first of five
    assert len(captions) == 1000
    pairs = [
        {"__key__": Path(name).stem, "jpg": (FLICKR / "images" / name).read_bytes(), "txt": caption}
        for name, caption in captions.items()
    ]
    run = Run(tmp_path_factory.mktemp("flickr8k"), [pairs[start : start + 250] for start in range(0, 1000, 250)], 2)
    run.label()
    assert (run.index()["labelled"], run.index()["failures"]) == (1000, {})

    run.commands("train --model photos --seed 0")
    folder = run.folder / "results/models/photos/seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    print(lines[0], lines[-1])
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "contrastive", "segmentation"))
    first, last = ([line["segmentation"] for line in part] for part in (lines[:5], lines[-5:]))
    assert np.mean(last) < 0.8 * np.mean(first)
    files = ("open_clip_config.json", "open_clip_model.safetensors", "heads.safetensors", "train.json")
    assert all((folder / name).stat().st_size for name in files)

    run.commands("fetch --benchmark coco")
    run.commands("probe --benchmark coco --models photos,random --seed 0")
    for model in ("photos", "random"):
        folder = run.folder / "results/probes/coco" / model / "seed0"
        result = json.loads((folder / "mask_rcnn.json").read_text(encoding="utf-8"))
        assert (result["source"], result["num_train"], result["num_eval"]) == ("subset", 26, 27)
        metrics = {row["task"]: row["metrics"] for row in result["results"]}
        print(model, metrics)
        assert set(metrics) == {"detection", "instance_segmentation"}
        for values in metrics.values():
            assert {"AP", "AP50", "AP75"} <= set(values)
            assert all(value is None or 0 <= value <= 100 for value in values.values())  # not NaN
        assert all((folder / f"mask_rcnn{end}.npz").stat().st_size for end in ("", ".per_image", ".thumbnails"))

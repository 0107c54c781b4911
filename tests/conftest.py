"""Fixtures that create their own data: small tars of random images. No test needs the network, a GPU or weights."""

import os
import random
import shutil
from contextlib import chdir
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from small_run import snakemake
from tiny import WeightlessExpert, hybrid_dpt

from cliptex.config import Config
from cliptex.core import paths
from cliptex.data.images import encode_jpeg
from cliptex.data.shard_index import index_shards
from cliptex.data.shards import Pair, write_shard
from cliptex.experts.training import train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch

pytest_plugins = ["browser"]


@pytest.fixture(autouse=True)
def same_numbers():
    """Seed all random number generators, so that a test does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def drawn_pair(key: str, seed: int, height: int = 40, width: int = 56) -> Pair:
    """A smooth random image with a caption."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3))
    pixels = np.kron(coarse, np.ones((height // 4, width // 4, 1))).astype(np.uint8)
    return Pair(key, encode_jpeg(pixels), f"a picture number {seed}", {"width": width, "height": height})


def write_shards(folder: Path) -> list[Path]:
    paths = [folder / "results" / "shards" / f"{shard:05d}.tar" for shard in range(2)]
    for shard, path in enumerate(paths):
        write_shard(path, [drawn_pair(f"{shard:05d}{i:04d}", 8 * shard + i) for i in range(8)])
    return paths


@pytest.fixture
def shard_paths(tmp_path):
    """Two shards of eight pairs."""
    return write_shards(tmp_path)


@pytest.fixture
def shard_index(shard_paths):
    """Index of the two shards."""
    path = shard_paths[0].parent / "index.json"
    index_shards(shard_paths, path, min_yield=0.5)
    return path


class Brightness(WeightlessExpert):
    """Labels of any task from an image's brightness; no weights. `network: {task: ..., fail: [keys]}`."""

    def __init__(self, settings):
        super().__init__(settings)
        self.task = settings["network"]["task"]

    def predict(self, images, keys):
        return [self.label(image, key) for image, key in zip(images, keys, strict=True)]

    def label(self, image, key):
        if key in self.settings["network"].get("fail", []):
            raise ValueError("fails on purpose")
        bright = image.mean(axis=-1).astype(np.float32)
        if self.task == "segmentation":
            return (bright > 128).astype(np.uint8)
        if self.task == "depth":
            return bright
        slope = (bright / 255 - 0.5)[..., None]
        normal = np.concatenate([slope, 0 * slope, np.sqrt(1 - slope**2), 1 + 0 * slope], axis=-1)
        return normal.astype(np.float32)


ENCODER = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16], "stem_type": "deep", "stem_width": 8}
SMALL = {
    "mask_rcnn": {
        "architecture": "small",
        "min_side_px": 48,
        "max_side_px": 96,
        "score_threshold": 0.3,
        "small": {
            "encoder_options": ENCODER,
            "fpn_channels": 16,
            "anchors_px": [8, 16, 32, 48],
            "box_features": 32,
            "canonical_px": 48,
        },
    },
    "dpt": {
        "config": hybrid_dpt(
            [16, 16, 16],
            image_size=32,
            num_hidden_layers=2,
            intermediate_size=32,
            backbone_out_indices=[0, 0, 0, 1],
            neck_hidden_sizes=[16, 16, 16, 16],
            hidden_dropout_prob=0.0,
        )
    },
    "nll_angmf": {
        "encoder": "resnet18",
        "encoder_options": ENCODER,
        "widths": [32, 32, 16, 16, 8],
        "hidden": 16,
    },
}
"""`network` options of small versions of the published experts."""

STUDENT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


TASKS = ("segmentation", "depth", "normals")


def tiny_config(shard_paths: list[Path]) -> Config:
    return Config.load(
        {
            "dataset": {"source": "webdataset", "shards": [str(path) for path in shard_paths]},
            "experts": {
                f"bright_{task}": {"plugin": "conftest:Brightness", "network": {"task": task, "fail": ["000010003"]}}
                for task in TASKS
            },
            "label_stores": {task: {"task": task, "expert": f"bright_{task}"} for task in TASKS},
            "student": {"architecture": STUDENT},
            "train": {"batch_size": 4, "warmup_steps": 2, "target_size_px": 8, "checkpoint_every": 2, "log_every": 1},
            "models": {
                "clip": {"steps": 3},
                "clip_ft": {"init": "clip", "steps": 6},
                "cliptex": {"init": "clip", "steps": 6, "tasks": dict.fromkeys(TASKS, 1.0)},
                "shuffled": {"init": "clip", "steps": 6, "tasks": {"depth": 1.0}, "shuffle_labels": True},
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder that is copied for `tiny`."""
    folder, index = tmp_path_factory.mktemp("tiny"), paths.SHARD_INDEX
    shard_paths = write_shards(folder)
    config = tiny_config(shard_paths)
    with chdir(folder):
        index_shards([path.relative_to(folder) for path in shard_paths], index, 0.5)
        for task in TASKS:
            expert = paths.expert(f"bright_{task}")
            train_expert(config, f"bright_{task}", paths.EXPERT_RENDERS, expert, 0)
            label_batch(config, task, 0, index, expert, paths.labels(task))
            index_labels(config, task, index, paths.labels(task))
    return folder


@pytest.fixture
def tiny(tmp_path, shard_paths, tiny_run, monkeypatch):
    """A working directory with two shards, three label stores and a configuration of small models."""
    shutil.copytree(tiny_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tiny_config(shard_paths)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a complete run of config/test.yaml, for tests of the group "workflow", which must not change it."""
    directory = tmp_path_factory.mktemp("run")
    result = snakemake(directory, "all", cores=8)
    assert result.returncode == 0, result.stderr[-6000:]
    return directory

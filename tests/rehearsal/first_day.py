"""A configuration for the full size, run as it is, with addresses and counts laid over it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hosts import Hosts, sha256
from publishers import COUNTS, SBD, TRAIN, write_list, write_mirrors

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def heads(**steps: int) -> dict[str, Any]:
    return {name: {"steps": count, "batch_size": 2} for name, count in steps.items()}


BY_TEXT = {
    "voc": {"text_segmentation": {"templates": "simple"}},
    "ade20k": None,  # as VOC, with seven times as many prompts
    "coco": {"region_classification": {"templates": "simple", "input": {"size_px": 224}}},
}
SEGMENTATION = {"augment": {"views": 1}, "heads": heads(linear=2, deeplabv3=1, pspnet=1)}
COUNTED: dict[str, dict[str, Any]] = {
    "paper": {
        "dataset": {"urls": {"rows": 9, "rows_per_shard": 3}},
        "download": {"shards_per_job": 2, "threads": 4, "timeout_s": 2, "max_seconds": 4, "retries": 0},
        "train": {"batch_size": 2, "held_out": 2, "watch": {"zero_shot_images": 4}},
        "models": {"clip_ft": {"epochs": 1}, "cliptex": {"epochs": 1}},
        "seeds": [0],
        "probes": {
            "baselines": [],
            "benchmarks": {
                "voc": {"semantic_segmentation": SEGMENTATION},
                "ade20k": {"semantic_segmentation": SEGMENTATION},
                "coco": {
                    "detection": {
                        "heads": {
                            "mask_rcnn": {"steps": 1, "batch_size": 1, "proposals": 100, "rois": 64},
                            "ssd": {"steps": 1, "batch_size": 1},
                        }
                    }
                },
            },
        },
        "zeroshot": {"published": {"clip": None, "clip_datacomp": None}, "templates": "simple"},
        "training_free": {"benchmarks": BY_TEXT},
        "report": {"resamples": 100},
    },
    "one_gpu": {
        "dataset": {"shards": ["hf://datasets/pixparse/cc3m-wds/cc3m-train-{0000..0001}.tar"]},
        "train": {"batch_size": 2, "held_out": 2, "watch": {"zero_shot_images": 4}},
        "models": {"clip_ft": {"epochs": 1}, "cliptex": {"epochs": 1}},
        "probes": {
            "baselines": [],
            "benchmarks": {
                "voc": {"semantic_segmentation": {"augment": {"views": 1}, "heads": heads(linear=2, deeplabv3=1)}},
                "ade20k": {"semantic_segmentation": {"augment": {"views": 1}, "heads": heads(linear=2, deeplabv3=1)}},
            },
        },
        "zeroshot": {"templates": "simple"},
        "training_free": {"benchmarks": BY_TEXT | {"coco": None}},
        "report": {"resamples": 100},
    },
}
"""Configuration -> the counts that are smaller than in reality."""


@dataclass
class World:
    """What is published, and where."""

    folder: Path
    server: Hosts
    network: str
    """Name of torchvision's Mask R-CNN."""
    archives: dict[str, dict[str, Path]]

    @classmethod
    def of(cls, folder: Path, server: Hosts, network: str, archives: dict[str, dict[str, Path]]) -> "World":
        for name, files in archives.items():
            server.published |= {f"/{name}/{file}": path for file, path in files.items() if name != "imagenet"}
        server.published[f"/models/{network}"] = folder / "pytorch" / network
        hub = folder / "hub"
        for repository in [*hub.glob("[!d]*/*"), *hub.glob("depth-anything/*"), *hub.glob("datasets/*/*")]:
            server.repositories[str(repository.relative_to(hub))] = repository
        return cls(folder, server, network, archives)

    def addresses(self, directory: Path) -> dict[str, Any]:
        """The overlay of addresses; puts in place what a user puts there by hand."""
        write_mirrors(directory / "mirrors.tsv", self.archives, self.server.url)
        return {
            "dataset": {"urls": {"allow_private": ["127.0.0.1"]}},
            "benchmark_data": {
                "archives": "mirrors.tsv",
                "benchmarks": {"imagenet": {"path": str(self.folder / "archives" / "imagenet")}},
            },
            "download": {"python": sys.executable},
            "experts": {"maskrcnn_resnet50_fpn_v2": {"url": f"{self.server.url}/models/{self.network}"}},
        }


def troubles(name: str, world: World) -> tuple[set[str], set[str]]:
    """Paths that the servers refuse once with 429, and paths of which they send only a part at first."""
    if name == "paper":
        busy = {"/Intel/dpt-large/resolve/main/config.json", "/shikunl/prismer/resolve/main/expert_weights/scannet.pt"}
        cut = world.folder / "hub/laion/CLIP-ViT-B-16-laion2B-s34B-b88K/open_clip_model.safetensors"
    else:
        busy = {"/datasets/pixparse/cc3m-wds/resolve/main/cc3m-train-0001.tar"}
        cut = world.folder / "hub/datasets/pixparse/cc3m-wds/cc3m-train-0000.tar"
    return busy, {"/ade20k/ADEChallengeData2016.zip", f"/models/{world.network}", f"/cdn/{sha256(cut)}"}


class Rehearsal:
    """A run of config/NAME.yaml in a fresh folder."""

    def __init__(self, name: str, world: World, directory: Path):
        self.name, self.world, self.directory = name, world, directory
        addresses = world.addresses(directory)
        if name == "paper":
            write_list(directory / "resources/cc3m/Train_GCC-training.tsv", world.server)
            # three of the 1000 classes, which have their names in another file
            (directory / "resources/imagenet").mkdir()
            names = world.folder / "archives/trees/imagenet/LOC_synset_mapping.txt"
            shutil.copy(names, directory / "resources/imagenet")
        else:
            del addresses["dataset"], addresses["download"], addresses["benchmark_data"]["benchmarks"]
        self.busy, self.cut = troubles(name, world)
        world.server.busy, world.server.cut = set(self.busy), set(self.cut)
        world.server.requests.clear()
        # paper.yaml has SBD's masks, too
        self.counts = COUNTS | ({"voc": COUNTS["voc"] | {"train": TRAIN + SBD}} if name == "paper" else {})
        self.overlays = [directory / "addresses.yaml", directory / "counts.yaml"]
        for path, values in zip(self.overlays, (addresses, COUNTED[name]), strict=True):
            path.write_text(yaml.safe_dump(values))

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        configs = [ROOT / f"config/{self.name}.yaml", *self.overlays]
        command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", self.directory, "--cores", "2"]
        return self._run([*command, *arguments, "all", "--configfile", *configs])

    def _run(self, command: list[Any]) -> subprocess.CompletedProcess:
        paths = [str(Path(__file__).parent / "counts"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "REHEARSAL_COUNTS": json.dumps(self.counts),
            "HF_ENDPOINT": self.world.server.url,
            "HF_HOME": str(self.directory / "huggingface"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "*",
        }
        environment.pop("OMP_NUM_THREADS", None)  # set for other tests
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=ROOT)

"""Throughput of joint loading relative to plain image-text loading, and growth of memory.

    python benchmarks/loader.py [--quick] [--images 384] [--repeats 5] [--epochs 6] [--photos FOLDER]

`loader/photographs`, `loader/mixture`
          samples per CPU second of a process that loads 224 px crops of images with captions AND the labels of three
          stores, relative to a plain pipeline that loads images and captions only: webdataset, Pillow, torchvision's
          RandomResizedCrop (bicubic) and flip, without normalisation, stacked. Decoder, crops and the sizes of labels
          and targets are those of config/paper.yaml. Images have 256 x 384 pixels, or a short side of 256 pixels and a
          mixture of the shapes of web images. `over` has the median ratio to each other way of loading the same images:
          `pillow` is this loader with the default decoder; `streaming` (mosaicml-streaming) and `datasets` (Hugging
          Face, Parquet), where they are installed, load images and captions only, by the plain pipeline's transform.
          The sides alternate, in one process with one thread, and seconds are CPU seconds. The ratio is the median, the
          spread minimum and maximum.
`loader/memory`
          resident memory after the last epoch relative to that after the second, with windows smaller than the data.

Images are rendered scenes with noise, in JPEG files of quality 95 as img2dataset writes them, with exact labels; or the
photographs (*.jpg) below the folder `--photos`, with the labels of the scenes. The last line is a JSON list.
"""

import argparse
import importlib.util
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import webdataset
import yaml
from machine import machine
from PIL import Image
from threadpoolctl import threadpool_limits
from torchvision.transforms import InterpolationMode, v2

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.data.images import decode_image, encode_jpeg
from cliptex.data.miniature.sets import scene_for_key
from cliptex.data.shard_index import index_shards
from cliptex.data.shards import Pair, read_shard, write_shard
from cliptex.experts.training import train_expert
from cliptex.experts.truth import TruthExpert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.training.loader import JointLoader

PAPER = Path(__file__).resolve().parents[1] / "config" / "paper.yaml"
TASKS = ("segmentation", "depth", "normals")
CROP_PX = 224
SHORT_SIDE = 256
SCENE_PX = 384
SCENES = 32
NOISE = 8
BATCH_SIZE = 16
SHARDS = 4
GOAL = 1.3
SHAPES = {
    "photographs": ((2, 3),),
    "mixture": ((2, 3), (3, 4), (3, 2), (1, 1), (9, 16), (4, 3), (2, 3), (5, 8)),
}
"""Height to width of the images, in turn."""


class CutTruth(TruthExpert):
    """The exact labels of square scenes, cut to the images' shapes."""

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        return [cut(self._label(scene_of(key)), *image.shape[:2]) for key, image in zip(keys, images, strict=True)]

    def load(self, weights: Path | None) -> None:
        super().load(weights)
        square = [np.empty((SCENE_PX, SCENE_PX, 3), np.uint8)]
        self._label = cache(lambda scene: super(CutTruth, self).predict(square, [scene])[0])


PLUGIN = CutTruth


def scene_of(key: str) -> str:
    """Key of the scene that an image shows; rendering takes longer than measuring."""
    return f"{int(key) % SCENES:09d}"


def cut(square: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest part of a square array with a shape, by nearest neighbour."""
    rows, columns = (np.arange(side) * len(square) // max(height, width) for side in (height, width))
    return np.ascontiguousarray(square[rows[:, None], columns])


def write_images(config: Config, shapes: Sequence[tuple[int, int]], images: int, photos: Path | None) -> None:
    """Write the shards, in the working directory."""
    rng = np.random.default_rng(0)
    files = itertools.cycle(sorted(photos.rglob("*.jpg"))) if photos else None
    numbers = itertools.count()
    for shard in config.dataset.shards:
        pairs = []
        for number in itertools.islice(numbers, images // SHARDS):
            key, sides = f"{number:09d}", shapes[number % len(shapes)]
            height, width = (round(side * SHORT_SIDE / min(sides)) for side in sides)
            if files:
                photo = Image.fromarray(decode_image(next(files).read_bytes()))
                pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
            else:
                pixels = cut(scene_for_key(config.miniature, scene_of(key)).image, height, width)
                noisy = pixels + rng.normal(0, NOISE, (height, width, 1))
                pixels = np.clip(noisy, 0, 255).astype(np.uint8)
            pairs.append(Pair(key, encode_jpeg(pixels, quality=95), f"a rendered scene, {key}"))
        write_shard(Path(shard), pairs)


def make_data(shapes: Sequence[tuple[int, int]], images: int, photos: Path | None) -> Config:
    """Make shards and their exact label stores in the working directory."""
    paper = yaml.safe_load(PAPER.read_text(encoding="utf-8"))
    train = {name: paper["train"][name] for name in ("decoder", "target_size_px", "crop_scale")}
    expert = {"plugin": f"{Path(__file__).stem}:CutTruth"}
    config = Config.load(
        {
            "dataset": {"source": "webdataset", "shards": [str(paths.shard(number)) for number in range(SHARDS)]},
            "miniature": {"image_size_px": SCENE_PX},
            "experts": {f"true_{task}": expert | {"network": {"task": task}} for task in TASKS},
            "label_stores": {task: {"task": task, "expert": f"true_{task}"} for task in TASKS},
            "labels": {"max_side_px": paper["labels"]["max_side_px"]},
            "train": {"batch_size": BATCH_SIZE, "shuffle_shards": 2, **train},
        }
    )
    write_images(config, shapes, images, photos)
    index_shards([Path(shard) for shard in config.dataset.shards], paths.SHARD_INDEX, 1.0)
    for task in TASKS:
        folder = paths.expert(f"true_{task}")
        train_expert(config, f"true_{task}", paths.EXPERT_RENDERS, folder, 0)
        label_batch(config, task, 0, paths.SHARD_INDEX, folder, paths.labels(task), 0)
        index_labels(config, task, paths.SHARD_INDEX, paths.labels(task))
    return config


def joint(config: Config, **train: str) -> JointLoader:
    stores = {task: (find("tasks", task)(), paths.labels(task) / "index.json") for task in TASKS}
    return JointLoader(paths.SHARD_INDEX, stores, config.train.model_copy(update=train), CROP_PX, 0)


def transform_of(config: Config) -> Callable[[bytes], torch.Tensor]:
    """JPEG bytes to a crop, uint8 [3, S, S], as usual."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(CROP_PX, config.train.crop_scale, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(config.train.flip),
            v2.PILToTensor(),
        ]
    )
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def plain(config: Config) -> Iterable:
    """Images and captions as usual: shuffle buffer, decoding, random crop, batching."""
    transform = transform_of(config)

    def prepare(sample: dict) -> tuple[torch.Tensor, str]:
        return transform(sample["jpg"]), sample["txt"].decode()

    def stack(samples: list) -> tuple[torch.Tensor, list[str]]:
        images, captions = zip(*samples, strict=True)
        return torch.stack(images), list(captions)

    data = webdataset.WebDataset(config.dataset.shards, shardshuffle=False).repeat()
    return data.shuffle(100).map(prepare).batched(BATCH_SIZE, collation_fn=stack)


def loaded(data: torch.utils.data.Dataset, **options: object) -> Iterator:
    """Batches without end."""
    while True:
        yield from torch.utils.data.DataLoader(data, BATCH_SIZE, drop_last=True, **options)


def streaming(config: Config) -> Iterator:
    """The same images and captions by mosaicml-streaming."""
    from streaming import MDSWriter, StreamingDataset

    transform = transform_of(config)

    class Pairs(StreamingDataset):
        def __getitem__(self, row: int) -> tuple[torch.Tensor, str]:
            sample = super().__getitem__(row)
            return transform(sample["jpg"]), sample["txt"]

    with MDSWriter(out="mds", columns={"jpg": "bytes", "txt": "str"}) as out:
        for shard in config.dataset.shards:
            for pair in read_shard(Path(shard)):
                out.write({"jpg": pair.image, "txt": pair.caption})
    return loaded(Pairs(local="mds", shuffle=True, batch_size=BATCH_SIZE))


def huggingface(config: Config) -> Iterator:
    """The same images and captions by Hugging Face datasets."""
    import datasets

    transform = transform_of(config)

    def prepare(rows: dict) -> dict:
        return {"image": [transform(data) for data in rows["jpg"]], "txt": rows["txt"]}

    pairs = [pair for shard in config.dataset.shards for pair in read_shard(Path(shard))]
    columns = {"jpg": [pair.image for pair in pairs], "txt": [pair.caption for pair in pairs]}
    datasets.Dataset.from_dict(columns).to_parquet("pairs.parquet")
    data = datasets.Dataset.from_parquet("pairs.parquet", cache_dir="cache").with_transform(prepare)
    return loaded(data, shuffle=True)


PEERS = {"streaming": streaming, "datasets": huggingface}


def rate(batches: object, count: int) -> float:
    """Samples per CPU second over `count` batches."""
    start = time.process_time()
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH_SIZE / (time.process_time() - start)


def resident_mb() -> float:
    """Current resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare(name: str, config: Config, images: int, repeats: int) -> dict:
    """The result of a mixture of shapes."""
    makers = {"joint": lambda: joint(config).batches(0), "plain": lambda: iter(plain(config))}
    makers["pillow"] = lambda: joint(config, decoder="pillow").batches(0)
    makers |= {peer: lambda f=make: f(config) for peer, make in PEERS.items() if importlib.util.find_spec(peer)}
    sides = {side: make() for side, make in makers.items()}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for batches in sides.values():
        rate(batches, 2)  # warm-up
    for _ in range(repeats):
        for side, batches in sides.items():
            rates[side].append(rate(batches, images // BATCH_SIZE))
    joint_rates = rates["joint"]
    ratios = {
        side: [one / other for one, other in zip(joint_rates, values, strict=True)] for side, values in rates.items()
    }
    ratio = statistics.median(ratios["plain"])
    return {
        "benchmark": f"loader/{name}",
        "ratio": round(ratio, 3),
        "spread": [round(min(ratios["plain"]), 3), round(max(ratios["plain"]), 3)],
        "goal": f">= {GOAL}",
        "holds": ratio >= GOAL,
        "what": f"samples a processor second at {CROP_PX} px, with three label stores over without, webdataset",
        "over": {side: round(statistics.median(values), 3) for side, values in ratios.items() if side != "joint"},
        "samples_per_s": {side: round(statistics.median(values), 1) for side, values in rates.items()},
        "images": images,
        "bytes_per_image": round(sum(Path(shard).stat().st_size for shard in config.dataset.shards) / images),
        "decoder": config.train.decoder,
        "label_size": config.labels.max_side_px,
        "target_size": config.train.target_size_px,
        "machine": machine(),
    }


def measure_memory(config: Config, epochs: int) -> dict:
    loader = joint(config)
    batches, memory = loader.batches(0), []
    for _ in range(epochs):
        rate(batches, loader.steps_per_epoch)
        memory.append(resident_mb())
    growth = memory[-1] / memory[1]
    return {
        "benchmark": "loader/memory",
        "ratio": round(growth, 4),
        "spread": [round(min(memory[1:]) / memory[1], 4), round(max(memory[1:]) / memory[1], 4)],
        "goal": "<= 1.02",
        "holds": growth <= 1.02,
        "what": "resident memory after the last epoch over that after the second",
        "resident_mb": [round(megabytes, 1) for megabytes in memory],
        "epochs": epochs,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="192 images, three repeats, four epochs")
    parser.add_argument("--images", type=int, help="images in four shards")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--epochs", type=int, help="epochs over which memory is measured")
    parser.add_argument("--photos", type=lambda path: Path(path).absolute(), help="folder of photographs to use")
    options = parser.parse_args(argv)
    images = options.images or (192 if options.quick else 384)
    repeats = options.repeats or (3 if options.quick else 5)
    epochs = options.epochs or (4 if options.quick else 6)
    torch.set_num_threads(1)
    threadpool_limits(1)
    results, start = [], Path.cwd()
    for name, shapes in SHAPES.items():
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            try:
                config = make_data(shapes, images, options.photos)
                results.append(compare(name, config, images, repeats))
                if name == "mixture":
                    results.append(measure_memory(config, epochs))
            finally:
                os.chdir(start)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Compare labelling a shard with the bare forward passes of its expert.

    python benchmarks/label.py [--quick] [--experts mask_rcnn dpt_large dpt_hybrid nll_angmf] [--images 8]
        [--short-side 256] [--batch-size 4] [--batch-window 64] [--repeats 3] [--threads 1]

The label stage reads the shard, decodes its images, runs the expert, resizes its labels, writes the label file, and
reads it again for the job's record (digest, counts, pixels of each class). The bare side only calls the expert's
network on the same tensors, recorded before, with torchvision's own end of Mask R-CNN, which pastes the masks. Network,
batch size, threads, precision and images are the same. The images are rendered scenes in a mixture of the shapes of web
images: seven of ten have a usual ratio of sides, the others any. The networks are the published ones at full size, with
random weights; Mask R-CNN has no score threshold, so that it always paints 100 instances, the most work after its
forward passes. Loading the network is not measured: it happens once per job.

Repeats alternate between the two. `ratio` is CPU seconds of this process of the bare passes divided by those of the
stage, where overlap hides nothing (median; the spread is minimum and maximum); `wall_ratio` is the same in wall time.
`images_a_pass` is the mean number of images in a forward pass over 4,096 such shapes, by the `batch_window` from which
passes are filled. `--quick` takes two images, once, without DPT-Large. The last line is a JSON list.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from machine import machine

from cliptex.config import ExpertConfig, Labels, Miniature

if TYPE_CHECKING:
    from cliptex.experts.base import Expert

GOAL = 0.95
EXPERTS = {
    "mask_rcnn": ("mask_rcnn", "torchvision maskrcnn_resnet50_fpn_v2, short side 800", {"score_threshold": 0.0}),
    "dpt_large": ("dpt", "dpt-large, 384 x 384", {}),
    "dpt_hybrid": ("dpt", "dpt-hybrid-midas, 384 x 384", {}),
    "nll_angmf": ("nll_angmf", "NLL-AngMF with tf_efficientnet_b5, the image's own size", {}),
}
"""Name -> plugin, description, its `network` options."""
REPOSITORIES = {"dpt_large": "Intel/dpt-large", "dpt_hybrid": "Intel/dpt-hybrid-midas"}
GATHERED, WINDOWS = 4096, (64, 256, 1024)
QUICK = ["nll_angmf", "dpt_hybrid", "mask_rcnn"]
SIDES = {(2, 3): 0.35, (3, 4): 0.2, (3, 2): 0.15, (1, 1): 0.15, (4, 3): 0.1, (9, 16): 0.05}
"""Usual heights to widths, and their shares."""
USUAL = 0.7


def web_sizes(count: int, short_side: int) -> list[tuple[int, int]]:
    """Heights and widths like those of web images that were resized to a short side."""
    import numpy as np

    rng, usual = np.random.default_rng(0), np.array(list(SIDES))
    sizes = []
    for _ in range(count):
        sides = usual[rng.choice(len(usual), p=list(SIDES.values()))]
        if rng.random() > USUAL:
            sides = np.exp([rng.normal(-0.2, 0.35), 0])
            sides = np.clip(sides, 0.5, 2)
        height, width = np.rint(sides * short_side / sides.min()).astype(int).tolist()
        sizes.append((height, width))
    return sizes


def images_a_pass(expert: "Expert", batch_size: int, short_side: int) -> dict[str, float]:
    """Mean number of images in a forward pass over `GATHERED` images, by `batch_window`."""
    import numpy as np

    from cliptex.labels.pipeline import batches

    sizes = web_sizes(GATHERED, short_side)
    out = {}
    for window in (batch_size, *(each for each in WINDOWS if each > batch_size)):
        count = 0
        for start in range(0, GATHERED, window):
            some = sizes[start : start + window]
            images = [(str(place), np.broadcast_to(np.uint8(0), (*size, 3))) for place, size in enumerate(some)]
            # without a window, images share a pass only if their own sizes have one input size
            key = expert.input_size if window == batch_size else expert.batch_key
            count += sum(1 for _ in batches(images, batch_size, key))
        out[str(window)] = round(GATHERED / count, 2)
    return out


def write_images(path: Path, count: int, short_side: int) -> list[tuple[int, int]]:
    """Write a shard of rendered scenes with the shapes and format of web images. Returns their heights and widths."""
    import numpy as np
    from PIL import Image

    from cliptex.data.images import encode_jpeg
    from cliptex.data.miniature.sets import scene_for_key
    from cliptex.data.shards import Pair, write_shard

    miniature = Miniature(image_size_px=384)
    pairs, sizes = [], web_sizes(count, short_side)
    for number, size in enumerate(sizes):
        pixels = scene_for_key(miniature, f"{number:09d}").image
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1]))
        pairs.append(Pair(f"{number:09d}", encode_jpeg(pixels), "a rendered scene"))
    write_shard(path, pairs)
    return sizes


@contextmanager
def as_published(module: object) -> Iterator[None]:
    """torchvision's own end of Mask R-CNN, which pastes masks into maps of the image's size."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = getattr(module, "transform", None)
    if transform is not None:
        transform.postprocess = GeneralizedRCNNTransform.postprocess.__get__(transform)
    yield
    if transform is not None:
        del transform.postprocess


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time of `work`."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def measure(name: str, folder: Path, entry: dict, given: ExpertConfig, short_side: int, repeats: int) -> dict:
    """The result of one expert. given: with its `batch_size` and `batch_window`."""
    import torch

    from cliptex.core.plugins import find
    from cliptex.experts.precision import mixed_precision
    from cliptex.labels.files import describe_labels
    from cliptex.labels.label import labelling
    from cliptex.labels.store import SCHEMA_VERSION

    plugin, network, options = EXPERTS[name]
    torch.manual_seed(0)
    settings = given.model_dump() | {"network": options, "repo": REPOSITORIES.get(name)}
    expert = find("experts", plugin)(settings)
    expert.load(None)
    task = find("tasks", expert.task)()
    path = folder / f"{name}.parquet"
    metadata = {"schema_version": SCHEMA_VERSION, "store": name, "task": task.name, "codec": task.codec()}
    calls: list[tuple[tuple, dict]] = []
    with labelling(name, expert, task, given, Labels()) as labeller:

        def stage() -> None:
            labeller.label_shard(entry, metadata, path)
            describe_labels(path, entry, task)

        def bare() -> None:
            with torch.inference_mode(), mixed_precision(expert.precision), as_published(expert.module):
                for arguments, keywords in calls:
                    expert.module(*arguments, **keywords)

        hook = expert.module.register_forward_pre_hook(
            lambda module, arguments, keywords: calls.append((arguments, keywords)), with_kwargs=True
        )
        stage()  # also warms up
        hook.remove()
        times = [(seconds(stage), seconds(bare)) for _ in range(repeats)]
    ratios = [bare[1] / stage[1] for stage, bare in times]
    images = len(entry["keys"])
    return {
        "benchmark": "label",
        "expert": name,
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": f">= {GOAL}",
        "holds": statistics.median(ratios) >= GOAL,
        "what": f"{name}: images a processor second of the whole label stage, over bare forward passes",
        "wall_ratio": round(statistics.median(bare[0] / stage[0] for stage, bare in times), 3),
        "seconds_an_image": round(statistics.median(stage[1] for stage, _ in times) / images, 3),
        "bare_seconds_an_image": round(statistics.median(bare[1] for _, bare in times) / images, 3),
        "network": network,
        "parameters": sum(tensor.numel() for tensor in expert.module.parameters()),
        "precision": expert.precision,
        "images": images,
        "batch_size": given.batch_size,
        "batch_window": given.batch_window,
        "images_a_pass": images_a_pass(expert, given.batch_size, short_side),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "bytes_an_image": round(path.stat().st_size / images),
        "machine": machine(expert.device.type),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two images, once, without dpt_large; about a minute")
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--images", type=int, default=8, help="images in the shard")
    parser.add_argument("--short-side", type=int, default=256, help="of the images, pixels")
    parser.add_argument("--batch-size", type=int, default=4, help="images a forward pass")
    parser.add_argument("--batch-window", type=int, help="images from which passes are filled; see config/README.md")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the expert")
    options = parser.parse_args(argv)
    if options.quick:
        options.experts, options.images, options.repeats = QUICK, 2, 1
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded

    from cliptex.data.shard_index import index_shards

    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = write_images(folder / "00000.tar", options.images, options.short_side)
        index = index_shards([folder / "00000.tar"], folder / "index.json", 1.0)
        given = ExpertConfig(batch_size=options.batch_size, batch_window=options.batch_window)
        for expert in options.experts:
            result = measure(expert, folder, index["shards"][0], given, options.short_side, options.repeats)
            result["image_sizes"] = sizes
            print(
                f"{expert:10} stage {result['seconds_an_image']:.2f} processor seconds an image, bare"
                f" {result['bare_seconds_an_image']:.2f}, ratio {result['ratio']:.3f} {result['spread']}, by the clock"
                f" {result['wall_ratio']:.3f}",
                flush=True,
            )
            results.append(result)
            print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()

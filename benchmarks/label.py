"""Compare labelling a shard with the bare forward passes of its expert.

    python benchmarks/label.py [--experts mask_rcnn dpt_large dpt_hybrid nll_angmf] [--images 16] [--batch-size 4]
        [--repeats 3] [--threads 1]

The label stage reads the shard, decodes its images, runs the expert, resizes its labels, writes the label file, and
reads it again for the job's record (digest, counts, pixels of each class). The bare side only calls the expert's
network on the same tensors, recorded before. Network, batch size, threads, precision and images are the same. The
networks are the published ones at full size, with random weights; Mask R-CNN has no score threshold, so that it always
paints 100 instances, the most work after its forward passes. Loading the network is not measured: it happens once per
job.

Repeats alternate between the two. `ratio` is the images per second of the stage divided by those of the bare passes, in
wall time (median; the spread is minimum and maximum); `processor_ratio` is the same in CPU seconds of this process,
where overlap hides nothing. The last line is a JSON list.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cliptex.config import Labels, Miniature

GOAL = 0.90
EXPERTS = {
    "mask_rcnn": ("mask_rcnn", "torchvision maskrcnn_resnet50_fpn_v2, short side 800", {"score_threshold": 0.0}),
    "dpt_large": ("dpt", "dpt-large, 384 x 384", {}),
    "dpt_hybrid": ("dpt", "dpt-hybrid-midas, 384 x 384", {}),
    "nll_angmf": ("nll_angmf", "NLL-AngMF with tf_efficientnet_b5, the image's own size", {}),
}
"""Name -> plugin, description, its `network` options."""
REPOSITORIES = {"dpt_large": "Intel/dpt-large", "dpt_hybrid": "Intel/dpt-hybrid-midas"}
HEIGHT, WIDTH = 256, 384


def write_images(path: Path, count: int) -> None:
    """Write a shard of rendered scenes with the size and format of web images."""
    import numpy as np
    from PIL import Image

    from cliptex.data.images import encode_jpeg
    from cliptex.data.miniature.sets import scene_for_key
    from cliptex.data.shards import Pair, write_shard

    miniature = Miniature(image_size_px=WIDTH)
    pairs = []
    for number in range(count):
        pixels = scene_for_key(miniature, f"{number:09d}").image
        pixels = np.asarray(Image.fromarray(pixels).resize((WIDTH, HEIGHT)))
        pairs.append(Pair(f"{number:09d}", encode_jpeg(pixels), "a rendered scene"))
    write_shard(path, pairs)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time of `work`."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def measure(name: str, folder: Path, entry: dict, batch_size: int, repeats: int) -> dict:
    """The result of one expert."""
    import torch

    from cliptex.core.plugins import find
    from cliptex.experts.precision import mixed_precision
    from cliptex.labels.files import describe_labels
    from cliptex.labels.label import labelling
    from cliptex.labels.store import SCHEMA_VERSION

    plugin, network, options = EXPERTS[name]
    torch.manual_seed(0)
    settings = {"batch_size": batch_size, "network": options, "repo": REPOSITORIES.get(name)}
    expert = find("experts", plugin)(settings)
    expert.load(None)
    task = find("tasks", expert.task)()
    path = folder / f"{name}.parquet"
    metadata = {"schema_version": SCHEMA_VERSION, "store": name, "task": task.name, "codec": task.codec()}
    calls: list[tuple[tuple, dict]] = []
    with labelling(name, expert, task, batch_size, Labels()) as labeller:

        def stage() -> None:
            labeller.label_shard(entry, metadata, path)
            describe_labels(path, entry, task)

        def bare() -> None:
            with torch.inference_mode(), mixed_precision(expert.precision):
                for arguments, keywords in calls:
                    expert.module(*arguments, **keywords)

        hook = expert.module.register_forward_pre_hook(
            lambda module, arguments, keywords: calls.append((arguments, keywords)), with_kwargs=True
        )
        stage()  # also warms up
        hook.remove()
        bare()
        times = [(seconds(stage), seconds(bare)) for _ in range(repeats)]
    ratios = [bare[0] / stage[0] for stage, bare in times]
    images = len(entry["keys"])
    return {
        "benchmark": "label",
        "expert": name,
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": f">= {GOAL}",
        "holds": statistics.median(ratios) >= GOAL,
        "what": "images a second of the whole label stage over bare forward passes",
        "processor_ratio": round(statistics.median(bare[1] / stage[1] for stage, bare in times), 3),
        "seconds_an_image": round(statistics.median(stage[0] for stage, _ in times) / images, 3),
        "bare_seconds_an_image": round(statistics.median(bare[0] for _, bare in times) / images, 3),
        "network": network,
        "parameters": sum(tensor.numel() for tensor in expert.module.parameters()),
        "precision": expert.precision,
        "images": images,
        "image_size": [HEIGHT, WIDTH],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "bytes_an_image": round(path.stat().st_size / images),
        "machine": {
            "processor": platform.machine(),
            "device": str(expert.device),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--images", type=int, default=16, help="images in the shard")
    parser.add_argument("--batch-size", type=int, default=4, help="images a forward pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the expert")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded

    from cliptex.data.shard_index import index_shards

    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "00000.tar", options.images)
        index = index_shards([folder / "00000.tar"], folder / "index.json", 1.0)
        for expert in options.experts:
            result = measure(expert, folder, index["shards"][0], options.batch_size, options.repeats)
            print(
                f"{expert:10} stage {result['seconds_an_image']:.2f} s an image, bare"
                f" {result['bare_seconds_an_image']:.2f}, ratio {result['ratio']:.3f} {result['spread']}, by processor"
                f" {result['processor_ratio']:.3f}",
                flush=True,
            )
            results.append(result)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Images per second on a GPU: labelling, training and features, with open_clip's training loop on the same card.

    python benchmarks/all.py --gpu                       # runs this file, and keeps its figures
    python benchmarks/gpu.py [--device cuda] [--quick] [--only label train features] [--batch-size 256] [--steps 30]
        [--images 1024] [--workers N]

`label/*`     the label stage with each published expert (random weights) over images of web shapes, and the same
              network's bare forward passes; Mask R-CNN also with `batch_window`, compared with itself without.
`train/*`     steps of the model with loading: with three tasks and the heads of config/paper.yaml, without tasks, each
              also with torch.compile; and open_clip's `train_one_epoch` with its own loader on the same shards, plain
              and compiled. `ratio` is the time of a step over open_clip's (compiled: over its compiled one).
`features/*`  dense features of a frozen encoder, images read and decoded from the shards.

Each row has images per second by the clock after a warm-up, the share of the time spent waiting for data, the cores in
use (this process and its workers), and the peak memory (of the card; on a CPU of this process since its start). Images
are rendered scenes of 256 px with exact labels. All rows use the same number of workers, by default a process per core.

`--device cpu --quick` rehearses all of it with small networks in a minute; its figures mean nothing. A measure
that fails is a row with its `error`. The last line is a JSON list.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from machine import ROOT, card, machine

TASKS = ("segmentation", "depth", "normals")
SHARDS = 4
SIZE_PX = 256
WINDOW = 256
"""`batch_window` of config/paper.yaml."""
LEFT_OUT = ("watch", "held_out", "shuffle_shards", "batch_size", "warmup_steps")
"""Keys of config/paper.yaml's `train` that need its data."""


def processor_seconds() -> float:
    """CPU seconds of this process and of all its living descendants."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Watch:
    """Times `steps` steps after `warm` ones, and the waiting for data within them."""

    def __init__(self, device: str, warm: int, steps: int):
        self.device, self.warm, self.last = device, warm, warm + steps
        self.count, self.waited = 0, 0.0
        self.marks: list[tuple[float, float]] = []

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; the time until each is there counts as waiting."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if len(self.marks) == 1:
                self.waited += time.perf_counter() - start
            yield batch

    def stepped(self, *_: Any) -> None:
        """Call it after each step; with `warm` 0 also before the first."""
        if self.count in (self.warm, self.last):
            synchronise(self.device)
            self.marks.append((time.perf_counter(), processor_seconds()))
            if self.count == self.warm:
                card(self.device)  # the peak of memory is that of what follows
        self.count += 1

    def figures(self, images: int) -> dict[str, Any]:
        (start, cpu_start), (end, cpu_end) = self.marks
        seconds = end - start
        return {
            "images_per_s": round(images / seconds, 2),
            "waiting": round(self.waited / seconds, 3),
            "cores": round((cpu_end - cpu_start) / seconds, 2),
            "peak_memory_mb": card(self.device)["peak_memory_mb"],
        }


def synchronise(device: str) -> None:
    import torch

    torch.get_device_module(device).synchronize()


# ---- data


def make_data(images: int) -> Any:
    """Shards of rendered scenes and their exact label stores in the working directory; their configuration."""
    from cliptex.config import Config
    from cliptex.core import paths
    from cliptex.data.images import encode_jpeg
    from cliptex.data.miniature.sets import scene_for_key
    from cliptex.data.shard_index import index_shards
    from cliptex.data.shards import Pair, write_shard
    from cliptex.experts.training import train_expert
    from cliptex.labels.index import index_labels
    from cliptex.labels.label import label_batch

    paper = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    shards = [str(paths.shard(number)) for number in range(SHARDS)]
    config = Config.load(
        {
            "dataset": {"source": "webdataset", "shards": shards},
            "miniature": {"image_size_px": SIZE_PX},
            "experts": {f"true_{task}": {"plugin": "truth", "network": {"task": task}} for task in TASKS},
            "label_stores": {task: {"task": task, "expert": f"true_{task}"} for task in TASKS},
            "labels": {"max_side_px": paper["labels"]["max_side_px"]},
            "train": {key: value for key, value in paper["train"].items() if key not in LEFT_OUT},
        }
    )
    each = images // SHARDS
    for number in range(SHARDS):
        keys = [f"{row:09d}" for row in range(number * each, (number + 1) * each)]
        scenes = [(key, encode_jpeg(scene_for_key(config.miniature, key).image)) for key in keys]
        write_shard(paths.shard(number), [Pair(key, image, f"a rendered scene, {key}") for key, image in scenes])
    index_shards([Path(shard) for shard in shards], paths.SHARD_INDEX, 1.0)
    for task in TASKS:
        expert = paths.expert(f"true_{task}")
        train_expert(config, f"true_{task}", paths.EXPERT_RENDERS, expert, 0)
        label_batch(config, task, 0, paths.SHARD_INDEX, expert, paths.labels(task), 0)
        index_labels(config, task, paths.SHARD_INDEX, paths.labels(task))
    return config


# ---- measures


def miniature() -> dict[str, Any]:
    """The default configuration, of which the small networks are."""
    return yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))


def label(name: str, window: int | None, config: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The label stage over a shard, after it did so before, and its network alone on the same inputs."""
    import torch
    from label import EXPERTS, REPOSITORIES, write_images

    from cliptex.config import ExpertConfig
    from cliptex.core.plugins import find
    from cliptex.data.shard_index import index_shards
    from cliptex.experts.precision import mixed_precision
    from cliptex.labels.label import labelling
    from cliptex.labels.store import SCHEMA_VERSION

    plugin, network, own = EXPERTS[name]
    if options.quick:
        network, own = "the miniature's", miniature()["experts"][plugin]["network"]
    given = ExpertConfig(batch_size=options.label_batch, batch_window=window)
    torch.manual_seed(0)
    repo = None if options.quick else REPOSITORIES.get(name)
    expert = find("experts", plugin)(given.model_dump() | {"network": own, "repo": repo})
    expert.load(None)
    task = find("tasks", expert.task)()
    metadata = {"schema_version": SCHEMA_VERSION, "store": name, "task": task.name, "codec": task.codec()}
    shard = Path("web/00000.tar")
    if not shard.exists():
        shard.parent.mkdir()
        write_images(shard, options.images // SHARDS, SIZE_PX)
    (entry,) = index_shards([shard], Path("web/index.json"), 1.0)["shards"]
    if options.quick:
        config = config.model_copy(update={"labels": config.labels.model_copy(update={"max_image_side_px": 96})})
    calls: list[tuple[tuple, dict]] = []
    watch = Watch(options.device, 0, 1)
    with labelling(name, expert, task, given, config.labels, options.workers) as labeller:
        hook = expert.module.register_forward_pre_hook(
            lambda module, arguments, keywords: calls.append((arguments, keywords)), with_kwargs=True
        )
        labeller.label_shard(entry, metadata, Path("warm.parquet"))
        hook.remove()
        predicted, predict = 0.0, expert.predict_rows

        def timed(*arguments: Any) -> Any:
            nonlocal predicted
            start = time.perf_counter()
            rows = predict(*arguments)
            predicted += time.perf_counter() - start
            return rows

        expert.predict_rows = timed
        watch.stepped()
        labeller.label_shard(entry, metadata, Path("labels.parquet"))
        watch.stepped()
        (start, _), (end, _) = watch.marks
        watch.waited = end - start - predicted
        with torch.inference_mode(), mixed_precision(expert.precision):
            synchronise(options.device)
            bare_start = time.perf_counter()
            for arguments, keywords in calls:
                expert.module(*arguments, **keywords)
            synchronise(options.device)
            bare = (time.perf_counter() - bare_start) / len(entry["keys"])
    figures = watch.figures(len(entry["keys"]))
    ratio = round(figures["images_per_s"] * bare, 3)
    more = {"ratio": ratio, "against": "bare forward passes", "network": network, "precision": expert.precision}
    return figures | more | {"batch_size": given.batch_size, "batch_window": window}


def architecture(options: argparse.Namespace) -> Any:
    """The model's section: ViT-B-16, or the miniature's."""
    from cliptex.config import Student

    if not options.quick:
        return Student(architecture=options.model)
    return Student(**miniature()["student"])


def train(config: Any, options: argparse.Namespace, tasks: Sequence[str], compiled: bool) -> dict[str, Any]:
    """Our steps, with loading."""
    import torch

    from cliptex.config import Model
    from cliptex.core import paths
    from cliptex.core.plugins import find
    from cliptex.experts.precision import training_precision
    from cliptex.models import clip
    from cliptex.models.dense_features import width
    from cliptex.models.heads import DenseHeads
    from cliptex.training.distributed import World
    from cliptex.training.loader import JointLoader
    from cliptex.training.trainer import Trainer

    section = architecture(options)
    given = {"batch_size": options.batch_size, "compile": compiled, "warmup_steps": 1}
    section_train = config.train.model_copy(update=given)
    plugins = {task: find("tasks", task)() for task in tasks}
    network = clip.build(section, 0)
    size = network.visual.image_size
    heads = DenseHeads(
        width(network.visual),
        {name: task.channels for name, task in plugins.items()},
        section_train.multi_scale if tasks else "none",
        section_train.multi_scale_channels,
        section_train.heads,
        section_train.multi_scale_rates,
        section_train.label_prior_cells,
    )
    stores = {name: (task, paths.labels(name) / "index.json") for name, task in plugins.items()}
    loader = JointLoader(
        paths.SHARD_INDEX,
        stores,
        section_train,
        size[0] if isinstance(size, tuple) else size,
        0,
        tokenizer=clip.tokenizer(section),
        workers=options.workers,
    )
    model = Model(steps=1000, tasks=dict.fromkeys(tasks, 1.0))
    world = World(0, 1, torch.device(options.device))
    trainer = Trainer(network, heads, plugins, model, section_train, training_precision(), world)
    watch = Watch(options.device, options.warm, options.steps)
    batches = watch.waiting(loader.batches(0))
    for step in range(1, options.warm + options.steps + 2):
        watch.stepped()
        if step <= options.warm + options.steps:
            trainer.step(next(batches), step)
    return watch.figures(options.steps * options.batch_size) | {"precision": trainer.precision}


class Waiting:
    """open_clip's loader, watched."""

    def __init__(self, loader: Any, watch: Watch):
        self._loader, self._watch = loader, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._watch.waiting(iter(self._loader))


def open_clips(config: Any, options: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """The steps of open_clip's own loop, with its own loading."""
    from functools import partial

    import open_clip
    import open_clip_train.data
    import torch
    import webdataset
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    from cliptex.experts.precision import training_precision
    from cliptex.models import clip

    # newer versions of webdataset mark the end of a shard, which open_clip does not know
    expander = webdataset.tariterators.tar_file_expander
    open_clip_train.data.tar_file_expander = partial(expander, eof_value=None)
    section, precision = architecture(options), training_precision()
    steps = options.warm + options.steps
    given = ["--train-data", "::".join(config.dataset.shards), "--dataset-type", "webdataset", "--dataset-resampled"]
    given += ["--train-num-samples", str((steps + options.workers) * options.batch_size)]
    given += ["--batch-size", str(options.batch_size), "--workers", str(options.workers)]
    given += ["--precision", "fp32" if precision == "fp32" else f"amp_{precision}", "--grad-clip-norm", "1.0"]
    args = parse_args([*given, "--model", "ViT-B-16"])
    args.device, args.rank, args.local_rank, args.world_size = options.device, 0, 0, 1
    args.distributed, args.distill, args.wandb = False, False, False
    network = clip.build(section, 0).to(options.device).train()
    network.output_dict = True  # as train_one_epoch needs it
    size = network.visual.image_size
    preprocess = open_clip.image_transform(size, is_train=True)
    data = {"train": get_wds_dataset(args, preprocess, is_train=True, tokenizer=clip.tokenizer(section))}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    watch = Watch(options.device, options.warm, options.steps)
    data["train"].dataloader = Waiting(data["train"].dataloader, watch)
    watch.stepped()
    optimizer.register_step_post_hook(watch.stepped)
    model = torch.compile(network) if compiled else network
    train_one_epoch(model, data, open_clip.ClipLoss(), 0, optimizer, None, lambda step: None, None, args)
    return watch.figures(options.steps * options.batch_size) | {"precision": precision}


def features(config: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Dense features of a frozen encoder."""
    import itertools

    import numpy as np
    import torch

    from cliptex.core import paths
    from cliptex.data.images import decode_image
    from cliptex.data.shard_index import read_index, read_indexed
    from cliptex.experts.precision import mixed_precision, native_precision
    from cliptex.models import clip
    from cliptex.models.encoders import centre_crop, in_order, load_encoder

    section, precision = architecture(options), native_precision()
    clip.export(clip.build(section, 0), section, Path("exported"))
    encoder = load_encoder(Path("exported"))
    pairs = [pair for entry in read_index(paths.SHARD_INDEX)["shards"] for pair in read_indexed(entry)]

    def read(number: int) -> np.ndarray:
        return centre_crop(decode_image(pairs[number].image), encoder.image_size, encoder.interpolation)

    count = options.feature_batch * (options.warm + options.steps)
    images = in_order([number % len(pairs) for number in range(count)], read)
    watch = Watch(options.device, options.warm, options.steps)
    batches = watch.waiting(iter(lambda: list(itertools.islice(images, options.feature_batch)), []))
    watch.stepped()
    with torch.no_grad(), mixed_precision(precision):
        for batch in batches:
            encoder.dense(encoder.normalised(np.stack(batch)))
            watch.stepped()
    return watch.figures(options.steps * options.feature_batch) | {"precision": precision}


def measures(config: Any, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]], str]]:
    """Name, measure, and the name of the row to which its time is compared, if there is one."""
    if "label" in options.only:
        for name in ("mask_rcnn", "dpt_hybrid", "nll_angmf", *(() if options.quick else ("dpt_large",))):
            yield f"label/{name}", lambda name=name: label(name, None, config, options), ""
        yield "label/mask_rcnn/window", lambda: label("mask_rcnn", WINDOW, config, options), "label/mask_rcnn"
    if "train" in options.only:
        for compiled, suffix in ((False, ""), (True, "/compiled")):
            peer = f"train/open_clip{suffix}"
            yield peer, lambda compiled=compiled: open_clips(config, options, compiled), ""
            for name, tasks in (("clip_ft", ()), ("cliptex", TASKS)):
                yield f"train/{name}{suffix}", lambda t=tasks, c=compiled: train(config, options, t, c), peer
    if "features" in options.only:
        yield "features/dense", lambda: features(config, options), ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks and few steps: a rehearsal")
    parser.add_argument("--only", nargs="+", choices=["label", "train", "features"], metavar="KIND")
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--batch-size", type=int, default=256, help="of training")
    parser.add_argument("--label-batch", type=int, default=8, help="images a forward pass of labelling")
    parser.add_argument("--feature-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm", type=int, default=10, help="steps before the timed ones")
    parser.add_argument("--images", type=int, default=1024, help="images in four shards")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that load")
    options = parser.parse_args(argv)
    options.only = options.only or ["label", "train", "features"]
    if options.quick:
        options.batch_size, options.feature_batch, options.steps, options.warm, options.images = 4, 4, 2, 1, 16
        options.label_batch = 2
        options.workers = min(options.workers, 1)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is loaded
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU; rehearse with --device cpu --quick")
    rows: dict[str, dict[str, Any]] = {}
    about = machine(options.device)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = make_data(options.images)
        for name, measure, peer in measures(config, options):
            row: dict[str, Any] = {"benchmark": name}
            start = time.perf_counter()
            try:
                row |= measure()
                if peer and "images_per_s" in rows.get(peer, {}):
                    row["ratio"] = round(rows[peer]["images_per_s"] / row["images_per_s"], 3)
                    row["against"] = f"time of {peer}"
            except Exception as error:  # one that fails must not hide the others
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
            rows[name] = row | {"seconds": round(time.perf_counter() - start, 1), "machine": about}
            print(json.dumps(list(rows.values())), flush=True)


if __name__ == "__main__":
    main()

"""Other packages that do what the probes do, on the same images and weights: used by `probe.py`."""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cliptex.config import Config
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.evaluation import probe
from cliptex.evaluation.clip_benchmark_job import float_of_array
from cliptex.evaluation.job import Job
from cliptex.evaluation.probes.features import split_holdout
from cliptex.models.encoders import BATCH_SIZE, Encoder, squash

TIMM = "vit_base_patch16_clip_224"
"""timm's name of ViT-B-16."""


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def features_ratios(encoder: Encoder, images: int, rounds: int) -> list[float]:
    """CPU seconds of resizing and of the last block's patch tokens of `encoder`, a ViT-B-16 at 224 px, over those of
    timm's network and transform; batches of 8, the two alternating."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (images, 16, 24, 3)).astype(np.uint8)
    arrays = [np.asarray(Image.fromarray(each).resize((384, 256))) for each in coarse]
    network = timm.create_model(TIMM, pretrained=False, features_only=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    batches = [arrays[start : start + BATCH_SIZE] for start in range(0, images, BATCH_SIZE)]

    def ours() -> None:
        for batch in batches:
            pixels = np.stack([squash(image, encoder.image_size, encoder.interpolation) for image in batch])
            encoder.tokens(encoder.normalised(pixels), "last", True, False)

    @torch.inference_mode()
    def theirs() -> None:
        for batch in batches:
            network(torch.stack([transform(Image.fromarray(image)) for image in batch]))

    ours()
    theirs()
    return [cpu_seconds(ours) / cpu_seconds(theirs) for _ in range(rounds)]


def step_ratios(encoder: Encoder, model: Path, batch: int, rounds: int) -> list[float]:
    """CPU seconds of a training step of a linear segmentation head on a frozen encoder, as `probe.py` computes it for
    the usual way, over those of mmsegmentation's `train_step`: the same images in memory, BatchNorm and 1x1
    convolution, cross-entropy at every pixel, AdamW. model: the encoder's exported folder."""
    from cliptex.models.mmseg_backbone import CliptexBackbone  # noqa: I001 (makes mmsegmentation importable)
    from mmengine.optim import OptimWrapper
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules()
    side, width = encoder.image_size, encoder.map_shape((encoder.image_size,) * 2)[0]
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (batch, side, side, 3), np.uint8))
    masks = torch.from_numpy(rng.integers(0, 21, (batch, side, side)))
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 21, 1)).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

    def ours() -> None:
        with torch.no_grad():
            features = encoder.dense(encoder.normalised(np.stack(images)))
        logits = F.interpolate(head(features), size=(side, side), mode="bilinear", align_corners=False)
        optimizer.zero_grad()
        F.cross_entropy(logits, masks, ignore_index=255).backward()
        optimizer.step()

    linear = {"type": "FCNHead", "num_convs": 0, "concat_input": False, "kernel_size": 1, "dropout_ratio": 0}
    backbone = CliptexBackbone(str(model), frozen=True)
    processor = {"type": "SegDataPreProcessor", "mean": backbone.mean, "std": backbone.std, "size": (side, side)}
    theirs_model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": processor | {"bgr_to_rgb": True},
            "backbone": {"type": "CliptexBackbone", "model": str(model), "frozen": True},
            "decode_head": linear
            | {"in_channels": width, "channels": width, "num_classes": 21, "align_corners": False}
            | {"loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}},
        }
    ).train()
    wrapper = OptimWrapper(torch.optim.AdamW(theirs_model.decode_head.parameters(), lr=1e-3))
    inputs = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))) for image in images]

    def theirs() -> None:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=mask[None])) for mask in masks]
        theirs_model.train_step({"inputs": list(inputs), "data_samples": samples}, wrapper)

    ours()
    theirs()
    return [cpu_seconds(ours) / cpu_seconds(theirs) for _ in range(rounds)]


class Classified(Dataset):
    """Images and labels of a benchmark as clip_benchmark reads data sets."""

    def __init__(self, samples: object, indices: np.ndarray, transform: Callable):
        self._samples, self._indices, self._transform = samples, indices, transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        sample = self._samples[self._indices[number]]
        return self._transform(Image.fromarray(sample["image"])), sample["label"]


class Cpu(str):
    """The device "cpu", which says that it is CUDA: clip_benchmark's linear probe asserts that."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other in ("cpu", "cuda")


@contextmanager
def without_cuda() -> Iterator[None]:
    """`.cuda()` does nothing, and what is printed is dropped."""
    from clip_benchmark.metrics import zeroshot_classification

    with (
        patch.object(zeroshot_classification, "float", float_of_array, create=True),
        patch.object(torch.nn.Module, "cuda", lambda self: self),
        patch.object(torch.Tensor, "cuda", lambda self: self),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        yield


def our_linear_probe(folder: Path, model: Path, benchmark_dir: Path, seed: int) -> float:
    """Top-1 in percent of the protocol `miniature`."""
    models_dir, out = folder / "models", folder / "ours"
    shutil.copytree(model, models_dir / "own" / f"seed{seed}")
    values = {"probes": {"baselines": [], "benchmarks": {"imagenet": {"protocol": "miniature"}}, "save_predictions": 0}}
    job = {"models": ("own",), "seeds": (seed,), "models_dir": models_dir, "benchmark_dir": benchmark_dir}
    config = Config.load({"models": {"own": {}}, **values})
    probe.run(config, Job(name="imagenet", out=out, cache_dir=folder / "features", **job))
    (row,) = read_json(out / "own" / f"seed{seed}" / "linear.json")["results"]
    return row["metrics"]["top1"]


def their_linear_probe(folder: Path, model: Path, benchmark_dir: Path, seed: int) -> float:
    """Top-1 in percent of clip_benchmark's linear probe, with its own defaults and its search for the decay."""
    from clip_benchmark.metrics import linear_probe

    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model}", require_pretrained=True)
    data = find("benchmarks", "imagenet")(benchmark_dir)
    train, evaluated = data.samples("train"), data.samples("eval")
    fitting, held_out = split_holdout(len(train), 0.2, seed)
    parts = (train, fitting), (train, held_out), (evaluated, np.arange(len(evaluated)))
    loaders = [DataLoader(Classified(*part, transform), batch_size=64) for part in parts]
    (folder / "theirs").mkdir(parents=True)
    with without_cuda():
        result = linear_probe.evaluate(
            network.eval(),
            *(loaders[0], loaders[2]),
            fewshot_k=-1,
            batch_size=64,
            num_workers=0,
            lr=0.1,
            epochs=10,
            model_id="own",
            seed=seed,
            feature_root=str(folder / "theirs"),
            device=Cpu("cpu"),
            val_dataloader=loaders[1],
            amp=False,
        )
    return 100 * result["lp_acc1"]


def linear_probes(folder: Path, model: Path, benchmark_dir: Path, seeds: int) -> dict[str, list[float]]:
    """CPU seconds and top-1 of both ways, a number for each seed."""
    found: dict[str, list[float]] = {"ours_s": [], "theirs_s": [], "ours_top1": [], "theirs_top1": []}
    for seed in range(seeds):
        for name, way in {"ours": our_linear_probe, "theirs": their_linear_probe}.items():
            start = time.process_time()
            found[f"{name}_top1"].append(way(folder / f"seed{seed}", model, benchmark_dir, seed))
            found[f"{name}_s"].append(time.process_time() - start)
    return found

"""Counts floating-point operations an image, at full size: of a configuration's experts, and of a forward pass of the
student.

    python docs/figures/operations.py                             # config/paper.yaml
    python docs/figures/operations.py config/one_gpu.yaml 512 683  # for images of this height and width

docs/scaling.md and the head of config/one_gpu.yaml are computed from these. Weights are random: nothing is downloaded.
A minute on one thread.
"""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from cliptex.cluster.plan import TYPICAL_SIZE_PX
from cliptex.core.plugins import find
from cliptex.models.heads import DenseHeads
from cliptex.training.cost import forward_flops

ROOT = Path(__file__).parent.parent.parent


def of_an_expert(settings: dict, size: tuple[int, int]) -> int:
    """One image of this height and width, through the expert's own preprocessing."""
    expert = find("experts", settings["plugin"])(settings | {"precision": "fp32"})
    expert.load(None)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with FlopCounterMode(display=False) as counter:
        expert.predict([image], ["000000000"])
    return counter.get_total_flops()


def main(path: Path = ROOT / "config/paper.yaml", *size: str) -> None:
    """Print one JSON object: operations, two a multiply-add."""
    torch.manual_seed(0)
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    shape = (int(size[0]), int(size[1])) if size else TYPICAL_SIZE_PX
    found = {name: of_an_expert(dict(given), shape) for name, given in config["experts"].items() if given}
    name, options = config["student"]["architecture"], config["train"]
    model = open_clip.create_model(name)
    channels = {store: find("tasks", given["task"])().channels for store, given in config["label_stores"].items()}
    heads = DenseHeads(
        open_clip.get_model_config(name)["vision_cfg"]["width"],
        channels,
        options["multi_scale"],
        options["multi_scale_channels"],
    )
    forward = forward_flops(model, heads, open_clip.get_tokenizer(name)(["a photo"]))
    found |= {f"{name}, {part}": flops for part, flops in forward.items()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])

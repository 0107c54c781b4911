"""Counts floating-point operations an image, at full size: of config/paper.yaml's experts, and of a training step.

    python docs/figures/operations.py

docs/scaling.md is computed from these. Weights are random: nothing is downloaded. A minute on one thread.
"""

import json
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


def of_an_expert(settings: dict) -> int:
    """One image of the web's typical size, through the expert's own preprocessing."""
    expert = find("experts", settings["plugin"])(settings | {"precision": "fp32"})
    expert.load(None)
    image = np.random.default_rng(0).integers(0, 256, (*TYPICAL_SIZE_PX, 3), np.uint8)
    with FlopCounterMode(display=False) as counter:
        expert.predict([image], ["000000000"])
    return counter.get_total_flops()


def main() -> None:
    """Print one JSON object: operations, two a multiply-add."""
    torch.manual_seed(0)
    paper = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    found = {name: of_an_expert(dict(settings)) for name, settings in paper["experts"].items()}
    name, options = paper["student"]["architecture"], paper["train"]
    model = open_clip.create_model(name)
    channels = {store: find("tasks", given["task"])().channels for store, given in paper["label_stores"].items()}
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
    main()

"""Load the folder of a network saved by transformers: strictly, and without running code of the folder.

Holds   missing, unexpected and mismatched weights are errors; a folder costs time and memory only by its weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cliptex.core.errors import CliptexError
from cliptex.experts.tensors import read_tensors, require_no_code
from cliptex.experts.weights import digests

LAYERS, PARAMETERS = 100, 50_000_000
"""Of a network beyond those of its weights, which are then reported as missing."""
MAX_SIDE = 4096
"""Of the input in pixels; published networks have at most 1536."""
BUFFERS = (".relative_position_index", ".num_batches_tracked", ".position_ids")
"""Ends of the names of tables that are no weights; older files have them."""
COUNTS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
"""Keys of a configuration with a number of layers; `depths` lists the layers of each stage."""


def require_folder(folder: Path) -> None:
    """Raise CliptexError if the folder lacks the preprocessing, or names code."""
    if not (folder / "preprocessor_config.json").is_file():
        raise CliptexError(f"{folder}: lacks preprocessor_config.json, which defines the preprocessing; copy it too")
    require_no_code(folder)


def load_saved(
    folder: Path,
    config_class: type[PreTrainedConfig],
    network_class: type[PreTrainedModel],
    load_processor: Callable[[], Any],
    kind: str,
    may_lack: tuple[str, ...] = (),
    may_have: tuple[str, ...] = (),
) -> tuple[PreTrainedModel, Any]:
    """Network (in the file's number format) and preprocessing.

    kind: what the folder should be, for errors, e.g. "a DPT". may_lack, may_have: prefixes of tensors that the weights
    may lack, or have in addition. Raises CliptexError if weights are missing, unexpected or of another shape, or are in
    a file that holds anything but tensors.
    """
    sizes: dict[str, int] = {}
    for name in digests(folder):
        if not name.endswith(".json"):  # transformers has no checks against NaN or code
            sizes |= {key: tensor.numel() for key, tensor in read_tensors(folder / name).items()}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # mismatches are reported below
    try:
        processor = load_processor()
        _require_size(config_class.from_pretrained(folder, local_files_only=True), network_class, sizes)
        module, info = network_class.from_pretrained(
            folder,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except CliptexError:
        raise
    except Exception as error:  # transformers raises many types of errors for invalid folders
        raise CliptexError(
            f"{folder}: not {kind} saved by transformers ({first_line(error)}); copy the folder again"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = [name for name in info["missing_keys"] if not name.startswith(may_lack)]
    if missing or info["mismatched_keys"]:
        wrong = [*missing, *(str(item[0]) for item in info["mismatched_keys"])]
        raise CliptexError(
            f"{folder}: its weights do not match its config.json: {', '.join(sorted(wrong)[:3])}, {len(wrong)} in all"
        )
    unknown = sorted(name for name in info["unexpected_keys"] if not name.startswith(may_have))
    if unknown := [name for name in unknown if not name.endswith(BUFFERS)]:
        raise CliptexError(
            f"{folder}: unexpected weights, not in the network of its config.json: {', '.join(unknown[:3])},"
            f" {len(unknown)} in all; copy the config.json that belongs to them"
        )
    return module, processor


def _require_size(config: PreTrainedConfig, network_class: type[PreTrainedModel], sizes: dict[str, int]) -> None:
    """Raise ValueError if a network is far larger than its weights, before it takes time and memory. sizes: tensor ->
    number of values."""

    def layers(values: dict[str, Any]) -> int:
        own = [*(values.get(name) or 0 for name in COUNTS), *(values.get("depths") or ())]
        return sum(own) + sum(layers(inner) for inner in values.values() if isinstance(inner, dict))

    if (number := layers(config.to_dict())) > len(sizes) + LAYERS:
        raise ValueError(f"{number:,} layers for {len(sizes):,} tensors")
    with torch.device("meta"):
        module = network_class(config)
    count = sum(parameter.numel() for parameter in module.parameters())
    if count > 2 * sum(sizes.values()) + PARAMETERS:
        raise ValueError(f"a network of {count:,} parameters, {sum(sizes.values()):,} in the file")


def require_working(path: Path, processor: Any, **arguments: Any) -> None:
    """Raise CliptexError unless the preprocessing of a file makes three channels of finite numbers of a grey image.
    arguments: further ones of the processor."""
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    try:
        pixels_BCHW = processor(images=[image], input_data_format="channels_first", return_tensors="pt", **arguments)[
            "pixel_values"
        ]
        if pixels_BCHW.shape[:2] != (1, 3) or not pixels_BCHW.isfinite().all():
            raise ValueError("the result is not three channels of finite numbers")
    except Exception as error:  # transformers raises many types of errors for wrong values
        raise CliptexError(
            f"{path}: cannot preprocess an image ({first_line(error)}); copy the published file again"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

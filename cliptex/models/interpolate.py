"""Interpolate the weights of two models: WiSE-FT (Wortsman et al. 2022, equation 1).

Reads   results/models/{of,with}/seed{seed}/
Writes  results/models/{model}/seed{seed}/: open_clip_config.json, open_clip_model.safetensors and, last, train.json.
Holds   alpha 0 gives exactly the weights of `with`, alpha 1 exactly those of `of`; nothing is trained or selected.
"""

import time
from pathlib import Path
from typing import Any

import torch

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, sha256_file, write_json
from cliptex.core.provenance import provenance
from cliptex.experts.tensors import read_tensors
from cliptex.models.clip import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    copy_tokenizer,
    exported_config,
    require_recorded,
    save_weights,
)


def interpolate(config: Config, name: str, seed: int, workdir: Path = Path()) -> None:
    """Make model `name` of `seed`; its train.json records the two models.

    Raises CliptexError if it is not an interpolation, a model is not trained yet, or the two differ in architecture or
    preprocessing.
    """
    options = config.models[name].interpolate if name in config.models else None
    if options is None:
        raise CliptexError(f"models.{name}: has no `interpolate`; add it, or train the model")
    start = time.monotonic()
    tuned, plain = (workdir / paths.model(other, seed) for other in (options.of, options.with_))
    open_clip_config = exported_config(tuned)
    record = read_checked(tuned / "train.json", dict)
    for part in ("model_cfg", "preprocess_cfg"):
        if differing := _differences(open_clip_config.get(part, {}), exported_config(plain).get(part, {})):
            raise CliptexError(
                f"models.{name}.interpolate: {options.of} and {options.with_} differ in {part}"
                f" ({', '.join(differing)}); only models of one architecture can be interpolated"
            )
    digests = [require_recorded(folder / WEIGHTS_FILE) for folder in (tuned, plain)]
    start_weights, end_weights = (read_tensors(folder / WEIGHTS_FILE) for folder in (plain, tuned))
    weights = between(start_weights, end_weights, options.alpha, f"models.{name}.interpolate")
    folder = workdir / paths.model(name, seed)
    write_json(folder / CONFIG_FILE, open_clip_config)
    copy_tokenizer(tuned, folder)
    save_weights(weights, folder / WEIGHTS_FILE)
    write_json(
        folder / "train.json",
        {
            "schema_version": 1,
            "model": name,
            "seed": seed,
            "source": config.dataset.source,
            "init": f"{options.alpha:g} x {options.of} + {1 - options.alpha:g} x {options.with_}",
            "interpolate": {
                **options.model_dump(mode="json", by_alias=True),
                "of_sha256": digests[0],
                "with_sha256": digests[1],
            },
            "steps": 0,
            "tasks": {},
            "seconds": round(time.monotonic() - start, 3),
            "images_per_s": None,
            "peak_memory_mb": 0.0,
            "parameters": {
                part: count if part in ("encoder", "text") else 0 for part, count in record["parameters"].items()
            },
            "model_sha256": sha256_file(folder / WEIGHTS_FILE),
            "provenance": provenance(config.plain()),
        },
    )


def between(
    start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], alpha: float, where: str
) -> dict[str, torch.Tensor]:
    """start + alpha * (end - start) of each tensor, in double precision; integer tensors are those of `end`.

    Raises CliptexError, beginning with `where`, if names or shapes differ.
    """
    if unpaired := sorted(start.keys() ^ end.keys()):
        raise CliptexError(f"{where}: only one of the two models has {unpaired[0]!r}; train both again")
    out = {}
    for name, tensor in end.items():
        if start[name].shape != tensor.shape:
            raise CliptexError(
                f"{where}: {name!r} is {list(tensor.shape)} in one and {list(start[name].shape)} in the other;"
                " train both again"
            )
        if tensor.is_floating_point():
            # lerp is exact at both ends
            out[name] = torch.lerp(start[name].double(), tensor.double(), alpha).to(tensor.dtype).contiguous()
        else:
            out[name] = tensor
    return out


def _differences(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    differing = []
    for key in sorted(first.keys() | second.keys()):
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            differing += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            differing.append(f"{prefix}{key}: {a} and {b}")
    return differing

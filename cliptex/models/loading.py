"""The one way from files to an open_clip model or tokenizer: an allow-list of options, tensors only, no code.

Everything that a model's folder says is untrusted: it may name Python files, other networks' sizes, or weights that do
not fit. open_clip passes most of it on to transformers and timm, which would run, fetch or allocate it.
"""

import inspect
import json
import math
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import open_clip
import timm
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from open_clip.tokenizer import HFTokenizer

from cliptex.core.errors import CliptexError
from cliptex.core.finite import require_finite
from cliptex.experts.tensors import load_strictly, read_tensors, require_bounded, require_names_no_code, require_no_code

MODEL_KEYS = {"custom_text", *inspect.signature(open_clip.CLIP).parameters} - {"cast_dtype", "output_dict"}
TOWER_KEYS = {
    part: {field.name for field in fields(tower)}
    for part, tower in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg))
}
TOKENIZER_KEYS = {"clean", "strip_sep_token", "language", "additional_special_tokens"}
"""Options of open_clip's tokenizers that may be set; HFTokenizer would pass all others on to transformers."""
MAX_LAYERS, MAX_NUMBER = 1_000, 10_000_000
CHEAP = 50_000_000
"""Parameters of a network that may be built whatever the size of its weight file."""


def check_model_config(config: Any, where: str) -> None:
    """Raise CliptexError, beginning with `where`, if an open_clip `model_cfg` has options that are not allowed."""
    try:
        _check_model_config(config, where)
    except (TypeError, ValueError, AttributeError) as error:
        raise CliptexError(f"{where}: an option of model_cfg has the wrong type ({error}); correct it") from error


def _check_model_config(config: Any, where: str) -> None:
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in TOWER_KEYS):
        raise CliptexError(f"{where}: not an open_clip model; it needs embed_dim, vision_cfg and text_cfg")
    if "multimodal_cfg" in config:
        raise CliptexError(f"{where} is CoCa, which is not supported; choose a CLIP")
    vision, text = config["vision_cfg"], config["text_cfg"]
    tokenizer = text.get("tokenizer_kwargs") or {}
    parts = {"": (config, MODEL_KEYS), "text_cfg.tokenizer_kwargs": (tokenizer, TOKENIZER_KEYS)}
    for part, (values, allowed) in (parts | {key: (config[key], keys) for key, keys in TOWER_KEYS.items()}).items():
        if unknown := sorted(set(values) - allowed):
            key = f"{part}.{unknown[0]}".lstrip(".")
            raise CliptexError(f"{where}: the option {key} is not supported; remove it, or use another model")
    _require_bounded(config, f"{where}: ")
    layers = vision.get("layers", 0)
    if max(sum(layers) if isinstance(layers, list) else layers, text.get("layers", 0)) > MAX_LAYERS:
        raise CliptexError(f"{where}: has more than {MAX_LAYERS:,} layers; correct vision_cfg and text_cfg")
    if (name := vision.get("timm_model_name")) and not timm.is_model(name):
        raise CliptexError(f"{where}: vision_cfg.timm_model_name: timm has no {name!r}; name one of timm.list_models()")


def _require_bounded(value: Any, key: str) -> None:
    if isinstance(value, list | dict):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _require_bounded(inner, f"{key}{name}" if key.endswith(" ") else f"{key}.{name}")
    elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # NaN, too
        raise CliptexError(f"{key}: {value} is out of range; correct it")


def check_preprocessing(config: dict[str, Any], where: str) -> None:
    """Raise CliptexError unless mean, std, interpolation and resize mode, as far as given, are usable."""
    for key in ("mean", "std"):
        values = config.get(key) or (1.0,)
        is_list = isinstance(values, list | tuple)
        if (
            not is_list
            or not all(isinstance(value, int | float) and math.isfinite(value) for value in values)
            or (key == "std" and min(values) <= 0)
        ):
            raise CliptexError(f"{where}: preprocess_cfg.{key}: {values} is wrong; write a number for each channel")
    allowed = {"interpolation": ("bicubic", "bilinear", "nearest"), "resize_mode": ("shortest", "longest", "squash")}
    for key, names in allowed.items():
        if config.get(key) not in (None, *names):
            raise CliptexError(f"{where}: preprocess_cfg.{key}: {config[key]!r}; choose one of {', '.join(names)}")


def skeleton(config: dict[str, Any], where: str, pretrained_text: bool = False) -> torch.nn.Module:
    """The open_clip model of a checked `model_cfg`, with random weights drawn from torch's generator.

    pretrained_text: load the published weights of a text tower of transformers, as open_clip does for a model without
    weights of its own. Raises CliptexError, beginning with `where`, if it cannot be built.
    """
    try:
        return _skeleton(config, pretrained_text)
    except CliptexError as error:
        raise CliptexError(f"{where}: {error}") from error
    except Exception as error:  # options that do not fit together, or transformers' configuration is not in the cache
        raise CliptexError(f"{where}: cannot be built ({_line(error)}); correct its options") from error


def _skeleton(config: dict[str, Any], pretrained_text: bool) -> torch.nn.Module:
    custom_text = config.get("custom_text", False)
    config = {key: value for key, value in config.items() if key != "custom_text"} | {
        "vision_cfg": config["vision_cfg"] | {"timm_model_pretrained": False}
    }
    if name := config["text_cfg"].get("hf_model_name"):
        from transformers import PretrainedConfig

        # transformers asks on the terminal whether to run the code of a model, unless it finds none
        require_names_no_code(PretrainedConfig.get_config_dict(name)[0], f"text_cfg.hf_model_name: {name}")
        config["text_cfg"] = config["text_cfg"] | {"hf_model_pretrained": pretrained_text}
        custom_text = True
    return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)


def require_size(config: dict[str, Any], path: Path, where: str) -> None:
    """Raise CliptexError if a large network is far larger than its weight file, before it takes memory."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in skeleton(config, where).parameters())
    if count > max(CHEAP, size := path.stat().st_size):
        raise CliptexError(f"{path}: has {size:,} bytes for a network of {count:,} parameters; copy its folder again")


def fill(model: torch.nn.Module, path: Path) -> None:
    """Load a weight file into `model`, with the conversions of `open_clip.load_checkpoint`.

    Raises CliptexError as `read_tensors` does, and if names, shapes or kinds of numbers do not match.
    """
    if path.suffix in (".npz", ".npy"):  # big_vision's; NumPy's reader refuses pickles by default
        require_bounded(path)
        try:
            open_clip.load_checkpoint(model, str(path))
        except (OSError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, BadZipFile) as error:
            raise CliptexError(f"{path}: not weights of big_vision for this network ({_line(error)})") from error
        for name, tensor in model.state_dict().items():
            require_finite(tensor, f"{path}: {name}", "use another copy")
        return
    state = convert_state_dict(model, read_tensors(path))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        own = getattr(model, name, None)
        if name in state and own is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(own.shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None and "logit_scale" in state:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)  # written by transformers before 4.31
    try:
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    except (RuntimeError, AssertionError) as error:
        raise CliptexError(f"{path}: its position embedding does not fit the network ({_line(error)})") from error
    load_strictly(model, state, f"{path}: the weights do not match the architecture", "use those that belong to it")


@lru_cache(maxsize=8)
def _simple_tokenizer(options: str) -> open_clip.SimpleTokenizer:
    """open_clip's own tokenizer, which several steps of a job need: to build its vocabulary takes a while."""
    return open_clip.SimpleTokenizer(**json.loads(options))


def make_tokenizer(text_config: dict[str, Any], source: str) -> Any:
    """The open_clip tokenizer of a checked `text_cfg`; texts -> int64 [N, context_length].

    source: where a tokenizer of transformers comes from, a folder or a repository of the hub. Raises CliptexError if it
    cannot be loaded.
    """
    options = {"context_length": text_config.get("context_length", 77), **(text_config.get("tokenizer_kwargs") or {})}
    if not text_config.get("hf_tokenizer_name"):
        return _simple_tokenizer(json.dumps(options, sort_keys=True))
    if Path(source).is_dir():
        require_no_code(Path(source))
    mode = text_config.get("tokenizer_mode")
    try:
        tokenizer = HFTokenizer(source, tokenizer_mode=mode, trust_remote_code=False, **options)
        tokenizer(["", 100 * "é, \U0001f600 and more "])  # fails without the tokens for padding and unknown words
        return tokenizer
    except Exception as error:  # transformers and the hub raise different types
        reason = _line(error)
        if "trust_remote_code" in reason:  # transformers' advice is to run it
            reason = "it needs Python code of its own, which is never executed"
        raise CliptexError(
            f"student.architecture: its tokenizer {source} cannot be loaded ({reason}); without a network, put it into"
            " the cache of the Hugging Face hub first"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

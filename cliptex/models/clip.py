"""Build the CLIP to be trained from the config, export it as an open_clip folder, and load such folders."""

import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file

from cliptex.config import Student
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, require_file, sha256_file, write_json

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
HEADS_FILE = "heads.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
"""Files of a transformers tokenizer, which open_clip looks for next to the weights; CLIP's own tokenizer needs none."""
PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""CLIP's preprocessing, the default for weights that do not specify theirs."""


def model_config(student: Student) -> dict[str, Any]:
    """The open_clip `model_cfg` of the student.

    For a pretrained folder it is read from there, and `architecture` is ignored. QuickGELU is enabled for a pretrained
    tag whose weights were trained with it, since open_clip would only warn and compute a different function. Raises
    CliptexError for an unknown architecture name.
    """
    if student.pretrained is not None and Path(student.pretrained).is_dir():
        return exported_config(student.pretrained)["model_cfg"]
    if isinstance(student.architecture, dict):
        return student.architecture
    config = open_clip.get_model_config(student.architecture)
    if config is None:
        near = [name for name in open_clip.list_models() if name.startswith(student.architecture[:5])]
        raise CliptexError(
            f"student.architecture: open_clip has no {student.architecture!r}; "
            f"similar ones: {', '.join(near) or 'none'} (see open_clip.list_models())"
        )
    if "multimodal_cfg" in config:
        raise CliptexError(
            f"student.architecture: {student.architecture!r} is CoCa, which is not supported; choose a CLIP"
        )
    return config | ({"quick_gelu": True} if _wants_quick_gelu(student) else {})


def _wants_quick_gelu(student: Student) -> bool:
    tag = open_clip.get_pretrained_cfg(student.architecture, student.pretrained or "")
    return bool(tag and tag.get("quick_gelu"))


def build(student: Student, seed: int) -> torch.nn.Module:
    """An open_clip model with the student's pretrained weights, or with random weights drawn from `seed`.

    Raises CliptexError for an unknown tag, a missing file, or weights that do not match. Files are safetensors, or
    PyTorch files of tensors only; no code in them is executed.
    """
    config = model_config(student)
    torch.manual_seed(seed)
    if student.pretrained is None:
        try:
            return _random(config)
        except OSError as error:  # a transformers text tower, whose configuration must be fetched from the hub
            raise CliptexError(f"student.architecture: cannot be built ({' '.join(str(error).split())})") from error
    path = Path(student.pretrained)
    if path.is_dir():
        return _open(path)
    check_pretrained(student)
    try:
        if not isinstance(student.architecture, str):
            model = _random(config)
            open_clip.load_checkpoint(model, str(path), weights_only=True)
            return model
        return open_clip.create_model(
            student.architecture,
            pretrained=student.pretrained,
            force_quick_gelu=_wants_quick_gelu(student),
            require_pretrained=True,
            weights_only=True,
        )
    except Exception as error:  # a rejected pickle, a missing key, a broken zip, no network
        reason = " ".join(str(error).split())
        remedy = "" if path.exists() else "; without a network, give the path of the file or folder"
        raise CliptexError(
            f"student.pretrained: {student.pretrained} cannot be loaded into {_name(student)} ({reason}){remedy}"
        ) from error


def check_pretrained(student: Student) -> None:
    """Raise CliptexError unless `student.pretrained` is null, an existing file or folder, or a tag of open_clip."""
    if student.pretrained is None or Path(student.pretrained).exists():
        return
    if not isinstance(student.architecture, str):
        raise CliptexError(f"student.pretrained: {student.pretrained}: no such file or exported folder")
    tags = open_clip.list_pretrained_tags_by_model(student.architecture)
    if student.pretrained not in tags:
        raise CliptexError(
            f"student.pretrained: {student.pretrained!r} is neither a file nor a tag of "
            f"{student.architecture}; its tags are: {', '.join(tags) or 'none'}"
        )


def _name(student: Student) -> str:
    return student.architecture if isinstance(student.architecture, str) else "student.architecture"


def _random(config: dict[str, Any]) -> torch.nn.Module:
    config = dict(config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    return open_clip.CustomTextCLIP(**config) if custom else open_clip.CLIP(**config)


def fetch(student: Student, record: Path) -> None:
    """Download the student's published weights and its tokenizer to the local hub cache; write `record`.

    The model is built once, so that weights that do not match are reported before training jobs start.
    """
    model = build(student, 0)
    tokenizer(student)
    write_json(record, {"schema_version": 1, **student.model_dump(mode="json"), "num_parameters": parameters(model)})


def preprocessing(model: torch.nn.Module) -> dict[str, Any]:
    """Preprocessing of a model's images: open_clip's `preprocess_cfg`, without the size."""
    # set by open_clip for pretrained weights only
    pretrained = getattr(model.visual, "preprocess_cfg", {})
    return {name: pretrained.get(name, value) for name, value in PREPROCESS.items()}


def export(model: torch.nn.Module, student: Student, folder: Path) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; return the weights' SHA-256.

    The folder can be loaded by `open_clip.create_model_and_transforms("local-dir:<folder>", require_pretrained=True)`.
    A transformers tokenizer is saved with it.
    """
    text_tokenizer = tokenizer(student)
    if isinstance(text_tokenizer, HFTokenizer):
        text_tokenizer.save_pretrained(folder)
    config = {"model_cfg": model_config(student), "preprocess_cfg": preprocessing(model)}
    write_json(folder / CONFIG_FILE, config)
    with replacing(folder / WEIGHTS_FILE) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, scratch)
    return sha256_file(folder / WEIGHTS_FILE)


def load(folder: Path) -> torch.nn.Module:
    """The model of an exported folder, in evaluation mode. Raises CliptexError if files are missing or do not match."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        require_file(Path(folder) / name, "train that model first")
    return _open(folder).eval()


def _open(folder: Path) -> torch.nn.Module:
    """The model of a folder in open_clip's layout; its weight file may have any name that open_clip supports."""
    try:
        return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True, weights_only=True)
    except Exception as error:  # safetensors, json, torch and open_clip raise different types
        remedy = "compare its files with a copy, and restore those that differ"
        raise CliptexError(f"{folder}: not a loadable open_clip model ({error}); {remedy}") from error


def tokenizer(student: Student) -> Any:
    """The open_clip tokenizer of the student's text tower; texts -> int64 [N, context_length].

    Raises CliptexError if a transformers tokenizer cannot be loaded.
    """
    config = model_config(student)["text_cfg"]
    options = {"context_length": config.get("context_length", 77), **config.get("tokenizer_kwargs", {})}
    name = config.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(**options)
    if student.pretrained is not None and any((Path(student.pretrained) / file).exists() for file in TOKENIZER_FILES):
        name = student.pretrained
    try:
        return HFTokenizer(name, tokenizer_mode=config.get("tokenizer_mode"), **options)
    except Exception as error:  # transformers and the hub raise different types
        reason = " ".join(str(error).split())
        raise CliptexError(
            f"student.architecture: its tokenizer {name} cannot be loaded ({reason}); without a network, put it into"
            " the cache of the Hugging Face hub first"
        ) from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of an exported folder, if any, to another."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            with replacing(target / name) as scratch:
                shutil.copyfile(source / name, scratch)


def exported_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` of an exported folder. Raises CliptexError if it is missing or broken."""
    return read_json(Path(folder) / CONFIG_FILE)


def exported_preprocessing(folder: Path, model: torch.nn.Module) -> PreprocessCfg:
    """Preprocessing of an exported model, by default CLIP's."""
    return PreprocessCfg(size=model.visual.image_size, **exported_config(folder).get("preprocess_cfg", {}))


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())

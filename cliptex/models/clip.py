"""The CLIP under training: build it from config, export it as an open_clip folder, load it back."""

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
from cliptex.core.files import read_json, replacing, sha256_file, write_json

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
"""Of a tokenizer of transformers, which open_clip looks for beside the weights; CLIP's own needs none."""
PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""CLIP's own, for weights that do not say how images are to be prepared."""


def model_config(student: Student) -> dict[str, Any]:
    """The open_clip `model_cfg` of the student.

    A pretrained folder says its own, whatever `architecture` is. A pretrained tag whose weights were trained with
    QuickGELU gets it, since open_clip would only warn and compute something else. Raises CliptexError for an unknown
    architecture name.
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
            f"student.architecture: {student.architecture!r} is CoCa, whose captions are not learned; choose a CLIP"
        )
    return config | ({"quick_gelu": True} if _wants_quick_gelu(student) else {})


def _wants_quick_gelu(student: Student) -> bool:
    tag = open_clip.get_pretrained_cfg(student.architecture, student.pretrained or "")
    return bool(tag and tag.get("quick_gelu"))


def build(student: Student, seed: int) -> torch.nn.Module:
    """An open_clip model with the student's pretrained weights, or with random ones drawn from `seed`.

    Raises CliptexError for a tag that does not exist, a file that is missing, or weights that do not fit. Nothing is
    executed: a file is safetensors, or PyTorch's and of tensors alone.
    """
    config = model_config(student)
    torch.manual_seed(seed)
    if student.pretrained is None:
        try:
            return _random(config)
        except OSError as error:  # a text tower of transformers, whose configuration is on the hub
            raise CliptexError(f"student.architecture: cannot be built ({' '.join(str(error).split())})") from error
    path = Path(student.pretrained)
    if path.is_dir():
        return _open(path)
    if not path.exists():
        if not isinstance(student.architecture, str):
            raise CliptexError(f"student.pretrained: {student.pretrained}: no such file or exported folder")
        tags = open_clip.list_pretrained_tags_by_model(student.architecture)
        if student.pretrained not in tags:
            raise CliptexError(
                f"student.pretrained: {student.pretrained!r} is neither a file nor a tag of "
                f"{student.architecture}; its tags are: {', '.join(tags) or 'none'}"
            )
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
    except Exception as error:  # a refused pickle, a missing key, a broken zip, no network
        what = " ".join(str(error).split())
        remedy = "" if path.exists() else "; without a network, give the path of the file or folder"
        raise CliptexError(
            f"student.pretrained: {student.pretrained} cannot be loaded into {_name(student)} ({what}){remedy}"
        ) from error


def _name(student: Student) -> str:
    return student.architecture if isinstance(student.architecture, str) else "student.architecture"


def _random(config: dict[str, Any]) -> torch.nn.Module:
    config = dict(config)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    return open_clip.CustomTextCLIP(**config) if custom else open_clip.CLIP(**config)


def fetch(student: Student, record: Path) -> None:
    """Bring the student's published weights, and its tokenizer, into the hub's cache on this machine; write `record`.

    They are loaded once, so that what does not fit is found before any job waits for it.
    """
    model = build(student, 0)
    tokenizer(student)
    write_json(record, {"schema_version": 1, **student.model_dump(mode="json"), "num_parameters": parameters(model)})


def preprocessing(model: torch.nn.Module) -> dict[str, Any]:
    """How images are to be prepared for a model: open_clip's `preprocess_cfg`, without the size."""
    # what the pretrained weights came with, which a model of random weights does not have
    given = getattr(model.visual, "preprocess_cfg", {})
    return {name: given.get(name, value) for name, value in PREPROCESS.items()}


def export(model: torch.nn.Module, student: Student, folder: Path) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; return the weights' SHA-256.

    The folder loads with `open_clip.create_model_and_transforms("local-dir:<folder>", require_pretrained=True)`. A
    tokenizer of transformers goes with it.
    """
    texts = tokenizer(student)
    if isinstance(texts, HFTokenizer):
        texts.save_pretrained(folder)
    described = {"model_cfg": model_config(student), "preprocess_cfg": preprocessing(model)}
    write_json(folder / CONFIG_FILE, described)
    with replacing(folder / WEIGHTS_FILE) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, scratch)
    return sha256_file(folder / WEIGHTS_FILE)


def load(folder: Path) -> torch.nn.Module:
    """The model of an exported folder, in evaluation mode. Raises CliptexError when files are missing or do not fit."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (Path(folder) / name).exists():
            raise CliptexError(f"{Path(folder) / name}: no such file; train that model first")
    return _open(folder).eval()


def _open(folder: Path) -> torch.nn.Module:
    """The model of a folder in open_clip's layout, whatever its weight file is called."""
    try:
        return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True, weights_only=True)
    except Exception as error:  # safetensors, json, torch and open_clip each have their own kind
        raise CliptexError(
            f"{folder}: not a loadable open_clip model ({error}); if it was trained here, delete it and train again"
        ) from error


def tokenizer(student: Student) -> Any:
    """The open_clip tokenizer that fits the student's text tower; texts -> int64 [N, context_length].

    Raises CliptexError for one of transformers that cannot be fetched.
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
    except Exception as error:  # transformers and the hub each have their own kind
        what = " ".join(str(error).split())
        raise CliptexError(
            f"student.architecture: its tokenizer {name} cannot be loaded ({what}); without a network, put it into the"
            " cache of the Hugging Face hub first"
        ) from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that are in one exported folder, if any, to another."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            with replacing(target / name) as scratch:
                shutil.copyfile(source / name, scratch)


def exported_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` of an exported folder. Raises CliptexError where it is missing or broken."""
    return read_json(Path(folder) / CONFIG_FILE)


def exported_preprocessing(folder: Path, model: torch.nn.Module) -> PreprocessCfg:
    """How images are prepared for an exported model; CLIP's own way where the folder does not say."""
    return PreprocessCfg(size=model.visual.image_size, **exported_config(folder).get("preprocess_cfg", {}))


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())

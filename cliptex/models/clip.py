"""Build the CLIP to be trained from the config, export it as an open_clip folder, and load such folders."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import save_file

from cliptex.config import Student
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, read_json, replacing, require_file, sha256_file, write_json
from cliptex.core.finite import require_finite
from cliptex.experts.tensors import require_no_code
from cliptex.models import loading

log = logging.getLogger("cliptex")
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
HEADS_FILE = "heads.safetensors"
OTHER_WEIGHTS = (
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Names of weights in folders that were made elsewhere, in open_clip's order of preference; others come after these."""
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
    CliptexError for an unknown architecture name, and for options that are not allowed (`check_model_config`).
    """
    if student.pretrained is not None and Path(student.pretrained).is_dir():
        return exported_config(student.pretrained)["model_cfg"]
    if isinstance(student.architecture, dict):
        loading.check_model_config(student.architecture, "student.architecture")
        return student.architecture
    config = open_clip.get_model_config(student.architecture)
    if config is None:
        near = [name for name in open_clip.list_models() if name.startswith(student.architecture[:5])]
        raise CliptexError(
            f"student.architecture: open_clip has no {student.architecture!r}; "
            f"similar ones: {', '.join(near) or 'none'} (see open_clip.list_models())"
        )
    loading.check_model_config(config, f"student.architecture: {student.architecture!r}")
    return config | ({"quick_gelu": True} if _tag(student).get("quick_gelu") else {})


def _tag(student: Student) -> dict[str, Any]:
    """What open_clip knows of the student's published weights; empty if `pretrained` is not a tag."""
    if student.pretrained is None or not isinstance(student.architecture, str):
        return {}
    return open_clip.get_pretrained_cfg(student.architecture, student.pretrained) or {}


def build(student: Student, seed: int) -> torch.nn.Module:
    """An open_clip model with the student's pretrained weights, or with random weights drawn from `seed`.

    Raises CliptexError for an unknown tag, a missing file, or weights that do not match. Files are safetensors, or
    PyTorch files of tensors only; no code in them is executed.
    """
    if student.pretrained is not None and Path(student.pretrained).is_dir():
        torch.manual_seed(seed)
        return _open(Path(student.pretrained))
    config = model_config(student)
    check_pretrained(student)
    torch.manual_seed(seed)
    model = loading.skeleton(config, "student.architecture", pretrained_text=student.pretrained is None)
    if student.pretrained is None:
        return model
    if tag := _tag(student):
        try:
            path = Path(open_clip.factory.download_pretrained(tag))
        except Exception as error:  # the hub, a server, or open_clip's check of a digest
            raise CliptexError(
                f"student.pretrained: {student.pretrained} of {student.architecture} cannot be fetched"
                f" ({' '.join(str(error).split())}); without a network, give the path of the file or folder"
            ) from error
        set_model_preprocess_cfg(model, asdict(_preprocessing(tag, model.visual)))
    else:
        path = Path(student.pretrained)
        _require_activation(student, config, path)
    try:
        loading.fill(model, path)
    except CliptexError as error:
        raise CliptexError(f"student.pretrained: {error}") from error
    return model


def _require_activation(student: Student, config: dict[str, Any], path: Path) -> None:
    """Whether QuickGELU is right for a bare file, which does not say with which activation it was trained.

    Raises CliptexError if the name of the file, or its place in the hub's cache, tells that it was QuickGELU; otherwise
    warns if the architecture is published with both.
    """
    if "quick_gelu" in config or f"{student.architecture}-quickgelu" not in open_clip.list_models():
        return
    cached = {}
    for name in open_clip.list_pretrained_tags_by_model(student.architecture):
        tag = open_clip.get_pretrained_cfg(student.architecture, name)
        cached[f"models--{tag.get('hf_hub', '').strip('/').replace('/', '--')}"] = bool(tag.get("quick_gelu"))
    known = [cached[part] for part in path.resolve().parts if part in cached]
    remedy = f"set student.architecture: {student.architecture}-quickgelu"
    if any(known) or "quickgelu" in path.name.lower():
        raise CliptexError(f"student.pretrained: {path} was trained with QuickGELU; {remedy}")
    if not known:
        log.warning(
            "student.pretrained: %s does not say with which activation it was trained; GELU is used. For weights of"
            " OpenAI, DFN or MetaCLIP, %s",
            path,
            remedy,
        )


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


def fetch(student: Student, record: Path) -> None:
    """Download the student's published weights and its tokenizer to the local hub cache; write `record`.

    The model is built once, so that weights that do not match are reported before training jobs start.
    """
    model = build(student, 0)
    tokenizer(student)
    write_json(record, {"schema_version": 1, **student.model_dump(mode="json"), "num_parameters": parameters(model)})


def preprocessing(model: torch.nn.Module) -> dict[str, Any]:
    """Preprocessing of a model's images: open_clip's `preprocess_cfg`, without the size."""
    # set for pretrained weights only
    pretrained = getattr(model.visual, "preprocess_cfg", {})
    return {name: pretrained.get(name, value) for name, value in PREPROCESS.items()}


def _preprocessing(given: dict[str, Any], visual: torch.nn.Module) -> PreprocessCfg:
    """`given`, with CLIP's preprocessing for what it lacks; the size is the encoder's, as in open_clip."""
    return PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), given) | {"size": visual.image_size})


def export(model: torch.nn.Module, student: Student, folder: Path) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; return the weights' SHA-256.

    The folder can be loaded by `open_clip.create_model_and_transforms("local-dir:<folder>", require_pretrained=True)`.
    A transformers tokenizer is saved with it. Raises CliptexError for weights that are not finite.
    """
    text_tokenizer = tokenizer(student)
    if isinstance(text_tokenizer, HFTokenizer):
        text_tokenizer.save_pretrained(folder)
    config = {"model_cfg": model_config(student), "preprocess_cfg": preprocessing(model)}
    write_json(folder / CONFIG_FILE, config)
    save_weights(model.state_dict(), folder / WEIGHTS_FILE)
    return sha256_file(folder / WEIGHTS_FILE)


def save_weights(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors. Raises CliptexError, before anything is written, if one is not finite."""
    for name, tensor in tensors.items():
        require_finite(tensor, f"{path}: {name}", "nothing was saved; lower the learning rate, or check the inputs")
    with replacing(path) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata)


def load(folder: Path) -> torch.nn.Module:
    """The model of a folder in open_clip's layout, in evaluation mode.

    Its attribute `weights_sha256` is the digest of its weight file. Raises CliptexError if files are missing or do not
    match, or if the weights are not those that the folder's train.json records.
    """
    return _open(Path(folder)).eval()


def _open(folder: Path) -> torch.nn.Module:
    config, path = exported_config(folder), _weights_of(folder)
    sha256 = require_recorded(path)
    loading.require_size(config["model_cfg"], path, str(folder / CONFIG_FILE))
    model = loading.skeleton(config["model_cfg"], str(folder / CONFIG_FILE))
    loading.fill(model, path)
    set_model_preprocess_cfg(model, asdict(_preprocessing(config.get("preprocess_cfg") or {}, model.visual)))
    model.weights_sha256 = sha256
    return model


def _weights_of(folder: Path) -> Path:
    """The weight file that open_clip would choose in a model's folder; `WEIGHTS_FILE` if there is none."""
    named = [folder / name for name in (WEIGHTS_FILE, *OTHER_WEIGHTS)]
    others = sorted(path for suffix in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{suffix}"))
    return next((path for path in named + others if path.exists() and path.name != HEADS_FILE), named[0])


def require_recorded(path: Path) -> str:
    """SHA-256 of a model's weight file, or of that of its heads.

    Raises CliptexError if the train.json next to it records another.
    """
    require_file(path, "train that model first")
    sha256, record = sha256_file(path), path.with_name("train.json")
    key = {WEIGHTS_FILE: "model_sha256", HEADS_FILE: "heads_sha256"}.get(path.name)
    recorded = read_checked(record, dict).get(key) if record.exists() and key else None
    if recorded not in (None, sha256):
        raise CliptexError(
            f"{path}: not the weights that {record.name} records (SHA-256 {sha256[:8]} instead of {str(recorded)[:8]});"
            " restore the file, or use a folder of its own, without train.json, for other weights"
        )
    return sha256


def tokenizer(student: Student) -> Any:
    """The open_clip tokenizer of the student's text tower; texts -> int64 [N, context_length].

    Raises CliptexError if a transformers tokenizer cannot be loaded.
    """
    config, source = model_config(student)["text_cfg"], student.pretrained
    if source is None or not any((Path(source) / file).exists() for file in TOKENIZER_FILES):
        source = config.get("hf_tokenizer_name")
    return loading.make_tokenizer(config, source)


def exported_tokenizer(folder: Path) -> Any:
    """The open_clip tokenizer of an exported folder; as `tokenizer`."""
    return tokenizer(Student(pretrained=str(folder)))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of an exported folder, if any, to another."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            with replacing(target / name) as scratch:
                shutil.copyfile(source / name, scratch)


def exported_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` of an exported folder.

    Raises CliptexError if it is missing, broken, or has options that are not allowed, and if a file next to it from
    which transformers reads the tokenizer names Python code.
    """
    path = Path(folder) / CONFIG_FILE
    require_file(path, "train that model first")
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("preprocess_cfg") or {}, dict):
        raise CliptexError(f"{path}: not an open_clip model; it needs model_cfg and preprocess_cfg")
    loading.check_model_config(config.get("model_cfg"), str(path))
    loading.check_preprocessing(config.get("preprocess_cfg") or {}, str(path))
    if config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        require_no_code(Path(folder))
    return config


def exported_preprocessing(folder: Path, visual: torch.nn.Module) -> PreprocessCfg:
    """Preprocessing for the image tower of an exported model, by default CLIP's."""
    return _preprocessing(exported_config(folder).get("preprocess_cfg") or {}, visual)


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())

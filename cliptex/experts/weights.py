"""Where an expert's weights come from, and how they are read: fetched once, checked by SHA-256, never executed.

Reads   a URL, a repository of the Hugging Face hub, a file, or a folder of a saved model.
Writes  `resources/weights/` (what came by URL); the hub keeps a cache of its own.
Holds   a file in the cache is whole; what was loaded is identified by digest; nothing in a weight file is ever run.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cliptex.config import Expert as ExpertConfig
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, sha256_json
from cliptex.core.redact import without_secrets
from cliptex.data.http import fetch_file

if TYPE_CHECKING:
    import torch

log = logging.getLogger("cliptex")
SETTINGS_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names under which transformers saves a model's weights, in the order in which it looks for them."""


@dataclass(frozen=True)
class Weights:
    """Weights on disk."""

    path: Path
    """Absolute; a file, or the folder of a saved model (`config.json` and a file of `WEIGHT_FILES`)."""
    files: dict[str, str]
    """Name -> SHA-256 of each file that is read."""
    origin: dict[str, str]
    """Where they come from: `url`; or `repo`, `revision` (the commit) and `file`; or `path`."""

    @property
    def sha256(self) -> str:
        """Of the file; of a folder, that of `files` as JSON."""
        return next(iter(self.files.values())) if self.path.is_file() else sha256_json(self.files)


def resolve(name: str, settings: ExpertConfig, cache: Path = paths.WEIGHTS) -> Weights:
    """The weights of the expert `name` (`weights`: "url", "hub" or "local"), fetched where they are not yet here.

    Raises CliptexError, naming the key, when they cannot be had or are not those of `sha256`.
    """
    where = f"experts.{name}"
    if settings.weights == "url":
        file = Path(unquote(urlsplit(settings.url).path)).name or "weights"
        # two addresses may end in the same name
        path = cache / f"{sha256_json(settings.url)[:8]}-{file}"
        digits = settings.sha256 or _digits_in(file)
        fetch_file(settings.url, path, f"{where}.url", digits and f"sha256:{digits}", "mend `url` or `sha256`")
        origin = {"url": without_secrets(settings.url)}
    elif settings.weights == "hub":
        path, commit = _from_hub(where, settings)
        origin = {"repo": settings.repo, "revision": commit} | ({"file": settings.file} if settings.file else {})
    else:
        path = Path(settings.path)
        if not path.exists():
            raise CliptexError(f"{where}.path: {path} does not exist")
        origin = {"path": str(path.absolute())}
    path = path.absolute()
    weights = Weights(path, digests(path), origin)
    if settings.sha256:
        # of a folder, what can be looked up is the digest of its one weight file
        single = [digest for file, digest in weights.files.items() if file not in SETTINGS_FILES]
        found = single[0] if len(single) == 1 else weights.sha256
        if not found.startswith(settings.sha256):
            raise CliptexError(f"{where}.sha256: {path} has {found}, not {settings.sha256}; mend the key or the file")
    return weights


def digests(path: Path) -> dict[str, str]:
    """Name -> SHA-256 of a weight file, or of the files of a folder that are read.

    Raises CliptexError when a folder lacks `config.json` or weights.
    """
    if not path.is_dir():
        return {path.name: sha256_file(path)}
    names = [name for name in SETTINGS_FILES if (path / name).is_file()]
    weights = next((name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if "config.json" not in names or weights is None:
        raise CliptexError(
            f"{path}: not the folder of a saved model; it needs config.json and one of {', '.join(WEIGHT_FILES)}"
        )
    names += [weights, *shards(path / weights)]
    if missing := [name for name in names if not (path / name).is_file()]:
        raise CliptexError(f"{path}: lacks {', '.join(missing)}, which {weights} names; copy the folder again")
    return {name: sha256_file(path / name) for name in names}


def shards(index: Path) -> list[str]:
    """File names in the index of weights that are saved in parts; none for a weight file itself."""
    if index.suffix != ".json":
        return []
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if not names or any(Path(name).name != name for name in names):
        raise CliptexError(f"{index}: names no files of its own folder")
    return names


# ---- fetching


def _digits_in(file: str) -> str | None:
    """The first digits of the SHA-256, where the name ends in them, e.g. `net-73cbd019.pth`, as PyTorch's do."""
    digits = Path(file).stem.rpartition("-")[2]
    return digits if len(digits) == 8 and set(digits) <= set("0123456789abcdef") else None


def _from_hub(where: str, settings: ExpertConfig) -> tuple[Path, str]:
    """File or folder in the hub's cache, and the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    first = settings.file or "config.json"
    revision = settings.revision

    def get(name: str) -> Path:
        return Path(hf_hub_download(settings.repo, name, revision=revision))

    try:
        path = get(first)
        folder = path.parents[len(Path(first).parts) - 1]
        revision = folder.name  # what follows is of the same commit, whatever happens to the branch
        if settings.file:
            return path, revision
        try:
            get("preprocessor_config.json")
        except EntryNotFoundError:
            log.info("%s has no preprocessor_config.json", settings.repo)
        for name in WEIGHT_FILES:
            try:
                found = get(name)
            except EntryNotFoundError:
                continue
            for shard in shards(found):
                get(shard)
            break
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CliptexError(
            f"{where}.repo: {settings.repo} cannot be had from the hub ({str(error).splitlines()[0]}); mend `repo`,"
            " `revision` and `file`, or give a copy with weights 'local'"
        ) from error
    return folder, revision


# ---- reading


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Name -> tensor of a safetensors file or of one that PyTorch saved (`weights_only=True`).

    A state dict may lie under `model` or `state_dict`, and its names may begin with `module.`, which is cut off.
    Raises CliptexError when the file is missing, is neither, or holds anything but tensors; none of it is run.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        with path.open("rb") as file:  # not the path, whose suffix PyTorch believes
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CliptexError(f"{path}: no such weight file; train the expert, or mend `path`") from error
    except SafetensorError as error:
        raise CliptexError(f"{path}: damaged safetensors file ({error}); copy it again") from error
    except Exception as error:  # torch.load has a kind of error for every way in which a file can be wrong
        raise CliptexError(f"{path}: {refused(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CliptexError(f"{path}: not a state dict (names and tensors); save the network's `state_dict()`")
    return {_plain(name): tensor for name, tensor in state.items()}


def refused(error: Exception) -> str:
    """What to say of a file that PyTorch would not read with `weights_only=True`: not what PyTorch says, which is how
    to run it."""
    return (
        f"not a whole file of tensors alone, safetensors or PyTorch's ({type(error).__name__}); copy it again, or where"
        " you trust it save its tensors as safetensors: nothing in it is run here"
    )


def _plain(name: Any) -> str:
    return str(name).removeprefix("module.")

"""Fetch an expert's weights: downloaded once, checked by SHA-256 (`cliptex.experts.tensors` reads them).

Reads   a URL, a repository of the Hugging Face hub, a file, or a folder of a saved model.
Writes  `resources/weights/` (files from URLs); the hub has its own cache.
Holds   files in the cache are complete; weights are identified by digest.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cliptex.config import ExpertConfig
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, sha256_file, sha256_json
from cliptex.core.redact import without_secrets
from cliptex.data.web import fetch_file

log = logging.getLogger("cliptex")
CONFIG_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = tuple(
    f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")
)
"""File names of weights saved by transformers, in its order of preference."""


@dataclass(frozen=True)
class Weights:
    """Weights on disk."""

    path: Path
    """Absolute path of a file, or of the folder of a saved model (`config.json` and a file of `WEIGHT_FILES`)."""
    files: dict[str, str]
    """Name -> SHA-256 of each file that is read."""
    origin: dict[str, str]
    """Their source: `url`; or `repo`, `revision` (the commit) and `file`; or `path`."""

    @property
    def sha256(self) -> str:
        """Digest of the file; for a folder, of `files` as JSON."""
        return next(iter(self.files.values())) if self.path.is_file() else sha256_json(self.files)


def resolve(name: str, expert_config: ExpertConfig, cache: Path = paths.WEIGHTS) -> Weights:
    """The weights of the expert `name` (`weights`: "url", "hub" or "local"), downloaded if necessary. Raises
    CliptexError, naming the key, if they cannot be fetched or do not match `sha256`."""
    where = f"experts.{name}"
    if expert_config.weights == "url":
        file = Path(unquote(urlsplit(expert_config.url).path)).name or "weights"
        path = cache / f"{sha256_json(expert_config.url)[:8]}-{file}"  # two URLs may end in the same name
        digits = expert_config.sha256 or _digits_in(file)
        fetch_file(expert_config.url, path, f"{where}.url", digits and f"sha256:{digits}", "correct `url` or `sha256`")
        origin = {"url": without_secrets(expert_config.url)}
    elif expert_config.weights == "hub":
        path, commit = _from_hub(where, expert_config)
        origin = {"repo": expert_config.repo, "revision": commit}
        origin |= {"file": expert_config.file} if expert_config.file else {}
    else:
        path = Path(expert_config.path)
        if not path.exists():
            raise CliptexError(f"{where}.path: {path} does not exist")
        origin = {"path": str(path.absolute())}
    path = path.absolute()
    weights = Weights(path, digests(path), origin)
    if expert_config.sha256:
        # for a folder with a single weight file, users look up the digest of that file
        single = [digest for file, digest in weights.files.items() if file not in CONFIG_FILES]
        digest = single[0] if len(single) == 1 else weights.sha256
        if not digest.startswith(expert_config.sha256):
            raise CliptexError(
                f"{where}.sha256: {path} has {digest}, not {expert_config.sha256}; correct the key or the file"
            )
    return weights


def digests(path: Path) -> dict[str, str]:
    """Name -> SHA-256 of a weight file, or of the files that are read from a folder. Raises CliptexError if a folder
    lacks `config.json` or weights."""
    if not path.is_dir():
        return {path.name: sha256_file(path)}
    names = [name for name in CONFIG_FILES if (path / name).is_file()]
    weights = next((name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if "config.json" not in names or weights is None:
        raise CliptexError(
            f"{path}: not the folder of a saved model; it needs config.json and one of {', '.join(WEIGHT_FILES)}"
        )
    names += [weights, *shards(path / weights)]
    if missing := [name for name in names if not (path / name).is_file()]:
        raise CliptexError(f"{path}: lacks {', '.join(missing)}, listed in {weights}; copy the folder again")
    return {name: sha256_file(path / name) for name in names}


def shards(index: Path) -> list[str]:
    """File names listed in the index of sharded weights; none if `index` is itself a weight file."""
    if index.suffix != ".json":
        return []
    form = {"weight_map": {str: str}}
    names = sorted(set(read_checked(index, form, remedy="copy the folder again")["weight_map"].values()))
    if not names or any(Path(name).name != name for name in names):
        raise CliptexError(f"{index}: lists no files of its own folder; copy the folder again")
    return names


# ---- fetching


def _digits_in(file: str) -> str | None:
    """The first digits of the SHA-256 if the name ends in them, as PyTorch's do, e.g. `net-73cbd019.pth`."""
    digits = Path(file).stem.rpartition("-")[2]
    return digits if len(digits) == 8 and set(digits) <= set("0123456789abcdef") else None


def _from_hub(where: str, expert_config: ExpertConfig) -> tuple[Path, str]:
    """Path of the file or folder in the hub's cache, and the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    first = expert_config.file or "config.json"
    revision = expert_config.revision

    def get(name: str) -> Path:
        return Path(hf_hub_download(expert_config.repo, name, revision=revision))

    try:
        path = get(first)
        folder = path.parents[len(Path(first).parts) - 1]
        revision = folder.name  # further files come from the same commit, even if the branch moves
        if expert_config.file:
            return path, revision
        try:
            get("preprocessor_config.json")
        except EntryNotFoundError:
            log.info("%s has no preprocessor_config.json", expert_config.repo)
        for name in WEIGHT_FILES:
            try:
                weights = get(name)
            except EntryNotFoundError:
                continue
            for shard in shards(weights):
                get(shard)
            break
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CliptexError(
            f"{where}.repo: {expert_config.repo} cannot be fetched from the hub ({str(error).splitlines()[0]}); correct"
            " `repo`, `revision` and `file`, or use a local copy with `weights: local`"
        ) from error
    return folder, revision

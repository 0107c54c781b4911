"""A remedy never harms: nothing is to be deleted or made again that may be right."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cliptex.benchmarks.nyuv2_normals import read_arrays
from cliptex.benchmarks.reading import read_lines, read_mat, read_rgb
from cliptex.core.errors import CliptexError
from cliptex.core.files import RESTORE, read_json, sha256_file
from cliptex.data.shard_index import read_shard_table
from cliptex.data.shards import iterate_shard
from cliptex.evaluation.per_image import read_per_image
from cliptex.evaluation.results import read_result
from cliptex.experts.fitting import read_renders
from cliptex.experts.tensors import read_tensors
from cliptex.labels.store import LabelFile
from cliptex.models.clip import load, require_recorded
from cliptex.models.heads import load_heads
from cliptex.training.checkpoints import Checkpoints

ROOT = Path(__file__).parent.parent
READERS: dict[str, Callable[[Path], object]] = {
    "results/a.json": read_json,
    "results/a.bin": sha256_file,
    "results/a.per_image.npz": read_per_image,
    "results/result.json": read_result,
    "results/shards/00000.parquet": read_shard_table,
    "results/shards/00000.tar": lambda path: list(iterate_shard(path)),
    "results/labels/depth/00000.parquet": lambda path: LabelFile(path).keys,
    "results/models/m/open_clip_config.json": lambda path: load(path.parent),
    "results/models/n/open_clip_model.safetensors": require_recorded,
    "results/models/m/heads.safetensors": load_heads,
    "results/models/m/checkpoints/step-00000001.pt": lambda path: Checkpoints(path.parent, {}).latest(),
    "resources/expert_renders/train.h5": lambda path: read_renders(path, ("image",)),
    "resources/weights/expert.pth": read_tensors,
    "resources/nyuv2/all_normals.pklz": read_arrays,
    "resources/nyuv2/splits.mat": lambda path: read_mat(path, "unpack it"),
    "resources/voc/a.jpg": read_rgb,
    "resources/voc/train.txt": lambda path: read_lines(path, "unpack it"),
}


@pytest.fixture
def not_root(tmp_path):
    """Permissions do not hold root back; nobody else may enter pytest's folders."""
    if os.getuid():
        yield
        return
    folders = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o077 == 0]
    for folder in folders:
        folder.chmod(0o755)
    yield
    os.seteuid(0)
    for folder in folders:
        folder.chmod(0o700)


def message(read: Callable[[Path], object], path: Path) -> str:
    signal.alarm(20)  # rather than wait at a pipe for ever
    with pytest.raises((CliptexError, OSError)) as caught:  # one line, too; see `cliptex.core.files.write_error`
        read(path)
    signal.alarm(0)
    text = str(caught.value)
    assert path.name in text and "\n" not in text, text
    return text


@pytest.mark.parametrize("how", ["folder", "pipe", "missing"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_file_is_not_to_be_deleted(name, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif "checkpoints" in name:
        return  # none is no error
    text = message(READERS[name], path)
    assert not re.search(r"delete|\brm -r|overwrite|remove it", text), text


@pytest.mark.parametrize("name", READERS)
def test_what_may_not_be_read_is_not_to_be_made_again(name, tmp_path, monkeypatch, not_root):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    path.chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    text = message(READERS[name], path)
    assert "ermission" in text, text
    advice = text.replace(name, "")
    assert not re.search(r"delete|\brm |\bmv |overwrite|remove|move it|train|label|download|unpack|, again", advice), (
        text
    )


def test_one_message_alone_advises_to_delete_a_file_and_none_a_folder():
    """A folder is moved away, which can be undone. The one is for a damaged file that the same command makes again."""
    advice = re.compile(
        r"\brm -r|[;,:] (or |then )*(delete|overwrite|erase) |[;,:] (or )?(train|label) (it |them )?again"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for pattern in ("cliptex/**/*.py", "workflow/**/*.smk", "docs/**/*.md")
        for path in ROOT.glob(pattern)
        for line in path.read_text(encoding="utf-8").splitlines()
        if advice.search(line)
    ]
    assert found == [f'cliptex/core/files.py: RESTORE = "{RESTORE}"']

"""A full disk and a read-only one: the error names file and remedy; with it, the same command ends as ever."""

import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import command
from pipeline import ends_as_ever, fault, half_made

pytestmark = pytest.mark.faults
FULL = [
    ("render_pairs",),
    ("train_expert", "dpt"),
    ("label", "depth"),
    ("index_labels", "depth"),
    ("train", "cliptex"),
    ("probe_nyuv2_0",),
    ("probe_voc_0",),
    ("report",),
]
"""Shards, experts, labels, checkpoints, features and predictions of probes, the report."""
CHECKPOINT = "results/models/cliptex/seed0/checkpoints"


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0


@contextmanager
def disk(folder: Path, megabytes: int):
    """A file system of its own at `folder`; None where none can be mounted."""
    folder.mkdir(parents=True)
    mounted = mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder)
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, free: int) -> Path:
    """A file that leaves `free` bytes of a disk."""
    filler = folder / ".filler"
    size = shutil.disk_usage(folder).free - free
    with filler.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(b"\1" * min(1 << 20, size - start))
    return filler


def refused(ended, remedy: str) -> None:
    """An error that the user can fix, in one line, naming a file."""
    assert ended.code == 1, (ended.code, ended.said[-3000:])
    assert re.search(rf"error: \S+.*{remedy}", ended.said), ended.said[-3000:]


@pytest.mark.parametrize("share", [0.05, 0.6])
@pytest.mark.parametrize("chosen", FULL, ids=" ".join)
def test_a_full_disk_is_named_and_with_room_all_goes_on(pipeline, tmp_path, chosen, share):
    stage = pipeline.stage(*chosen)
    said = tmp_path / "said.txt"
    size = sum(path.stat().st_size for path in pipeline.folder.rglob("*") if path.is_file())
    with (
        fault("full disk", f"{' '.join(chosen)}, with {share:.0%} of the room it needs"),
        disk(tmp_path / "disk", 64 + 2 * (size + 4 * stage.bytes) // 10**6) as folder,
    ):
        if folder:
            pipeline.before(stage, folder)
            (folder / stage.arguments[1]).parent.mkdir(parents=True, exist_ok=True)
            filler = fill(folder, int(share * stage.bytes))
            ended = command(folder, stage.arguments, said=said)
            filler.unlink()
        else:  # not root: no file may grow
            folder = pipeline.before(stage, tmp_path / "run")
            largest = max((pipeline.folder / name).stat().st_size for name in stage.made)
            ended = command(folder, stage.arguments, said=said, file_bytes=int(share * largest))
        refused(ended, "make room")
        assert not half_made(stage, folder)
        ends_as_ever(stage, folder, command(folder, stage.arguments, said=said))


def test_checkpoints_on_a_full_disk(pipeline, tmp_path):
    """The previous checkpoint stays, and training resumes from it to the same weights."""
    stage = pipeline.stage("train", "cliptex")
    weights = max((pipeline.folder / name).stat().st_size for name in stage.made)
    with fault("full disk", "the weights after a checkpoint"), disk(tmp_path / "disk", 512) as folder:
        if folder is None:
            pytest.skip("no file system can be mounted; tests/test_train.py has checkpoints that cannot be written")
        pipeline.before(stage, folder)
        # a checkpoint has the weights and two moments of the optimiser; then the weights alone have no room
        filler = fill(folder, int(3.3 * weights))
        ended = command(folder, stage.arguments, said=tmp_path / "said.txt")
        filler.unlink()
        refused(ended, "make room")
        left = [path.name for path in (folder / CHECKPOINT).glob("step-*.pt")]
        assert left == ["step-00000002.pt"], (left, ended.said)
        again = command(folder, stage.arguments, said=tmp_path / "said.txt")
        ends_as_ever(stage, folder, again)


READ_ONLY = [("render_pairs",), ("train_expert", "dpt"), ("label", "depth"), ("train", "cliptex"), ("probe_nyuv2_0",)]


@pytest.mark.parametrize("chosen", [*READ_ONLY, ("report",)], ids=" ".join)
def test_a_read_only_folder_is_named(pipeline, tmp_path, chosen):
    stage = pipeline.stage(*chosen)
    said = tmp_path / "said.txt"
    size = sum(path.stat().st_size for path in pipeline.folder.rglob("*") if path.is_file())
    with fault("read-only folder", " ".join(chosen)), disk(tmp_path / "disk", 64 + 2 * size // 10**6) as folder:
        if folder is None:
            pytest.skip("no file system can be mounted, and permissions do not bind everybody")
        pipeline.before(stage, folder)
        assert mount("-o", "remount,ro", folder)
        # without a log, which would be the first that cannot be written
        for arguments in (stage.arguments, stage.arguments[2:]):
            refused(command(folder, arguments, said=said), "make it writable")
        assert mount("-o", "remount,rw", folder)
        ends_as_ever(stage, folder, command(folder, stage.arguments, said=said))

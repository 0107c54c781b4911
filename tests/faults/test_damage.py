"""Files that were cut, changed or replaced behind the workflow's back, and a clock that was set back."""

import os
import random
import shutil
import subprocess
import time

import pytest
from commands import command, content
from pipeline import ROOT, ends_as_ever, fault, moments, snakemake

from cliptex.config import Config

pytestmark = pytest.mark.faults
LABELS = "results/labels/depth"
CHECKPOINTS = "results/models/cliptex/seed0/checkpoints"


def remedied(folder, said: str) -> None:
    """Do what an error says is to be run."""
    line = next(line for line in reversed(said.splitlines()) if "run: rm" in line)
    remedy = line.partition("run: ")[2].partition("   and then")[0]
    assert remedy.startswith("rm ") and ".." not in remedy and " /" not in remedy, remedy
    subprocess.run(remedy, shell=True, cwd=folder, check=True)


@pytest.fixture(scope="module")
def stopped(pipeline, tmp_path_factory):
    """A run of which the training of cliptex was killed after its first checkpoint."""
    stage = pipeline.stage("train", "cliptex")
    folder = tmp_path_factory.mktemp("stopped") / "run"
    after = stage.seconds
    while not list((folder / CHECKPOINTS).glob("step-*.pt")):
        if (folder / "results/models/cliptex/seed0/train.json").exists() or not folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            pipeline.before(stage, folder)
            after *= 0.85
        else:
            after *= 1.05
        command(folder, stage.arguments, kill_after_s=after)
    return folder


@pytest.mark.parametrize("share", [0.0, *moments("a cut checkpoint", 6), 1.0])
def test_a_checkpoint_cut_at_any_length(pipeline, stopped, tmp_path, share):
    stage = pipeline.stage("train", "cliptex")
    folder = shutil.copytree(stopped, tmp_path / "run")
    newest = max((folder / CHECKPOINTS).glob("step-*.pt"))
    size = newest.stat().st_size
    length = min(int(share * size), size - 1)
    with fault("cut checkpoint", f"{newest.name} cut to {length:,} of {size:,} bytes"):
        os.truncate(newest, length)
        ended = command(folder, stage.arguments)
        assert f"{newest.name}: unreadable checkpoint skipped" in (folder / stage.arguments[1]).read_text()
        ends_as_ever(stage, folder, ended)


@pytest.mark.parametrize("share", moments("a flipped bit of a label file", 10))
def test_a_label_file_with_a_flipped_bit(pipeline, tmp_path, share):
    """Labelling makes it again; indexing refuses it and names the command that repairs it."""
    label, index = pipeline.stage("label", "depth", "000"), pipeline.stage("index_labels", "depth")
    folder = tmp_path / "run"
    pipeline.before(index, folder)
    (folder / LABELS / "mine.txt").write_text("the user's own\n")
    path = folder / LABELS / "00000.parquet"
    data = bytearray(path.read_bytes())
    at = int(share * len(data))
    bit = random.Random(at).randrange(8)
    with fault("flipped bit in a label file", f"bit {bit} of byte {at:,} of {len(data):,}"):
        data[at] ^= 1 << bit
        path.write_bytes(data)
        ended = command(folder, index.arguments)
        assert ended.code == 1 and "00000.parquet" in ended.said, ended.said
        remedied(folder, ended.said)
        ends_as_ever(label, folder, command(folder, label.arguments))
        ends_as_ever(index, folder, command(folder, index.arguments))
        # and where nobody looked at the index: the labels are made again from the shard alone
        path.write_bytes(data)
        ended = command(folder, label.arguments)
        assert ended.code == 0, ended.said
        assert content(path) == label.made[f"{LABELS}/00000.parquet"]


@pytest.mark.parametrize("share", moments("a flipped bit below training", 3))
def test_training_on_a_label_file_with_a_flipped_bit(pipeline, tmp_path, share):
    """After it was indexed: training compares the digest and stops; labelled and indexed again, it ends as ever."""
    stage, label = pipeline.stage("train", "cliptex"), pipeline.stage("label", "depth", "000")
    index = pipeline.stage("index_labels", "depth")
    folder = pipeline.before(stage, tmp_path / "run")
    path = folder / LABELS / "00000.parquet"
    data = bytearray(path.read_bytes())
    at = int(share * len(data))
    with fault("flipped bit in a label file", f"below training, byte {at:,} of {len(data):,}"):
        data[at] ^= 1 << random.Random(at).randrange(8)
        path.write_bytes(data)
        ended = command(folder, stage.arguments)
        assert ended.code == 1 and "00000.parquet" in ended.said, ended.said
        remedied(folder, ended.said)
        assert command(folder, label.arguments).code == 0
        assert command(folder, index.arguments).code == 0
        ends_as_ever(stage, folder, command(folder, stage.arguments))


def test_a_shard_replaced_by_another(pipeline, tmp_path):
    """Labelling, indexing and training refuse it by name; rendered again it is what it was."""
    render, label = pipeline.stage("render_pairs", "00001"), pipeline.stage("label", "depth", "000")
    index, train = pipeline.stage("index_shards"), pipeline.stage("train", "cliptex")
    folder = pipeline.before(train, tmp_path / "run")
    shards = folder / "results/shards"
    for place in ("results/shards", LABELS):
        (folder / place / "mine.txt").write_text("the user's own\n")
    shutil.copy(shards / "00000.tar", shards / "00001.tar")
    for stage in (train, label):
        with fault("shard replaced by another", f"found by {stage.rule}"):
            for name in stage.made:
                (folder / name).unlink(missing_ok=True)
            ended = command(folder, stage.arguments)
            assert ended.code == 1 and "results/shards/00001.tar" in ended.said and "run: rm" in ended.said, ended.said
    with fault("shard replaced by another", "found by index_shards, rendered again"):
        ended = command(folder, index.arguments)
        assert ended.code == 1 and "keys must be unique" in ended.said, ended.said
        (shards / "00001.tar").unlink()
        for stage in (render, index, label, train):
            ends_as_ever(stage, folder, command(folder, stage.arguments))


def test_the_user_s_tar_replaced_by_another_of_the_same_size(pipeline, tmp_path):
    """Source `webdataset`: the same command reads it again, and its labels are made again."""
    tars = tmp_path / "tars"
    tars.mkdir()
    made = [pipeline.stage("render_pairs", number).made for number in ("00000", "00001")]
    small, large = sorted((data for files in made for data in files.values()), key=len)
    (tars / "0.tar").write_bytes(large)
    folder = tmp_path / "run"
    folder.mkdir()
    config = Config.load({"dataset": {"source": "webdataset", "shards": [str(tars / "0.tar")]}})
    arguments = ["build-shards", "--batch", "0", "--config", config.subset("dataset", "download")]
    with fault("shard replaced by another", "a tar of the user's, of the same size and time"):
        assert command(folder, arguments).code == 0
        first = content(folder / "results/shards/batch-000.json")["shards"][0]["sha256"]
        stamp = (tars / "0.tar").stat().st_mtime_ns
        data = small.ljust(len(large), b"\0")
        (tars / "0.tar").write_bytes(data)
        os.utime(tars / "0.tar", ns=(stamp, stamp))
        assert command(folder, arguments).code == 0
        assert content(folder / "results/shards/batch-000.json")["shards"][0]["sha256"] != first
        assert (tars / "0.tar").read_bytes() == data


TARGET = "results/labels/depth/index.json"
DOCS = "docs/howto/resume.md"


def test_a_clock_that_was_set_back(pipeline, tmp_path):
    """Files of a day to come, as a run leaves them that began before the clock was set right. What is lost then cannot
    be newer than its inputs: Snakemake names both and their times. After the remedy of docs/howto/resume.md the same
    command ends as ever."""
    label, index = pipeline.stage("label", "depth", "000"), pipeline.stage("index_labels", "depth")
    folder = pipeline.before(index, tmp_path / "run")
    assert command(folder, index.arguments).code == 0
    touched = snakemake(folder, "--touch", TARGET)
    assert touched.returncode == 0, touched.stderr
    lost = [folder / LABELS / name for name in ("00001.parquet", "batch-000.json", "index.json")]
    with fault("clock set back", "a label file lost"):
        for path in lost:
            path.unlink()
        ahead = time.time() + 86400
        for path in folder.rglob("*"):
            os.utime(path, (ahead, ahead), follow_symlinks=False)
        refused = snakemake(folder, TARGET)
        said = refused.stdout + refused.stderr
        assert refused.returncode and f"{LABELS}/batch-000.json has older modification time" in said, said[-3000:]
        assert "results/shards/index.json" in said and "clock skew" in said
        remedy = next(line for line in (ROOT / DOCS).read_text().splitlines() if "-newermt now" in line)
        subprocess.run(remedy, shell=True, cwd=folder, check=True)
        ended = snakemake(folder, TARGET)
        assert ended.returncode == 0, ended.stderr[-4000:]
        for stage in [label, index, *pipeline.stages]:
            for name, value in stage.made.items():
                assert content(folder / name) == value, name
        assert "Nothing to be done" in (again := snakemake(folder, TARGET)).stderr + again.stdout

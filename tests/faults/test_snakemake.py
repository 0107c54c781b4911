"""Snakemake itself: killed at any moment, started twice at once, and behind a lock that nobody holds any more."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from commands import content
from pipeline import ROOT, arguments_of_snakemake, environment, fault, moments, snakemake

pytestmark = pytest.mark.faults
TARGET = "results/labels/depth/index.json"
CONFIG = {
    "miniature": {"pairs": 24, "pairs_per_shard": 12, "image_size_px": 48, "expert_train": 8, "expert_val": 4},
    "train": {"batch_size": 8, "held_out": 0},
    "backbone": {"training": {"steps": 1, "batch_size": 4}},
    "experts": {"flat": {"plugin": "conftest:Brightness", "network": {"task": "depth"}}},
    "label_stores": {"depth": {"task": "depth", "expert": "flat"}},
    "labels": {"shards_per_job": 1},
    "plugins": [str(ROOT / "tests")],
}
"""Two shards, and an expert that needs no training: a run of seconds."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return [path]


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """Results of a run, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    ended = snakemake(folder, TARGET, config=config)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return results(folder), time.monotonic() - start


def results(folder):
    """All that the run made; a labelling job also says whether it found a file done."""
    found = {}
    for path in folder.glob("results/**/*.*"):
        if path.suffix in (".tar", ".parquet") or path.name == "index.json":
            found[str(path.relative_to(folder))] = content(path)
    assert len(found) == 6
    return found


def begin(folder, config):
    folder.mkdir(exist_ok=True)
    said = (folder / "said.txt").open("a")
    return subprocess.Popen(
        arguments_of_snakemake(folder, TARGET, config=config),
        stdout=said,
        stderr=said,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )


def begin_and_kill(folder, config, after) -> None:
    """SIGKILL of the head alone after some seconds; after fewer, where it has ended by then, being quicker now."""
    head = begin(folder, config)
    try:
        code = head.wait(after)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    else:
        assert code == 0, (folder / "said.txt").read_text()[-3000:]
        shutil.rmtree(folder)
        begin_and_kill(folder, config, 0.8 * after)


def begin_and_lock(folder, config):
    """Begin, and wait until Snakemake has taken its lock."""
    head = begin(folder, config)
    while not list((folder / ".snakemake/locks").glob("*")):
        assert head.poll() is None
        time.sleep(0.05)
    return head


def unlocked(folder, config) -> None:
    """What the error about a lock says is to be done."""
    refused = snakemake(folder, TARGET, config=config)
    said = refused.stdout + refused.stderr
    assert refused.returncode and "--unlock" in said and str(folder) in said, said[-2000:]
    freed = snakemake(folder, "--unlock", TARGET, config=config)
    assert freed.returncode == 0, freed.stderr


@pytest.mark.parametrize("share", moments("the head", 5))
def test_a_killed_head(undisturbed, config, tmp_path, share):
    """Its jobs live on: the next run may begin while they still write."""
    expected, seconds = undisturbed
    folder = tmp_path / "run"
    with fault("SIGKILL of Snakemake", f"after {share * seconds:.1f} of {seconds:.1f} s"):
        begin_and_kill(folder, config, share * seconds)
        (folder / "results").mkdir(exist_ok=True)
        (folder / "results/mine.txt").write_text("the user's own\n")
        if list((folder / ".snakemake/locks").glob("*")):
            freed = snakemake(folder, "--unlock", TARGET, config=config)
            assert freed.returncode == 0, freed.stderr
        ended = snakemake(folder, TARGET, config=config)
        assert ended.returncode == 0, ended.stderr[-4000:]
        assert results(folder) == expected
        assert (folder / "results/mine.txt").read_text() == "the user's own\n"


def test_two_at_once(undisturbed, config, tmp_path):
    """The second says who is in its way, and that nothing but waiting is to be done; the first is not disturbed."""
    expected, seconds = undisturbed
    folder = tmp_path / "run"
    with fault("two at once", "two Snakemakes"):
        first = begin_and_lock(folder, config)
        second = snakemake(folder, TARGET, config=config)
        said = second.stdout + second.stderr
        assert second.returncode and str(folder) in said and "--unlock" in said, said[-2000:]
        assert first.wait(20 * seconds) == 0, (folder / "said.txt").read_text()[-3000:]
        assert results(folder) == expected
        again = snakemake(folder, TARGET, config=config)
        assert "Nothing to be done" in again.stdout + again.stderr


def test_a_stale_lock_of_snakemake(undisturbed, config, tmp_path):
    expected, _ = undisturbed
    folder = tmp_path / "run"
    with fault("stale lock", "of Snakemake"):
        head = begin_and_lock(folder, config)
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        unlocked(folder, config)
        ended = snakemake(folder, TARGET, config=config)
        assert ended.returncode == 0, ended.stderr[-4000:]
        assert results(folder) == expected

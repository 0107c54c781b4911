"""Features kept compactly: how exactly, that a folder is whole or not there, and that the bound holds."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from cliptex.core.errors import CliptexError
from cliptex.evaluation.probes.feature_cache import ABOUT, FeatureCache, Writer, bytes_of, fingerprint

SHAPE = (6, 5, 8)


def features(seed=0, scale=1.0):
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * scale
    values[..., 3] *= 100  # an outlier channel, as vision transformers have
    values[:, :, 5] = 0
    return values


def kept(values, precision, batch=4):
    writer = Writer(precision)
    for start in range(0, len(values), batch):
        writer.append(values[start : start + batch])
    return writer.finish({})


def add(cache, key, values, precision="fp16"):
    with cache.new(key, precision, bytes_of(SHAPE, precision), {}) as writer:
        writer.append(values[:4])
        writer.append(values[4:])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 60.0])
def test_what_is_read_back_is_within_the_bound(scale):
    values = features(scale=scale)
    everything = np.arange(len(values))
    assert torch.equal(kept(values, "fp32").read(everything), values)
    error = (kept(values, "fp16").read(everything) - values).abs()
    assert (error <= torch.clamp(values.abs() / 2**11, min=2.0**-25)).all()
    error = (kept(values, "int8").read(everything) - values).abs()
    bound = values.abs().amax(1, keepdim=True) / 254
    assert (error <= bound * (1 + 1e-5)).all() and error.max() > bound.max() / 3


def test_any_views_are_read_in_any_order_the_same_from_disk_and_memory(tmp_path):
    values, cache = features(), FeatureCache(tmp_path, 1e9)
    for precision in ("fp32", "fp16", "int8"):
        add(cache, precision, values, precision)
        index = np.array([5, 0, 3])
        assert torch.equal(cache.find(precision).read(index), kept(values, precision).read(index))
        size = sum(path.stat().st_size for path in (tmp_path / precision).iterdir() if path.name != ABOUT)
        assert size == bytes_of(SHAPE, precision)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "features of clip for voc, train images 1 to 8: has 1 NaN"),
        (-np.inf, "has 1 NaN"),
        (1e5, "exceed the range of fp16"),
    ],
)
def test_values_that_cannot_be_kept_are_refused(value, message):
    values = features()
    values[2, 1, 0] = value
    with pytest.raises(CliptexError, match=message):
        Writer("fp16").append(values, "features of clip for voc, train images 1 to 8")


def test_a_folder_that_is_not_finished_does_not_exist(tmp_path):
    cache = FeatureCache(tmp_path, 1e9)
    with pytest.raises(ZeroDivisionError), cache.new("a", "fp16", 1, {}) as writer:
        writer.append(features())
        raise ZeroDivisionError
    assert cache.find("a") is None and list(tmp_path.iterdir()) == []
    add(cache, "a", features())
    add(FeatureCache(tmp_path, 1e9), "a", features())  # another job that was second
    assert cache.find("a") is not None and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("damage", ["cut", "zeroed", "longer", "no record", "half a record", "record of others"])
def test_one_that_has_changed_since_it_was_written_is_made_again(tmp_path, precision, damage, caplog):
    cache = FeatureCache(tmp_path, 1e9)
    add(cache, "a", features(), precision)
    tokens, about = tmp_path / "a" / "tokens.bin", tmp_path / "a" / ABOUT
    data = tokens.read_bytes()
    if damage == "cut":
        tokens.write_bytes(data[:-1])
    elif damage == "zeroed":
        tokens.write_bytes(data[:100] + bytes(200) + data[300:])
    elif damage == "longer":
        tokens.write_bytes(data + b"0")
    else:
        record = {"no record": "", "half a record": about.read_text()[:40], "record of others": "[3]"}[damage]
        about.write_text(record)
    assert cache.find("a") is None
    assert "the features are computed again" in caplog.text
    add(cache, "a", features(), precision)
    assert torch.equal(cache.find("a").read(np.arange(6)), kept(features(), precision).read(np.arange(6)))


def test_one_whose_deletion_was_cut_short_is_made_anew(tmp_path):
    cache = FeatureCache(tmp_path, 1e9)
    add(cache, "a", features())
    (tmp_path / "a" / ABOUT).unlink()
    assert cache.find("a") is None
    add(cache, "a", features())
    assert cache.find("a").shape == SHAPE
    (tmp_path / "a" / ABOUT).unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    add(cache, "b", features())
    # what is left takes room, too; what is none of the cache's stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine"]


def test_the_least_recently_used_make_room_but_not_what_is_in_use(tmp_path):
    one = bytes_of(SHAPE, "fp16") + 100  # with about.json
    for key in "abc":
        add(FeatureCache(tmp_path, 3.5 * one), key, features())
    cache = FeatureCache(tmp_path, 3.5 * one)
    assert cache.find("a") is not None  # used last, and in use
    add(cache, "d", features())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    small = FeatureCache(tmp_path, one)
    small.find("a")
    add(small, "e", features())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "e"]
    small.release("a")
    add(small, "f", features())
    assert [path.name for path in tmp_path.iterdir() if path.name != "e"] == ["f"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from cliptex.evaluation.probes.feature_cache import FeatureCache
with FeatureCache(Path(sys.argv[1]), 1e9).new("a", "fp32", 5e8, {}) as writer:
    writer.append(torch.zeros(6, 5, 8))
    if len(sys.argv) > 2:
        print("written", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_job_left_is_removed_and_what_a_living_one_writes_is_counted(tmp_path):
    one = bytes_of(SHAPE, "fp16") + 100  # with about.json
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    add(FeatureCache(tmp_path, 1e9), "b", features())
    assert not left.exists() and [path.name for path in tmp_path.iterdir()] == ["b"]
    with subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"written\n"
        # it has promised to write half a gigabyte, so that b makes room though hardly anything is there
        add(FeatureCache(tmp_path, 5e8 + 1.5 * one), "c", features())
        assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["c"]
        assert len(list(tmp_path.iterdir())) == 2
        living.communicate(b"")
    add(FeatureCache(tmp_path, 1e9), "d", features())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]


def test_several_that_are_written_at_once_make_room_for_all_of_them(tmp_path):
    one = bytes_of(SHAPE, "fp16") + 100
    cache = FeatureCache(tmp_path, 3.5 * one)
    add(cache, "a", features())
    add(cache, "b", features())
    cache.release("ab")
    with cache.new("c", "fp16", one, {}) as first, cache.new("d", "fp16", one, {}) as second:
        for writer in (first, second):
            writer.append(features())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "d"]


def test_the_key_is_of_all_values_and_the_fingerprint_of_images_and_their_number():
    cache = FeatureCache("x", 1)
    assert cache.key({"a": 1, "b": 2}) == cache.key({"b": 2, "a": 1}) != cache.key({"a": 1, "b": 3})
    images = np.random.default_rng(0).integers(0, 255, (30, 6, 7, 3), np.uint8)
    samples = [{"id": str(index), "image": image} for index, image in enumerate(images)]
    assert fingerprint(samples) == fingerprint(list(samples)) != fingerprint(samples[:-1])
    rendered_again = [{"id": one["id"], "image": 255 - one["image"]} for one in samples]
    assert fingerprint(rendered_again) != fingerprint(samples)

import dataclasses
import gc
import itertools
import json
import pickle
import re
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conftest import drawn_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pyarrow import parquet

from cliptex.config import Train
from cliptex.core import paths
from cliptex.core.errors import CliptexError, subject
from cliptex.core.files import read_json, write_json
from cliptex.core.plugins import find
from cliptex.data.images import open_image
from cliptex.data.shard_index import index_shards, read_index, read_indexed
from cliptex.data.shards import write_shard
from cliptex.tasks.base import View
from cliptex.training.batch import crop_image, crop_pixels, draw_view
from cliptex.training.loader import JointLoader
from cliptex.training.run import train
from cliptex.training.trainer import Trainer


def loader(config, tasks=("segmentation", "depth", "normals"), **options):
    stores = {task: (find("tasks", task)(), paths.labels(task) / "index.json") for task in tasks}
    return JointLoader(paths.SHARD_INDEX, stores, config.train, image_size=32, seed=1, **options)


def take(batches, count):
    return list(itertools.islice(batches, count))


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order(tiny):
    joint = loader(tiny)
    batches = take(joint.batches(0), 2 * joint.steps_per_epoch)
    keys = [key for batch in batches for key in batch.keys]
    every = [key for entry in read_index(paths.SHARD_INDEX)["shards"] for key in entry["keys"]]
    assert joint.steps_per_epoch == 4
    assert sorted(keys[:16]) == sorted(keys[16:]) == every
    assert keys[:16] != keys[16:]


def test_models_with_and_without_tasks_see_the_same_images(tiny):
    dense, plain = take(loader(tiny).batches(0), 5), take(loader(tiny, tasks=()).batches(0), 5)
    for one, other in zip(dense, plain, strict=True):
        assert one.keys == other.keys
        assert one.captions == other.captions
        assert np.array_equal(one.images, other.images)


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_restart_continues_with_the_same_batches(tiny, start):
    whole, rest = take(loader(tiny).batches(0), 8)[start:], take(loader(tiny).batches(start), 8 - start)
    for one, other in zip(whole, rest, strict=True):
        assert one.keys == other.keys
        assert np.array_equal(one.images, other.images)
        for store in one.targets:
            assert np.array_equal(one.targets[store], other.targets[store], equal_nan=True)


ORDERS = {
    "f7b04f16f9fd9286": ({}, False, [(18, 18), (48, 33), (120, 33)]),
    "50677f16a744c0fc": ({}, True, [(18, 18), (48, 33), (120, 33)]),
    "4b1b4e3c4fdc812f": ({"held_out": 0, "shuffle_shards": 2, "batch_size": 4}, False, [(12, 12), (32, 32), (80, 37)]),
}
"""Digest of 20 steps, options, and samples seen after 3, 8 and 20 steps, from a version that drew whole epochs."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Seven shards of one to nine pairs, indexed, and the same index in the form of an earlier version."""
    folder = tmp_path_factory.mktemp("uneven")
    shards = [folder / f"{number}.tar" for number in range(7)]
    for number, (path, count) in enumerate(zip(shards, (5, 1, 9, 4, 7, 3, 8), strict=True)):
        write_shard(path, [drawn_pair(f"k{number}{row}", 1 + row) for row in range(count)])
    index_shards(shards, folder / "index.json", 0.5, max_repeats=100)
    index = read_index(folder / "index.json")
    entries = [{**entry, "keys": list(entry["keys"]), "dropped": dict(entry["dropped"])} for entry in index["shards"]]
    earlier = {name: value for name, value in index.items() if name not in ("samples", "held_out_order")}
    write_json(folder / "earlier.json", earlier | {"shards": entries})
    return folder


@pytest.mark.parametrize("name", ["index.json", "earlier.json"])
@pytest.mark.parametrize("digest", ORDERS)
def test_the_order_is_that_of_earlier_versions(uneven, digest, name):
    options, shuffle_labels, seen = ORDERS[digest]
    options = Train(**{"batch_size": 6, "shuffle_shards": 3, "held_out": 4} | options)
    joint = JointLoader(uneven / name, {}, options, 32, 11, shuffle_labels)

    def drawn(start, count, **part):
        return list(itertools.islice(joint._drawn(joint.steps(start), **part), count))

    def numbers(drawn):
        ids = (drawn.sample_ids.tolist(), drawn.label_ids.tolist())
        return ["".join(f"{joint._stored.key(number)[1:]}," for number in part) for part in ids]

    order = drawn(0, 20)
    assert sha256(json.dumps(list(map(numbers, order))).encode()).hexdigest()[:16] == digest
    assert [joint.samples_seen(steps) for steps in (3, 8, 20)] == seen
    assert joint.held_out.tolist() == ([8, 15, 16, 32] if options.held_out else [])
    for start in (1, 7, 13):
        assert list(map(numbers, drawn(start, 4))) == list(map(numbers, order[start : start + 4]))
    halves = [drawn(0, 20, rank=rank, processes=2) for rank in range(2)]
    for one, other, whole in zip(*halves, order, strict=True):
        for half, rest, both in zip(one[:2], other[:2], whole[:2], strict=True):
            assert [*half, *rest] == both.tolist()


def test_an_earlier_version_s_index_gives_the_same_batches(uneven):
    new, old = (
        take(JointLoader(uneven / name, {}, Train(batch_size=6), 32, 1).batches(2), 4)
        for name in ("index.json", "earlier.json")
    )
    for one, other in zip(new, old, strict=True):
        assert (one.keys, one.captions) == (other.keys, other.captions)
        assert np.array_equal(one.images, other.images)


def test_the_order_does_not_depend_on_how_many_shards_are_in_memory_beyond_all(tiny):
    few = tiny.model_copy(update={"train": tiny.train.model_copy(update={"shuffle_shards": 1})})
    keys = [key for batch in take(loader(few).batches(0), 4) for key in batch.keys]
    assert len(set(keys)) == 16


def test_captions_and_labels_are_those_of_the_image(tiny):
    pairs = {p.key: p for entry in read_index(paths.SHARD_INDEX)["shards"] for p in read_indexed(entry)}
    for batch in take(loader(tiny).batches(0), 4):
        for i, key in enumerate(batch.keys):
            assert batch.captions[i] == pairs[key].caption
            depth = batch.targets["depth"][i].numpy()
            if key == "000010003":  # the expert failed on this one
                assert np.isnan(depth).all()
                assert (batch.targets["segmentation"][i] == 255).all()
                continue
            # the expert's depth is brightness, so label and image must agree at each position
            bright = batch.images[i].numpy().mean(axis=-1).reshape(8, 4, 8, 4).mean(axis=(1, 3))
            assert np.corrcoef(bright.ravel(), depth.ravel())[0, 1] > 0.97
            assert np.abs(bright - depth).mean() < 12


def test_a_flip_mirrors_the_picture_and_turns_the_normals(tiny):
    entry = read_index(paths.SHARD_INDEX)["shards"][0]
    image = open_image(read_indexed(entry)[0].image)
    plain, flipped = (View(0.1, 0.2, 0.6, 0.7, flip) for flip in (False, True))
    assert np.array_equal(crop_image(image, flipped, 16), crop_image(image, plain, 16)[:, ::-1])
    task = find("tasks", "normals")()
    normals = np.random.default_rng(0).normal(size=(12, 20, 4)).astype(np.float32)
    normals[..., :3] /= np.linalg.norm(normals[..., :3], axis=-1, keepdims=True)
    normals[..., 3] = 5
    one, other = task.crop(normals, plain, 8), task.crop(normals, flipped, 8)
    np.testing.assert_allclose(other[..., 0], -one[:, ::-1, 0], atol=1e-6)
    np.testing.assert_allclose(other[..., 1:], one[:, ::-1, 1:], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 1000), st.text(min_size=1, max_size=12))
def test_views_lie_inside_the_image_and_depend_on_seed_epoch_and_key_alone(seed, epoch, key):
    train = Train()
    view = draw_view(train, seed, epoch, key)
    assert view == draw_view(train, seed, epoch, key)
    assert 0 <= view.top <= view.top + view.height <= 1 + 1e-9
    assert 0 <= view.left <= view.left + view.width <= 1 + 1e-9
    assert view.height * view.width <= train.crop_scale[1] + 1e-9


def test_shuffled_labels_belong_to_another_image(tiny):
    own = {
        k: d.numpy().tobytes()
        for b in take(loader(tiny).batches(0), 4)
        for k, d in zip(b.keys, b.targets["depth"], strict=True)
    }
    other = {
        k: d.numpy().tobytes()
        for b in take(loader(tiny, shuffle_labels=True).batches(0), 4)
        for k, d in zip(b.keys, b.targets["depth"], strict=True)
    }
    assert own.keys() == other.keys()
    assert all(own[key] != other[key] for key in own)
    # each label occurs once, with the crop of its own image, independent of the image that it is assigned to
    assert sorted(own.values()) == sorted(other.values())


def test_label_batches_are_the_targets_of_the_batches(tiny):
    joint = loader(tiny)
    count = joint.steps_per_epoch + 1
    for batch, targets in zip(take(joint.batches(0), count), joint.label_batches(count), strict=True):
        assert targets.keys() == batch.targets.keys()
        assert all(np.array_equal(targets[store], batch.targets[store], equal_nan=True) for store in targets)


def test_a_label_file_that_is_gone_is_named_before_training(tiny):
    (paths.labels("depth") / "00001.parquet").unlink()
    with pytest.raises(CliptexError, match=r"00001\.parquet"):
        loader(tiny)


def test_too_large_a_batch_is_refused(tiny):
    big = tiny.model_copy(update={"train": tiny.train.model_copy(update={"batch_size": 17})})
    with pytest.raises(CliptexError, match=r"train\.batch_size: 17 is more than the 16 samples"):
        loader(big)
    with pytest.raises(CliptexError, match=r"4 is more than the 3 samples of .* remain after train\.held_out = 13"):
        loader(with_train(tiny, held_out=13))


def with_train(config, **train):
    return config.model_copy(update={"train": Train.model_validate(config.train.model_dump() | train)})


def assert_same(one, other):
    assert (one.keys, one.captions, one.epoch, one.ends_epoch) == (
        other.keys,
        other.captions,
        other.epoch,
        other.ends_epoch,
    )
    assert np.array_equal(one.images, other.images)
    for store in one.targets:
        assert np.array_equal(one.targets[store], other.targets[store], equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 48, 224]))
def test_crops_by_torch_are_those_of_pillow(seed, size):
    """The bounds of docs/training.md, for noise; the crop of torch begins and ends at a whole pixel."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (int(rng.integers(8, 300)), int(rng.integers(8, 300)), 3), np.uint8)
    height, width = pixels.shape[:2]
    view = draw_view(Train(crop_scale=(0.1, 1.0)), 0, 0, str(seed))
    sides = (view.left * width, view.top * height, (view.left + view.width) * width, (view.top + view.height) * height)
    part = Image.fromarray(pixels).crop([round(side) for side in sides])
    expected = crop_image(part, View(0, 0, 1, 1, view.flip), size)
    difference = np.abs(crop_pixels(pixels, view, size).numpy().astype(int) - expected)
    assert difference.mean() <= 1
    assert difference.max() <= 32


def test_a_crop_by_pillow_is_that_of_the_decoded_pixels():
    """Golden: what the loader did before it resized the decoded image without a copy."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    view, box = View(0.1, 0.2, 0.6, 0.7, True), (12.0, 4.0, 54.0, 28.0)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC, box=box))[:, ::-1]
    assert np.array_equal(crop_image(Image.fromarray(pixels), view, 32), expected)


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_workers_change_nothing(tiny, decoder):
    tiny = with_train(tiny, decoder=decoder)
    alone, helped = take(loader(tiny).batches(3), 5), take(loader(tiny, workers=2).batches(3), 5)
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bit_that_no_label_uses_is_found_as_well(tiny, workers):
    path = paths.labels("depth") / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[data.rindex(b"parquet-cpp")] ^= 1  # the name of the program
    path.write_bytes(data)
    with pytest.raises(CliptexError, match=r"00001\.parquet: differs from the file that was indexed"):
        take(loader(tiny, workers=workers).batches(0), 4)


def test_an_error_of_a_worker_process_keeps_file_and_key(tiny, monkeypatch):
    def planted(*_):
        raise error

    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: SimpleNamespace(id=0, num_workers=1))
    monkeypatch.setattr("cliptex.training.batch.crop_image", planted)
    for error in (ValueError("planted"), CliptexError("a.tar: planted; mend it")):
        (failure,) = pickle.loads(pickle.dumps(take(loader(tiny).batches(0), 1)))
        assert isinstance(failure.raised(), CliptexError if isinstance(error, CliptexError) else RuntimeError)
        assert "planted" in str(failure.raised())
        if not failure.is_expected:
            assert re.search(r"0000\d\.tar, key '\d{9}'", subject(failure.raised()))


ONE_THREAD = """
import numpy, torch
from threadpoolctl import threadpool_info, threadpool_limits
from cliptex.training.batch import start_worker
threadpool_limits(2)
assert 2 in {pool["num_threads"] for pool in threadpool_info()}
start_worker(0)
assert {pool["num_threads"] for pool in threadpool_info()} == {1}
"""


def test_a_worker_has_one_thread():
    ended = subprocess.run([sys.executable, "-c", ONE_THREAD], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_processes_share_the_rows_of_each_batch(tiny):
    whole = take(loader(tiny).batches(0), 6)
    parts = [take(loader(tiny, rank=rank, processes=2).batches(0), 6) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch.keys == [*first.keys, *second.keys]
        assert np.array_equal(batch.images, np.concatenate([first.images, second.images]))


def test_a_batch_that_cannot_be_shared_is_refused(tiny):
    with pytest.raises(CliptexError, match=r"train\.batch_size: 4 .* 2 processes with train\.accumulate = 4.* of 8"):
        loader(with_train(tiny, accumulate=4), processes=2)


def test_crop_sizes_come_from_seed_and_step_and_keep_the_number_of_patches(tiny):
    config = with_train(tiny, crop_sizes_px=(16, 24, 32))
    batches = take(loader(config).batches(0), 20)
    sizes = [batch.images.shape[1] for batch in batches]
    assert set(sizes) == {16, 24, 32}
    assert [len(batch.keys) for batch in batches] == [{16: 16, 24: 8, 32: 4}[size] for size in sizes]
    assert all(batch.targets["depth"].shape[1:] == (8, 8) for batch in batches)
    for one, other in zip(batches[7:], take(loader(config).batches(7), 13), strict=True):
        assert_same(one, other)
    for epoch in range(batches[-1].epoch):
        keys = [key for batch in batches if batch.epoch == epoch for key in batch.keys]
        assert len(keys) == len(set(keys)) <= 16


def test_held_out_pairs_are_never_trained_on_and_the_same_for_every_seed(tiny):
    joint = loader(with_train(tiny, held_out=5))
    trained = {key for batch in take(joint.batches(0), 12) for key in batch.keys}
    held = [key for batch in joint.held_out_batches(2) for key in batch.keys]
    assert len(held) == 5
    assert len(trained | set(held)) == 16
    assert not trained & set(held)
    assert joint.samples_seen(12) == (48, len(trained))
    other = JointLoader(paths.SHARD_INDEX, {}, with_train(tiny, held_out=5).train, image_size=32, seed=9)
    assert other.held_out.tolist() == joint.held_out.tolist()


def test_pairs_seen_are_counted_as_they_are_drawn(tiny):
    config = with_train(tiny, batch_size=7)
    joint = loader(config)
    keys = [key for batch in take(joint.batches(0), 3) for key in batch.keys]
    assert joint.samples_seen(3) == (len(keys), len(set(keys)))


@pytest.mark.parametrize("kind", ["missing", "foreign", "further"])
def test_a_missing_or_foreign_key_is_named_with_its_shard_before_training(tiny, kind, monkeypatch):
    path = paths.labels("depth") / "00001.parquet"
    table = parquet.read_table(path)
    keys = table["key"].to_pylist()
    wrong = f"key '{keys[-1]}' has no label row"
    if kind == "missing":
        table = table.slice(0, 7)
    elif kind == "foreign":
        table = table.set_column(0, "key", pa.array([*keys[:-1], "stranger"]))
    else:
        more = table.slice(0, 1).set_column(0, "key", pa.array(["stranger"]))
        table, wrong = pa.concat_tables([table, more]), "key 'stranger' is not in the shard"
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    index = read_json(paths.labels("depth") / "index.json")
    for file in index["files"]:
        if file["file"] == path.name:
            file["bytes"] = path.stat().st_size  # so that the size matches the index
    write_json(paths.labels("depth") / "index.json", index)
    with pytest.raises(CliptexError, match=rf"00001\.parquet: does not match shard 00001: {wrong}"):
        loader(tiny)
    train(tiny, "clip", 0)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("step 1"))
    with pytest.raises(CliptexError, match=wrong):
        train(tiny, "cliptex", 0)


def test_a_shard_replaced_by_one_of_the_same_size_is_named_before_training(tiny):
    one, other = (paths.SHARDS / f"0000{number}.tar" for number in range(2))
    content, size = one.read_bytes(), other.stat().st_size
    other.write_bytes(content[:size].ljust(size, b"\0"))
    with pytest.raises(CliptexError, match=r"00001\.tar: its first key, '000000000', is not in the index; run: rm -f"):
        loader(tiny)


def test_a_shard_that_is_gone_is_named_before_training(tiny):
    (paths.SHARDS / "00001.tar").unlink()
    with pytest.raises(CliptexError, match=r"00001\.tar: shard is missing"):
        loader(tiny)


views = st.builds(
    View,
    top=st.floats(0, 0.5),
    left=st.floats(0, 0.5),
    height=st.floats(0.2, 0.5),
    width=st.floats(0.2, 0.5),
    flip=st.booleans(),
)


def drawn_label(task, rng, height, width):
    """A label with invalid pixels."""
    if task == "segmentation":
        return rng.choice(np.array([0, 1, 17, 80, 255], np.uint8), (height, width))
    label = rng.random((height, width)).astype(np.float32)
    if task == "normals":
        label = rng.normal(size=(height, width, 4)).astype(np.float32)
        label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
        label[..., 3] = 1 + np.abs(label[..., 3])
    label[rng.random((height, width)) < 0.1] = np.nan
    return label


def mirrored(task, label):
    label = label[:, ::-1].copy()
    if task == "normals":
        label[..., 0] *= -1
    return label


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["segmentation", "depth", "normals"]), views, st.integers(0, 2**16), st.integers(5, 30))
def test_a_flip_commutes_with_the_crop_and_twice_is_none(task, view, seed, width):
    """Cropping with a flip equals mirroring the crop; flipping twice changes nothing."""
    plugin = find("tasks", task)()
    label = drawn_label(task, np.random.default_rng(seed), 21, width)
    plain = dataclasses.replace(view, flip=False)
    flipped = plugin.crop(label, dataclasses.replace(view, flip=True), 8)
    np.testing.assert_array_equal(mirrored(task, mirrored(task, flipped)), flipped)
    if task == "segmentation":  # if a pixel centre is on a border, rounding decides
        np.testing.assert_array_equal(flipped, mirrored(task, plugin.crop(label, plain, 8)))
    else:
        np.testing.assert_allclose(flipped, mirrored(task, plugin.crop(label, plain, 8)), atol=1e-5)


def expert_of(task, image):
    """A label computed only from the image; for normals, its brightness is a height map."""
    height = image.astype(np.float32).mean(axis=-1) / 255
    if task == "segmentation":
        return (height * 80).astype(np.uint8)
    if task == "depth":
        return height
    down, right = np.gradient(height)
    normals = np.stack([-4 * right, -4 * down, np.ones_like(height), 1 + height], axis=-1)
    normals[..., :3] /= np.linalg.norm(normals[..., :3], axis=-1, keepdims=True)
    return normals


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["segmentation", "depth", "normals"]), views, st.integers(0, 2**16))
def test_a_flip_commutes_with_prediction(name, view, seed):
    """The flipped label of an image is the label of the flipped image, also in a crop."""
    task = find("tasks", name)()
    image = np.random.default_rng(seed).integers(0, 256, (21, 21, 3), np.uint8)
    label, of_flipped = expert_of(name, image), expert_of(name, image[:, ::-1])
    np.testing.assert_allclose(task.crop(label, View(0, 0, 1, 1, True), 21), of_flipped, atol=1e-5)
    mirror = dataclasses.replace(view, left=1 - view.left - view.width, flip=not view.flip)
    rounding = crop_image(Image.fromarray(image), mirror, 16).astype(int) - crop_image(
        ImageOps.mirror(Image.fromarray(image)), view, 16
    )
    assert np.abs(rounding).max() <= 2
    if name != "segmentation":  # if a pixel centre is on a border, rounding decides
        np.testing.assert_allclose(task.crop(label, mirror, 8), task.crop(of_flipped, view, 8), atol=1e-5)


def test_memory_stays_as_it_is_over_epochs(tiny):
    """Memory allocated by Python and Arrow, with windows of one shard, which are loaded and released in turn."""
    joint = loader(with_train(tiny, shuffle_shards=1))
    batches = joint.batches(0)

    modules = ("training/loader", "training/batch", "labels/store", "data/shard_index", "data/shards")
    filters = [tracemalloc.Filter(True, f"*/cliptex/{module}.py") for module in modules]

    def least():
        """Minimum over four epochs, since one or two windows may be in memory at the end of an epoch."""
        sizes = []
        for _ in range(4):
            take(batches, joint.steps_per_epoch)
            gc.collect()
            traces = tracemalloc.take_snapshot().filter_traces(filters).traces
            assert traces
            sizes.append(sum(trace.size for trace in traces) + pa.total_allocated_bytes())
        return min(sizes)

    tracemalloc.start()
    try:
        first = least()
        take(batches, 8 * joint.steps_per_epoch)
        assert least() - first < 3_000  # one leaked label per epoch would be twice that
    finally:
        tracemalloc.stop()


@settings(max_examples=30, deadline=None)
@given(views, st.integers(0, 2**16))
def test_ids_out_are_ids_in_and_255_stays(view, seed):
    label = drawn_label("segmentation", np.random.default_rng(seed), 17, 23)
    out = find("tasks", "segmentation")().crop(label, view, 9)
    assert set(np.unique(out)) <= set(np.unique(label))
    resized = find("tasks", "segmentation")().resize(label, 40, 11)
    assert set(np.unique(resized)) <= set(np.unique(label))


@settings(max_examples=40, deadline=None)
@given(views, st.integers(0, 7), st.integers(0, 7))
def test_a_marked_place_lands_in_the_label_where_it_does_in_the_image(view, row, column):
    """A bright square on black is at the same position in the cropped image and labels."""
    mask = np.zeros((64, 96), bool)
    mask[8 * row : 8 * row + 8, 12 * column : 12 * column + 12] = True
    image = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    seen = crop_image(Image.fromarray(image), view, 32)[..., 0] / 255
    classes = find("tasks", "segmentation")().crop(mask.astype(np.uint8), view, 32)
    depth = find("tasks", "depth")().crop(mask.astype(np.float32), view, 32)
    # equal except for partly covered border pixels
    sure = (seen < 0.02) | (seen > 0.98)
    inner = sure & (np.abs(depth - np.round(depth)) < 1e-6)
    assert np.array_equal(classes[inner], np.round(depth[inner]).astype(np.uint8))
    assert np.array_equal(np.round(seen[inner]), np.round(depth[inner]))
    assert np.abs(seen.mean() - depth.mean()) < 0.02

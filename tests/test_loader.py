import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptex import paths
from cliptex.config import Train
from cliptex.errors import CliptexError
from cliptex.images import decode_image
from cliptex.loader import JointLoader, crop_image, draw_view
from cliptex.plugins import find
from cliptex.shards import read_index, read_indexed
from cliptex.tasks.base import View


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
            # the expert's depth is brightness, so label and picture must agree place by place
            bright = batch.images[i].numpy().mean(axis=-1).reshape(8, 4, 8, 4).mean(axis=(1, 3))
            assert np.corrcoef(bright.ravel(), depth.ravel())[0, 1] > 0.97
            assert np.abs(bright - depth).mean() < 12


def test_a_flip_mirrors_the_picture_and_turns_the_normals(tiny):
    entry = read_index(paths.SHARD_INDEX)["shards"][0]
    image = decode_image(read_indexed(entry)[0].image)
    plain, flipped = (View(0.1, 0.2, 0.6, 0.7, flip) for flip in (False, True))
    assert np.array_equal(crop_image(image, flipped, 16), crop_image(image, plain, 16)[:, ::-1])
    task = find("tasks", "normals")()
    normals = np.random.default_rng(0).normal(size=(12, 20, 4)).astype(np.float32)
    normals[..., :3] /= np.linalg.norm(normals[..., :3], axis=-1, keepdims=True)
    normals[..., 3] = 5
    one, other = task.crop(normals, plain, 8), task.crop(normals, flipped, 8)
    np.testing.assert_allclose(other[..., 0], -one[:, ::-1, 0], atol=1e-6)
    np.testing.assert_allclose(other[..., 1:], one[:, ::-1, 1:], atol=1e-6)


@settings(max_examples=50)
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
    # each label once, in its own image's crop: nothing of the picture it is given to is in it
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

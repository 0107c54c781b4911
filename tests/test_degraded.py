"""Labels made worse by a known amount."""

import json
from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.core.plugins import find
from cliptex.experts.degraded import DegradedExpert
from cliptex.experts.training import load_expert, train_expert
from cliptex.labels.audit import audit_labels
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.store import LabelFile
from cliptex.report.studies import study_config
from cliptex.tasks.features import TeacherFeatures


def with_degraded(config, task, strength, of=None, blocks=4):
    """`config` with a store `worse` whose labels are those of the task's own store, degraded."""
    plain = config.plain()
    network = {"task": task, "strength": strength, "blocks": blocks}
    plain["experts"]["degraded"] = {"network": network}
    plain["label_stores"]["worse"] = {"task": task, "expert": "degraded", "of": of or task}
    return Config.load(plain)


def made(config):
    # what the workflow hands to a job: nothing of the store whose labels are changed
    config = Config.load(json.loads(config.subset("label_stores.worse", "experts.degraded", "labels")))
    folder = paths.expert("degraded")
    train_expert(config, "degraded", paths.EXPERT_RENDERS, folder, 0)
    label_batch(config, "worse", 0, paths.SHARD_INDEX, folder, paths.labels("worse"))
    return index_labels(config, "worse", paths.SHARD_INDEX, paths.labels("worse"))


def files(task):
    of = find("tasks", task)()
    return [LabelFile(paths.labels(store) / "00001.parquet", of) for store in (task, "worse")]


@pytest.mark.parametrize("task", ["segmentation", "depth", "normals"])
def test_strength_0_changes_nothing_and_a_failed_label_stays_failed(tiny, task):
    index = made(with_degraded(tiny, task, 0.0))
    assert index["labelled"] == index["images"] - 1  # of which the other store has none
    before, after = files(task)
    for row, key in enumerate(before.keys):
        if before.label(row) is None:
            assert after.label(row) is None
            assert "no label in the other store" in after.column("error")[row]
        else:
            assert_array_equal(after.label(row), before.label(row), err_msg=key)


class Constant:
    """A store in which picture i has the label i everywhere."""

    codec: ClassVar = {}

    def label(self, key):
        return np.full((12, 20), int(key), np.uint8)

    def shard_keys(self, key):
        return [str(number) for number in range(1, 9)]


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_the_share_that_comes_from_one_other_picture_is_the_strength(strength):
    expert = DegradedExpert({"network": {"task": "segmentation", "strength": strength, "blocks": 4}})
    expert.take(Constant())
    keys = [str(number) for number in range(1, 9)]
    labels = expert.predict([np.zeros((12, 20, 3), np.uint8)] * 8, keys)
    for key, label in zip(keys, labels, strict=True):
        others = set(np.unique(label).tolist()) - {int(key)}
        assert np.mean(label != int(key)) == strength
        assert len(others) == (strength > 0) and others <= set(range(1, 9))
    places = {tuple(np.flatnonzero(label != int(key))) for key, label in zip(keys, labels, strict=True)}
    assert len(places) > 1 or strength in (0, 1)  # drawn anew for each picture
    (again,) = expert.predict([np.zeros((12, 20, 3), np.uint8)], ["3"])
    assert_array_equal(again, labels[2])


def test_labels_on_a_coarse_grid_keep_their_grid():
    class Coarse(Constant):
        codec = TeacherFeatures({"dims": 2, "grid": [4, 4], "scales": [0.5, 0.5], "teacher": {}}).codec()

        def label(self, key):
            return np.full((4, 4, 2), float(key), np.float32)

    expert = DegradedExpert({"network": {"task": "features", "strength": 0.25, "blocks": 4}})
    expert.take(Coarse())
    (label,) = expert.predict([np.zeros((48, 64, 3), np.uint8)], ["3"])
    assert label.shape == (4, 4, 2) and (label != 3).any(axis=-1).sum() == 4
    assert expert.task_parameters() == Coarse.codec


def test_the_store_can_be_made_again_and_follows_its_source(tiny):
    config = with_degraded(tiny, "depth", 0.5)
    made(config)
    expert = load_expert("degraded", config.experts["degraded"], paths.expert("degraded"))
    found = audit_labels(config, "worse", paths.SHARD_INDEX, expert, paths.labels("worse"), 16)
    assert all(one.agrees for one in found)
    recipe = LabelFile(paths.labels("worse") / "00000.parquet").metadata["of"]
    assert recipe["store"] == "depth"
    # another source store is another recipe
    source = paths.labels("depth") / "index.json"
    source.write_text(source.read_text().replace('"coverage"', '"covered"'))
    with pytest.raises(CliptexError, match="other settings"):
        index_labels(config, "worse", paths.SHARD_INDEX, paths.labels("worse"))
    assert "covered" in read_json(source)


def test_wrong_sources_are_named(tiny):
    with pytest.raises(CliptexError, match=r"label_stores.worse.of: 'dept' is not one of"):
        study_config(with_degraded(tiny, "depth", 0.5, of="dept"))
    config = with_degraded(tiny, "depth", 0.5)
    plain = config.plain()
    plain["label_stores"]["worst"] = {"task": "depth", "expert": "degraded", "of": "worse"}
    with pytest.raises(CliptexError, match=r"label_stores.worst.of: 'worse' is itself derived from another store"):
        Config.load(plain)
    plain = config.plain()
    plain["label_stores"]["worse"]["of"] = None
    plain["label_stores"]["normals"]["of"] = "segmentation"
    without = Config.load(plain)
    train_expert(config, "degraded", paths.EXPERT_RENDERS, paths.expert("degraded"), 0)
    for store, expert, message in (
        ("worse", "degraded", r"label_stores.worse.of: 'degraded' changes the labels of another store; name"),
        ("normals", "bright_normals", r"label_stores.normals.of: 'bright_normals' labels images itself; remove"),
    ):
        with pytest.raises(CliptexError, match=message):
            label_batch(without, store, 0, paths.SHARD_INDEX, paths.expert(expert), paths.labels(store))


def test_labels_made_of_random_ones_are_marked_random(tiny):
    config = with_degraded(tiny, "depth", 0.5)
    assert made(config)["weights"] == "trained"
    source = paths.labels("depth") / "index.json"
    write_json(source, {**read_json(source), "weights": "random"})
    assert made(config)["weights"] == "random"
    assert files("depth")[1].metadata["weights"] == "random"

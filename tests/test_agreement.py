"""Several label stores of one task: how far they agree, and the loss weighted by it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import PROCESSES, assert_close, outcome, two_ranks

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.experts.training import train_expert
from cliptex.labels.agreement import measure_agreement, pairs_of_stores
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.report import records
from cliptex.report.tables.data import agreement_table
from cliptex.tasks.base import Task
from cliptex.tasks.segmentation import DISAGREEMENT, Segmentation
from cliptex.training.agreement import agreement_weights, teachers
from cliptex.training.run import train

TASKS = ("segmentation", "scored_segmentation", "depth", "normals")


def target(task, seed, rows=2, size=6):
    """A random target of `task`, partly invalid."""
    rng = np.random.default_rng(seed)
    holes = rng.random((rows, size, size)) < 0.2
    if "segmentation" in task:
        label = rng.integers(0, 3, (rows, size, size)).astype(np.uint8)
        label[holes] = 255
        if task == "segmentation":
            return torch.from_numpy(label)
        return torch.from_numpy(np.stack([label, rng.integers(0, 256, label.shape).astype(np.uint8)], axis=-1))
    label = rng.normal(size=(rows, size, size, 4)).astype(np.float32)
    label[..., :3] /= np.linalg.norm(label[..., :3], axis=-1, keepdims=True)
    label[..., 3] = 5
    label[holes] = np.nan
    return torch.from_numpy(label[..., 0] if task == "depth" else label)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TASKS), st.integers(0, 50))
def test_agreement_is_symmetric_in_0_to_1_and_1_with_itself_or_where_a_label_is_missing(name, seed):
    task, a, b = find("tasks", name)(), target(name, seed), target(name, seed + 100)
    agreement = task.agreement(a, b)
    assert (agreement.dtype, agreement.shape) == (torch.float32, (2, 6, 6))
    assert agreement.min() >= 0 and agreement.max() <= 1 and agreement.mean() < 0.95
    torch.testing.assert_close(agreement, task.agreement(b, a))
    torch.testing.assert_close(task.agreement(a, a), torch.ones(2, 6, 6))
    missing = torch.from_numpy(np.stack([task.missing(6)] * 2))
    assert (task.agreement(a, missing) == 1).all() and (task.agreement(missing, a) == 1).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TASKS), st.integers(0, 50))
def test_weights_of_one_change_no_loss_and_zeros_leave_none(name, seed):
    task, label = find("tasks", name)(), target(name, seed)
    prediction = torch.randn(2, task.channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(task.loss(prediction, label, torch.ones(2, 6, 6)), task.loss(prediction, label))
    assert task.loss(prediction, label, torch.zeros(2, 6, 6)).item() == 0
    half = task.loss(prediction, label, torch.full((2, 6, 6), 0.5))
    torch.testing.assert_close(half, task.loss(prediction, label) / 2)


def test_agreement_by_hand():
    depth, normals = find("tasks", "depth")(), find("tasks", "normals")()
    near_far = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    torch.testing.assert_close(depth.agreement(near_far, 7 * near_far - 30), torch.ones(1, 1, 4))  # scale and shift
    assert depth.agreement(near_far, -near_far).min() < 0.01
    up, right = torch.tensor([[[[0.0, -1, 0, 1]]]]), torch.tensor([[[[1.0, 0, 0, 1]]]])
    assert normals.agreement(up, right).item() == 0 == normals.agreement(up, -up).item()
    a, b = torch.tensor([[[1, 2]]], dtype=torch.uint8), torch.tensor([[[1, 3]]], dtype=torch.uint8)
    assert find("tasks", "segmentation")().agreement(a, b).tolist()[0][0] == pytest.approx([1, DISAGREEMENT])


def test_stores_are_compared_within_a_task_and_a_class_list_only():
    own = Segmentation.from_codec({"class_names": ["a", "b"]})
    scored, plain, depth = (find("tasks", name)() for name in ("scored_segmentation", "segmentation", "depth"))
    tasks = {"own": own, "scored": scored, "plain": plain, "depth": depth}
    assert teachers(tasks) == {"own": [], "scored": ["plain"], "plain": ["scored"], "depth": []}
    targets = {"scored": target("scored_segmentation", 0), "plain": target("segmentation", 1)}
    weights = agreement_weights({store: tasks[store] for store in targets}, targets)
    torch.testing.assert_close(weights["scored"], weights["plain"])
    three = dict.fromkeys("abc", depth)
    targets = {store: target("depth", seed) for seed, store in enumerate("abc")}
    pair = [depth.agreement(targets["a"], targets[other]) for other in "bc"]
    torch.testing.assert_close(agreement_weights(three, targets)["a"], (pair[0] + pair[1]) / 2)


def several(tiny, strength=0.5, **model):
    """Two stores of each task: the second is the first with misplaced blocks."""
    plain = tiny.plain()
    for task in ("segmentation", "depth", "normals"):
        plain["experts"][f"worse_{task}"] = {"plugin": "degraded", "network": {"task": task, "strength": strength}}
        plain["label_stores"][f"other_{task}"] = {"task": task, "expert": f"worse_{task}", "of": task}
    stores = [*tiny.label_stores, *(f"other_{task}" for task in tiny.label_stores)]
    plain["models"] = {"m": {"steps": 4, "tasks": dict.fromkeys(stores, 0.5)} | model}
    return Config.load(plain)


def label_others(config):
    for store, label_store in config.label_stores.items():
        if label_store.of is not None:
            folder = paths.expert(label_store.expert)
            train_expert(config, label_store.expert, paths.EXPERT_RENDERS, folder, 0)
            label_batch(config, store, 0, paths.SHARD_INDEX, folder, paths.labels(store))
            index_labels(config, store, paths.SHARD_INDEX, paths.labels(store))


def test_training_weighted_by_agreement_lowers_the_losses_where_labels_differ(tiny):
    records = {}
    for weighted in (False, True):
        config = several(tiny, weight_by_agreement=weighted)
        if not weighted:
            label_others(config)
        train(config, "m", 0)
        lines = (paths.model("m", 0) / "metrics.jsonl").read_text().splitlines()
        records[weighted] = (json.loads(lines[0]), read_json(paths.model("m", 0) / "train.json"))
    for store in ("segmentation", "other_segmentation", "depth", "other_depth", "normals", "other_normals"):
        assert 0 < records[True][0][store] < records[False][0][store], store
    assert records[True][1]["weight_by_agreement"] is True and "weight_by_agreement" not in records[False][1]
    assert records[True][1]["heads_sha256"] != records[False][1]["heads_sha256"]


def test_two_processes_weight_by_agreement_as_one_does(tiny, tmp_path):
    """The mean over pixels is over the weights of the whole batch."""
    plain = several(tiny, weight_by_agreement=True, steps=3, learning_rate=1e-4).plain()
    config = Config.load(plain | {"train": plain["train"] | {"precision": "fp32"}})
    label_others(config)
    process = PROCESSES.Process(target=two_ranks, args=(tmp_path, [json.dumps(config.plain()), "m"]))
    process.start()
    process.join(600)
    assert process.exitcode == 0, (tmp_path / "said.txt").read_text()
    shared = outcome("m")
    assert read_json(paths.model("m", 0) / "train.json")["processes"] == 2
    train(config, "m", 0)
    assert read_json(paths.model("m", 0) / "train.json")["processes"] == 1
    assert_close(shared, outcome("m"))


def test_the_key_needs_two_stores_of_one_task_and_is_not_recorded_while_off(tiny):
    plain = tiny.plain()
    assert "weight_by_agreement" not in tiny.subset("models.cliptex")
    plain["models"] = {"m": {"steps": 1, "tasks": {"depth": 1.0, "normals": 1.0}, "weight_by_agreement": True}}
    with pytest.raises(CliptexError, match=r"models\.m\.weight_by_agreement: no two label stores"):
        train(Config.load(plain), "m", 0)


def test_a_task_that_cannot_compare_labels_says_so():
    with pytest.raises(CliptexError, match="cannot compare the labels of two stores; implement `agreement`"):
        Task.agreement(find("tasks", "depth")(), None, None)


def test_agreement_of_stores_is_measured_where_both_have_labels(tiny):
    config = several(tiny)
    label_others(config)
    record = measure_agreement(config, paths.SHARD_INDEX, paths.LABELS)
    assert record["images"] == 16 and [pair["stores"] for pair in record["pairs"]] == [
        [store, f"other_{store}"] for store in tiny.label_stores
    ]
    for pair in record["pairs"]:
        assert pair["images"] == 15 and 0.2 < pair["agreement"] < 1 and pair["quality"]  # one has no label
    assert read_json(paths.LABELS / "agreement.json") == record
    before = (paths.LABELS / "agreement.json").read_bytes()
    measure_agreement(config, paths.SHARD_INDEX, paths.LABELS)
    assert json.loads(before)["pairs"] == read_json(paths.LABELS / "agreement.json")["pairs"]
    same = measure_agreement(several(tiny), paths.SHARD_INDEX, paths.LABELS, images=4)
    assert same["images"] == 4

    # in the report
    read = records.read_record(paths.LABELS / "agreement.json", records.AGREEMENT)
    table = agreement_table(SimpleNamespace(agreements=read["pairs"]))
    assert table.groups[0].rows[0]["stores"].text == "segmentation and other_segmentation"
    assert "mIoU" in table.groups[0].rows[0]["metrics"].text
    assert agreement_table(SimpleNamespace(agreements=[])) is None


def test_one_store_of_each_task_is_nothing_to_compare(tiny):
    assert pairs_of_stores(tiny) == []
    with pytest.raises(CliptexError, match="label_stores: no two have the same task"):
        measure_agreement(tiny, paths.SHARD_INDEX, paths.LABELS)

"""The readers of the official layouts: the pitfalls of each layout, and errors that name the file."""

import gzip
import io
import json
import multiprocessing
import pickle
import re
import resource
import shutil
import struct
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io.matlab
from official_layouts import (
    CATEGORIES,
    WNIDS,
    room,
    scene,
    write_ade20k,
    write_coco,
    write_imagenet,
    write_nyuv2,
    write_places365,
    write_voc,
)
from PIL import Image
from scipy.io import loadmat, savemat

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.benchmarks.imagenet import official_wnids
from cliptex.benchmarks.mat_structure import check_structure
from cliptex.benchmarks.nyuv2_normals import (
    axes_by_depth,
    decode_normals,
    read_arrays,
    store_ladicky,
)
from cliptex.benchmarks.places365 import category_name
from cliptex.benchmarks.reading import Lazy, read_mat, read_rgb, source
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find

WRITERS = {
    "voc": write_voc,
    "ade20k": write_ade20k,
    "coco": write_coco,
    "nyuv2": write_nyuv2,
    "imagenet": write_imagenet,
    "places365": write_places365,
}
BENCHMARKS = list(WRITERS)


def reader(name, root):
    return find("benchmarks", name)(root)


def shared_voc(root):
    listed = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    listed.write_text(listed.read_text() + "2007_000001\n")
    return "2007_000001"


def shared_ade20k(root):
    folder = root / "ADEChallengeData2016/images"
    shutil.copy(folder / "training/ADE_train_00000001.jpg", folder / "validation")
    return r"ADE_train_00000001\.jpg"


def shared_coco(root):
    train, val = (root / f"annotations/instances_{split}2017.json" for split in ("train", "val"))
    both = json.loads(val.read_text())
    both["images"].append(json.loads(train.read_text())["images"][0])
    val.write_text(json.dumps(both))
    return both["images"][-1]["file_name"]


def shared_nyuv2(root):
    savemat(root / "splits.mat", {"trainNdxs": np.array([[1], [2]]), "testNdxs": np.array([[2], [3]])})
    return "image 2"


def shared_imagenet(root):
    image = next((root / "train").rglob("*.JPEG"))
    shutil.copy(image, root / "val" / image.parent.name)
    return image.name


def shared_places365(root):
    folder = root / "places365_standard"
    shutil.copy(next((folder / "train" / CATEGORIES[0]).iterdir()), folder / "val" / CATEGORIES[0])
    return f"{CATEGORIES[0]}/00000001"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_image_in_both_parts_of_official_data_is_refused_by_name(name, tmp_path):
    flat = {"flat": False} if name == "imagenet" else {}
    root = WRITERS[name](tmp_path, 3, 3, **flat)
    data = find("benchmarks", name)(root, {"source": "official"})
    data.check_apart()
    shared = globals()[f"shared_{name}"](root)
    data = find("benchmarks", name)(root, {"source": "official"})
    with pytest.raises(
        CliptexError, match=rf"{shared} and \d+ other images are both in the training split and in {data.eval_split}"
    ):
        data.check_apart()


def test_voc_masks_are_read_as_palette_indices_with_the_ring_ignored(tmp_path):
    voc = reader("voc", write_voc(tmp_path, 3, 2, height=30, width=48))
    sample = voc.samples("train")[1]
    expected = scene(2, [1, 7, 15, 20], 30, 48)["mask"]
    expected[[0, -1]] = 255
    np.testing.assert_array_equal(sample["mask"], expected)
    assert (sample["id"], sample["image"].shape, sample["mask"].dtype) == ("2007_000002", (30, 48, 3), np.uint8)
    assert [len(voc.samples(part)) for part in ("train", "eval")] == [3, 2]
    assert len(voc.class_names) == 21 and voc.class_names[0] == "background" and voc.class_names[20] == "tvmonitor"


def test_voc_mask_that_lost_its_palette_is_refused_by_name(tmp_path):
    voc = reader("voc", write_voc(tmp_path, 1, 1))
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000001.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(CliptexError, match=r"2007_000001\.png.*palette"):
        voc.samples("train")[0]
    Image.fromarray(np.full((48, 48), 33, np.uint8)).save(path)
    with pytest.raises(CliptexError, match=r"2007_000001\.png.*0\.\.20"):
        voc.samples("train")[0]


def test_voc_trainaug_is_sbd_and_voc_train_without_voc_val(tmp_path):
    root = write_voc(tmp_path, 3, 2, sbd=2, height=30, width=48)
    voc = find("benchmarks", "voc")(root, {"variant": "trainaug"})
    samples = {sample["id"]: sample for sample in voc.samples("train")}
    # VOC's train is 1..3, its val 4 and 5; SBD has 1, 4, 6 and 7
    assert list(samples) == [f"2007_{number:06d}" for number in (1, 2, 3, 6, 7)]
    for number in (1, 6):
        expected = scene(number, [1, 7, 15, 20], 30, 48)["mask"]
        if number == 1:  # VOC's own mask, with its border
            expected[[0, -1]] = 255
        np.testing.assert_array_equal(samples[f"2007_{number:06d}"]["mask"], expected)
        assert samples[f"2007_{number:06d}"]["mask"].dtype == np.uint8
    assert [sample["id"] for sample in voc.samples("eval")] == ["2007_000004", "2007_000005"]
    assert [sample["id"] for sample in reader("voc", root).samples("train")] == [f"2007_00000{n}" for n in (1, 2, 3)]


def test_sbd_masks_that_are_none_are_refused_by_name(tmp_path):
    root = write_voc(tmp_path, 1, 1, sbd=2)
    path = root / "benchmark_RELEASE/dataset/cls/2007_000003.mat"
    for content, message in ((b"<html>", "damaged, or not a MATLAB file"), (None, "no such file")):
        path.unlink()
        if content:
            path.write_bytes(content)
        with pytest.raises(CliptexError, match=rf"2007_000003\.mat: {message}.*benchmark\.tgz"):
            find("benchmarks", "voc")(root, {"variant": "trainaug"}).samples("train")[1]


def test_ade20k_other_is_ignored_and_the_rest_moves_down_by_one(tmp_path):
    ade = reader("ade20k", write_ade20k(tmp_path, 2, 1, height=40, width=56))
    raw = scene(2, [1, 2, 4, 77, 150], 40, 56)["mask"].astype(int)
    mask = ade.samples("train")[0]["mask"]
    np.testing.assert_array_equal(mask, np.where(raw == 0, 255, raw - 1))
    assert (mask == 255).any() and mask.dtype == np.uint8
    assert len(ade.class_names) == 150
    names = {1: "wall", 2: "building", 8: "bed", 9: "windowpane", 22: "water", 25: "shelf", 128: "bicycle", 150: "flag"}
    assert {number: ade.class_names[number - 1] for number in names} == names
    assert ade.samples("eval")[0]["id"] == "ADE_val_00000001"


def test_ade20k_values_0_1_and_150_become_ignored_first_and_last(tmp_path):
    root = write_ade20k(tmp_path, 1, 1)
    path = root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.array([[0, 1, 150]], np.uint8)).save(path)
    with pytest.raises(CliptexError, match=r"00000001\.png: 3 x 1, but its image has 48 x 48 pixels"):
        reader("ade20k", root).samples("train")[0]
    Image.new("RGB", (3, 1)).save(root / "ADEChallengeData2016/images/training/ADE_train_00000001.jpg")
    assert reader("ade20k", root).samples("train")[0]["mask"].tolist() == [[255, 0, 149]]


def test_ade20k_full_annotation_and_short_table_are_refused_by_name(tmp_path):
    ade = reader("ade20k", write_ade20k(tmp_path, 1, 1))
    path = tmp_path / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.full((48, 48), 151, np.uint8)).save(path)
    with pytest.raises(CliptexError, match=r"ADE_train_00000001\.png"):
        ade.samples("train")[0]
    table = tmp_path / "ADEChallengeData2016/objectInfo150.txt"
    rows = table.read_text().splitlines()
    for changed, message in (
        (rows[:-1], r"has 149 classes, not 150"),
        ([*rows[:9], *rows[8:]], r"expected class 9 and its name, not '8 0\.0074 709 75 bed'"),
        ([*rows[:-1], "150\t0.0002\t421\t56"], "expected class 150"),
        ([*rows[:-1], "150\t0.0002\t421\t56\t ,x"], "expected class 150"),
        ([*rows[:-1], "\u00b2\t0.0002\t421\t56\tflag"], "expected class 150"),
    ):
        table.write_text("\n".join(changed))
        with pytest.raises(CliptexError, match=rf"objectInfo150\.txt: {message}"):
            reader("ade20k", tmp_path).class_names  # noqa: B018


def test_coco_sparse_ids_become_positions_boxes_become_corners(tmp_path):
    coco = reader("coco", write_coco(tmp_path, 4, 3, height=40, width=56))
    assert coco.class_names == [name for _, name, _ in coco_categories()] and len(coco.class_names) == 80
    position = {number: index for index, (number, _, _) in enumerate(coco_categories())}
    sample, truth = coco.samples("train")[0], scene(1, [1, 13, 90], 40, 56)["boxes"]
    np.testing.assert_array_equal(sample["boxes"], np.array([box[:4] for box in truth], np.float32))
    assert sample["labels"].tolist() == [position[box[4]] for box in truth]
    assert position[90] == 79 and position[13] == 11
    for mask, (x0, y0, x1, y1, _) in zip(sample["masks"], truth, strict=True):
        expected = np.zeros((40, 56), bool)
        expected[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(mask, expected)


def test_coco_crowds_are_flagged_and_images_without_objects_are_kept(tmp_path):
    samples = reader("coco", write_coco(tmp_path, 4, 3)).samples("train")
    assert len(samples) == 4
    empty = samples[1]
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 48, 48) and empty["labels"].shape == (0,)
    crowd = samples[2]
    assert crowd["crowd"].tolist() == [False] * (len(crowd["crowd"]) - 1) + [True]
    # uncompressed RLE runs down the columns
    assert np.argwhere(crowd["masks"][-1]).tolist() == [[8, 0], [9, 0], [10, 0], [11, 0]]


def test_coco_polygons_and_both_run_length_forms_decode_alike(tmp_path):
    from faster_coco_eval import mask as rle

    from cliptex.benchmarks.coco import decode_segmentation

    expected = np.zeros((10, 12), bool)
    expected[2:7, 3:9] = True
    counts = np.diff(np.flatnonzero(np.diff(expected.T.ravel(), prepend=0)), prepend=0)
    counts = [*counts.tolist(), 120 - int(counts.sum())]
    compressed = rle.encode(np.asfortranarray(expected.astype(np.uint8)))
    for segmentation in ([[3, 2, 9, 2, 9, 7, 3, 7]], {"size": [10, 12], "counts": counts}, compressed):
        np.testing.assert_array_equal(decode_segmentation(segmentation, 10, 12), expected)


def coco_with(tmp_path, change):
    """The reader of a COCO file of three images, of which `change(annotation)` altered the first annotation."""
    path = write_coco(tmp_path, 3, 3) / "annotations/instances_train2017.json"
    data = json.loads(path.read_text())
    change(data, data["annotations"][0])
    path.write_text(json.dumps(data))
    return reader("coco", tmp_path)


def test_coco_objects_without_a_polygon_are_counted_by_id_and_have_an_empty_mask(tmp_path, caplog):
    def change(data, item):
        item.update({"id": 77, "segmentation": []})
        others = {"image_id": item["image_id"], "category_id": 1, "bbox": [1, 2, 3, 4]}
        data["annotations"] += [
            others | {"id": 78},  # with a box only, as many tools write
            others | {"id": 79, "segmentation": [[], [1, 2, 3, 4]], "area": 5},
            others | {"id": 80, "segmentation": {"size": [48, 48], "counts": [3, 4]}},  # the rest is off
        ]

    coco = coco_with(tmp_path, change)
    sample = coco.samples("train")[0]
    assert sample["masks"].any((1, 2)).tolist()[-3:] == [False, False, True] and not sample["masks"][0].any()
    assert np.argwhere(sample["masks"][-1]).tolist() == [[3, 0], [4, 0], [5, 0], [6, 0]]
    assert sample["crowd"].tolist() == [False] * len(sample["boxes"])
    areas = {item["id"]: item["area"] for item in coco.annotations("train")["annotations"]}
    assert (areas[78], areas[79]) == (12, 5)
    assert coco.prepare() == {"without_segmentation": {"train": {"number": 3, "ids": [77, 78, 79]}}}
    assert "instances_train2017.json: annotation 77 and 2 others have no segmentation" in caplog.text


def test_a_coco_object_without_a_polygon_counts_for_boxes_alone(tmp_path):
    from cliptex.evaluation.probes.heads.detection import evaluate_detections

    coco = coco_with(tmp_path, lambda _, item: item.update({"segmentation": []}))
    samples = coco.samples("train")
    found = [
        {"boxes": one["boxes"], "labels": one["labels"], "scores": np.ones(len(one["labels"])), "masks": one["masks"]}
        for one in samples
    ]
    for one in found:
        one["masks"] = one["masks"] | np.eye(48, dtype=bool)  # no detection is empty
    ids = [int(one["id"]) for one in samples]
    boxes, masks = (evaluate_detections(coco.annotations("train"), ids, found, kind)[0] for kind in ("bbox", "segm"))
    assert boxes["AP"] > masks["AP"] > 20


def runs(counts, side=48):
    return lambda _, item: item.update(segmentation={"size": [side, side], "counts": counts})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, item: item.update(category_id=12), "annotation 101: its category_id 12 is not in the file"),
        (lambda data, item: item.update(image_id=99), "annotation 101: its image_id 99 is not in the file"),
        (lambda data, item: item.update(bbox=[1, 2, -3, 4]), r"annotation 101: its bbox is \[1, 2, -3, 4\]"),
        (lambda data, item: item.update(bbox=[1, 2, 3, 1e9]), "annotation 101: its bbox is"),
        (lambda data, item: item.update(bbox=[1, 2, 3]), "annotation 101: not enough values"),
        (lambda data, item: item.update(bbox=["1", 2, 3, 4]), "annotation 101: "),
        (lambda data, item: item.pop("bbox"), "annotation 101: lacks 'bbox'"),
        (lambda data, item: item.pop("category_id"), "annotation 101: lacks 'category_id'"),
        (lambda data, item: item.update(area=-1), "annotation 101: its area is -1"),
        (lambda data, item: item.update(iscrowd=7), "annotation 101: its iscrowd is 7"),
        (lambda data, item: item.update(id=0), "annotations: 0 is not the id of one; ids are numbers from 1"),
        (lambda data, item: item.update(id=data["annotations"][1]["id"]), "annotations: two have the id 102"),
        (lambda data, item: data["images"].append(data["images"][0]), "images: two have the id 3"),
        (lambda data, item: data["categories"].append({"id": 1, "name": "x"}), "categories: two have the id 1"),
        (lambda data, item: data["categories"][0].pop("name"), "categories: one has no name"),
        (lambda data, item: data["images"][0].update(file_name="../x.jpg"), "image 3: '../x.jpg' is not a file name"),
        (lambda data, item: data["images"][0].update(file_name=".."), "image 3: '..' is not a file name"),
        (lambda data, item: data["images"][0].update(height="48"), r"image 3: its height and width are \('48', 48\)"),
        (lambda data, item: data["images"][0].pop("width"), r"image 3: its height and width are \(48, None\)"),
        (lambda data, item: data.update(annotations={}), "lacks annotations, a list of objects"),
        (lambda data, item: item.update(segmentation=[[1, 1, 1e7, 1, 1, 1e7]]), "reaches 1e.07 in 48 x 48 pixels"),
        (lambda data, item: item.update(segmentation=[["a"] * 6]), "annotation 101: "),
        (lambda data, item: item.update(segmentation=[[0, 48] * 200_000]), "its segmentation has 400,000 numbers"),
        (runs([0, 10**12]), "run lengths of 1,000,000,000,"),
        (runs([-5, 20]), "run lengths of 15, its image 2,304"),
        (runs("PPYo1"), "annotation 101: RLE counts exceed"),
        (runs(""), "annotation 101: Invalid RLE"),
        (runs([10**12], 10**6), r"is for \[1000000, "),
        (lambda data, item: item.update(segmentation={"counts": []}), "annotation 101: lacks 'size'"),
        (lambda data, item: item.update(segmentation="x"), "annotation 101: "),
    ],
)
def test_a_coco_file_with_a_wrong_value_is_refused_by_file_key_and_value(tmp_path, change, message):
    coco = coco_with(tmp_path, change)
    with pytest.raises(CliptexError, match=rf"instances_train2017\.json: .*{message}.*; unpack annotations_train"):
        coco.samples("train")


def test_coco_captions_of_an_unknown_image_are_refused_by_name(tmp_path):
    path = write_coco(tmp_path, 3, 3) / "annotations/captions_val2017.json"
    texts = [caption for _, caption in reader("coco", tmp_path).captions("eval")]
    assert texts == [["A scene."]] * 3
    data = json.loads(path.read_text())
    for change in ({"image_id": 5}, {"caption": None}):
        path.write_text(json.dumps(data | {"annotations": [data["annotations"][0] | change]}))
        with pytest.raises(CliptexError, match=r"captions_val2017\.json: annotation 10010 is not a caption of"):
            reader("coco", tmp_path).captions("eval")


def test_coco_image_of_another_size_than_annotated_is_refused_by_name(tmp_path):
    coco = reader("coco", write_coco(tmp_path, 3, 3))
    Image.new("RGB", (20, 10)).save(tmp_path / "train2017/000000000001.jpg")
    with pytest.raises(CliptexError, match=r"000000000001\.jpg"):
        coco.samples("train")[0]
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(CliptexError, match=r"instances_val2017\.json.*annotations"):
        reader("coco", tmp_path).samples("eval")


@pytest.mark.parametrize("variant", ["bae", "dsine", "ladicky"])
def test_nyuv2_axes_are_turned_back_splits_count_from_one_and_normals_from_zero(tmp_path, variant):
    write_nyuv2(tmp_path, 4, 3, height=36, width=48, variant=variant)
    nyu = find("benchmarks", "nyuv2")(tmp_path, {"variant": variant})
    if variant == "ladicky":
        store_ladicky(tmp_path / "surfacenormal_metadata/all_normals.pklz", tmp_path / "normals_ladicky.h5")
    assert (len(nyu.samples("train")), len(nyu.samples("eval")), nyu.eval_split) == (4, 3, "test")
    numbers = []
    for part in ("train", "eval"):
        for sample in nyu.samples(part):
            number = int(sample["id"])
            numbers.append(number)
            one = scene(number - 1, [1, 2, 3], 36, 48)
            np.testing.assert_array_equal(sample["image"], one["image"])
            expected = (2 + one["mask"] + np.linspace(0, 1, 36)[:, None]).astype(np.float32)
            expected[0, 0] = np.nan
            np.testing.assert_allclose(sample["depth"], expected)
            facing = one["mask"] == 0
            facing[0] = False
            np.testing.assert_allclose(
                sample["normals"][facing], np.broadcast_to([0, 0, 1.0], (facing.sum(), 3)), atol=0.01
            )
            below = one["mask"] == 1
            below[0] = False
            np.testing.assert_allclose(
                sample["normals"][below], np.broadcast_to([0, 1.0, 0], (below.sum(), 3)), atol=0.01
            )
            assert np.isnan(sample["normals"][0]).all() and sample["normals"].dtype == np.float32
    assert sorted(numbers) == list(range(1, 8))


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, -1)), ((0, 2, 1), (1, -1, -1))]
)
def test_nyuv2_axes_of_published_normals_are_found_by_depth(order, signs):
    """All axes of a publication are converted to ours: signs, and permuted components."""
    pairs = []
    for index in range(12):
        ours, depth = room(index)
        published = np.empty_like(ours)
        for place in range(3):
            published[..., order[place]] = ours[..., place] * signs[place]
        published[:5] = np.nan
        pairs.append((published, depth))
    axes, agreement = axes_by_depth(pairs, "here")
    assert (axes.order, axes.signs) == (order, signs) and agreement > 0.97
    np.testing.assert_array_equal(axes.apply(pairs[3][0])[5:], room(3)[0][5:])


def test_nyuv2_normals_of_other_images_are_refused():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(6, 120, 160, 3))
    pairs = [(one / np.linalg.norm(one, axis=-1, keepdims=True), room(index)[1]) for index, one in enumerate(noise)]
    with pytest.raises(CliptexError, match=r"here: do not match the depth of their images.*mean cosine 0\.0"):
        axes_by_depth(pairs, "here")


class Planted:
    """Content of a hostile pickle: unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_nyuv2_a_pickle_runs_nothing(tmp_path):
    path, marker = tmp_path / "all_normals.pklz", tmp_path / "it-ran"
    hostile = {
        "function": {"all_normals": Planted(marker)},
        "inside an array": {"all_normals": np.array([Planted(marker)], object)},
        "builtin": b'cbuiltins\nexec\n(S\'open("%s", "w")\'\ntR.' % str(marker).encode(),
        "memory": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I-1\ntS'b'\ntR(I1\n(I-9\ntNI00\nS''\ntb.",
        "state of a function": b"cnumpy.core.multiarray\n_reconstruct\n}S'__call__'\nNsb.",
        "endless": b"\x8e" + (1 << 60).to_bytes(8, "little"),
        "many objects": b"(" + b"]" * 1_500_000 + b"l.",
        "one object many times": b"}U\x01aI1\ns" + b"2" * 1_500_000 + b".",
        "cut": pickle.dumps({"all_normals": np.zeros(9)})[:-20],
        "no dictionary": [1, 2],
    }
    for what, content in hostile.items():
        with gzip.open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else pickle.dumps(content))
        with pytest.raises(CliptexError, match=r"all_normals\.pklz: .*not (a pickle of plain arrays|a dictionary)"):
            read_arrays(path)
        assert not marker.exists(), what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nyuv2_arrays_come_out_of_a_pickle_of_any_protocol_as_they_went_in(tmp_path, protocol):
    rng = np.random.default_rng(0)
    content = {
        "normals": rng.normal(size=(2, 3, 4, 3)),
        "half": rng.normal(size=(2, 3)).astype(np.float16),
        "columns": np.asfortranarray(rng.normal(size=(3, 4)).astype(">f4")),
        "masks": rng.random((2, 3)) > 0.5,
        "names": np.array(["000001", "000002"], object),
        "list": ["000001", 2],
    }
    with gzip.open(tmp_path / "a.pklz", "wb") as file:
        pickle.dump(content, file, protocol)
    found = read_arrays(tmp_path / "a.pklz")
    assert found.keys() == content.keys() and found.pop("list") == content.pop("list")
    for name, wanted in content.items():
        np.testing.assert_array_equal(found[name], wanted)


def test_nyuv2_other_arrays_than_the_published_normals_are_refused_by_name(tmp_path):
    path = tmp_path / "all_normals.pklz"
    for content in ({}, {"all_normals": np.zeros((2, 4, 4, 3)), "all_filenames": ["000001", "000003"]}):
        with gzip.open(path, "wb") as file:
            pickle.dump(content, file)
        with pytest.raises(CliptexError, match=r"all_normals\.pklz: does not contain the published normals"):
            store_ladicky(path, tmp_path / "out.h5")
        assert not (tmp_path / "out.h5").exists()


def test_nyuv2_black_normals_are_invalid_and_others_are_unit_vectors():
    normals = decode_normals(np.array([[[0, 0, 0], [0, 127, 127], [127, 0, 200]]], np.uint8))
    assert np.isnan(normals[0, 0]).all()
    np.testing.assert_allclose(np.linalg.norm(normals[0, 1:], axis=-1), 1, rtol=1e-6)
    assert normals[0, 1, 0] < -0.99


def nyuv2_file(tmp_path, change):
    """The reader of a file whose content `change(file)` altered."""
    path = write_nyuv2(tmp_path, 2, 2) / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "r+") as file:
        change(file)
    return reader("nyuv2", tmp_path)


EMPTY = {"data": None, "shape": (4, 3, 48, 36), "dtype": "u1"}


def replaced(name, **options):
    def change(file):
        data = file[name][:]
        del file[name]
        file.create_dataset(name, **{"data": data} | options)

    return change


def linked(link):
    def change(file):
        del file["images"]
        file["images"] = link

    return change


def virtual(source):
    def change(file):
        layout = h5py.VirtualLayout(file["images"].shape, "u1")
        layout[...] = h5py.VirtualSource(source or file.filename, "images", file["images"].shape)
        del file["images"]
        file.create_virtual_dataset("images", layout)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (virtual(None), "'images' is not an array that is stored in the file"),  # of itself: ends the process
        (virtual("elsewhere.h5"), "'images' is not an array that is stored in the file"),  # read as zeros
        (linked(h5py.ExternalLink("elsewhere.h5", "images")), "has no 'images' of its own"),
        (linked(h5py.SoftLink("/images")), "has no 'images' of its own"),
        (replaced("images", **EMPTY, external="raw"), "'images' is not an array that is stored in the file"),
        (replaced("images", **EMPTY), "'images' is incomplete: 0 of 20,736 bytes"),
        (replaced("images", **EMPTY, chunks=(1, 3, 48, 36)), "'images' is incomplete: 0 of 4 chunks"),
        (replaced("images", data=np.zeros((4, 3, 48, 36))), r"'images' is float64 \(4, 3, 48, 36\), not"),
        (replaced("images", data=np.zeros((4, 3, 48, 36), "u2")), "images uint16 .* do not match"),
        (replaced("depths", data=np.zeros((4, 48, 36), "u2")), r"'depths' is uint16 \(4, 48, 36\), not"),
        (replaced("depths", data=np.zeros((4, 36, 48), "f4")), "images .* and depths .* do not match"),
        (replaced("depths", data=np.full((4, 48, 36), 2345, "f4")), "image 1 has depths up to 2,345, but must be in"),
        (replaced("depths", data=np.full((4, 48, 36), np.nan, "f4")), "image 1 has no valid depth"),
        (replaced("depths", data=np.full((4, 48, 36), np.inf, "f4")), "image 1 has no valid depth"),
        (lambda file: file["images"].parent.create_group("x") and linked(file["x"])(file), "'images' is not an array"),
    ],
)
def test_nyuv2_images_and_depths_that_are_not_in_the_file_or_in_metres_are_refused(tmp_path, change, message):
    nyu = nyuv2_file(tmp_path, change)
    with pytest.raises(CliptexError, match=rf"nyu_depth_v2_labeled\.mat: .*({message})"):
        [sample for part in ("train", "eval") for sample in nyu.samples(part)]


@pytest.mark.parametrize("numbers", [[1, 2, 2], [0, 1], [5], [1.5], [np.nan], [1 + 2j], [], "12"])
def test_nyuv2_splits_are_distinct_numbers_of_images(tmp_path, numbers):
    write_nyuv2(tmp_path, 2, 2)
    savemat(tmp_path / "splits.mat", {"trainNdxs": numbers, "testNdxs": [[3], [4]]})
    with pytest.raises(CliptexError, match=r"splits\.mat: (trainNdxs must contain distinct|has no numeric)"):
        reader("nyuv2", tmp_path).samples("train")


def test_nyuv2_wrong_files_are_refused_by_name(tmp_path):
    write_nyuv2(tmp_path, 2, 2)
    (tmp_path / "nyu_dataset/test/norm").rename(tmp_path / "elsewhere")
    with pytest.raises(CliptexError, match=r"test/norm/\d{6}\.png"):
        reader("nyuv2", tmp_path).samples("eval")[0]
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(CliptexError, match=r"splits\.mat"):
        reader("nyuv2", tmp_path).samples("train")
    (tmp_path / "nyu_depth_v2_labeled.mat").write_text("<html>not found</html>")
    with pytest.raises(CliptexError, match=r"nyu_depth_v2_labeled\.mat.*HDF5"):
        reader("nyuv2", tmp_path).samples("train")


def damaged(whole: bytes):
    """Truncated files, files of other programs, and a MATLAB file with other variables."""
    for share in np.linspace(0, 0.999, 40):
        yield whole[: int(share * len(whole))]
    yield from (b"<html>not found</html>", b"PK\x03\x04" + whole, b"\x89HDF\r\n\x1a\n" + whole, b"\0" * len(whole))
    other = io.BytesIO()
    savemat(other, {"synsets": "?", "trainNdxs": "?", "testNdxs": {"a": 1}, "GTcls": [1]}, do_compression=True)
    yield other.getvalue()


@pytest.mark.parametrize(
    ("name", "mark", "file"),
    [
        ("nyuv2", {}, "splits.mat"),
        ("nyuv2", {}, "nyu_depth_v2_labeled.mat"),
        ("imagenet", {}, "ILSVRC2012_devkit_t12/data/meta.mat"),
        ("voc", {"variant": "trainaug"}, "benchmark_RELEASE/dataset/cls/2007_000011.mat"),
    ],
)
def test_a_damaged_mat_file_is_named_with_what_to_do(tmp_path, name, mark, file):
    write = {"nyuv2": write_nyuv2, "imagenet": write_imagenet, "voc": lambda *given: write_voc(*given, sbd=2)}[name]
    root = write(tmp_path, 6, 4)
    for content in damaged((root / file).read_bytes()):
        (root / file).write_bytes(content)
        with pytest.raises(CliptexError, match=rf"{re.escape(Path(file).name)}: .*(download|unpack|replace it)"):
            for part in ("train", "eval"):
                list(find("benchmarks", name)(root, mark).samples(part))


def test_classes_that_no_byte_holds_and_lists_that_are_no_text_are_named(tmp_path):
    write_voc(tmp_path, 6, 4, sbd=2)
    data = find("benchmarks", "voc")(tmp_path, {"variant": "trainaug"})
    path = tmp_path / "benchmark_RELEASE/dataset/cls/2007_000011.mat"
    large = np.array([[(np.full((48, 48), 256, np.uint16),)]], [("Segmentation", "O")])
    savemat(path, {"GTcls": large})
    with pytest.raises(CliptexError, match=r"2007_000011\.mat: has values 256 to 256, not classes 0 to 255; unpack"):
        list(data.samples("train"))
    (tmp_path / "benchmark_RELEASE/dataset/val.txt").write_bytes(b"2007_\xff\xfe\n")
    with pytest.raises(CliptexError, match=r"val\.txt: is not text \(invalid start byte at byte 5\); unpack"):
        data.samples("train")


def read_every_damage(path: Path) -> None:
    """Change each byte of a file in turn and read it; tally.json counts successes and errors."""
    whole, tally = path.read_bytes(), {"read": 0, "refused": 0}
    for at, value in enumerate(whole):
        for other in (value ^ 0xFF, value ^ 0x40, value ^ 1):
            path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
            try:
                read_mat(path, "unpack")
                tally["read"] += 1
            except CliptexError:
                tally["refused"] += 1
    (path.parent / "tally.json").write_text(json.dumps(tally))


@pytest.mark.parametrize(
    "content",
    [
        {"trainNdxs": np.arange(9, dtype=np.uint16)[:, None], "testNdxs": np.arange(9.0)},
        {"synsets": np.array([(1, "n1", "a", 0), (2, "n2", "b", 3)], [(name, "O") for name in "abcd"])},
        {"GTcls": np.array([[([1, "x"], np.eye(6, dtype=np.uint8), 1j)]], [(name, "O") for name in "abc"])},
    ],
    ids=["numbers", "rows", "cells"],
)
def test_no_damage_of_a_mat_file_ends_the_process(tmp_path, content):
    """scipy's reader alone crashes for dozens of these changes."""
    savemat(tmp_path / "a.mat", content)
    process = multiprocessing.get_context("spawn").Process(target=read_every_damage, args=(tmp_path / "a.mat",))
    process.start()
    process.join()
    assert process.exitcode == 0
    tally = json.loads((tmp_path / "tally.json").read_text())
    assert min(tally.values()) > 100, tally


def matlab_file(array: bytes) -> bytes:
    """A MATLAB 5 file with one compressed array."""
    packed = zlib.compress(struct.pack("<II", 14, len(array)) + array, 1)
    return b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed


def matlab_cells(count: int, content: bytes) -> bytes:
    head = struct.pack("<IIII", 6, 8, 1, 0) + struct.pack("<IIii", 5, 8, count, 1) + struct.pack("<II", 1, 0)
    return head + content


def write_bombs(root: Path) -> None:
    """Small files that declare gigabytes, or cost minutes; each belongs to a benchmark in a folder of its own."""
    deep = b""
    for _ in range(3000):
        deep = matlab_cells(1, struct.pack("<II", 14, len(deep)) + deep)
    (root / "zeros.mat").write_bytes(matlab_file(bytes(70 << 20)))
    (root / "cells.mat").write_bytes(matlab_file(matlab_cells(1_000_000, struct.pack("<II", 14, 0) * 1_000_000)))
    (root / "deep.mat").write_bytes(matlab_file(deep))
    with gzip.open(root / "zeros.pklz", "wb", 1) as file:
        file.write(b"\x8e" + struct.pack("<Q", 40 << 20) + bytes(40 << 20) + b".")
    Image.new("1", (20_000, 20_000)).save(root / "large.png")
    Image.new("L", (4000, 4000)).save(root / "scans.jpg")
    (root / "scans.jpg").write_bytes((root / "scans.jpg").read_bytes() + b"\xff\xda" * 300)
    (root / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    write_nyuv2(root / "chunks", 1, 1)
    with h5py.File(root / "chunks/nyu_depth_v2_labeled.mat", "w") as file:
        file.create_dataset("images", (4, 3, 6000, 6000), "u1", chunks=(4, 3, 6000, 6000), compression="gzip")
    for name, change in (
        ("outline", lambda data, item: item.update(segmentation=[[1, 1, 1e7, 1, 1, 1e7]])),
        ("runs", lambda data, item: item.update(segmentation={"size": [10**6] * 2, "counts": [10**12]})),
        ("string", lambda data, item: item.update(segmentation={"size": [48, 48], "counts": "o" * 1_000_000})),
        ("objects", lambda data, item: data["images"][-1].update(height=40_000, width=40_000)),
    ):
        (root / name).mkdir()
        coco_with(root / name, change)


def read_bombs(root: Path) -> None:
    """Read each with 3 GB of memory; found.json has the error and the seconds of each."""
    found = {}
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    for path in sorted(root.iterdir()):
        read = {".mat": lambda path: read_mat(path, "unpack"), ".pklz": read_arrays, ".png": read_rgb, ".jpg": read_rgb}
        benchmark = "nyuv2" if path.name == "chunks" else "coco"
        start, error = time.monotonic(), None
        try:
            read.get(path.suffix, lambda path, name=benchmark: reader(name, path).samples("train")[0])(path)
        except CliptexError as raised:
            error = str(raised)
        found[path.name] = [error, time.monotonic() - start]
    (root.parent / "found.json").write_text(json.dumps(found))


def test_small_files_that_declare_gigabytes_are_refused_by_name_in_little_time_and_memory(tmp_path):
    (tmp_path / "bombs").mkdir()
    write_bombs(tmp_path / "bombs")
    process = multiprocessing.get_context("spawn").Process(target=read_bombs, args=(tmp_path / "bombs",))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {path.name for path in (tmp_path / "bombs").iterdir()}
    for name, (error, seconds) in found.items():
        assert error and name in error and "memory" not in error and seconds < 30, (name, error, seconds)


def test_files_that_matlab_wrote_are_sound():
    """The files of scipy's tests that scipy reads, except functions, which no data set has."""
    found = sorted(Path(scipy.io.matlab.__file__).parent.glob("tests/data/*_[5678].*.mat"))
    if not found:
        pytest.skip("scipy is installed without its tests")
    for path in found:
        data = path.read_bytes()
        if not re.search("func|hdf5", path.name):
            loadmat(io.BytesIO(data))
            check_structure(data)
    assert len(found) > 40


@pytest.mark.parametrize("flat", [True, False])
def test_imagenet_labels_are_positions_of_sorted_wnids_in_both_forms_of_val(tmp_path, flat):
    imagenet = reader("imagenet", write_imagenet(tmp_path, 6, 12, flat=flat))
    assert imagenet.class_names == ["dog", "cat", "car"]
    train = imagenet.samples("train")
    assert [train[index]["label"] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    expected = {
        f"ILSVRC2012_val_{number:08d}": int(np.random.default_rng(number).integers(3)) for number in range(1, 13)
    }
    samples = imagenet.samples("eval")
    assert {samples[index]["id"]: samples[index]["label"] for index in range(12)} == expected


def test_imagenet_images_of_all_forms_are_rgb(tmp_path):
    samples = reader("imagenet", write_imagenet(tmp_path, 4, 3, odd=True)).samples("train")
    found = {sample["id"].rpartition("_")[2]: sample["image"] for sample in samples}
    for number, image in found.items():
        expected = Image.fromarray(scene(int(number), [int(number) % 3 + 1])["image"])
        expected = expected.convert("L" if number == "3" else "RGB").convert("RGB")
        np.testing.assert_allclose(image.mean((0, 1)), np.asarray(expected).mean((0, 1)), atol=3)
        assert image.shape == (48, 48, 3)


def test_imagenet_with_the_thousand_official_wnids_takes_open_clips_names(tmp_path):
    import open_clip

    for wnid in official_wnids():
        (tmp_path / "train" / wnid).mkdir(parents=True)
    names = reader("imagenet", tmp_path).class_names
    assert names == list(open_clip.IMAGENET_CLASSNAMES)
    # two well-known places that an order by ILSVRC id would miss
    assert names[official_wnids().index("n01440764")] == "tench"
    assert names[official_wnids().index("n15075141")] == "toilet paper"


def test_imagenet_wrong_layout_is_refused_by_name(tmp_path):
    write_imagenet(tmp_path, 6, 4)
    truth = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n")
    with pytest.raises(CliptexError, match=r"validation_ground_truth\.txt.*2 lines for the 4"):
        reader("imagenet", tmp_path).samples("eval")
    truth.write_text("1\n2\n4\n1\n")  # 4 is an inner node of the hierarchy
    with pytest.raises(CliptexError, match=r"ILSVRC id 4"):
        reader("imagenet", tmp_path).samples("eval")
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} dog\n")
    with pytest.raises(CliptexError, match=r"LOC_synset_mapping\.txt.*n02121808"):
        reader("imagenet", tmp_path).class_names  # noqa: B018


def test_imagenet_flat_val_under_other_names_gets_no_labels_by_position(tmp_path):
    val = write_imagenet(tmp_path, 6, 12) / "val"
    for number, path in enumerate(sorted(val.iterdir()), 1):
        path.rename(val / f"{number}.JPEG")  # sorts as 1, 10, 11, 12, 2
    with pytest.raises(CliptexError, match=r"1\.JPEG: expected ILSVRC2012_val_00000001"):
        reader("imagenet", tmp_path).samples("eval")


def test_imagenet_ground_truth_of_wnids_is_refused_by_name(tmp_path):
    write_imagenet(tmp_path, 6, 4)
    truth = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(f"1\n{WNIDS[0]}\n1\n1\n")
    with pytest.raises(CliptexError, match=rf"validation_ground_truth\.txt: '{WNIDS[0]}' is not an ILSVRC id"):
        reader("imagenet", tmp_path).samples("eval")


def test_places365_sub_levels_come_first_in_the_name_and_ids_are_unique(tmp_path):
    places = reader("places365", write_places365(tmp_path, 6, 6))
    assert places.class_names == ["outdoor apartment building", "beach", "living room"]
    samples = places.samples("eval")
    assert [samples[index]["label"] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert len({samples[index]["id"] for index in range(6)}) == 6
    assert category_name("ice_skating_rink/indoor") == "indoor ice skating rink"
    (tmp_path / "categories_places365.txt").unlink()
    assert reader("places365", tmp_path).class_names == places.class_names
    (tmp_path / "places365_standard/val" / CATEGORIES[1]).rename(tmp_path / "places365_standard/val/bog")
    with pytest.raises(CliptexError, match=r"bog.*not a category"):
        places.samples("eval")


def described(name, root, mark):
    data = find("benchmarks", name)(root, mark)
    samples = [*data.samples("train"), *data.samples("eval")]
    return data.class_names, [(sample["id"], sample.get("label")) for sample in samples]


TRAINAUG, SMALL = {"variant": "trainaug"}, {"variant": "small"}
VOC = "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("name", "mark", "file", "wrong"),
    [
        ("voc", TRAINAUG, VOC, ["2007_000003 -1", "../x", "2007_000002"]),  # a list of Main, another folder, twice
        ("voc", TRAINAUG, "benchmark_RELEASE/dataset/val.txt", ["2007_000001  1"]),
        ("ade20k", {}, "ADEChallengeData2016/objectInfo150.txt", ["151\t0.0002\t421\t56\tflag", "150 flag"]),
        ("imagenet", {}, TRUTH, ["n01440764", "1001", "-1", "9" * 5000, "\u0661"]),
        ("imagenet", {}, "LOC_synset_mapping.txt", ["n02958343", "car, auto"]),
        ("places365", SMALL, "categories_places365.txt", ["/a/airfield 3", "living_room 2", "/b/beach 2"]),
        ("places365", SMALL, "places365_train_standard.txt", ["/a/x.jpg 3", "/a/x.jpg", "/../x.jpg 0", "/a/x.jpg -1"]),
    ],
)
def test_a_list_that_was_edited_elsewhere_is_read_alike_and_a_wrong_line_is_refused(tmp_path, name, mark, file, wrong):
    """Alike: with a byte order mark, line ends of Windows, comments and empty lines."""
    root = WRITERS[name](tmp_path, 3, 3, **{"voc": {"sbd": 2}, "places365": mark}.get(name, {}))
    path, expected = root / file, described(name, root, mark)
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf# a comment\r\n" + text.replace("\n", "\r\n").encode() + b"\r\n \r\n\r\n")
    assert described(name, root, mark) == expected
    for line in wrong:
        path.write_text("\n".join([*text.splitlines()[:-1], line]))
        with pytest.raises(CliptexError, match=rf"{path.name}: .*(unpack|add a line)") as raised:
            described(name, root, mark)
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_empty_folder_is_refused_by_the_path_that_is_missing(tmp_path, name):
    with pytest.raises(CliptexError, match=str(tmp_path)):
        reader(name, tmp_path).samples("eval")


def test_the_source_is_what_a_mark_says_and_without_a_mark_nothing(tmp_path):
    with pytest.raises(CliptexError, match=r"neither miniature\.json nor official\.json; run: cliptex fetch"):
        source(tmp_path)
    (tmp_path / "miniature.json").write_text("{}")
    assert source(tmp_path) == "miniature"
    (tmp_path / "official.json").write_text("{}")
    with pytest.raises(CliptexError, match=r"miniature\.json: the folder also has official\.json"):
        source(tmp_path)
    (tmp_path / "miniature.json").unlink()
    assert source(tmp_path) == "official"


@pytest.mark.parametrize("part", ["train", "eval"])
def test_official_data_have_the_official_number_of_samples(tmp_path, part):
    write_ade20k(tmp_path, 3, 2)
    assert len(reader("ade20k", tmp_path).samples(part))
    mark = {"source": "official"}
    numbers = "3 samples to train, officially 20,210" if part == "train" else "2 samples to eval, officially 2,000"
    with pytest.raises(CliptexError, match=f"{tmp_path}: {numbers}; .*unpack"):
        find("benchmarks", "ade20k")(tmp_path, mark).samples(part)


def test_the_official_counts():
    counts = {name: tuple(reader(name, "nowhere").official_counts.values()) for name in BENCHMARKS}
    assert counts == {
        "voc": (1464, 1449),
        "ade20k": (20210, 2000),
        "coco": (118287, 5000),
        "nyuv2": (795, 654),
        "imagenet": (1281167, 50000),
        "places365": (1803460, 36500),
    }
    mark = {"source": "official", "variant": "trainaug"}
    assert find("benchmarks", "voc")("nowhere", mark).official_counts == {"train": 10582, "eval": 1449}


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("voc", "VOCdevkit/VOC2012/JPEGImages/2007_000002.jpg"),
        ("voc", "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png"),
        ("voc", "benchmark_RELEASE/dataset/cls/2007_000006.mat"),
        ("ade20k", "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"),
        ("coco", "val2017/000000010002.jpg"),
        ("nyuv2", "nyu_dataset/test/norm/"),
        ("places365", "data_256/a/apartment_building/outdoor/00000001.jpg"),
    ],
)
def test_a_file_that_is_listed_and_missing_is_named_before_anything_is_judged(tmp_path, name, lost):
    options = {"voc": {"sbd": 2}, "places365": {"variant": "small"}}.get(name, {})
    variant = {"voc": "trainaug", "places365": "small"}.get(name)
    root = WRITERS[name](tmp_path, 3, 2, **options)
    path = next(iter(sorted((root / lost).iterdir()))) if lost.endswith("/") else root / lost
    path.unlink()
    with pytest.raises(CliptexError, match=rf"{path.name}: is missing, and 0 other files"):
        find("benchmarks", name)(root, {"variant": variant} if variant else {}).prepare()


@pytest.mark.parametrize("renamed", [False, True])
def test_places365_small_images_have_the_labels_of_the_lists(tmp_path, renamed):
    root = write_places365(tmp_path, 6, 6, variant="small")
    if renamed:  # as torchvision does
        (root / "data_256").rename(root / "data_256_standard")
    places = find("benchmarks", "places365")(root, {"variant": "small"})
    assert not (root / "categories_places365.txt").read_text().endswith("\n")  # 365 lines, and wc -l says 364
    assert places.class_names == ["outdoor apartment building", "beach", "living room"]
    easy = reader("places365", write_places365(tmp_path / "easy", 6, 6))
    for part in ("train", "eval"):
        samples, others = places.samples(part), easy.samples(part)
        assert (
            sorted(sample["label"] for sample in samples)
            == [sample["label"] for sample in others]
            == [0, 0, 1, 1, 2, 2]
        )
        assert len({sample["id"] for sample in samples}) == 6
    expected = scene(0, [1])["image"].mean(axis=(0, 1))
    np.testing.assert_allclose(places.samples("train")[0]["image"].mean(axis=(0, 1)), expected, atol=3)
    (root / "places365_val.txt").write_text("Places365_val_00000001.jpg 3\n")
    with pytest.raises(CliptexError, match=r"places365_val\.txt: 'Places365_val_00000001\.jpg 3' is not"):
        places.samples("eval")
    (root / "categories_places365.txt").write_text("/a/airfield 1")
    with pytest.raises(CliptexError, match=r"categories_places365\.txt: its line '/a/airfield 1' must be like"):
        find("benchmarks", "places365")(root, {"variant": "small"}).samples("eval")


def test_samples_are_read_when_indexed():
    read = []
    samples = Lazy(["a", "b", "c"], lambda item: read.append(item) or {"id": item})
    assert len(samples) == 3 and read == []
    assert samples[2]["id"] == "c" and read == ["c"]


def test_hidden_files_and_folders_are_no_samples(tmp_path):
    """Files that macOS and interrupted unpacking leave in image folders."""
    write_ade20k(tmp_path / "ade", 2, 1)
    (tmp_path / "ade/ADEChallengeData2016/images/training/._ADE_train_00000001.jpg").touch()
    (tmp_path / "ade/ADEChallengeData2016/images/training/.ADE_train_00000003.jpg.unpacking").touch()
    assert len(reader("ade20k", tmp_path / "ade").samples("train")) == 2
    write_imagenet(tmp_path / "imagenet", 6, 4)
    (tmp_path / "imagenet/train/.cache").mkdir()
    (tmp_path / "imagenet/val/.cache").mkdir()
    assert [len(reader("imagenet", tmp_path / "imagenet").samples(part)) for part in ("train", "eval")] == [6, 4]


def test_broken_image_is_refused_by_name(tmp_path):
    voc = reader("voc", write_voc(tmp_path, 1, 1))
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CliptexError, match=r"2007_000001\.jpg"):
        voc.samples("train")[0]

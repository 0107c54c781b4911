"""The readers of the official layouts: each trap of a layout, and errors that name the file."""

import json

import numpy as np
import pytest
from official_layouts import (
    CATEGORIES,
    WNIDS,
    scene,
    write_ade20k,
    write_coco,
    write_imagenet,
    write_nyuv2,
    write_places365,
    write_voc,
)
from PIL import Image

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.benchmarks.imagenet import official_wnids
from cliptex.benchmarks.nyuv2 import decode_normals
from cliptex.benchmarks.places365 import category_name
from cliptex.benchmarks.reading import Lazy, source
from cliptex.errors import CliptexError
from cliptex.plugins import find


def reader(name, root):
    return find("benchmarks", name)(root)


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


def test_ade20k_other_is_ignored_and_the_rest_moves_down_by_one(tmp_path):
    ade = reader("ade20k", write_ade20k(tmp_path, 2, 1, height=40, width=56))
    raw = scene(2, [1, 2, 4, 77, 150], 40, 56)["mask"].astype(int)
    mask = ade.samples("train")[0]["mask"]
    np.testing.assert_array_equal(mask, np.where(raw == 0, 255, raw - 1))
    assert (mask == 255).any() and mask.dtype == np.uint8
    assert len(ade.class_names) == 150
    assert (ade.class_names[0], ade.class_names[1], ade.class_names[149]) == ("wall", "building", "flag")
    assert ade.samples("eval")[0]["id"] == "ADE_val_00000001"


def test_ade20k_full_annotation_and_short_table_are_refused_by_name(tmp_path):
    ade = reader("ade20k", write_ade20k(tmp_path, 1, 1))
    path = tmp_path / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.full((48, 48), 151, np.uint8)).save(path)
    with pytest.raises(CliptexError, match=r"ADE_train_00000001\.png"):
        ade.samples("train")[0]
    table = tmp_path / "ADEChallengeData2016/objectInfo150.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(CliptexError, match=r"objectInfo150\.txt"):
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


def test_coco_image_of_another_size_than_annotated_is_refused_by_name(tmp_path):
    coco = reader("coco", write_coco(tmp_path, 3, 3))
    Image.new("RGB", (20, 10)).save(tmp_path / "train2017/000000000001.jpg")
    with pytest.raises(CliptexError, match=r"000000000001\.jpg"):
        coco.samples("train")[0]
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(CliptexError, match=r"instances_val2017\.json.*annotations"):
        reader("coco", tmp_path).samples("eval")


def test_nyuv2_axes_are_turned_back_and_splits_count_from_one(tmp_path):
    nyu = reader("nyuv2", write_nyuv2(tmp_path, 4, 3, height=36, width=48))
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
            np.testing.assert_allclose(sample["normals"][facing], np.array([[0, 0, 1.0]] * facing.sum()), atol=0.01)
    assert sorted(numbers) == list(range(1, 8))


def test_nyuv2_black_normals_are_invalid_and_others_are_unit_vectors():
    normals = decode_normals(np.array([[[0, 0, 0], [0, 127, 127], [127, 0, 200]]], np.uint8))
    assert np.isnan(normals[0, 0]).all()
    np.testing.assert_allclose(np.linalg.norm(normals[0, 1:], axis=-1), 1, rtol=1e-6)
    assert normals[0, 1, 0] < -0.99


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


def test_places365_sub_levels_come_first_in_the_name_and_ids_are_unique(tmp_path):
    places = reader("places365", write_places365(tmp_path, 6, 6))
    assert places.class_names == ["outdoor apartment building", "beach", "living room"]
    samples = places.samples("eval")
    assert [samples[index]["label"] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    assert len({samples[index]["id"] for index in range(6)}) == 6
    assert category_name("ice_skating_rink-indoor") == "indoor ice skating rink"
    (tmp_path / "places365_standard/val" / CATEGORIES[1]).rename(tmp_path / "places365_standard/val/bog")
    with pytest.raises(CliptexError, match=r"bog.*not a category"):
        places.samples("eval")


@pytest.mark.parametrize("name", ["voc", "ade20k", "coco", "nyuv2", "imagenet", "places365"])
def test_an_empty_folder_is_refused_by_the_path_that_is_missing(tmp_path, name):
    with pytest.raises(CliptexError, match=str(tmp_path)):
        reader(name, tmp_path).samples("eval")


def test_source_is_miniature_only_where_the_renderer_left_its_mark(tmp_path):
    assert source(tmp_path) == "official"
    (tmp_path / "miniature.json").write_text("{}")
    assert source(tmp_path) == "miniature"


def test_samples_are_read_when_indexed():
    read = []
    samples = Lazy(["a", "b", "c"], lambda item: read.append(item) or {"id": item})
    assert len(samples) == 3 and read == []
    assert samples[2]["id"] == "c" and read == ["c"]


def test_broken_image_is_refused_by_name(tmp_path):
    voc = reader("voc", write_voc(tmp_path, 1, 1))
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CliptexError, match=r"2007_000001\.jpg"):
        voc.samples("train")[0]

"""Statistics an image: with weights of one the reported metric, with other weights that of the images repeated."""

import copy
import io
import pickle
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cliptex.core.errors import CliptexError
from cliptex.evaluation.measures import measures
from cliptex.evaluation.metrics.depth import (
    DEPTH_METRICS,
    affine_aligned,
    depth_errors,
    depth_metrics,
    depth_statistics,
)
from cliptex.evaluation.metrics.detection import detection_statistics
from cliptex.evaluation.metrics.normals import angles, normals_metrics, normals_statistics
from cliptex.evaluation.metrics.ranking import ranking_statistics, retrieval_statistics, top_metrics
from cliptex.evaluation.metrics.segmentation import confusion_matrix, segmentation_metrics, segmentation_statistics
from cliptex.evaluation.per_image import check, each_image, main_metric, mismatch, read_per_image, write_per_image
from cliptex.evaluation.probes.heads.detection import evaluate_detections
from cliptex.evaluation.retrieval import recalls

COUNT = 12
RNG = np.random.default_rng(0)
TIMES = RNG.multinomial(COUNT, np.full(COUNT, 1 / COUNT), size=20)


def repeated(items, times):
    return [item for item, number in zip(items, times, strict=True) for _ in range(number)]


def segmentation():
    truths = [RNG.choice([0, 1, 2, 4, 255], (9, 11)).astype(np.uint8) for _ in range(COUNT)]
    # class 3 is predicted only, class 5 occurs nowhere, class 4 in few images
    for truth in truths[3:]:
        truth[truth == 4] = 0
    pairs = [(truth, np.where(RNG.random((9, 11)) < 0.6, truth % 5, 3)) for truth in truths]
    confusions = [confusion_matrix(*pair, 6) for pair in pairs]
    arrays = segmentation_statistics(confusions)[1]
    return "semantic_segmentation", arrays, confusions, lambda some: segmentation_metrics(sum(some))["mIoU"]


def depth(averaging="image"):
    pairs = [(RNG.uniform(1, 12, (6, 7)), RNG.uniform(1, 9, (6, 7))) for _ in range(COUNT)]
    pairs[2][0][:] = np.nan
    arrays = depth_statistics(*depth_errors(pairs, 1e-3, 10), averaging)
    return "depth", arrays, pairs, lambda some: depth_metrics(some, 1e-3, 10, averaging)["rmse"]


def normals(averaging="pooled"):
    pairs = []
    for _ in range(COUNT):
        pair = RNG.normal(size=(2, 5, 6, 3))
        pair /= np.linalg.norm(pair, axis=-1, keepdims=True)
        pair[0][RNG.random((5, 6)) < RNG.random()] = np.nan
        pairs.append(tuple(pair))
    pairs[4][0][:] = np.nan
    arrays = normals_statistics([angles(*pair).astype(np.float32) for pair in pairs], averaging)
    return "normals", arrays, pairs, lambda some: normals_metrics(some, averaging)["mean"]


def classification():
    rankings = [RNG.permutation(8)[:5] for _ in range(COUNT)]
    labels = RNG.integers(0, 8, COUNT)
    arrays = ranking_statistics(np.stack(rankings), labels)

    def top1(some):
        return top_metrics(*map(np.array, zip(*some, strict=True)))["top1"]

    return "classification", arrays, list(zip(rankings, labels, strict=True)), top1


def retrieval():
    """One to three captions an image; the rank of each, of twenty images to find it among."""
    captions = [RNG.integers(0, 20, RNG.integers(1, 4)) for _ in range(COUNT)]
    image = np.repeat(np.arange(COUNT), [len(one) for one in captions])
    arrays = retrieval_statistics(np.concatenate(captions), image, COUNT, (1, 5, 10))
    return "text_to_image_retrieval", arrays, captions, lambda some: recalls(np.concatenate(some))["R@1"]


CASES = [segmentation, depth, normals, classification, retrieval]
OTHER_AVERAGES = [partial(depth, "pooled"), partial(normals, "image")]


@pytest.mark.parametrize("make", CASES + OTHER_AVERAGES)
def test_weights_are_how_often_an_image_is_there(make):
    task, arrays, images, reported = make()
    assert main_metric(task, arrays)[0] == pytest.approx(reported(images), rel=1e-6)
    together = main_metric(task, arrays, TIMES)
    for value, times in zip(together, TIMES, strict=True):
        assert value == pytest.approx(reported(repeated(images, times)), rel=1e-6)
    for value, image in zip(each_image(task, arrays), images, strict=True):
        if np.isfinite(value):
            assert value == pytest.approx(reported([image]), rel=1e-6)


def test_an_image_without_anything_to_judge_has_no_value():
    task, arrays, _, _ = depth()
    assert np.flatnonzero(np.isnan(each_image(task, arrays))).tolist() == [2]
    nothing = np.zeros((1, COUNT))
    assert np.isnan(main_metric(task, arrays, nothing)[0])


def scenes(count=COUNT, classes=3):
    """Objects and detections on a coarse grid, so that overlaps are often equal; some crowds.

    Scores are often equal too, but not within an image: of an image twice, its equal ones would be interleaved.
    """
    rng = np.random.default_rng(2)  # the same whichever tests ran before
    annotations, found = [], []
    ids = rng.permutation(count) + 3
    for image in ids:
        rows = []
        for number in range(rng.integers(0, 6)):
            x, y, w, h = *(4 * rng.integers(0, 12, 2)), *(4 * rng.integers(2, 6, 2))
            rows.append((x, y, w, h))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image),
                    # the last class has no object
                    "category_id": [7, 90, 91][rng.integers(classes - 1)],
                    "bbox": [int(value) for value in (x, y, w, h)],
                    "area": int(w * h),
                    "iscrowd": int(number == 3),
                    "segmentation": {"size": [80, 80], "counts": rle(x, y, w, h)},
                }
            )
        boxes, masks = [], []
        for x, y, w, h in [*rows, *rows, (0, 0, 8, 8)]:
            x, y = x + rng.choice([0, 0, 1, 4]), y + rng.choice([0, 1])
            boxes.append([x, y, x + w, y + h])
            masks.append(np.zeros((80, 80), bool))
            masks[-1][y : y + h, x : x + w] = True
        kept = rng.random(len(boxes)) < 0.8
        found.append(
            {
                "boxes": np.array(boxes, np.float32)[kept],
                "labels": rng.integers(0, classes, len(boxes))[kept],
                "masks": np.array(masks)[kept],
                "scores": (rng.permutation(20)[: len(boxes)] / 32).astype(np.float32)[kept],
            }
        )
    categories = [{"id": number, "name": str(number)} for number in (90, 7, 91)]
    images = [{"id": int(image), "height": 80, "width": 80, "file_name": f"{image}.jpg"} for image in ids]
    return {"images": images, "annotations": annotations, "categories": categories}, [int(i) for i in ids], found


def rle(x, y, w, h):
    from pycocotools import mask

    pixels = np.zeros((80, 80), np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    return mask.encode(pixels)["counts"].decode()


def official_average_precision(data, ids, found, kind, times):
    """pycocotools' AP where each image is there as often as `times` says, as images of their own."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, rows, number = {"images": [], "annotations": [], "categories": data["categories"]}, [], 0
    # copies side by side and in the order of ids, which decides between equal scores
    for index in np.argsort(ids):
        for _ in range(times[index]):
            number += 1
            truth["images"].append({**next(one for one in data["images"] if one["id"] == ids[index]), "id": number})
            for one in data["annotations"]:
                if one["image_id"] == ids[index]:
                    new = {"image_id": number, "id": len(truth["annotations"]) + 1}
                    truth["annotations"].append(copy.deepcopy(one) | new)
            parts = (found[index][name] for name in ("boxes", "labels", "masks", "scores"))
            for box, label, pixels, score in zip(*parts, strict=True):
                row = {"image_id": number, "category_id": [7, 90, 91][label], "score": float(score)}
                if kind == "bbox":
                    row["bbox"] = [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]
                else:
                    row["segmentation"] = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
                rows.append(row)
    if not rows:  # which pycocotools does not take
        return 0.0 if any(not one["iscrowd"] for one in truth["annotations"]) else -1.0
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    official = COCOeval(coco, coco.loadRes(rows), kind)
    official.evaluate()
    official.accumulate()
    official.summarize()
    return 100 * official.stats[0]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_of_weighted_images_equals_that_of_pycocotools(kind):
    data, ids, found = scenes()
    reported, arrays = evaluate_detections(data, ids, found, kind)
    task = {"bbox": "detection", "segm": "instance_segmentation"}[kind]
    assert arrays["ignored"].any() and (arrays["matched"] & 1).any()
    assert main_metric(task, arrays)[0] == pytest.approx(reported["AP"], abs=1e-9)
    assert 5 < reported["AP"] < 95
    values = main_metric(task, arrays, TIMES)
    for value, times in zip(values, TIMES, strict=True):
        assert value == pytest.approx(official_average_precision(data, ids, found, kind, times), abs=1e-9)
    for index, value in enumerate(each_image(task, arrays)):
        alone = official_average_precision(data, ids, found, kind, np.eye(len(ids), dtype=int)[index])
        assert value == pytest.approx(alone, abs=1e-9) if alone >= 0 else np.isnan(value)


def test_detections_beyond_the_hundredth_of_a_class_in_an_image_do_not_count():
    boxes = np.tile(np.array([[0, 0, 4, 4]], np.float32), (120, 1))
    scores = np.linspace(1, 0.1, 120).astype(np.float32)
    found = {"boxes": boxes, "labels": np.zeros(120, int), "scores": scores, "masks": np.zeros((120, 8, 8), bool)}
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    data = {"annotations": [annotation], "categories": [{"id": 5, "name": "a"}]}
    arrays = detection_statistics(data, [1], [found], {(1, 5): np.ones((100, 1))})
    assert len(arrays["image"]) == 100
    assert main_metric("detection", arrays)[0] == 100


def test_statistics_that_do_not_give_the_reported_metric_are_refused():
    task, arrays, images, reported = segmentation()
    check(task, arrays, {"mIoU": reported(images)})
    with pytest.raises(CliptexError, match=r"semantic_segmentation: mIoU is .* from its per-image parts"):
        check(task, arrays, {"mIoU": reported(images) + 0.01})
    with pytest.raises(CliptexError, match="mIoU is None"):
        check(task, arrays, {"mIoU": None})
    check("detection", {"positives": np.zeros((2, 1)), "label": np.empty(0), "image": np.empty(0)}, {"AP": None})


def test_files_give_back_what_they_were_given(tmp_path):
    (one, first, _, _), (two, second, _, _) = depth(), normals()
    path = tmp_path / "linear.per_image.npz"
    write_per_image(path, [f"image {i}" for i in range(COUNT)], {one: first, two: second})
    file = read_per_image(path)
    assert file.ids[3] == "image 3" and set(file.tasks) == {"depth", "normals"} and file.rows == ()
    for task, arrays in ((one, first), (two, second)):
        assert file.tasks[task].keys() == arrays.keys()
        assert all(np.array_equal(file.tasks[task][name], arrays[name], equal_nan=True) for name in arrays)
    hits = {"top1": np.eye(2, COUNT, dtype=bool), "top5": np.ones((2, COUNT), bool)}
    write_per_image(path, ["a"] * COUNT, {"zero_shot_classification": hits}, rows=["clip/seed0", "cliptex/seed0"])
    row = read_per_image(path).of("zero_shot_classification", "cliptex/seed0")
    assert row["top1"].tolist() == np.eye(2, COUNT, dtype=bool)[1].tolist()


def test_missing_and_broken_files_are_named(tmp_path):
    path = tmp_path / "linear.per_image.npz"
    with pytest.raises(CliptexError, match=r"linear\.per_image\.npz: no such file"):
        read_per_image(path)
    for arrays in ({"ids": np.array([{}], object)}, {"others": np.ones(3)}):
        np.savez(path, **arrays)
        with pytest.raises(CliptexError, match=r"linear\.per_image\.npz: .*not a file of per-image parts"):
            read_per_image(path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(CliptexError, match=r"linear\.per_image\.npz: damaged, or not a file of per-image"):
        read_per_image(path)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_file_is_not_executed(tmp_path):
    data, ran = pickle.dumps(Touch(tmp_path / "ran")), tmp_path / "ran"
    data += b" " * (-len(data) % 8)  # as long as its header says
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (len(data) // 8,)})
    with zipfile.ZipFile(tmp_path / "linear.per_image.npz", "w") as archive:
        archive.writestr("ids.npy", file.getvalue() + data)
    with pytest.raises(CliptexError, match="Object arrays cannot be loaded"):
        read_per_image(tmp_path / "linear.per_image.npz")
    assert not ran.exists()


def claiming(shape, dtype="|u1"):
    """The bytes of an .npy file with three bytes of data."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + b"abc"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(200 << 20, np.uint8), "bytes unpacked, more than"),
        (claiming((10**12,)), "does not fit its length"),
        (claiming((2,)), "does not fit its length"),
        (claiming((10**15,), "<U0"), "does not fit its length"),
    ],
    ids=["bomb", "longer", "shorter", "nothing"],
)
def test_a_file_that_claims_more_than_it_brings_takes_no_memory(tmp_path, content, message):
    path = tmp_path / "linear.per_image.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("ids.npy", content if isinstance(content, bytes) else content.data)
    with pytest.raises(CliptexError, match=message):
        read_per_image(path)


def test_every_measure_is_recomputed_from_its_parts_and_parts_of_others_are_told():
    arrays = segmentation()[1]
    for name, measure in measures().items():
        assert callable(measure.from_images) and measure.main
        if name not in ("semantic_segmentation", "text_segmentation"):
            assert "cannot be computed" in mismatch(name, arrays, {measure.main: 1.0})
    cut = {name: values[:, :2] if name == "hit" else values for name, values in arrays.items()}
    assert "cannot be computed" in mismatch("semantic_segmentation", cut, {"mIoU": 1.0})
    assert mismatch("semantic_segmentation", arrays, {}).startswith("mIoU is None")


def test_depth_of_four_pixels_by_hand():
    truth, predicted = np.array([[1.0, 2.0, 4.0, 8.0, 8.1]]), np.array([[1.25, 2.0, 2.1, 9.0, 3.0]])
    # depths at both ends of the range count, those beyond do not; the prediction is clipped
    errors, pixels = depth_errors([(truth, predicted), (truth[:, 4:], truth[:, 4:])], 1.0, 8.0)
    assert pixels.tolist() == [4, 0] and np.isnan(errors[1]).all()
    differences = [0.25, 0, 1.9, 0]
    assert dict(zip(DEPTH_METRICS, errors[0], strict=True)) == pytest.approx(
        {
            "delta1": 50,  # 1.25 itself is not within
            "delta2": 75,
            "delta3": 100,
            "rmse": np.sqrt(sum(value**2 for value in differences) / 4),
            "absrel": (0.25 / 1 + 1.9 / 4) / 4,
            "log10": (np.log10(1.25) + np.log10(4 / 2.1)) / 4,
        }
    )


def test_scale_and_shift_are_fitted_to_the_valid_pixels():
    truth = np.array([[1.0, 2, 3, 50]])
    prediction = np.array([[5.0, 3, 1, 7]])
    assert affine_aligned(truth, prediction, 0.5, 10)[0].tolist() == pytest.approx([1, 2, 3, 0])
    assert affine_aligned(truth, np.full((1, 4), 7.0), 0.5, 10).tolist() == [[2, 2, 2, 2]]
    assert affine_aligned(truth, prediction, 60, 70) is prediction


def test_ranks_and_hits_by_hand():
    ranking, labels = np.array([[3, 1, 0, 2, 4], [1, 0, 3, 2, 4], [0, 1, 2, 3, 4]]), np.array([3, 4, 5])
    assert top_metrics(ranking, labels) == pytest.approx({"top1": 100 / 3, "top5": 200 / 3})
    found = retrieval_statistics(np.array([0, 1, 4, 5]), np.array([0, 0, 1, 1]), 3, (1, 5))
    assert {name: values.tolist() for name, values in found.items()} == {
        "queries": [2, 2, 0],
        "R@1": [1, 0, 0],
        "R@5": [2, 1, 0],
    }


def test_vectors_that_rounding_made_too_long_have_an_angle():
    truth = np.array([[0.0, 0, 1], [0, 0, 1]])
    assert angles(truth, np.array([[0, 0, 1.001], [0, 0, -1.001]])).tolist() == [0, 180]


def test_normals_of_six_pixels_by_hand():
    degrees = np.array([5.5, 8, 12, 23, 30.5, 40, 77])  # each threshold is half a degree to a degree below one
    radians = np.radians(degrees)
    predicted = np.stack([np.sin(radians), np.zeros(7), np.cos(radians)], -1)[None]
    truth = np.tile([0.0, 0, 1], (1, 7, 1))
    truth[0, 6, 1] = np.nan
    used = degrees[:6]
    assert normals_metrics([(truth, predicted)]) == pytest.approx(
        {"mean": used.mean(), "median": 17.5, "rmse": np.sqrt((used**2).mean())}
        | {f"within_{name}": 100 * n / 6 for n, name in enumerate(("5", "7_5", "11_25", "22_5", "30"))},
        rel=1e-5,
    )


def test_a_confusion_matrix_and_its_metrics_by_hand():
    truth, predicted = np.array([[0, 0, 0, 1, 255, 2]]), np.array([[0, 0, 1, 1, 2, 0]])
    confusion = confusion_matrix(truth, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    metrics = {"mIoU": 100 * (2 / 4 + 1 / 2 + 0) / 3, "mAcc": 100 * (2 / 3 + 1 + 0) / 3, "aAcc": 100 * 3 / 5}
    assert segmentation_metrics(confusion) == pytest.approx(metrics)
    arrays = segmentation_statistics([confusion])[1]
    assert measures()["semantic_segmentation"].per_class(arrays).tolist() == pytest.approx(
        [50, 50, 0, np.nan], nan_ok=True
    )

"""Numbers that others confirm: our metrics against the field's own tools, and against sums done by hand."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from official_layouts import write_coco, write_imagenet, write_nyuv2, write_voc
from PIL import Image
from tiny import TINY

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.evaluation import probe
from cliptex.evaluation.clip_benchmark_job import float_of_array
from cliptex.evaluation.job import Job
from cliptex.evaluation.metrics.depth import depth_metrics
from cliptex.evaluation.metrics.normals import normals_metrics
from cliptex.evaluation.metrics.segmentation import confusion_matrix, segmentation_metrics
from cliptex.evaluation.probes.heads.detection import evaluate_detections
from cliptex.models import clip as student
from cliptex.models.mmcv_ops import import_heads

pytestmark = pytest.mark.xdist_group("confirmed")

NAN = float("nan")


# By hand, on four images

DEPTHS = [
    # (truth, prediction) in metres; 12 m is clipped to 10, so that the ratios are 1, 1.2, 1.5, 2
    ([[1, 2], [4, 5]], [[1, 2.4], [6, 12]]),
    # one valid pixel: the others have no truth, or one beyond 10 m or at zero
    ([[NAN, 3], [11, 0]], [[7, 3], [1, 1]]),
    ([[2, 2]], [[1, 2]]),
    # a ratio of exactly 1.25 is not below 1.25
    ([[10, 8]], [[8, 10]]),
]
ANGLES = [[6, 20], [25, NAN, 40, 10], [0], [60, 33, 12, 8]]
"""Degrees between truth and prediction at each pixel of four images; NaN: no truth."""


def depth_pairs():
    return [(np.array(truth, float), np.array(prediction, float)) for truth, prediction in DEPTHS]


def normals_pairs():
    """Truth towards the viewer, prediction turned by the angle about the vertical axis, as [1, pixels, 3] float32."""
    pairs = []
    for degrees in ANGLES:
        radians = np.radians(np.array([degrees]))
        truth = np.where(np.isnan(radians)[..., None], np.nan, [0.0, 0.0, 1.0])
        turned = np.nan_to_num(radians)
        prediction = np.stack([np.sin(turned), 0 * turned, np.cos(turned)], axis=-1)
        pairs.append((truth.astype(np.float32), prediction.astype(np.float32)))
    return pairs


def test_depth_metrics_averaged_over_images():
    assert depth_metrics(depth_pairs(), 1e-3, 10) == pytest.approx(
        {
            "delta1": 50.0,  # (50 + 100 + 50 + 0) / 4
            "delta2": 81.25,  # (75 + 100 + 50 + 100) / 4
            "delta3": 81.25,
            "rmse": 1.3517766953,  # (2.7 + 0 + sqrt(1 / 2) + 2) / 4
            "absrel": 0.225,  # (0.425 + 0 + 0.25 + 0.225) / 4
            "log10": 0.0966251590,
        }
    )


def test_normals_metrics_of_all_pixels_pooled():
    assert normals_metrics(normals_pairs()) == pytest.approx(
        {
            "mean": 21.4,  # 214 / 10
            "median": 16.0,  # between 12 and 20
            "rmse": 27.6730916,  # sqrt(7658 / 10)
            "within_5": 10.0,
            "within_7_5": 20.0,
            "within_11_25": 40.0,
            "within_22_5": 60.0,
            "within_30": 70.0,
        },
        rel=1e-5,
    )


def test_depth_metrics_of_all_pixels_pooled():
    assert depth_metrics(depth_pairs(), 1e-3, 10, "pooled") == pytest.approx(
        {
            "delta1": 100 * 4 / 9,  # 2 + 1 + 1 + 0 of nine pixels
            "delta2": 100 * 7 / 9,  # 3 + 1 + 1 + 2
            "delta3": 100 * 7 / 9,
            "rmse": 2.0591260281974,  # sqrt((29.16 + 0 + 1 + 8) / 9)
            "absrel": 2.65 / 9,  # 1.7 + 0 + 0.5 + 0.45
            "log10": 0.1167947240,
        }
    )


def test_normals_metrics_averaged_over_images():
    assert normals_metrics(normals_pairs(), "image") == pytest.approx(
        {
            "mean": 16.5625,  # (13 + 25 + 0 + 28.25) / 4
            "median": 15.125,  # (13 + 25 + 0 + 22.5) / 4
            "rmse": 19.3982322,  # (sqrt(218) + sqrt(775) + 0 + sqrt(1224.25)) / 4
            "within_5": 25.0,  # (0 + 0 + 100 + 0) / 4
            "within_7_5": 37.5,  # (50 + 0 + 100 + 0) / 4
            "within_11_25": 52.0833333,  # (50 + 33.3 + 100 + 25) / 4
            "within_22_5": 70.8333333,  # (100 + 33.3 + 100 + 50) / 4
            "within_30": 79.1666667,  # (100 + 66.7 + 100 + 50) / 4
        },
        rel=1e-5,
    )


# By other tools, on arrays


def test_segmentation_metrics_equal_those_of_mmsegmentation():
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, 2, 4, 255], (17, 23)).astype(np.uint8) for _ in range(5)]
    # class 3 is predicted only, class 5 occurs nowhere
    predictions = [np.where(rng.random((17, 23)) < 0.6, truth % 5, 3).astype(np.uint8) for truth in truths]
    official = import_heads().IoUMetric(iou_metrics=["mIoU"])
    official.dataset_meta = {"classes": list("abcdef")}
    confusion = np.zeros((6, 6), np.int64)
    for truth, prediction in zip(truths, predictions, strict=True):
        as_tensor = {
            f"{name}_sem_seg": {"data": torch.from_numpy(mask.astype(np.int64))[None]}
            for name, mask in (("gt", truth), ("pred", prediction))
        }
        official.process(None, [as_tensor])
        confusion += confusion_matrix(truth, prediction, 6)
    ours = segmentation_metrics(confusion)
    theirs = official.evaluate(len(truths))
    for name in ("mIoU", "mAcc", "aAcc"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.0051)  # theirs is rounded to two digits


def test_average_precision_equals_that_of_pycocotools():
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    side, annotations, found, ids = 120, [], [], [3, 5, 8, 9]
    for image in ids:
        boxes, labels, masks, scores = [], [], [], []
        for number in range(4):
            x, y, w, h = (*rng.integers(0, 15, 2) + 20 * (number % 2), *rng.integers(6, 100, 2) // (1 + number % 3))
            mask = np.zeros((side, side), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            encoded = rle.encode(mask)
            encoded["counts"] = encoded["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": [7, 90][number % 2],
                    "bbox": [int(x), int(y), int(w), int(h)],
                    "area": int(w * h),
                    "iscrowd": int(number == 3 and image == 5),
                    "segmentation": encoded,
                }
            )
            x, y, w, h = (int(value) for value in (x + rng.integers(0, 4), y + rng.integers(0, 4), w, h))
            guess = np.zeros((side, side), bool)
            guess[y : y + h, x : x + w] = True
            boxes.append([x, y, x + w, y + h])
            labels.append(number % 2 if rng.random() < 0.8 else 2)
            masks.append(guess)
            scores.append(rng.random())
        found.append(
            {
                "boxes": np.array(boxes, np.float32),
                "labels": np.array(labels),
                "masks": np.array(masks),
                "scores": np.array(scores, np.float32),
            }
        )
    images = [{"id": image, "height": side, "width": side, "file_name": f"{image}.jpg"} for image in ids]
    categories = [{"id": number, "name": str(number)} for number in (90, 7, 91)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    before = json.dumps(data)
    for kind in ("bbox", "segm"):
        rows = []
        for image, one in zip(ids, found, strict=True):
            for box, label, mask, score in zip(*(one[k] for k in ("boxes", "labels", "masks", "scores")), strict=True):
                row = {"image_id": image, "category_id": [7, 90, 91][label], "score": float(score)}
                if kind == "bbox":
                    row["bbox"] = [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
                else:
                    row["segmentation"] = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
                rows.append(row)
        truth = COCO()
        truth.dataset = json.loads(json.dumps(data))
        truth.createIndex()
        official = COCOeval(truth, truth.loadRes(rows), kind)
        official.evaluate()
        official.accumulate()
        official.summarize()
        ours, _ = evaluate_detections(data, ids, found, kind)
        expected = [100 * value if value >= 0 else None for value in official.stats[:6]]
        assert list(ours.values()) == pytest.approx(expected)
        assert 0 < ours["AP"] < 100
    # the benchmark's annotations serve the next model too
    assert json.dumps(data) == before


# By other tools, on the predictions that probes keep

FEW = {"steps": 8, "batch_size": 8}
MASKS = {"mask_size_px": 48, "heads": dict.fromkeys(("linear", "deeplabv3", "pspnet"), FEW)}
BOXES = {"heads": {"mask_rcnn": {"steps": 60, "batch_size": 8, "channels": 16, "learning_rates": [1e-2]}}}
GRID = {"heads": {"linear": {"grid": 12}}}
BENCHMARKS = {
    "voc": (write_voc, {"semantic_segmentation": MASKS}),
    "coco": (write_coco, {"detection": BOXES}),
    "nyuv2": (write_nyuv2, {"depth": GRID, "normals": GRID}),
    "imagenet": (lambda root, train, val: write_imagenet(root, train, val, classes=7), {}),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(benchmark, head) -> the reported metrics by task, and the kept predictions of all 12 evaluation images."""
    folder = tmp_path_factory.mktemp("kept")
    student.export(student.build(TINY, 0), TINY, folder / "models" / "clip" / "seed0")
    found = {}
    for name, (write, options) in BENCHMARKS.items():
        write(folder / name, 24, 12)
        config = Config.load({"probes": {"benchmarks": {name: options}, "save_predictions": 12, "holdout": 0.25}})
        job = Job(name=name, models=("clip",), seeds=(0,), models_dir=folder / "models", benchmark_dir=folder / name)
        probe.run(config, replace(job, out=folder / "probes" / name, cache_dir=folder / "features"))
        for path in sorted((folder / "probes" / name).rglob("*.json")):
            rows = read_json(path)["results"]
            with np.load(path.with_suffix(".npz")) as file:
                found[name, path.stem] = {row["task"]: row["metrics"] for row in rows}, dict(file)
    return found


@pytest.mark.parametrize("head", ["linear", "deeplabv3", "pspnet"])
def test_kept_masks_give_the_reported_metrics_by_mmsegmentation(kept, head):
    reported, arrays = kept["voc", head]
    official = import_heads().IoUMetric(iou_metrics=["mIoU"])
    official.dataset_meta = {"classes": [str(label) for label in range(21)]}
    for index in range(12):
        masks = {"gt": arrays[f"truth_{index}"], "pred": arrays[f"prediction_{index}"]}
        sample = {f"{name}_sem_seg": {"data": torch.from_numpy(mask.astype(int))[None]} for name, mask in masks.items()}
        official.process(None, [sample])
    theirs = official.evaluate(12)
    ours = reported["semantic_segmentation"]
    assert 0 < ours["mIoU"] < 100
    for name in ("mIoU", "mAcc", "aAcc"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.0051)  # theirs is rounded to two digits


@pytest.mark.parametrize(("task", "kind"), [("detection", "bbox"), ("instance_segmentation", "segm")])
def test_kept_detections_give_the_reported_metrics_by_pycocotools(kept, task, kind):
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    reported, arrays = kept["coco", "mask_rcnn"]

    def encode(mask):
        return rle.encode(np.asfortranarray(mask.astype(np.uint8)))

    truth, found = [], []
    for image in range(12):
        one = {name: arrays[f"truth_{name}_{image}"] for name in ("boxes", "labels", "masks", "crowd")}
        for box, label, mask, crowd in zip(*one.values(), strict=True):
            x0, y0, x1, y1 = box.tolist()
            about = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(mask.sum()), "segmentation": encode(mask)}
            about |= {"image_id": image, "category_id": int(label), "iscrowd": int(crowd), "id": len(truth) + 1}
            truth.append(about)
        one = {name: arrays[f"prediction_{name}_{image}"] for name in ("boxes", "labels", "masks", "scores")}
        for box, label, mask, score in zip(*one.values(), strict=True):
            x0, y0, x1, y1 = box.tolist()
            where = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": encode(mask)}
            found.append({"image_id": image, "category_id": int(label), "score": float(score)} | where)
    coco = COCO()
    images = [{"id": image, "height": 48, "width": 48} for image in range(12)]
    coco.dataset = {"images": images, "annotations": truth, "categories": [{"id": n} for n in range(80)]}
    coco.createIndex()
    official = COCOeval(coco, coco.loadRes(found), kind)
    official.evaluate()
    official.accumulate()
    official.summarize()
    ours = reported[task]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    theirs = [100 * value if value >= 0 else None for value in official.stats[:6]]
    assert [ours[name] for name in names] == pytest.approx(theirs)
    assert 0 < ours["AP50"] < 100


def test_kept_depths_give_the_reported_metrics_by_mmsegmentation(kept):
    import_heads()
    from mmseg.evaluation import DepthMetric

    reported, arrays = kept["nyuv2", "linear"]
    official = DepthMetric(min_depth_eval=1e-3, max_depth_eval=10)
    for index in range(12):
        pair = {"gt_depth_map": arrays[f"depth_truth_{index}"], "pred_depth_map": arrays[f"depth_prediction_{index}"]}
        official.process(None, [{name: {"data": torch.from_numpy(depth)[None]} for name, depth in pair.items()}])
    theirs = official.evaluate(12)
    ours = {name: value for name, value in reported["depth"].items() if not name.startswith("affine_")}
    assert 0 < ours["delta1"] < 100
    assert ours == pytest.approx(
        {
            **{f"delta{power}": 100 * theirs[f"d{power}"] for power in (1, 2, 3)},
            "rmse": theirs["rmse"],
            "absrel": theirs["abs_rel"],
            "log10": theirs["log10"],
        },
        rel=1e-5,
    )


def test_kept_normals_give_the_reported_metrics_by_the_definition(kept):
    """The angle as atan2(|a x b|, a . b), which needs neither clipping nor unit vectors."""
    reported, arrays = kept["nyuv2", "linear"]
    errors = []
    for index in range(12):
        truth, prediction = (torch.from_numpy(arrays[f"normals_{kind}_{index}"]) for kind in ("truth", "prediction"))
        valid = ~truth.isnan().any(-1)
        a, b = truth[valid].double(), prediction[valid].double()
        errors += torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)).rad2deg().tolist()
    errors.sort()
    count = len(errors)
    theirs = {
        "mean": sum(errors) / count,
        "median": (errors[(count - 1) // 2] + errors[count // 2]) / 2,
        "rmse": (sum(error**2 for error in errors) / count) ** 0.5,
        **{
            name: 100 * sum(error < limit for error in errors) / count
            for name, limit in (
                ("within_5", 5),
                ("within_7_5", 7.5),
                ("within_11_25", 11.25),
                ("within_22_5", 22.5),
                ("within_30", 30),
            )
        },
    }
    assert reported["normals"] == pytest.approx(theirs, rel=1e-4)


def test_kept_classes_give_the_reported_metrics_by_scikit_learn(kept):
    from sklearn.metrics import accuracy_score

    reported, arrays = kept["imagenet", "linear"]
    truth, ranked = arrays["truth"], arrays["prediction"]
    best = ranked[:, 0]
    among = np.where((ranked == truth[:, None]).any(1), truth, -1)
    theirs = {"top1": 100 * accuracy_score(truth, best), "top5": 100 * accuracy_score(truth, among)}
    assert reported["classification"] == pytest.approx(theirs)


# Zero-shot by open_clip's own classifier and by the clip_benchmark command

DATASETS = {"wds/imagenet": "auto", "wds/captions": "zeroshot_retrieval"}
COMPARED = [("wds/imagenet", "clip"), ("wds/imagenet", "cliptex"), ("wds/captions", "cliptex")]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder with two models, zero-shot results of ours, and the clip_benchmark command's."""
    from cliptex.evaluation import retrieval, zeroshot
    from cliptex.evaluation.clip_benchmark import run_clip_benchmark
    from cliptex.evaluation.export_benchmark import export_benchmark

    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, model in enumerate(("clip", "cliptex")):
            student.export(student.build(TINY, seed), TINY, paths.model(model, 0))
        root = paths.benchmark("imagenet")
        write_imagenet(root, 7, 60, classes=7, height=40, width=64)
        write_captions(folder / "pairs.tar", 41)
        config = Config.load(
            {
                "models": {"clip": {}, "cliptex": {}},
                "probes": {"baselines": []},
                "zeroshot": {"templates": "openai", "retrieval": {"captions": {"shards": ["pairs.tar"]}}},
                "clip_benchmark": {"datasets": DATASETS, "root": "exported/{dataset_cleaned}", "batch_size": 16},
            }
        )
        zeroshot.run(config, Job(name="imagenet", benchmark_dir=root))
        retrieval.run(config, Job(name="captions"))
        for name in ("imagenet", "captions"):
            export_benchmark(config, name, Path("exported") / name, per_tar=25)
        for dataset, model in COMPARED:
            out = paths.clip_benchmark(dataset.replace("/", "-"), model, 0)
            run_clip_benchmark(config.clip_benchmark, dataset, DATASETS[dataset], model, 0, paths.model(model, 0), out)
    return folder


def write_captions(path, count):
    """Pictures with one to three captions, in one tar."""
    from conftest import drawn_pair

    from cliptex.data.shards import write_tar

    members = []
    for number in range(count):
        pair = drawn_pair(f"{number:05d}", number)
        captions = [f"{word} picture of {number} things" for word in ("a", "some", "one more")[: 1 + number % 3]]
        members += [(f"{pair.key}.jpg", pair.image), (f"{pair.key}.txt", "\n".join(captions).encode())]
    write_tar(path, members)


def ours(judged, name):
    """(model, task) -> metrics."""
    return {
        (row["model"], row["task"]): row["metrics"]
        for row in read_json(judged / f"results/zeroshot/{name}.json")["results"]
    }


def test_zero_shot_equals_open_clips_own(judged, monkeypatch):
    """open_clip's training code judges ImageNet so; to the image."""
    from open_clip_train import zero_shot

    # it has the same float() of an array as clip_benchmark
    monkeypatch.setattr(zero_shot, "float", float_of_array, raising=False)
    data = find("benchmarks", "imagenet")(judged / "resources/imagenet")
    samples = data.samples("eval")
    for model in ("clip", "cliptex"):
        place = f"local-dir:{judged / 'results/models' / model / 'seed0'}"
        network, _, preprocess = open_clip.create_model_and_transforms(place, require_pretrained=True)
        classifier = open_clip.build_zero_shot_classifier(
            network.eval(), open_clip.get_tokenizer(place), data.class_names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        items = [(preprocess(Image.fromarray(samples[i]["image"])), samples[i]["label"]) for i in range(len(samples))]
        loader = torch.utils.data.DataLoader(items, batch_size=16)
        top1, top5 = zero_shot.run(
            network, classifier, loader, Namespace(device="cpu", precision="fp32", batch_size=16)
        )
        mine = ours(judged, "imagenet")[model, "zero_shot_classification"]
        assert mine == {"top1": pytest.approx(100 * top1), "top5": pytest.approx(100 * top5)}
        assert 0 < mine["top1"] < mine["top5"] < 100


@pytest.mark.parametrize("model", ["clip", "cliptex"])
def test_zero_shot_equals_the_clip_benchmark_command(judged, model):
    found = read_json(judged / f"results/clip_benchmark/wds-imagenet/{model}/seed0.json")
    assert (found["task"], found["clip_benchmark"]) == ("zeroshot_classification", "1.6.1")
    mine = ours(judged, "imagenet")[model, "zero_shot_classification"]
    assert {name: found["metrics"][name] for name in mine} == pytest.approx(mine, abs=0.01)


def test_retrieval_equals_the_clip_benchmark_command(judged):
    found = read_json(judged / "results/clip_benchmark/wds-captions/cliptex/seed0.json")["metrics"]
    for way in ("image_to_text", "text_to_image"):
        mine = ours(judged, "captions")["cliptex", f"{way}_retrieval"]
        assert {name: found[f"{way} {name}"] for name in mine} == pytest.approx(mine, abs=0.01)
        assert 0 < mine["R@10"] < 100

"""Who was trained on what: the table of published experts, expert.json, and the marks of report and model card."""

import csv
import json
from pathlib import Path

import pytest
from test_report import copied, make_all, make_finetuned, make_probes

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.files import read_json, write_json
from cliptex.experts.trained_on import PUBLISHED, markdown, published, training_sets
from cliptex.experts.training import train_expert
from cliptex.experts.training_sets import NOT_STATED, TrainingSet, parse
from cliptex.report import build_report, card_experts, model_card
from cliptex.report.gather import gather
from cliptex.report.page import make_parts
from cliptex.report.seen import SeenData

MASK_RCNN = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
DOCS = Path(__file__).parents[1] / "docs/experts.md"


@pytest.mark.parametrize(
    ("plugin", "origin", "name"),
    [
        ("mask_rcnn", {"url": MASK_RCNN}, "coco/train2017"),
        ("dpt", {"repo": "Intel/dpt-large"}, "IRS"),
        ("dpt", {"path": "/x/hub/models--Intel--dpt-hybrid-midas/snapshots/0123abc"}, "ReDWeb"),
        ("dpt", {"path": "/data/depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf"}, "hypersim"),
        ("nll_angmf", {"repo": "shikunl/prismer", "file": "expert_weights/scannet.pt"}, "scannet/train"),
        ("a", {"repo": "nvidia/segformer-b0-finetuned-ade-512-512"}, "ade20k/train"),
        ("a", {"repo": "facebook/maskformer-swin-tiny-coco"}, "coco/train2017"),
        ("a", {"repo": "shi-labs/oneformer_ade20k_swin_tiny"}, "ade20k/train"),
        ("a", {"repo": "tue-mps/coco_panoptic_eomt_large_640"}, "coco/train2017"),
        ("a", {"repo": "google/tipsv2-b14-dpt"}, "nyuv2"),
    ],
)
def test_published_weights_are_known_by_repository_address_or_path(plugin, origin, name):
    assert parse(name) in published(plugin, origin)


@pytest.mark.parametrize("origin", [{"repo": "me/dpt-large-of-mine"}, {"path": "/x/nyu.pt"}, {"path": ""}])
def test_training_sets_that_nobody_states_are_not_stated_and_never_none(origin):
    assert published("mine", origin) is None
    (unknown,) = training_sets({"source": "local", "plugin": "mine", "origin": origin})
    assert unknown.name == NOT_STATED
    assert training_sets({"source": "local", "origin": origin}, []) == ()  # stated: none


@pytest.mark.parametrize(
    ("text", "benchmark", "degree"),
    [
        ("coco/train2017", "coco", "data set"),
        ("MS-COCO train2017", "coco", "data set"),
        ("coco", "coco", "images"),
        ("coco/trainval", "coco", "images"),
        ("VOC 2012/trainaug", "voc", "data set"),
        ("NYU Depth v2", "nyuv2", "images"),
        ("SUN RGB-D", "nyuv2", "images"),
        ("imagenet-22k", "imagenet", "data set"),
        ("My_Bench/train", "my_bench", "data set"),
        ("coco/train2017", "voc", None),
        ("coco/train2017", "coco_stuff", "data set"),
        ("COCO-Stuff", "coco_stuff", "images"),
        ("LVIS/train", "coco_stuff", "images"),
        ("scannet/train", "scannet1500", "data set"),
        ("ScanNet", "scannet1500", "images"),
        ("Cityscapes train", "cityscapes", "data set"),
        ("voc/train", "pascal_context", "images"),  # its split is VOC 2010's for object classes
        ("Pascal Context/train", "pascal_context", "data set"),
        ("SBD", "pascal_context", "images"),
        ("KITTI", "kitti", "images"),
        ("Virtual KITTI 2", "kitti", None),
        ("imagenet/train", "imagenet_v2", None),
        ("ImageNet-V2", "imagenet", None),
        ("ScanNet", "nyuv2", None),
    ],
)
def test_a_set_holds_images_of_a_benchmark_by_any_of_its_names(text, benchmark, degree):
    assert parse(text).has_images_of(benchmark) == degree


def test_the_table_of_the_docs_is_that_of_the_package():
    assert markdown() in DOCS.read_text(encoding="utf-8"), "put trained_on.markdown() into docs/experts.md"
    assert all(entry.source and entry.sets for entry in PUBLISHED)


def test_an_experts_record_has_the_sets_only_if_there_is_something_to_say(tmp_path):
    for stated, key in ((None, False), (["coco/train2017", "a photo album"], True)):
        given = {"plugin": "test_report:DrawnDepth", "trained_on": stated}
        config = Config.load({"experts": {"depth": {key: value for key, value in given.items() if value}}})
        assert ("trained_on" in config.subset("experts.depth")) == key
        train_expert(config, "depth", tmp_path, tmp_path / "out", 0)
        record = read_json(tmp_path / "out/expert.json")
        assert ("trained_on" in record) == key
    assert record["trained_on"][0] == {"name": "coco", "split": "train2017", "how": ""}
    assert training_sets(record)[1] == TrainingSet("a photo album")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    config = make_all(root, [0, 1], finetune={"benchmarks": {"coco": {}}})
    make_probes(config, root, source="official")
    make_finetuned(config, root)
    path = root / "results/zeroshot/imagenet.json"
    write_json(path, json.loads(path.read_text()) | {"source": "official"})
    return config, root


def planted(run, tmp_path, **records):
    """The run with other records of experts: segmentation, depth and normals."""
    config, root = run
    copy = copied(root, tmp_path)
    for name, record in records.items():
        path = copy / paths.expert(name) / "expert.json"
        write_json(path, json.loads(path.read_text()) | record)
    return config, copy


MASK_RCNN_RECORD = {"source": "url", "plugin": "mask_rcnn", "origin": {"url": MASK_RCNN}}  # as older versions wrote it
NYU_RECORD = {"source": "hub", "trained_on": [{"name": "nyuv2", "split": "", "how": ""}]}


def test_tables_mark_what_an_expert_has_seen_and_say_who(run, tmp_path):
    config, copy = planted(run, tmp_path, segmentation=MASK_RCNN_RECORD, depth=NYU_RECORD)
    build_report(config, copy)
    folder = copy / "results/report"
    main = (folder / "main.md").read_text(encoding="utf-8")
    marks = {"COCO": "†", "NYUv2": "‡", "Pascal VOC": "", "ImageNet": "†"}
    with (folder / "main.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    degrees = {"†": "data set", "‡": "images", "": ""}
    assert {row["benchmark"]: row["seen by experts"] for row in rows} == {k: degrees[v] for k, v in marks.items()}
    assert "Object detection, Mask R-CNN † (AP" in main and "Depth, linear ‡" in main and "PSPNet (mIoU" in main
    assert not any(mark in rows[0]["Task, head, metric"] for mark in "†‡")
    assert "as far as stated not on the evaluated images: COCO by segmentation: COCO train2017. ImageNet by seg" in main
    assert "may have been trained on the evaluated images: NYUv2 by depth: NYUv2." in main
    for name in ("finetuned", "probes_coco", "finetuned_coco", "zeroshot", "differences"):
        assert "†" in (folder / f"{name}.md").read_text(encoding="utf-8"), name
    assert "†" not in (folder / "probes_voc.md").read_text(encoding="utf-8")
    with (folder / "all_metrics.csv").open(encoding="utf-8", newline="") as file:
        seen = {(row["benchmark"], row["model"]): row["seen by experts"] for row in csv.DictReader(file)}
    assert seen["coco", "cliptex"] == "data set" and seen["coco", "clip_ft"] == seen["voc", "cliptex"] == ""
    page = (copy / "results/report.html").read_text(encoding="utf-8")
    assert "trained on COCO train2017; backbone: ImageNet train" in page
    assert "in 2 of 5 evaluators; 1 of 1 without those whose data set an expert has seen" in page


def test_the_verdict_counts_with_and_without_marked_rows(run, tmp_path):
    config, copy = planted(run, tmp_path, segmentation=MASK_RCNN_RECORD)
    says = make_parts(gather(config, copy)).verdict
    assert says.headline.startswith("A real gain in 2 of 5 evaluators; ")
    assert says.unseen == "1 of 3 without those whose data set an expert has seen"
    assert says.sentences[1].startswith("Without the 2 evaluators whose data set an expert was trained on: better in ")
    assert says.sentences[-1].endswith("An expert was trained on this data set.")  # ImageNet, by the backbone
    everything = [{"name": name, "split": "train", "how": ""} for name in ("voc", "coco", "nyuv2")]
    config, copy = planted(run, tmp_path / "all", depth={"trained_on": everything})
    assert make_parts(gather(config, copy)).verdict.unseen == "an expert has seen the data set of each"


def test_what_is_unknown_is_a_footnote_and_what_was_made_here_none(run, tmp_path):
    config, copy = planted(run, tmp_path, normals={"source": "local", "origin": {"path": "/x"}, "plugin": "mine"})
    parts = make_parts(gather(config, copy))
    note = "Training sets not stated, or not all of them: normals. They may have seen any of the data."
    assert parts.tables["main"].notes[-1] == note
    assert parts.verdict.unseen == "" and not any(
        "†" in row["task"].text for row in parts.tables["main"].groups[0].rows
    )
    parts = make_parts(gather(*run))
    assert not any(character in str(parts.tables) for character in "†‡") and "not stated" not in str(parts.tables)


def test_a_stated_set_counts_and_stand_in_data_are_never_marked(run, tmp_path):
    config, root = run
    plain = config.plain()
    plain["experts"]["depth"]["trained_on"] = ["VOC/train"]
    stated = Config.load(plain)
    assert make_parts(gather(stated, root)).verdict.unseen.startswith("1 of 4 without")
    copy = copied(root, tmp_path)
    make_probes(stated, copy)
    make_finetuned(stated, copy)
    assert make_parts(gather(stated, copy)).verdict.unseen == ""


def test_a_model_card_says_what_the_experts_were_trained_on(run):
    config, root = run
    records = {name: {"source": "none"} for name in config.experts}
    seen = SeenData(config, records | {"segmentation": MASK_RCNN_RECORD, "depth": {"source": "miniature"}})
    index = {"task": "t", "licence": "MIT", "labelled": 1, "images": 1, "weights": "w", "weights_sha256": "0" * 64}
    stores = [index | {"store": name, "expert": name} for name in config.experts]
    table = card_experts.experts_section(stores, seen)
    assert "COCO train2017; backbone: ImageNet train" in table and "rendered scenes" in table
    assert "trained on" not in card_experts.experts_section(stores, SeenData(config, records))
    results = model_card._results(config, "cliptex", 0, None, root, seen)
    text = model_card._measured(results, seen.not_stated(["cliptex"]))
    assert "| COCO, val † |" in text and "| Pascal VOC, val |" in text
    assert "COCO by segmentation: COCO train2017" in text

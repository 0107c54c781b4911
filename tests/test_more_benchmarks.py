"""The readers of Cityscapes, PASCAL-Context, COCO-Stuff and KITTI, and of data that are only evaluated by zero-shot."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from more_layouts import (
    CITY_IDS,
    POSITIONS,
    STUFF_VALUES,
    VARIANTS,
    context_classes,
    kitti_units,
    train_ids,
    write_cityscapes,
    write_class_folders,
    write_coco_stuff,
    write_grey,
    write_kitti,
    write_objectnet,
    write_pascal_context,
)
from official_layouts import scene
from tiny import TINY

from cliptex.benchmarks.class_folders import ClassFolders
from cliptex.benchmarks.coco_names import coco_categories
from cliptex.benchmarks.coco_stuff import classes as stuff_classes
from cliptex.benchmarks.imagenet import official_wnids
from cliptex.benchmarks.reading import read_rgb, source
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import built_in, find
from cliptex.data.official.fetch import fetch
from cliptex.data.official.status import benchmark_marks, missing_data
from cliptex.evaluation import zeroshot
from cliptex.evaluation.job import Job
from cliptex.evaluation.probes.heads.maps import evaluation_window
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.models import clip as student
from cliptex.models.mmcv_ops import import_heads
from cliptex.report import names

WRITERS = {
    "cityscapes": write_cityscapes,
    "pascal_context": write_pascal_context,
    "coco_stuff": write_coco_stuff,
    "kitti": write_kitti,
}
EVALUATED = [*VARIANTS, "objectnet"]


def reader(name, root, **mark):
    return find("benchmarks", name)(root, mark)


@pytest.mark.parametrize("name", WRITERS)
def test_both_splits_are_read_apart_and_every_listed_file_is_checked(tmp_path, name):
    data = reader(name, WRITERS[name](tmp_path, 3, 2), source="official")
    data.check_apart()
    assert not set(data.names("train")) & set(data.names("eval"))
    assert [len(data.read(part)) for part in ("train", "eval")] == [3, 2] and data.prepare() == {}
    ids = [sample["id"] for part in ("train", "eval") for sample in data.read(part)]
    assert len(set(ids)) == 5
    with pytest.raises(CliptexError, match=r"3 samples to train, officially [\d,]{5,7}; .*unpack"):
        data.samples("train")
    next(path for path in sorted(tmp_path.rglob("*.[pm][na][gt]")) if _is_truth(path)).unlink()
    with pytest.raises(CliptexError, match=r"(is missing, and 0 other files|labelIds\.png: not found); unpack"):
        reader(name, tmp_path).prepare()


def _is_truth(path: Path) -> bool:
    """A mask or depth map of a split that is read."""
    kinds = ("labelIds", "stuffthingmaps", "proj_depth", "trainval/")
    return any(kind in path.as_posix() for kind in kinds) and "test" not in path.parts


def test_cityscapes_ids_become_train_ids_as_in_torchvision_and_the_rest_is_ignored(tmp_path):
    data = reader("cityscapes", write_cityscapes(tmp_path / "ids", 2, 3, height=30, width=60))
    for number, sample in enumerate(sorted(data.samples("eval"), key=lambda sample: sample["id"].split("_")[1])):
        expected = train_ids(scene(300 + number, CITY_IDS, 30, 60)["mask"])
        np.testing.assert_array_equal(sample["mask"], expected)
        assert sample["image"].shape == (30, 60, 3) and sample["mask"].dtype == np.uint8
    assert (data.class_names[0], data.class_names[18], len(data.class_names)) == ("road", "bicycle", 19)
    assert data.samples("eval")[0]["id"] == "frankfurt_000001_000020"  # cities in order
    root = write_cityscapes(tmp_path / "train_ids", 2, 3, masks="labelTrainIds", height=30, width=60)
    for one, other in zip(reader("cityscapes", root).samples("eval"), data.samples("eval"), strict=True):
        np.testing.assert_array_equal(one["mask"], other["mask"])


def test_a_mask_of_another_kind_is_refused_by_name(tmp_path):
    data = reader("cityscapes", write_cityscapes(tmp_path, 1, 1))
    path = tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    write_grey(path, np.full((48, 48), 34, np.uint8))
    with pytest.raises(CliptexError, match=r"labelIds\.png: has the value 34, but must have 0\.\.33 and 255"):
        data.samples("eval")[0]
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(CliptexError, match=r"labelTrainIds\.png: has the value 34, but must have 0\.\.18 and 255"):
        data.samples("eval")[0]


@pytest.mark.parametrize("converted", [False, True])
def test_context_has_59_classes_and_what_is_none_of_them_is_ignored_or_background(tmp_path, converted):
    root = write_pascal_context(tmp_path, 2, 1, converted=converted, height=30, width=40)
    for variant, table in (("context59", [255, 255, 0, 36, 58, 255]), ("context60", [0, 0, 1, 37, 59, 0])):
        data = reader("pascal_context", root, variant=variant)
        for number, sample in enumerate(data.samples("train"), 1):
            np.testing.assert_array_equal(sample["mask"], np.array(table, np.uint8)[context_classes(number, 30, 40)])
            assert sample["mask"].dtype == np.uint8 and sample["id"] == f"2008_{number:06d}"
        assert data.class_names[-1] == "wood" and data.class_names[table[3]] == "person"
        assert len(data.class_names) == int(variant[-2:])
    counts = {"train": 4_996, "eval": 5_104} if converted else {"train": 4_998, "eval": 5_105}
    assert data.official_counts == counts
    assert reader("pascal_context", root).variant == "context59"


def test_context_classes_are_mmsegmentations():
    import_heads()  # without it mmsegmentation cannot be imported without compiled mmcv
    from mmseg.datasets import PascalContextDataset

    assert ("background", *reader("pascal_context", "x").class_names) == PascalContextDataset.METAINFO["classes"]


def test_context_files_that_are_damaged_are_refused_by_name(tmp_path):
    from scipy.io import savemat

    root = write_pascal_context(tmp_path, 1, 1)
    path = root / "trainval" / "2008_000001.mat"
    for content, message in (
        ({"LabelMap": np.full((48, 48), 460, np.uint16)}, "has values 460 to 460, not 0 to 459"),
        ({"LabelMap": np.zeros((48, 48))}, "has no LabelMap"),
        ({"GTcls": np.zeros((48, 48), np.uint8)}, "has no LabelMap"),
    ):
        savemat(path, content)
        with pytest.raises(CliptexError, match=rf"2008_000001\.mat: {message}.*trainval\.tar\.gz"):
            reader("pascal_context", root).samples("train")[0]
    labels = root / "labels.txt"
    labels.write_bytes(labels.read_bytes().replace(b"284: person", b"284: people").replace(b"\n", b"\r\n"))
    with pytest.raises(CliptexError, match=r"labels\.txt: has no line 'NUMBER: person'"):
        reader("pascal_context", root).samples("train")[0]


@pytest.mark.parametrize("mmseg", [False, True])
def test_stuff_values_with_gaps_become_171_classes(tmp_path, mmseg):
    root = write_coco_stuff(tmp_path, 2, 3, mmseg=mmseg, height=30, width=40)
    data = reader("coco_stuff", root)
    for number, sample in enumerate(data.samples("eval"), 10_001):
        expected = np.array([255, 0, 11, 79, 80, 170], np.uint8)[scene(number, [1, 2, 3, 4, 5], 30, 40)["mask"]]
        np.testing.assert_array_equal(sample["mask"], expected)
    assert [data.class_names[index] for index in (0, 11, 79, 80, 170)] == [
        *("person", "stop sign", "toothbrush", "banner", "wood")
    ]
    path = next(root.rglob("val2017/000000010001.png"))
    write_grey(path, np.full((30, 40), 11, np.uint8))  # street sign, of which there are no annotations
    with pytest.raises(CliptexError, match=r"000000010001\.png: has the value 11, which is no class"):
        data.samples("eval")[0]


def test_stuff_classes_and_their_order_are_mmsegmentations():
    import_heads()  # without it mmsegmentation cannot be imported without compiled mmcv
    from mmseg.datasets import COCOStuffDataset

    assert tuple(stuff_classes().values()) == COCOStuffDataset.METAINFO["classes"]
    numbers = [*stuff_classes()]
    assert numbers == sorted(numbers) and len(numbers) == 171 and numbers[80:] == list(range(91, 182))
    assert numbers[:80] == [number - 1 for number, _, _ in coco_categories()]
    assert set(STUFF_VALUES[:5]) <= set(numbers)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_kitti_depth_is_metres_where_it_was_measured_and_images_without_it_are_left_out(tmp_path, suffix):
    data = reader("kitti", write_kitti(tmp_path, 2, 3, suffix=suffix))
    samples = list(data.samples("eval"))
    assert [sample["id"] for sample in samples] == [
        f"2011_09_26_drive_0002_sync_image_02_{number * 3:010d}" for number in (0, 2, 3)
    ]
    for number, sample in zip((0, 2, 3), samples, strict=True):
        units = kitti_units(number)
        depth = sample["depth"]
        assert depth.dtype == np.float32 and sample["image"].shape == (24, 80, 3)
        np.testing.assert_array_equal(np.isnan(depth), units == 0)
        np.testing.assert_array_equal(depth[units > 0] * 256, units[units > 0])
    # both splits merged, as in BTS
    for split in ("train", "val"):
        (drive,) = (tmp_path / "data_depth_annotated" / split).iterdir()
        drive.rename(tmp_path / "data_depth_annotated" / drive.name)
    np.testing.assert_array_equal(data.samples("eval")[2]["depth"], samples[2]["depth"])


@pytest.mark.parametrize(
    "line",
    [
        "2011_09_26/2011_09_26_drive_0002_sync 0000000069 l",  # monodepth2's
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png",
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png ../x.png 721.5",
        "2011_09_26/2011_09_28_drive_0002_sync/image_02/data/0000000069.png None 721.5",
        "../2011_09_26_drive_0002_sync/image_02/data/0000000069.png None",
    ],
)
def test_a_line_of_another_list_of_kitti_is_refused(tmp_path, line):
    root = write_kitti(tmp_path, 1, 1)
    (root / "eigen_test_files_with_gt.txt").write_text(f"{line}\r\n")
    with pytest.raises(CliptexError, match=r"eigen_test_files_with_gt\.txt: '.*' is not an image and its depth map"):
        reader("kitti", root).samples("eval")


def test_a_depth_map_with_8_bits_or_without_depth_is_refused_by_name(tmp_path):
    data = reader("kitti", write_kitti(tmp_path, 1, 1))
    path = next((tmp_path / "data_depth_annotated/val").rglob("*.png"))
    for values, message in (
        (np.full((24, 80), 9, np.uint8), "16 bits, not L"),
        (np.zeros((24, 80), np.uint16), "has no depth"),
        (np.ones((20, 80), np.uint16), "80 x 20, but its image has 80 x 24 pixels"),
    ):
        write_grey(path, values)
        with pytest.raises(CliptexError, match=rf"{path.name}: .*{message}"):
            data.samples("eval")[0]


def test_the_crops_of_kitti_are_those_of_its_publications():
    """For 375 x 1242: rows 153 to 370 and columns 44 to 1196 (Garg), rows 124 to 341 (Eigen), by the shares that
    monodepth's evaluate_kitti.py has."""
    truth, entry = np.zeros((375, 1242), np.float32), {"protocol": "paper"}
    for crop, rows in (("garg", slice(153, 371)), ("kitti", slice(124, 342))):
        task = protocol_of("kitti", {**entry, "depth": {"crop": crop, "max_depth_m": 80.0}}).depth
        assert evaluation_window(task, truth) == (rows, slice(44, 1197))
    with pytest.raises(CliptexError, match=r"crop: 'eigen' is for 480 x 640 maps.*for KITTI to garg or kitti"):
        evaluation_window(protocol_of("kitti", entry).depth, truth)
    assert evaluation_window(task, truth[:370, :1224])[0] == slice(122, 337)  # another date


@pytest.mark.parametrize("name", VARIANTS)
def test_folders_of_imagenets_classes_are_read_with_open_clips_names(tmp_path, name):
    from open_clip import IMAGENET_CLASSNAMES

    data = reader(name, write_class_folders(tmp_path, name, 2))
    samples = list(data.samples("eval"))
    kept = range(1000) if data.has_all_classes else sorted(POSITIONS)
    assert data.class_names == [IMAGENET_CLASSNAMES[number] for number in kept]
    found = {sample["file"].parent.name: data.class_names[sample["label"]] for sample in samples}
    folder_of = str if name == "imagenet_v2" else official_wnids().__getitem__
    assert found == {folder_of(position): IMAGENET_CLASSNAMES[position] for position in POSITIONS}
    assert len({sample["id"] for sample in samples}) == len(samples) == 2 * len(POSITIONS)
    (tmp_path / data.folder / "n00000000").mkdir()
    with pytest.raises(CliptexError, match=r"n00000000: is no class of ImageNet; unpack"):
        reader(name, tmp_path).samples("eval")


def test_the_classes_of_all_variants_are_those_that_clip_benchmark_evaluates():
    """200 of ImageNet-R and of ImageNet-A; the lists in its builder.py are not read by the package."""
    builder = pytest.importorskip("clip_benchmark.datasets.builder").__file__
    text = Path(builder).read_text(encoding="utf-8")
    for name in ("imagenet_r", "imagenet_a"):
        listed = text.partition(f"{name}_wnids = ")[2].splitlines()[0]
        wnids = set(json.loads("[" + listed.strip("{}[]").replace("'", '"') + "]"))
        assert len(wnids) == 200 and wnids <= set(official_wnids())
        data = reader(name, "nowhere")
        assert isinstance(data, ClassFolders) and not data.has_all_classes
        data._folders = lambda wnids=wnids: sorted(wnids)
        assert [official_wnids()[number] for number in data.classes] == sorted(wnids)


def test_objectnet_keeps_the_classes_that_imagenet_has_without_the_red_border(tmp_path):
    data = reader("objectnet", write_objectnet(tmp_path, 2))
    samples = list(data.samples("eval"))
    assert data.class_names == ["alarm clock", "backpack", "banana"]  # by folder, as clip_benchmark sorts them
    assert [sample["label"] for sample in samples] == [0, 0, 1, 1, 2, 2]
    stored = read_rgb(tmp_path / "objectnet-1.0/images/alarm_clock/0c9d1b8a42ce94.png")
    assert (stored[0] == (255, 0, 0)).all()
    np.testing.assert_array_equal(samples[0]["image"], stored[2:-2, 2:-2])
    path = tmp_path / "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json"
    path.write_text(json.dumps({"Weight (exercise)": "barbell; dumbbell"}))
    with pytest.raises(CliptexError, match=r"label\.json: has no folder for the class 'Weight \(exercise\)'"):
        reader("objectnet", tmp_path).samples("eval")
    path.write_text("[1]")
    with pytest.raises(CliptexError, match=r"objectnet_to_imagenet_1k\.json: .*unpack objectnet"):
        reader("objectnet", tmp_path).samples("eval")


def write_evaluated(name, root, each=2):
    return write_objectnet(root, each) if name == "objectnet" else write_class_folders(root, name, each)


@pytest.mark.parametrize("name", EVALUATED)
def test_data_without_a_training_split_are_for_zero_shot_only(tmp_path, name):
    data = reader(name, write_evaluated(name, tmp_path))
    assert data.parts == ("eval",) and [*data.official_counts] == ["eval"]
    with pytest.raises(CliptexError, match=rf"{name} has no training split; it is only evaluated"):
        data.samples("train")
    with pytest.raises(
        CliptexError,
        match=rf"probes\.benchmarks\.{name}: .* name it in zeroshot\.benchmarks or training_free\.benchmarks",
    ):
        protocol_of(name, {"protocol": "paper"})


@pytest.mark.parametrize("name", ["imagenet_r", "objectnet"])
def test_zero_shot_classifies_among_the_classes_of_the_data_set(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    users = write_evaluated(name, tmp_path / "users")
    (users / "miniature.json").unlink()
    student.export(student.build(TINY, 0), TINY, tmp_path / "models" / "clip" / "seed0")
    settings = {"source": "subset", "path": str(users)}
    config = Config.load(
        {
            "models": {"clip": {}},
            "probes": {"baselines": [], "save_predictions": 1},
            "zeroshot": {"benchmarks": [name]},
            "benchmark_data": {"benchmarks": {name: settings}},
        }
    )
    mark = fetch(config, name, paths.benchmark(name))
    data = reader(name, users)
    assert mark["counts"] == {"eval": len(data.read("eval"))} and source(paths.benchmark(name)) == "subset"
    zeroshot.run(config, Job(name=name, models_dir=tmp_path / "models", out=tmp_path / "out.json"))
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["class_names"] == data.class_names and result["split"] == "test"
    assert result["num_eval"] == mark["counts"]["eval"]
    assert result["chance"]["top1"] == pytest.approx(100 / len(data.class_names))


def settings_of(name, path=None, **more):
    entry = {name: {"path": str(path) if path else None, **more}}
    section = {"zeroshot": {"benchmarks": [name]}} if name in EVALUATED else {"probes": {"benchmarks": {name: {}}}}
    return Config.load(section | {"benchmark_data": {"source": "official", "benchmarks": entry}})


def pack(tree: Path, target: Path, folder: str = ".") -> None:
    """A zip of a folder in `tree`, and of the files next to it."""
    with zipfile.ZipFile(target, "w") as file:
        for path in [*sorted((tree / folder).rglob("*")), *(one for one in tree.iterdir() if one.is_file())]:
            file.write(path, path.relative_to(tree))


def test_the_archives_of_cityscapes_are_unpacked_without_what_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = write_cityscapes(tmp_path / "tree", 3, 2)
    (tree / "miniature.json").unlink()
    users = tmp_path / "users"
    users.mkdir()
    for folder in ("leftImg8bit", "gtFine"):
        pack(tree, users / f"{folder}_trainvaltest.zip", folder)
    kind = find("benchmarks", "cityscapes")
    monkeypatch.setattr(kind, "official_counts", {"train": 3, "eval": 2})
    table = tmp_path / "mine.tsv"
    lines = [f"cityscapes\t{path.name}\t\t{path.stat().st_size}" for path in sorted(users.iterdir())]
    table.write_text("\n".join(["benchmark\tfile\tdigest\tbytes", *lines]) + "\n")
    config = settings_of("cityscapes", users)
    config = config.model_copy(
        update={"benchmark_data": config.benchmark_data.model_copy(update={"archives": str(table)})}
    )
    root = paths.benchmark("cityscapes")
    mark = fetch(config, "cityscapes", root)
    assert mark["counts"] == {"train": 3, "eval": 2}
    assert sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".") == [
        *("gtFine", "leftImg8bit")
    ]
    assert {path.name[-12:] for path in (root / "gtFine").rglob("*.*")} == {"labelIds.png"}
    assert not (root / "leftImg8bit" / "test").exists()


def test_what_must_be_downloaded_manually_is_named_and_an_encrypted_archive_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manual = {
        "cityscapes": "leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip",
        "pascal_context": "trainval.tar.gz",
        "coco_stuff": "stuffthingmaps_trainval2017.zip",
        "kitti": r"KITTI raw data \(synced and rectified\), data_depth_annotated.zip",
        "imagenet_sketch": "ImageNet-Sketch.zip",
        "objectnet": "objectnet-1.0.zip",
    }
    for name in [*WRITERS, *EVALUATED]:
        lines = missing_data(settings_of(name))
        if name not in manual:
            assert lines == []
            continue
        assert re.match(rf"{name}: download {manual[name]} manually; put the archives", lines[0])
    tree = write_objectnet(tmp_path / "tree", 1)
    (tree / "miniature.json").unlink()
    pack(tree, tmp_path / "objectnet-1.0.zip")
    data = bytearray((tmp_path / "objectnet-1.0.zip").read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(start)
        while at >= 0:
            data[at + offset] |= 1  # the flag of an encrypted member
            at = data.find(start, at + 1)
    (tmp_path / "objectnet-1.0.zip").write_bytes(data)
    with pytest.raises(CliptexError, match=r"objectnet-1\.0\.zip: its member .* is encrypted.*unpack it manually"):
        fetch(settings_of("objectnet", tmp_path), "objectnet", paths.benchmark("objectnet"))


def test_masks_next_to_the_images_of_coco_are_linked_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    users = write_coco_stuff(tmp_path / "coco", 2, 2)
    (users / "miniature.json").unlink()
    config = settings_of("coco_stuff", users, source="subset")
    mark = fetch(config, "coco_stuff", paths.benchmark("coco_stuff"))
    assert mark["counts"] == {"train": 2, "eval": 2}
    assert len(reader("coco_stuff", paths.benchmark("coco_stuff"), **mark).samples("eval")) == 2


@pytest.mark.parametrize("name", [*WRITERS, *EVALUATED])
def test_data_that_are_not_rendered_are_refused_before_anything_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = settings_of(name, source="miniature")
    with pytest.raises(CliptexError, match=rf"{name}\.source: 'miniature' has no rendered {name}; set it to official"):
        benchmark_marks(config)
    assert benchmark_marks(settings_of(name)) == {name: str(paths.benchmark_mark(name, "official"))}


def test_every_benchmark_of_the_package_has_a_title_and_a_row_in_the_docs():
    docs = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    for name in built_in("benchmarks"):
        assert names.benchmark(name) != name and f"\n| `{name}` |" in docs, name


def test_a_probe_of_kitti_is_evaluated_in_the_crop_of_garg(tmp_path):
    from cliptex.evaluation import probe

    root = write_kitti(tmp_path / "kitti", 4, 2, height=48, width=96)
    student.export(student.build(TINY, 0), TINY, tmp_path / "models" / "clip" / "seed0")
    depth = {"crop": "garg", "max_depth_m": 80.0, "input": {"size_px": [48, 96]}, "heads": {"linear": {"grid": 8}}}
    entry = protocol_of("kitti", {"protocol": "paper", "depth": depth}).model_dump(mode="json", exclude_none=True)
    config = Config.load({"models": {"clip": {}}, "probes": {"baselines": [], "benchmarks": {"kitti": entry}}})
    job = Job(name="kitti", models=("clip",), seeds=(0,), models_dir=tmp_path / "models", benchmark_dir=root)
    job = Job(**vars(job) | {"out": tmp_path / "out", "cache_dir": tmp_path / "cache"})
    probe.run(config, job)
    (path,) = (tmp_path / "out").rglob("linear.json")
    (row,) = json.loads(path.read_text())["results"]
    assert "Garg crop" in row["protocol"] and "80.0 m" in row["protocol"] and 0 < row["metrics"]["rmse"] < 80

"""The miniature: deterministic scenes, exact ground truth, official layouts, no scene in two data sets."""

import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Miniature
from cliptex.core.errors import CliptexError
from cliptex.data.images import decode_image
from cliptex.data.miniature import layouts
from cliptex.data.miniature.captions import GENERIC, caption_noise
from cliptex.data.miniature.kinds import KIND_ID, KINDS, SCENE_CATEGORIES, THINGS
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.data.miniature.layouts.coco import polygons, run_lengths
from cliptex.data.miniature.layouts.imagenet import SYNSETS
from cliptex.data.miniature.looks import LOOKS, Stylist
from cliptex.data.miniature.meshes import Paint, Shape
from cliptex.data.miniature.scenery import shell
from cliptex.data.miniature.scenes import render
from cliptex.data.miniature.sets import render_expert_set, render_pairs, scene_for_key
from cliptex.data.miniature.stage import Camera, Stage
from cliptex.data.miniature.things import BUILDERS
from cliptex.data.shards import read_shard

pytestmark = pytest.mark.xdist_group("miniature")

SIZE = 48
SPLIT = {"train": 5, "val": 4}
MINIATURE = Miniature(
    seed=3,
    image_size_px=SIZE,
    pairs=30,
    pairs_per_shard=20,
    expert_train=5,
    expert_val=3,
    benchmarks=dict.fromkeys(layouts.BENCHMARKS, SPLIT)
    | {"imagenet": {"train": 16, "val": 8}, "scannet1500": {"train": 0, "val": 4}},
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """All benchmarks, rendered once."""
    root = tmp_path_factory.mktemp("resources")
    for name in layouts.BENCHMARKS:
        render_benchmark(MINIATURE, name, root / name)
    return root


@pytest.fixture(scope="module")
def scenes():
    """Some scenes of the pairs."""
    return [render(3, "pairs", 0, index, SIZE, SIZE) for index in range(40)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def room_view(camera: Camera, height: int = 40, width: int = 60):
    """Hits in an empty room of 6 x 8 x 3 m, and their normals."""
    stage, white = Stage(), Paint((1, 1, 1))
    stage.place(shell((6, 8, 3), 0, (white, [white] * 4, white)), (0, 0, 0), 0, "wall")
    stage.build()
    hits = stage.cast(camera, height, width)
    kinds = stage.kinds[hits.part].reshape(height, width)
    normals = -(hits.normal @ camera.rotation.T).reshape(height, width, 3)
    return hits.depth.reshape(height, width), normals, kinds


def test_the_same_config_gives_the_same_bytes(tmp_path, trees):
    for copy in "ab":
        render_pairs(MINIATURE, 1, tmp_path / f"{copy}.tar")
        render_expert_set(MINIATURE, "val", tmp_path / f"{copy}.h5")
        for name in layouts.BENCHMARKS:
            if copy == "a":
                render_benchmark(MINIATURE, name, tmp_path / name)
                ours = json.loads((tmp_path / name / "miniature.json").read_text())
                assert ours == json.loads((trees / name / "miniature.json").read_text()), name
                assert ours["sha256"] == layouts.tree_digest(trees / name), name
    assert digest(tmp_path / "a.tar") == digest(tmp_path / "b.tar")
    assert digest(tmp_path / "a.h5") == digest(tmp_path / "b.h5")


def test_another_seed_gives_other_pairs(tmp_path):
    render_pairs(MINIATURE, 1, tmp_path / "a.tar")
    render_pairs(MINIATURE.model_copy(update={"seed": 4}), 1, tmp_path / "b.tar")
    assert not {p.image for p in read_shard(tmp_path / "a.tar")} & {p.image for p in read_shard(tmp_path / "b.tar")}


def test_shards_hold_pictures_and_captions_and_no_labels(tmp_path):
    keys = []
    for number in range(2):
        render_pairs(MINIATURE, number, tmp_path / f"{number}.tar")
        for pair in read_shard(tmp_path / f"{number}.tar"):
            keys.append(pair.key)
            assert decode_image(pair.image).shape == (SIZE, SIZE, 3)
            assert pair.caption
            assert pair.metadata == {"width": SIZE, "height": SIZE, "source": "miniature", "url": None}
    assert keys == [f"{number:09d}" for number in range(30)]
    with pytest.raises(CliptexError, match="shards 0 to 1"):
        render_pairs(MINIATURE, 2, tmp_path / "2.tar")


def test_the_scene_of_a_key_is_the_scene_of_the_pair(tmp_path):
    render_pairs(MINIATURE, 1, tmp_path / "1.tar")
    pair = read_shard(tmp_path / "1.tar")[4]
    scene = scene_for_key(MINIATURE, pair.key)
    assert np.abs(decode_image(pair.image).astype(int) - scene.image).mean() < 8
    with pytest.raises(CliptexError, match="000000030"):
        scene_for_key(MINIATURE, "000000030")


def test_noise_is_half_generic_half_swapped():
    draws = [caption_noise(np.random.default_rng([0, index]), 0.2) for index in range(3000)]
    # binomial with 3000 draws of 0.1: mean 300, standard deviation 16.4
    assert 250 < draws.count("generic") < 350
    assert 250 < draws.count("swapped") < 350
    assert {caption_noise(np.random.default_rng([0, index]), 0.0) for index in range(50)} == {None}


def test_noisy_captions_are_generic_or_of_another_pair(tmp_path):
    noisy = MINIATURE.model_copy(
        update={"image_size_px": 32, "pairs": 40, "pairs_per_shard": 40, "noisy_captions": 0.6}
    )
    render_pairs(noisy, 0, tmp_path / "noisy.tar")
    render_pairs(noisy.model_copy(update={"noisy_captions": 0.0}), 0, tmp_path / "clean.tar")
    captions = [pair.caption for pair in read_shard(tmp_path / "noisy.tar")]
    true = [pair.caption for pair in read_shard(tmp_path / "clean.tar")]
    assert not set(true) & set(GENERIC)
    generic = [caption in GENERIC for caption in captions]
    swapped = [index for index in range(40) if captions[index] != true[index] and not generic[index]]
    # binomial with 40 draws of 0.3: mean 12, standard deviation 2.9
    assert 3 < sum(generic) < 21
    assert 3 < len(swapped) < 21
    for index in swapped:
        assert captions[index] == true[(index + 1) % 40]


def test_captions_survive_a_mirror_and_name_what_is_seen(scenes):
    for scene in scenes:
        assert not re.search(r"\b(left|right)\b", scene.caption)
        assert re.fullmatch(r"[a-z][a-z ,-]+", scene.caption)
    colours = sum(bool(re.search(r"\b(red|blue|green|white|black|yellow|brown|grey)\b", s.caption)) for s in scenes)
    assert colours > 10
    about_an_object = [s for s in scenes if s.objects and s.objects[0].pixels > 0.1 * SIZE * SIZE]
    assert len(about_an_object) > 10
    for scene in about_an_object:
        seen = scene.objects[0]
        words = {
            *seen.name.split(),
            *seen.kind.split(),
            "people",
            "men",
            "women",
            "sofa",
            "fridge",
            "table",
            "television",
        }
        assert any(word in scene.caption for word in words), (scene.caption, seen)


def test_normals_are_unit_and_face_away_from_the_camera(scenes):
    for scene in scenes:
        sky = np.isnan(scene.depth)
        assert (sky == (scene.kinds == KIND_ID["sky"])).all()
        assert np.isnan(scene.normals[sky]).all()
        seen = scene.normals[~sky]
        np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-4)
        assert (scene.depth[~sky] > 0).all()


def test_a_level_camera_sees_the_axes_of_the_convention():
    camera = Camera.looking((0, 0, 1.5), yaw=0, pitch=0, roll=0, field_of_view=1.9)
    depth, normals, kinds = room_view(camera)
    height, width = depth.shape
    assert kinds[-1, width // 2] == KIND_ID["floor"]
    np.testing.assert_allclose(normals[-1, width // 2], (0, 1, 0), atol=1e-5)
    assert kinds[0, width // 2] == KIND_ID["ceiling"]
    np.testing.assert_allclose(normals[0, width // 2], (0, -1, 0), atol=1e-5)
    np.testing.assert_allclose(normals[height // 2, width // 2], (0, 0, 1), atol=1e-5)
    # z-depth, not length of the ray: the same over the whole far wall, 4 m ahead
    far = normals[..., 2] > 0.99
    np.testing.assert_allclose(depth[far], 4, atol=1e-4)
    np.testing.assert_allclose(normals[height // 2, 0], (-1, 0, 0), atol=1e-5)
    np.testing.assert_allclose(normals[height // 2, -1], (1, 0, 0), atol=1e-5)


def test_normals_are_those_of_the_back_projected_depth():
    camera = Camera.looking((0.5, -1, 1.1), yaw=0.6, pitch=-0.3, roll=0.2, field_of_view=1.2)
    depth, normals, kinds = room_view(camera)
    height, width = depth.shape
    points = camera.rays(height, width).reshape(height, width, 3) * depth[..., None]
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    found = np.cross(across, down)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    found *= np.sign((found * points[1:-1, 1:-1]).sum(-1, keepdims=True))
    assert ((normals * points).sum(-1) >= 0).all()
    inner = kinds == KIND_ID["floor"]
    same = inner[1:-1, 1:-1] & inner[1:-1, 2:] & inner[1:-1, :-2] & inner[2:, 1:-1] & inner[:-2, 1:-1]
    assert same.sum() > 200
    np.testing.assert_allclose(found[same], normals[1:-1, 1:-1][same], atol=2e-3)


def test_a_lamp_before_a_wall_casts_a_shadow_behind_a_box():
    from cliptex.data.miniature.stage import Light

    stage, white = Stage(), Paint((1, 1, 1), grain=0)
    stage.place(shell((6, 8, 3), 0, (white, [white] * 4, white)), (0, 0, 0), 0, "wall")
    box = Shape()
    box.box((0.5, 0.5, 0.5), (0, 0, 0), white)
    stage.place(box, (0, 1, 0), 0, "box")
    stage.build()
    camera = Camera.looking((0, -2, 2.5), 0, -0.6, 0, 1.2)
    hits = stage.cast(camera, 60, 60)
    light = Light(np.zeros(3, np.float32), np.array([-2, 1, 1.5], np.float32), np.ones(3), np.full(3, 0.3, np.float32))
    colour = stage.shade(hits, light, 0.02)[:, 0]
    floor = stage.kinds[hits.part] == KIND_ID["floor"]

    def brightness(x: float) -> float:
        at = np.hypot(hits.position[:, 0] - x, hits.position[:, 1] - 1)
        return float(colour[floor][np.argmin(at[floor])])

    assert brightness(0.45) < 0.6 * brightness(-0.6)


def test_instances_are_numbered_by_size_and_match_their_class(scenes):
    found = 0
    for scene in scenes:
        assert scene.instances.max() == len(scene.objects)
        sizes = [int((scene.instances == i + 1).sum()) for i in range(len(scene.objects))]
        assert sizes == sorted(sizes, reverse=True) == [seen.pixels for seen in scene.objects]
        for number, seen in enumerate(scene.objects, start=1):
            assert (scene.kinds[scene.instances == number] == KIND_ID[seen.kind]).all()
            found += 1
    assert found > 30


def test_position_alone_does_not_tell_depth_or_normals():
    scenes = [render(0, "pairs", 0, index, 32, 32) for index in range(240)]
    normals = np.stack([scene.normals for scene in scenes]).astype(np.float64)
    depth = np.log(np.stack([scene.depth for scene in scenes]).astype(np.float64))
    train, test = slice(0, 120), slice(120, 240)
    mean = np.nanmean(normals[train], axis=0)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip((normals[test] * mean).sum(-1), -1, 1)))
    assert np.nanmean(angles) > 35
    assert np.nanvar(depth[test] - np.nanmean(depth[train], axis=0)) > 0.8 * np.nanvar(depth[test])


def test_every_class_is_built_and_named_as_the_data_sets_name_it():
    names = {name for _, name, _ in coco_categories()}
    assert set(BUILDERS) == set(THINGS)
    assert {kind.coco for kind in KINDS if kind.coco} <= names
    assert sum(kind.voc is not None for kind in KINDS) >= 8
    for kind, build in BUILDERS.items():
        s = Stylist(np.random.default_rng(0), LOOKS["pairs"])
        drawn = [build(s) for _ in range(60)]
        for thing in drawn:
            low, high = thing.shape.bounds()
            assert 0.2 < (high - low).max() < 11, kind
            assert abs(low[2]) < 0.16, kind  # stands on the ground
        for synset in SYNSETS:
            if synset.kind == kind:
                assert synset.name in {thing.name for thing in drawn}, synset


def test_expert_renders_hold_what_the_experts_read(tmp_path):
    render_expert_set(MINIATURE, "train", tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5") as file:
        assert {name: (data.shape, data.dtype.name) for name, data in file.items()} == {
            "image": ((5, SIZE, SIZE, 3), "uint8"),
            "instance": ((5, SIZE, SIZE), "uint8"),
            "instance_class": ((5, 16), "uint8"),
            "depth": ((5, SIZE, SIZE), "float32"),
            "normals": ((5, SIZE, SIZE, 3), "float16"),
        }
        for instance, classes in zip(file["instance"][:], file["instance_class"][:], strict=True):
            assert (classes > 0).sum() == instance.max()
            assert (classes <= 80).all()
        assert np.isnan(file["depth"][:]).any() == np.isnan(file["normals"][:]).any()
    with pytest.raises(CliptexError, match="test"):
        render_expert_set(MINIATURE, "test", tmp_path / "test.h5")


def test_voc_reads_with_torchvision(trees):
    from torchvision.datasets import VOCSegmentation

    for split, count in SPLIT.items():
        data = VOCSegmentation(trees / "voc", year="2012", image_set=split)
        assert len(data) == count
        for image, mask in data:
            assert image.size == mask.size == (SIZE, SIZE)
            assert mask.mode == "P"
            values = set(np.unique(np.asarray(mask)).tolist())
            assert values <= {*range(21), 255}
            assert 255 in values
            assert mask.getpalette()[3 * 15 : 3 * 16] == [192, 128, 128]
    folder = trees / "voc" / "VOCdevkit" / "VOC2012"
    for path in (folder / "Annotations").iterdir():
        classes = np.asarray(Image.open(folder / "SegmentationClass" / f"{path.stem}.png"))
        objects = np.asarray(Image.open(folder / "SegmentationObject" / f"{path.stem}.png"))
        assert ((classes == 255) == (objects == 255)).all()
        assert ((classes == 0) == (objects == 0)).all()
        listed = ElementTree.parse(path).findall("object")
        assert len(listed) >= objects[objects < 255].max()


def test_ade20k_has_150_official_classes_and_zero_for_others(trees):
    folder = trees / "ade20k" / "ADEChallengeData2016"
    rows = (folder / "objectInfo150.txt").read_text().splitlines()
    assert rows[0].split("\t") == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert len(rows) == 151
    assert rows[1].split("\t")[-1] == "wall"
    assert rows[150].split("\t")[-1] == "flag"
    classes = set()
    for split, count in (("training", 5), ("validation", 4)):
        masks = sorted((folder / "annotations" / split).glob("*.png"))
        images = sorted((folder / "images" / split).glob("*.jpg"))
        assert [p.stem for p in masks] == [p.stem for p in images]
        assert len(masks) == count
        for path in masks:
            classes |= set(np.unique(np.asarray(Image.open(path))).tolist())
    assert max(classes) <= 150
    assert len(classes) > 8
    assert len((folder / "sceneCategories.txt").read_text().splitlines()) == 9


def test_coco_reads_with_pycocotools(trees):
    from pycocotools.coco import COCO

    ids = {}
    for split, count in SPLIT.items():
        coco = COCO(trees / "coco" / "annotations" / f"instances_{split}2017.json")
        ids[split] = set(coco.getImgIds())
        assert len(ids[split]) == count
        assert len(coco.getCatIds()) == 80
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = coco.annToMask(annotation)
            image = coco.loadImgs(annotation["image_id"])[0]
            assert (trees / "coco" / f"{split}2017" / image["file_name"]).exists()
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert abs(mask.sum() - annotation["area"]) <= 0.02 * annotation["area"]
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)
    assert not ids["train"] & ids["val"]


@pytest.mark.parametrize("seed", range(6))
def test_outlines_and_run_lengths_give_the_mask_back(seed):
    from pycocotools import mask as rle

    rng = np.random.default_rng(seed)
    mask = rng.random((23, 31)) < (0.3, 0.5, 0.7)[seed % 3]
    runs = rle.frPyObjects(run_lengths(mask), *mask.shape)
    assert (rle.decode(runs) == mask).all()
    square = np.zeros((23, 31), bool)
    square[3:9, 4:20] = square[8:15, 19:25] = True
    outline = polygons(square)
    assert (rle.decode(rle.merge(rle.frPyObjects(outline, *square.shape))) == square).all()
    square[5, 7] = False
    assert polygons(square) is None


def test_touching_corners_are_parts_of_their_own():
    mask = np.zeros((6, 6), bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    assert sorted(len(outline) for outline in polygons(mask)) == [8, 8]
    ring = np.ones((4, 4), bool)
    ring[1, 1] = ring[2, 2] = False
    assert polygons(ring) is None


def test_nyuv2_reads_as_the_official_file_does(trees):
    from scipy.io import loadmat

    root = trees / "nyuv2"
    wide = round(SIZE * 4 / 3)
    splits = loadmat(root / "splits.mat")
    train, test = splits["trainNdxs"], splits["testNdxs"]
    assert train.shape == (5, 1)
    assert sorted([*train.ravel(), *test.ravel()]) == list(range(1, 10))
    assert train.max() > test.min()  # interleaved
    with h5py.File(root / "nyu_depth_v2_labeled.mat") as file:
        assert file["images"].shape == (9, 3, wide, SIZE)
        assert file["depths"].shape == file["rawDepths"].shape == file["labels"].shape == (9, wide, SIZE)
        depth, raw = file["depths"][:], file["rawDepths"][:]
        assert (depth > 0).all()
        assert (raw == 0).any()
        assert (raw[raw > 0] == depth[raw > 0]).all()
        names = ["".join(map(chr, file[reference][:].ravel())) for reference in file["names"][0]]
        assert names[file["labels"][:].max() - 1] in {kind.name for kind in KINDS}
        assert {"wall", "floor"} <= {names[label - 1] for label in np.unique(file["labels"]) if label}
        kinds = ["".join(map(chr, file[reference][:].ravel())) for reference in file["sceneTypes"][0]]
        assert all(SCENE_CATEGORIES[kind] for kind in kinds)
        for split, numbers in (("train", train), ("test", test)):
            for number in numbers.ravel():
                pixels = np.asarray(Image.open(root / "nyu_dataset" / split / "img" / f"{number - 1:06d}.png"))
                assert (pixels == file["images"][number - 1].transpose(2, 1, 0)).all()
                encoded = np.asarray(Image.open(root / "nyu_dataset" / split / "norm" / f"{number - 1:06d}.png"))
                assert encoded.shape == (SIZE, wide, 3)
                valid = encoded.any(axis=-1)
                assert 0.6 < valid.mean() < 0.9
                length = np.linalg.norm(encoded[valid] / 255 * 2 - 1, axis=-1)
                np.testing.assert_allclose(length, 1, atol=0.01)


def test_imagenet_ground_truth_needs_the_devkit(trees):
    from scipy.io import loadmat

    root = trees / "imagenet"
    synsets = loadmat(root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", squeeze_me=True)["synsets"]
    leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if row["num_children"] == 0}
    folders = sorted(path.name for path in (root / "train").iterdir())
    assert sorted(leaves.values()) == folders == [synset.wnid for synset in SYNSETS]
    assert [leaves[i + 1] for i in range(len(leaves))] != folders
    truth = (root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    assert len(truth) == len(list((root / "val").glob("ILSVRC2012_val_*.JPEG"))) == 8
    assert {int(number) for number in truth} <= set(leaves)
    lines = (root / "LOC_synset_mapping.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == folders


def test_the_wnids_are_official_ones_with_their_official_words():
    from importlib.util import find_spec

    folder = Path(find_spec("timm").submodule_search_locations[0]) / "data" / "_info"
    official = (folder / "imagenet_synsets.txt").read_text().split()
    words = dict(line.split("\t") for line in (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    assert [synset.wnid for synset in SYNSETS] == sorted(synset.wnid for synset in SYNSETS)
    for synset in SYNSETS:
        assert synset.wnid in official
        assert words[synset.wnid] == synset.words


def test_places365_has_a_folder_a_category(trees):
    root = trees / "places365"
    lines = (root / "categories_places365.txt").read_text().splitlines()
    assert lines[0] == "/b/beach 0"
    assert len(lines) == 10
    for split, count in SPLIT.items():
        files = list((root / "places365_standard" / split).rglob("*.jpg"))
        assert len(files) == count
        assert {path.parent.name for path in files} <= {line.split()[0].rpartition("/")[2] for line in lines}


def test_no_picture_is_in_two_splits_or_data_sets(trees, tmp_path):
    seen = {}
    render_pairs(MINIATURE, 0, tmp_path / "0.tar")
    for pair in read_shard(tmp_path / "0.tar"):
        seen[hashlib.sha256(pair.image).digest()] = pair.key
    files = [path for suffix in ("jpg", "JPEG") for path in trees.rglob(f"*.{suffix}")]
    # 9 pairs of images, 9 videos of 8 frames and 4 pairs of views
    assert len(files) == 4 * 9 + 24 + 2 * 9 + 8 * 9 + 2 * 4
    for path in files:
        assert seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), path) is path
    streams = {layouts.Renderer(MINIATURE, name).stream(split) for name in layouts.BENCHMARKS for split in SPLIT}
    assert len(streams) == 18
    assert len({look.domain for look in LOOKS.values()}) == len(LOOKS)


def test_a_killed_render_starts_over_and_a_whole_one_is_kept(tmp_path, monkeypatch):
    small = MINIATURE.model_copy(update={"image_size_px": 32})
    root = tmp_path / "places365"
    module = __import__("cliptex.data.miniature.layouts.places365", fromlist=["write"])
    real = module.write

    def dies(draw, root):
        (root / "half.jpg").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        render_benchmark(small, "places365", root)
    assert not root.exists()
    monkeypatch.setattr(module, "write", real)
    render_benchmark(small, "places365", root)
    assert not list(tmp_path.rglob("half.jpg"))
    monkeypatch.setattr(module, "write", dies)
    render_benchmark(small, "places365", root)  # whole: nothing to do
    (root / "miniature.json").unlink()  # as a workflow does before a retry
    monkeypatch.setattr(module, "write", real)
    render_benchmark(small, "places365", root)
    assert (root / "miniature.json").exists()
    (root / "miniature.json").unlink()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(
        CliptexError, match=r"places365: contains files that were changed or not rendered; run: mv .*places365"
    ):
        render_benchmark(small, "places365", root)
    assert (root / "notes.txt").read_text() == "mine"


def test_official_data_is_never_overwritten(tmp_path):
    (tmp_path / "voc" / "VOCdevkit").mkdir(parents=True)
    with pytest.raises(CliptexError, match="voc: contains data that was not rendered"):
        render_benchmark(MINIATURE, "voc", tmp_path / "voc")
    assert (tmp_path / "voc" / "VOCdevkit").exists()
    with pytest.raises(CliptexError, match=r"miniature\.benchmarks"):
        render_benchmark(MINIATURE, "cityscapes", tmp_path / "cityscapes")
    with pytest.raises(CliptexError, match=r"miniature\.benchmarks\.coco"):
        render_benchmark(Miniature(), "coco", tmp_path / "coco")

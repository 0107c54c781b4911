"""The expert `transformers`: every family as its publishers save it, what it predicts, and the traps of its files."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal
from tiny_teachers import NAMES, TEACHERS, save_teacher

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.experts import known_scenes
from cliptex.experts.base import Expert
from cliptex.experts.class_list import class_list, output_names
from cliptex.experts.dpt import PUBLISHED, DPTExpert
from cliptex.experts.mask_rcnn import MaskRCNNExpert
from cliptex.experts.option_checks import problems
from cliptex.experts.training import load_expert, train_expert
from cliptex.experts.transformers import KAPPA, MIN_METRES, TransformersExpert, task_tokens
from cliptex.experts.transformers_families import depth_kind, families, family_of

COCO = [name for _, name, _ in coco_categories()]
METRES = ("depth_anything_metric", "glpn", "zoedepth", "depth_pro", "tipsv2_depth")


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), rng.integers(0, 255, (7, 4, 3), dtype=np.uint8)]
    large = [coarse[0].repeat(8, 0).repeat(8, 1), coarse[1].repeat(10, 0).repeat(10, 1)]
    return [*large, large[0][:, ::-1].copy()]  # 48 x 64, 70 x 40, 48 x 64


def loaded(folder: Path, **network: Any) -> TransformersExpert:
    expert = TransformersExpert({"network": network, "batch_size": 4, "precision": "fp32"})
    expert.load(folder)
    return expert


def by_hand(name: str, folder: Path, image: np.ndarray) -> Any:
    """The result of transformers' own processor, network and post-processing, as its documentation calls them."""
    class_name, _, processor_name, _, network = TEACHERS[name]
    processor = getattr(transformers, processor_name).from_pretrained(folder)
    module = getattr(transformers, class_name).from_pretrained(folder).eval()
    segments = network.get("segments", "instance" if name == "rf_detr" else "semantic")
    own = {"task_inputs": [segments]} if name == "oneformer" else {}
    inputs = dict(processor(images=torch.from_numpy(image).permute(2, 0, 1), return_tensors="pt", **own))
    if own:
        inputs["task_inputs"] = torch.tensor([task_tokens(segments, 77)])
    if name == "rf_detr":
        inputs.pop("pixel_mask", None)
    with torch.inference_mode():
        outputs = module(**inputs)
    sizes: dict[str, Any] = {"target_sizes": [image.shape[:2]]}
    if "Depth" in class_name:
        sizes |= {"source_sizes": [image.shape[:2]]} if name == "zoedepth" else {}
        return processor.post_process_depth_estimation(outputs, **sizes)[0]["predicted_depth"].numpy()
    if name.startswith("tipsv2"):
        return processor.post_process_normal_estimation(outputs, **sizes)[0]["normals"].numpy()
    if segments == "semantic":
        return processor.post_process_semantic_segmentation(outputs, **sizes)[0].numpy()
    process = getattr(processor, f"post_process_{segments}_segmentation")
    more = {"return_binary_maps": True} if segments == "instance" else {"label_ids_to_fuse": set()}
    more = {} if name.startswith("eomt") else more
    return process(outputs, threshold=network["score_threshold"], **sizes, **more)[0]


@pytest.mark.parametrize("name", TEACHERS)
def test_labels_are_what_transformers_gives_by_hand_alone_as_in_a_batch(name, tmp_path):
    expert = loaded(tmp_path, **save_teacher(name, tmp_path))
    assert expert.task == ("depth" if "Depth" in TEACHERS[name][0] else expert.task)
    labels = expert.predict(images(), [""] * 3)
    for first, second in zip(labels, expert.predict(images(), [""] * 3), strict=True):
        assert_array_equal(first, second)
    for image, label in zip(images(), labels, strict=True):
        (alone,) = expert.predict([image], [""])
        assert_allclose(alone, label, rtol=1e-3, atol=1e-4)
        expected = by_hand(name, tmp_path, image)
        assert label.shape[:2] == image.shape[:2]
        find("tasks", expert.task).from_codec({}).missing(4)  # the task exists
        if expert.task == "depth":
            expected = 1 / expected.clip(MIN_METRES) if name in METRES else expected.clip(0)
            assert label.dtype == np.float32 and np.ptp(label) > 0
            assert_allclose(label, expected, rtol=1e-3, atol=1e-5)
        elif expert.task == "normals":
            assert label.dtype == np.float32 and (label[..., 3] == KAPPA).all()
            expected = expected / np.linalg.norm(expected, axis=0)
            assert_allclose(label[..., :3], expected.transpose(1, 2, 0), atol=1e-3)
        else:
            assert label.dtype == np.uint8
            if isinstance(expected, dict):
                expected = painted(expected, image.shape[:2], expert.segments)
            assert np.mean(label != expected) < 1e-3


def painted(result: dict[str, Any], size: tuple[int, int], segments: str) -> np.ndarray:
    """Segments on a plane, the best last."""
    out = np.full(size, 0 if segments == "instance" else 255, np.uint8)
    order = sorted(range(len(result["segments_info"])), key=lambda i: (result["segments_info"][i]["score"], -i))
    for index in order:
        segment, masks = result["segments_info"][index], result["segmentation"].numpy()
        mask = masks[index] > 0 if masks.ndim == 3 else masks == segment["id"]
        out[mask] = segment["label_id"] + (segments == "instance")
    return out


def test_twelve_families_of_the_three_tasks_are_tested_and_every_class_of_transformers_has_a_task():
    classes = {recipe[0] for recipe in TEACHERS.values()}
    known = {family.class_name: family.task for family in families()}
    assert classes <= set(known) and len(classes) >= 14
    assert {known[name] for name in classes} == {"depth", "segmentation", "normals"}
    for family in families():
        config = {"model_type": family.model_type, "architectures": [family.class_name]}
        assert family_of(config, family.task, "config.json") == family
        assert hasattr(transformers, family.class_name)


@pytest.mark.parametrize("name", ["dpt", "depth_anything"])
def test_the_expert_dpt_gives_the_same_labels(name, tmp_path):
    save_teacher(name, tmp_path)
    own = DPTExpert({"batch_size": 4, "precision": "fp32"})
    own.load(tmp_path)
    labels = loaded(tmp_path).predict(images(), [""] * 3)
    for label, expected in zip(labels, own.predict(images(), [""] * 3), strict=True):
        assert_allclose(label, expected, rtol=1e-4, atol=1e-5)


def published(name: str) -> tuple[str, Any]:
    """Class and configuration of a row of the documentation's table; the sizes are transformers' default ones, or those
    of the scripts that converted the published weights."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    convnext = transformers.ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=stages)
    vit_large = {"model_type": "dinov2", "image_size": 384, "patch_size": 16, "hidden_size": 1024}
    vit_large |= {"num_hidden_layers": 24, "num_attention_heads": 16}
    parts = dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), vit_large)
    own: dict[str, dict[str, Any]] = {
        "DPT": PUBLISHED["Intel/dpt-large"],
        "GLPN": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3]},
        "DepthPro": {"use_fov_model": True, **parts},
        "UperNet": {"backbone_config": convnext, "auxiliary_in_channels": 384, "pool_scales": [1, 2, 3, 6]},
    }
    outputs = {"Mask2Former": 80, "Eomt": 133, "Detr": 250, "RfDetr": 2}
    family = re.split("For(?=Depth|Semantic|Universal|Instance|Segmentation|Dense)", name)[0]
    names = {"id2label": {number: str(number) for number in range(outputs.get(family, 150))}}
    return getattr(transformers, name), getattr(transformers, f"{family}Config")(**own.get(family, {}), **names)


def test_every_row_of_the_table_of_teachers_has_a_class_with_its_number_of_parameters():
    text = (Path(__file__).parents[1] / "docs" / "experts.md").read_text(encoding="utf-8")
    table = text.partition("### Teachers\n")[2].strip().split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    tasks = {family.class_name: family.task for family in families()}
    for repository, name, predicts, parameters, *_ in rows:
        network_class, config = published(name)
        with torch.device("meta"):
            module = network_class(config)
        count = sum(parameter.numel() for parameter in module.parameters())
        assert f"{count / 1e6:.1f} M" == parameters, repository
        if tasks[name] == "depth":
            metric = {"depth_estimation_type": "metric" if "Metric" in repository else "relative"}
            kind = depth_kind(metric | {"model_type": config.model_type}, None, "config.json")
            assert predicts.startswith(kind.replace("_", " ")), repository
        else:
            assert ("metres" in predicts) == name.startswith("Tipsv2")
    assert {row[1] for row in rows} >= {recipe[0] for recipe in TEACHERS.values() if "Tipsv2" not in recipe[0]}


# ---- what it predicts


def edited(folder: Path, **values: Any) -> Path:
    """Overwrite keys of config.json; None removes one."""
    path = folder / "config.json"
    config = read_json(path) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("teacher", "values", "network", "message"),
    [
        ("segformer", {"id2label": {"0": "sky", "2": "tree", "1": "road", "5": "car"}}, {}, "id2label has no class 3"),
        ("segformer", {"id2label": {f"{n}": f"LABEL_{n}" for n in range(4)}}, {}, "placeholders .*set network.classes"),
        ("segformer", {"id2label": None, "num_labels": 4}, {}, "no names of classes .*set network.classes"),
        ("segformer", {}, {"classes": ["sky", "road"]}, "has 4 classes, but network.classes lists 2"),
        ("segformer", {}, {"task": "depth"}, "is for segmentation, not depth; correct network.task"),
        ("segformer", {}, {"segments": "panoptic"}, "has no post_process_panoptic_segmentation; set network.segments"),
        ("segformer", {"architectures": ["SegformerForImageClassification"]}, {}, "use weights of Segformer"),
        ("segformer", {"model_type": "clip"}, {}, "model_type 'clip' has no dense output"),
        ("segformer", {"auto_map": {"AutoModel": "m.Net"}}, {}, "auto_map names code"),
        ("segformer", {"hidden_sizes": [8, 8, 8, 16]}, {}, "do not match its config.json"),
        ("segformer", {"num_encoder_blocks": 4, "depths": [1, 1, 1, 100_000]}, {}, "100,003 layers"),
        ("segformer", {"quantization_config": {"quant_method": "awq"}}, {}, "quantised"),
        ("eomt_panoptic", {}, {"segments": "semantic"}, "does not undo; set network.segments to panoptic"),
        ("upernet", {"backbone": "someone/backbone"}, {}, "'someone/backbone' is described in another repository"),
        ("tipsv2_dense", {}, {"task": None}, "for depth and normals and segmentation; set network.task"),
        ("dpt", {"backbone_config": {"model_type": "dinov2"}}, {}, "set network.predicts to metres, or"),
    ],
)
def test_a_folder_that_does_not_say_what_it_predicts_is_an_error_that_names_the_key(
    teacher, values, network, message, tmp_path
):
    own = save_teacher(teacher, tmp_path) | network
    with pytest.raises(CliptexError, match=message) as error:
        loaded(edited(tmp_path, **values), **own)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_canopy_height_network_and_a_file_without_its_folder_are_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    config = {"model_type": "chmv2", "architectures": ["CHMv2ForDepthEstimation"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CliptexError, match="height of the canopy above the ground, which is no depth"):
        loaded(tmp_path)
    with pytest.raises(CliptexError, match="from the folder of a saved model"):
        loaded(tmp_path / "config.json")
    config = {"experts": {"mine": {"plugin": "transformers", "weights": "random"}}}
    assert "hub without `file`, or local" in " ".join(text for _, text in problems(Config.model_validate(config)))


def test_an_unordered_table_of_names_with_numbers_as_strings_keeps_the_order_of_the_outputs(tmp_path):
    save_teacher("segformer", tmp_path)
    before = loaded(tmp_path)
    shuffled = {"3": "car", "1": "road", "0": "sky", "2": "tree"}
    after = loaded(edited(tmp_path, id2label=shuffled))
    assert after.task_parameters() == before.task_parameters() == {"class_names": list(NAMES.values())}
    assert_array_equal(after.predict(images()[:1], [""])[0], before.predict(images()[:1], [""])[0])


def test_cocos_things_in_any_order_and_with_synonyms_become_the_classes_of_the_task():
    given = ["N/A", *reversed(COCO), "no object"]
    given[given.index("couch")], given[given.index("tv")] = "sofa", "TVMonitor"
    names = output_names({"id2label": dict(enumerate(given))}, None, 82, "config.json")
    classes = class_list(names, instances=True)
    assert classes.names is None and classes.dtype is np.uint8
    assert classes.codes.tolist() == [255, *range(80, 0, -1), 0]
    assert class_list([*COCO[:-1], "a toothbrush"], instances=True).names == ["background", *COCO[:-1], "a toothbrush"]


def test_other_classes_keep_their_order_after_the_background_and_many_take_two_bytes():
    classes = class_list(["wall", "Background", None, "wall"], instances=False)
    assert classes.names == ["background", "wall", "wall (2)"]
    assert classes.codes.tolist() == [1, 0, 255, 2]
    many = class_list([f"class {number}" for number in range(256)], instances=False)
    assert many.dtype is np.uint16 and many.codes[-1] == 255 and many.ignore == 65535
    with pytest.raises(CliptexError, match="has 1001 classes; a label store has 2 to 1000"):
        output_names({}, [f"c{number}" for number in range(1001)], 1001, "config.json")


# ---- the scenes with known truth


class Answers(Expert):
    """Returns given labels."""

    network = SimpleNamespace(signs=(1, 1, 1))

    def __init__(self, task: str, labels: list[np.ndarray]):
        super().__init__({})
        self.task, self.labels = task, labels

    def load(self, weights: Path | None) -> None:
        pass

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        return self.labels


def check(task: str, labels: list[np.ndarray], names: list[str] | None = None) -> None:
    known_scenes.check_on_scenes(Answers(task, labels), "model/config.json", "change it", names)


def test_depth_the_wrong_way_round_is_found_and_noise_is_only_a_warning(caplog):
    metres = [np.nan_to_num(scene.depth, nan=100.0) for scene in known_scenes.scenes()]
    check("depth", [1 / depth for depth in metres])
    assert not caplog.records
    with pytest.raises(CliptexError, match=r"model/config.json: near is far.* is -1.00; change it"):
        check("depth", metres)
    check("depth", [np.random.default_rng(0).random(depth.shape) for depth in metres])
    check("depth", [np.ones_like(depth) for depth in metres])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@pytest.mark.parametrize(
    ("factors", "order", "message"),
    [
        ((1, 1, 1), (0, 1, 2), None),
        ((-1, 1, 1), (0, 1, 2), r"right is left.* network.signs by \[-1, 1, 1\]"),
        ((1, -1, 1), (0, 1, 2), r"up is down.* network.signs by \[1, -1, 1\]"),
        ((1, -1, -1), (0, 1, 2), r"up is down and surfaces face away.*by \[1, -1, -1\]"),
        ((1, 1, 1), (2, 0, 1), "axes are in another order"),
    ],
)
def test_wrong_signs_and_orders_of_the_axes_of_normals_are_found(factors, order, message):
    labels = [scene.normals[..., order] * factors for scene in known_scenes.scenes()]
    if message is None:
        check("normals", labels)
        return
    with pytest.raises(CliptexError, match=message):
        check("normals", labels)


def test_a_wrong_order_of_classes_is_found_and_an_expert_that_is_lost_only_warned_of(caplog):
    stuff = ["wall", "floor", "ceiling", "sky", "road", "building", "bed", "car", "sidewalk", "grass"]
    kinds = [kind.ade20k for kind in known_scenes.KINDS]
    truths = [
        np.array([stuff.index(name) if name in stuff else 255 for name in kinds], np.uint8)[scene.kinds]
        for scene in known_scenes.scenes()
    ]
    check("segmentation", truths, stuff)
    assert not caplog.records
    with pytest.raises(CliptexError, match=r"classes are in another order.* wall as .*change it"):
        check("segmentation", truths, [*stuff[1:], stuff[0]])
    check("segmentation", [np.zeros_like(truth) for truth in truths], ["rest", *stuff])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_plugins_of_published_networks_are_checked_as_well(monkeypatch):
    coco = {name: number for number, name in enumerate(COCO, start=1)}
    places = np.array([coco.get(kind.coco, 0) for kind in known_scenes.KINDS])
    wrong_way = {
        DPTExpert: (r"dpt.pt: near is far.*plugin: transformers", lambda scene: np.nan_to_num(scene.depth, nan=100.0)),
        MaskRCNNExpert: (
            r"dpt.pt: its classes are in another order.*use other weights",
            lambda scene: np.where(places > 0, (places + 6) % 80 + 1, 0).astype(np.uint8)[scene.kinds],
        ),
    }
    for plugin, (message, label) in wrong_way.items():
        monkeypatch.setattr(plugin, "predict", lambda *_, label=label: [label(one) for one in known_scenes.scenes()])
        with pytest.raises(CliptexError, match=message):
            plugin({"network": {}}).check(Path("dpt.pt"))


def test_a_network_that_learned_metres_labels_and_is_refused_as_inverse_depth(tmp_path, monkeypatch):
    """A GLPN that has learned the scenes, through the job that makes an expert's folder."""
    save_teacher("glpn", tmp_path / "model")
    module = transformers.GLPNForDepthEstimation.from_pretrained(tmp_path / "model").train()
    processor = transformers.GLPNImageProcessor.from_pretrained(tmp_path / "model")
    pictures = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in known_scenes.scenes()]
    inputs = processor(images=pictures, return_tensors="pt")["pixel_values"]
    truth = torch.from_numpy(
        np.stack([np.nan_to_num(scene.depth, nan=10).clip(0, 10) for scene in known_scenes.scenes()])
    )
    small = torch.nn.functional.interpolate(inputs, (96, 128), mode="bilinear")
    target = torch.nn.functional.interpolate(truth[:, None], (96, 128))[:, 0]
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        (module(small).predicted_depth - target).abs().mean().backward()
        optimizer.step()
    module.save_pretrained(tmp_path / "model")

    def config(**network: Any) -> Config:
        expert = {"plugin": "transformers", "weights": "local", "path": str(tmp_path / "model"), "network": network}
        return Config.model_validate({"experts": {"teacher": expert | {"precision": "fp32", "batch_size": 2}}})

    with pytest.raises(CliptexError, match=r"config.json: near is far.*correct network.predicts"):
        train_expert(config(predicts="inverse_depth"), "teacher", tmp_path, tmp_path / "wrong", 0)
    assert not (tmp_path / "wrong" / "expert.json").exists()
    train_expert(config(), "teacher", tmp_path, tmp_path / "right", 0)
    record = read_json(tmp_path / "right" / "expert.json")
    assert (record["task"], record["source"]) == ("depth", "local")
    assert record["num_parameters"] == sum(parameter.numel() for parameter in module.parameters())
    expert = load_expert("teacher", config().experts["teacher"], tmp_path / "right")
    (label,) = expert.predict(images()[:1], [""])
    find("tasks", expert.task).from_codec(expert.task_parameters()).encode(label)
    shutil.rmtree(tmp_path / "model")

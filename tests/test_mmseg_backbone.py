"""The encoder in mmsegmentation: the same features, any size, and its own runner trains on it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cliptex.config import Miniature, Student
from cliptex.core.errors import CliptexError
from cliptex.data.miniature.layouts import render_benchmark
from cliptex.models import clip as student
from cliptex.models.dense_features import dense_features

ROOT = Path(__file__).parent.parent
TINY = Student(
    architecture={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 32, "layers": 3, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "cliptex"
    student.export(student.build(TINY, 0), TINY, folder)
    return folder


def backbone(model, **options):
    from cliptex.models.mmseg_backbone import MODELS

    return MODELS.build({"type": "CliptexBackbone", "model": str(model), **options})


def test_maps_are_the_features_of_training_and_probes(exported):
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    (maps,) = backbone(exported)(images)
    assert torch.equal(maps, dense_features(student.load(exported).visual, images))


def test_other_sizes_are_those_of_a_model_made_for_them(exported):
    """As open_clip resizes the position embedding when it loads weights for another size."""
    import open_clip

    images = torch.randn(2, 3, 36, 72, generator=torch.Generator().manual_seed(0))
    (maps,) = backbone(exported)(images)
    made = open_clip.create_model(f"local-dir:{exported}", require_pretrained=True, force_image_size=(36, 72))
    torch.testing.assert_close(maps, dense_features(made.eval().visual, images), atol=1e-5, rtol=1e-4)
    assert maps.shape == (2, 32, 3, 6)
    with pytest.raises(CliptexError, match="50 x 48 is not a multiple of the encoder's patch size 12"):
        backbone(exported)(torch.zeros(1, 3, 50, 48))


def test_blocks_are_chosen_by_number_from_either_end(exported):
    images = torch.randn(1, 3, 48, 48)
    every = backbone(exported, out_indices=(0, 1, 2), normalised=False)
    assert (every.channels, len(every(images))) == (32, 3)
    chosen = backbone(exported, out_indices=(-1, 0), normalised=False)(images)
    assert torch.equal(chosen[0], every(images)[0]) and torch.equal(chosen[1], every(images)[2])
    with pytest.raises(CliptexError, match=r"out_indices: block 3 is out of range; .* has 3 blocks"):
        backbone(exported, out_indices=(3,))


def test_a_frozen_encoder_has_no_gradient_and_stays_in_evaluation_mode(exported):
    frozen, free = backbone(exported, frozen=True), backbone(exported, checkpoint_activations=True)
    images = torch.randn(1, 3, 48, 48)
    assert not frozen.train().visual.training and free.train().visual.training
    assert not frozen(images)[0].requires_grad
    free(images)[0].sum().backward()
    lacking = [name for name, parameter in free.named_parameters() if parameter.grad is None]
    assert lacking == []
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_any_architecture_of_open_clip_will_do(exported):
    named = backbone("ViT-S-32-alt", out_indices=(3, 11))
    assert [map.shape[1:] for map in named(torch.zeros(1, 3, 224, 224))] == [(384, 7, 7)] * 2
    assert named.mean == pytest.approx([122.7709383, 116.7460125, 104.09373615])
    assert named.std == pytest.approx([68.5005327, 66.6321375, 70.32316425])
    with pytest.raises(CliptexError, match=r"results/none/open_clip_config\.json: no such file"):
        backbone("results/none")
    with pytest.raises(CliptexError, match="open_clip has no 'ViT-Q'"):
        backbone("ViT-Q")


def test_mmsegmentations_own_runner_trains_the_example(exported, tmp_path):
    """Its train.py on rendered VOC: the loss falls, the encoder moves, and its own metric is written down."""
    import mmseg

    counts = {"voc": {"train": 24, "val": 6}}
    render_benchmark(Miniature(image_size_px=48, benchmarks=counts), "voc", tmp_path / "resources/voc")
    (tmp_path / "results/models/cliptex").mkdir(parents=True)
    (tmp_path / "results/models/cliptex/seed0").symlink_to(exported)
    config = (ROOT / "examples/mmseg/voc.py").read_text()
    shrunk = config.replace("side = 96", "side = 48").replace("iterations = 400", "iterations = 24")
    assert shrunk.count("channels=128") == 2 and shrunk != config
    (tmp_path / "voc.py").write_text(shrunk.replace("channels=128", "channels=32").replace("interval=20", "interval=1"))
    script = Path(mmseg.__file__).parent / ".mim/tools/train.py"
    done = subprocess.run(
        [sys.executable, script, "voc.py", "--work-dir", "work"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (lines,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 24 and sum(losses[-4:]) < sum(losses[:4])
    assert 0 < rows[-1]["mIoU"] < 100
    weights = torch.load(tmp_path / "work/iter_24.pth", weights_only=False)["state_dict"]
    before = student.load(exported).visual.conv1.weight
    assert not torch.equal(weights["backbone.visual.conv1.weight"], before)

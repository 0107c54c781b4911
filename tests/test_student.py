import open_clip
import pytest
import torch

from cliptex import student
from cliptex.config import Student
from cliptex.errors import CliptexError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_open_clip_loads_the_export_to_the_last_bit(tmp_path):
    model = student.build(Student(architecture=TINY), seed=3).eval()
    digest = student.export(model, Student(architecture=TINY), tmp_path)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", require_pretrained=True)
    images, texts = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat", "a dog"])
    assert texts.shape == (2, 12)
    assert torch.equal(loaded.eval().encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(texts), model.encode_text(texts))
    assert "Normalize" in str(preprocess)
    assert len(digest) == 64
    assert torch.equal(student.load(tmp_path).encode_image(images), model.encode_image(images))


def test_the_seed_decides_the_weights():
    first, second, other = (student.build(Student(architecture=TINY), seed) for seed in (0, 0, 1))
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.visual.conv1.weight, other.visual.conv1.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "ViT-Z-99"}, "open_clip has no 'ViT-Z-99'"),
        ({"architecture": "ViT-B-16", "pretrained": "nobody"}, "'nobody' is neither a file nor a tag.*openai"),
        ({"architecture": TINY, "pretrained": "/nowhere/weights.pt"}, "no such file"),
    ],
)
def test_what_does_not_exist_is_named(settings, message):
    with pytest.raises(CliptexError, match=message):
        student.build(Student(**settings), 0)


def test_a_checkpoint_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    with pytest.raises(CliptexError, match=r"weights\.pt cannot be loaded"):
        student.build(Student(architecture="ViT-B-16", pretrained=str(tmp_path / "weights.pt")), 0)


def test_an_export_without_weights_is_refused(tmp_path):
    student.export(student.build(Student(architecture=TINY), 0), Student(architecture=TINY), tmp_path)
    (tmp_path / student.WEIGHTS_FILE).write_bytes(b"cut")
    with pytest.raises(CliptexError, match="train again"):
        student.load(tmp_path)
    (tmp_path / student.WEIGHTS_FILE).unlink()
    with pytest.raises(CliptexError, match="train that model first"):
        student.load(tmp_path)


def test_an_exported_folder_can_be_the_start(tmp_path):
    model = student.build(Student(architecture=TINY), seed=3).eval()
    student.export(model, Student(architecture=TINY), tmp_path)
    again = student.build(Student(architecture=TINY, pretrained=str(tmp_path)), seed=9)
    assert torch.equal(again.visual.conv1.weight, model.visual.conv1.weight)

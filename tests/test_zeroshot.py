"""Zero-shot classification equals open_clip's own, step by step."""

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from official_layouts import write_imagenet, write_voc
from PIL import Image

from cliptex.config import Config, Student
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.evaluation import zeroshot
from cliptex.evaluation.job import Job
from cliptex.evaluation.per_image import main_metric, read_per_image
from cliptex.experts.precision import mixed_precision
from cliptex.models import clip as student

TINY = Student(
    architecture={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
)


def test_half_precision_is_close_and_recorded_and_the_default_is_not(models_dir, tmp_path):
    root = tmp_path / "imagenet"
    write_imagenet(root, 5, 8, classes=5, height=40, width=64)
    config = Config.load({"models": {"clip": {}}, "probes": {"baselines": [], "save_predictions": 0}})
    half = config.model_copy(update={"zeroshot": config.zeroshot.model_copy(update={"precision": "bf16"})})
    assert config.subset("zeroshot.precision", "zeroshot.templates") == config.subset("zeroshot.templates")
    assert "precision" not in config.subset("zeroshot")
    assert half.subset("zeroshot.precision") == '{"zeroshot":{"precision":"bf16"}}'
    zeroshot.run(half, Job(name="imagenet", models_dir=models_dir, benchmark_dir=root, out=tmp_path / "out.json"))
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert "(simple), towers in bf16; the shorter" in row["protocol"]
    model = zeroshot.load_zero_shot_model("clip", 0, models_dir / "clip" / "seed0")
    views = [{str(model.preprocess): view} for view in torch.randn(4, 3, 48, 48)]
    with torch.no_grad():
        (whole,), (rounded,) = (
            list(zeroshot.encode_images([model], views, "abcd", precision)) for precision in ("fp32", "bf16")
        )
    assert rounded.dtype == torch.float32 and not torch.equal(whole, rounded)
    assert (whole * rounded).sum(1).min() > 0.999


def test_attention_in_half_precision_projects_contiguous_tokens(models_dir, monkeypatch):
    """Others are 80 times slower on a CPU."""
    original, contiguous = F.multi_head_attention_forward, []

    def noting(query, *rest, **options):
        contiguous.append(query.is_contiguous())
        return original(query, *rest, **options)

    monkeypatch.setattr(F, "multi_head_attention_forward", noting)
    model = zeroshot.load_zero_shot_model("clip", 0, models_dir / "clip" / "seed0")
    with torch.no_grad(), mixed_precision("bf16"):
        model.model.encode_image(torch.randn(3, 3, 48, 48))
        model.model.encode_text(torch.ones(3, 16, dtype=torch.int64))
    assert contiguous == [True, True]


@pytest.fixture
def models_dir(tmp_path):
    for seed in (0, 1):
        student.export(student.build(TINY, seed), TINY, tmp_path / "models" / "clip" / f"seed{seed}")
    return tmp_path / "models"


def test_results_equal_those_of_open_clip_by_hand(models_dir, tmp_path):
    root = tmp_path / "imagenet"
    write_imagenet(root, 9, 20, classes=7, height=40, width=64)
    probes = {"baselines": ["random", "position"], "save_predictions": 3}
    config = Config.load({"models": {"clip": {}}, "seeds": [0, 1], "probes": probes})
    zeroshot.run(config, Job(name="imagenet", models_dir=models_dir, benchmark_dir=root, out=tmp_path / "out.json"))
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(row["model"], row["seed"]) for row in result["results"]] == [
        ("random", 0),
        ("random", 1),
        ("clip", 0),
        ("clip", 1),
    ]
    assert result["chance"] == {"top1": pytest.approx(100 / 7), "top5": pytest.approx(500 / 7)}
    assert (result["num_eval"], result["num_templates"], len(result["class_names"])) == (20, 7, 7)
    assert len(set(result["provenance"]["model_sha256"].values())) == 4
    assert {row["protocol"] for row in result["results"]} == {
        "the class nearest by cosine to the image, each class the mean of 7 prompts (simple); "
        "the shorter side of images resized, then the centre cropped to 48 x 48 pixels (bicubic)"
    }

    samples = find("benchmarks", "imagenet")(root).samples("eval")
    judged = read_per_image(tmp_path / "out.per_image.npz")
    assert judged.ids.tolist() == [samples[index]["id"] for index in range(20)]
    for row in result["results"]:
        hits = judged.of("zero_shot_classification", f"{row['model']}/seed{row['seed']}")
        assert main_metric("zero_shot_classification", hits)[0] == row["metrics"]["top1"]
        assert 100 * hits["top5"].mean() == row["metrics"]["top5"]
    with np.load(tmp_path / "out.npz") as kept:
        assert kept["rows"].tolist() == ["random/seed0", "random/seed1", "clip/seed0", "clip/seed1"]
        assert kept["ids"].tolist() == judged.ids[:3].tolist() and kept["prediction"].shape == (4, 3, 5)
        for index in range(3):
            np.testing.assert_array_equal(kept[f"image_{index}"], samples[index]["image"])
            assert kept["truth"][index] == samples[index]["label"]
        hits = judged.of("zero_shot_classification", "clip/seed1")["top1"][:3]
        assert (kept["prediction"][3, :, 0] == kept["truth"]).tolist() == hits.astype(bool).tolist()
    for row in result["results"][2:]:
        folder = models_dir / "clip" / f"seed{row['seed']}"
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        with torch.no_grad():
            text = []
            for name in result["class_names"]:
                prompts = [template(name) for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
                mean = model.eval().encode_text(tokenizer(prompts), normalize=True).mean(0)
                text.append(mean / mean.norm())
            images = torch.stack([preprocess(Image.fromarray(samples[i]["image"])) for i in range(20)])
            scores = (model.encode_image(images, normalize=True) @ torch.stack(text).T).numpy()
        labels = np.array([samples[index]["label"] for index in range(20)])
        rank = (scores > scores[np.arange(20), labels][:, None]).sum(1)
        assert row["metrics"] == {
            "top1": pytest.approx(100 * (rank == 0).mean()),
            "top5": pytest.approx(100 * (rank < 5).mean()),
        }


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ("visual.proj", "clip/seed0: its embedding of image ILSVRC2012_val_00000001"),
        ("text_projection", "clip/seed0: its embeddings of the class names"),
    ],
)
def test_a_model_whose_embeddings_overflow_is_refused_by_name(tmp_path, tower, message):
    write_imagenet(tmp_path / "imagenet", 3, 3)
    model = student.build(TINY, 0)
    model.get_parameter(tower).data.fill_(3e38)
    student.export(model, TINY, tmp_path / "models" / "clip" / "seed0")
    config = Config.load({"models": {"clip": {}}, "probes": {"baselines": []}})
    job = Job(
        name="imagenet",
        models_dir=tmp_path / "models",
        benchmark_dir=tmp_path / "imagenet",
        out=tmp_path / "out.json",
    )
    with pytest.raises(CliptexError, match=f"{message}.* has \\d+ NaN or infinite values; check its weights"):
        zeroshot.run(config, job)
    assert not job.out.exists()


def test_another_number_of_images_than_the_split_has_is_refused(models_dir, tmp_path):
    write_imagenet(tmp_path / "imagenet", 3, 3)
    (tmp_path / "imagenet/miniature.json").write_text('{"counts": {"train": 3, "val": 4}}')
    config = Config.load({"models": {"clip": {}}, "probes": {"baselines": []}})
    with pytest.raises(CliptexError, match="imagenet: 3 images were evaluated, not 4"):
        zeroshot.run(
            config,
            Job(name="imagenet", models_dir=models_dir, benchmark_dir=tmp_path / "imagenet", out=tmp_path / "out.json"),
        )


def test_a_released_model_has_its_published_accuracy_or_there_is_no_result(models_dir, tmp_path):
    root, out = tmp_path / "imagenet", tmp_path / "out.json"
    write_imagenet(root, 9, 20, classes=7, height=40, width=64)

    def evaluated(published):
        sections = {"models": {"clip": {}, "other": {}}, "probes": {"models": ["clip"], "baselines": []}}
        job = Job(name="imagenet", models_dir=models_dir, benchmark_dir=root, out=out)
        zeroshot.run(Config.load(sections | {"zeroshot": {"published": published}}), job)
        return json.loads(out.read_text())

    top1 = evaluated({})["results"][0]["metrics"]["top1"]
    assert evaluated({"clip": {"imagenet": top1 + 0.15}})["published"] == {"clip": top1 + 0.15}
    assert evaluated({"clip": {"places365": 0.0}, "other": {"imagenet": 99.0}})["published"] == {}
    out.unlink()
    for off in (-0.25, 0.25):
        with pytest.raises(CliptexError, match=r"published.clip.imagenet: .* published, .* measured \(seed 0; .*gelu"):
            evaluated({"clip": {"imagenet": top1 + off}})
    assert not out.exists()
    # a user's subset has no published accuracy
    (root / "miniature.json").unlink()
    (root / "official.json").write_text('{"source": "subset", "counts": {"train": 9, "val": 20}}')
    assert evaluated({"clip": {"imagenet": top1 + 0.25}})["published"] == {}


def test_prompts_digest_follows_the_templates(models_dir, tmp_path):
    write_imagenet(tmp_path / "imagenet", 3, 3)
    digests = set()
    for templates in ("simple", "openai"):
        config = Config.load(
            {"models": {"clip": {}}, "probes": {"baselines": []}, "zeroshot": {"templates": templates}}
        )
        zeroshot.run(
            config,
            Job(name="imagenet", models_dir=models_dir, benchmark_dir=tmp_path / "imagenet", out=tmp_path / "out.json"),
        )
        result = json.loads((tmp_path / "out.json").read_text())
        digests.add((result["prompts_sha256"], result["num_templates"]))
    assert {count for _, count in digests} == {7, 80} and len(digests) == 2


def test_benchmark_without_one_class_an_image_is_refused(models_dir, tmp_path):
    write_voc(tmp_path / "voc", 1, 1)
    with pytest.raises(CliptexError, match="'voc' is not a classification benchmark"):
        job = Job(name="voc", models_dir=models_dir, benchmark_dir=tmp_path / "voc", out=tmp_path / "out.json")
        zeroshot.run(Config.load({"models": {"clip": {}}}), job)

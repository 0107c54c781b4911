"""Retrieval: the definition by a plain loop, several captions an image, and where captions come from."""

import json

import numpy as np
import pytest
import torch
from conftest import drawn_pair
from PIL import Image

from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file
from cliptex.data.miniature.sets import render_captions
from cliptex.data.shards import read_shard, write_tar
from cliptex.evaluation import retrieval
from cliptex.evaluation.captioned_images import lines_of, open_captioned_images
from cliptex.evaluation.job import Job
from cliptex.evaluation.per_image import main_metric, read_per_image
from cliptex.evaluation.retrieval import TASKS, Embeddings, ReadSet, chances, kept_predictions, ranks, recalls
from cliptex.models import clip as student


def unit(rows):
    return torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)


def test_recalls_equal_a_plain_loop_over_queries():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), rng.integers(1, 6, 30))  # one to five captions an image
    images = rng.normal(size=(30, 8))
    captions = images[owner] + 1.5 * rng.normal(size=(len(owner), 8))
    images, captions = unit(images), unit(captions)
    scores = (images @ captions.T).numpy()
    for k in (1, 5, 10):
        to_text = [len({*np.argsort(-row)[:k]} & {*np.flatnonzero(owner == i)}) > 0 for i, row in enumerate(scores)]
        to_image = [owner[i] in np.argsort(-row)[:k] for i, row in enumerate(scores.T)]
        assert recalls(ranks(images, captions, np.arange(30), owner))[f"R@{k}"] == pytest.approx(100 * np.mean(to_text))
        assert recalls(ranks(captions, images, owner, np.arange(30)))[f"R@{k}"] == pytest.approx(
            100 * np.mean(to_image)
        )


def test_kept_predictions_are_the_nearest_of_the_first_images_and_of_their_captions():
    owner = np.array([0, 0, 1, 2, 2, 2, 3])
    images = unit(np.eye(4))
    captions = unit(np.eye(4)[owner] + 0.1 * np.eye(4)[[1, 2, 2, 3, 3, 0, 0]])
    names = [f"caption {number}" for number in range(7)]
    pictures = [np.zeros((2, 2, 3), np.uint8)] * 2
    kept = kept_predictions(ReadSet(list("abcd"), names, owner, pictures), [Embeddings(images, captions)] * 3)
    assert kept["captions"].tolist() == ["caption 0", "caption 1", "caption 2"]  # of the first two images
    assert kept["image_of_caption"].tolist() == [0, 0, 1]
    assert kept["nearest_images"].shape == (3, 3, 4)  # there are only four
    assert kept["nearest_images"][2, :, :2].tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert kept["nearest_captions"].shape == (3, 2, 5)
    assert {*kept["nearest_captions"][0, 0, :2].tolist()} == {"caption 0", "caption 1"}
    assert kept["nearest_captions"][0, 1, :2].tolist() == ["caption 2", "caption 0"]


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = unit(np.ones((20, 4)))
    assert recalls(ranks(same, same, np.arange(20), np.arange(20))) == {"R@1": 0, "R@5": 0, "R@10": 0}


def test_embeddings_that_are_not_numbers_are_no_perfect_ranking():
    broken, whole = unit(np.ones((20, 4))), unit(np.eye(20, 4) + 1)
    broken[7, 2] = np.nan
    for queries, others in ((broken, whole), (whole, broken)):
        with pytest.raises(CliptexError, match="embeddings: has 1 NaN or infinite values"):
            ranks(queries, others, np.arange(20), np.arange(20))


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("a dog\r\n\r\n a cat \n", ("a dog", "a cat")),
        ("a dog\rtwo dogs", ("a dog", "two dogs")),
        ("an old\u2028dog\x0bof\x85mine", ("an old\u2028dog\x0bof\x85mine",)),
        (" \n\t\n", ()),
    ],
)
def test_captions_are_the_lines_of_a_text_file(text, captions):
    assert lines_of(text) == captions


def test_chance_is_what_drawing_at_random_gives():
    assert chances([1] * 7, 20) == pytest.approx({"R@1": 5, "R@5": 25, "R@10": 50})
    # two right ones of four, one drawn; and both kinds of query together
    assert chances([2], 4)["R@1"] == pytest.approx(50)
    assert chances([2, 1], 4)["R@1"] == pytest.approx(37.5)
    assert chances([1], 4)["R@10"] == pytest.approx(100)
    rng = np.random.default_rng(0)
    drawn = np.mean([bool({*rng.permutation(12)[:5]} & {0, 1, 2}) for _ in range(20000)])
    assert chances([3], 12)["R@5"] == pytest.approx(100 * drawn, abs=1.5)


def write_coco_captions(root, count):
    """captions_val2017.json and its images; two or three captions each, not in the order of the images."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, annotations = [], []
    for number in range(count):
        name = f"{100 - number:012d}.jpg"
        (root / "val2017" / name).write_bytes(drawn_pair("", number).image)
        images.append({"id": 100 - number, "file_name": name, "height": 40, "width": 56})
        for index in range(2 + number % 2):
            text = f"caption {index} \nof {100 - number} "
            annotations.append({"id": len(annotations) + 1, "image_id": 100 - number, "caption": text})
    data = {"images": images, "annotations": annotations[::-1]}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(data))
    (root / "miniature.json").write_text("{}")


def test_cocos_captions_go_to_their_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_coco_captions(paths.benchmark("coco"), 5)
    config = Config.load({"zeroshot": {"retrieval": {"photos": {"benchmark": "coco", "images": 4}}}})
    mark = paths.benchmark("coco") / "miniature.json"
    mark.write_text('{"counts": {"train": 1, "val": 7}}')
    with pytest.raises(CliptexError, match="coco: captions of 5 images, the split has 7"):
        open_captioned_images(config, "photos")
    mark.write_text("{}")
    given = open_captioned_images(config, "photos")
    items = list(given.items)
    assert (given.count, len(items), given.split) == (4, 4, "val2017, first 4")
    assert items[1].id == "000000000099"
    assert items[1].captions == ("caption 2 of 99", "caption 1 of 99", "caption 0 of 99")
    assert items[0].image == drawn_pair("", 0).image


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": drawn_pair("", 0).image}, "sample 00000 cannot be used: no caption"),
        ({"txt": b"a caption"}, "sample 00000 cannot be used: no image"),
        ({"jpg": b"not one", "txt": b"a caption"}, "image of 00000 cannot be used: not an image"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path, members, message):
    write_tar(tmp_path / "pairs.tar", [(f"00000.{suffix}", data) for suffix, data in members.items()])
    config = Config.load(
        {
            "models": {"clip": {}},
            "probes": {"baselines": []},
            "zeroshot": {"retrieval": {"photos": {"shards": [str(tmp_path / "pairs.tar")]}}},
        }
    )
    tiny = Student(architecture=ARCHITECTURE)
    student.export(student.build(tiny, 0), tiny, tmp_path / "models" / "clip" / "seed0")
    with pytest.raises(CliptexError, match=message):
        retrieval.run(config, Job(name="photos", models_dir=tmp_path / "models", out=tmp_path / "out.json"))


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ("visual.proj", "clip/seed0: its embedding of image b: has"),
        ("text_projection", "clip/seed0: its embeddings of captions of photos: has"),
    ],
)
def test_a_model_whose_embeddings_overflow_is_refused_by_name(tmp_path, tower, message):
    write_tar(tmp_path / "pairs.tar", [("b.jpg", IMAGE), ("b.txt", b"\xef\xbb\xbfa caption\r\n" + b"x" * 50_000)])
    tiny = Student(architecture=ARCHITECTURE)
    model = student.build(tiny, 0)
    model.get_parameter(tower).data.fill_(3e38)
    student.export(model, tiny, tmp_path / "models" / "clip" / "seed0")
    sets = {"photos": {"shards": [str(tmp_path / "pairs.tar")]}}
    config = Config.load({"models": {"clip": {}}, "probes": {"baselines": []}, "zeroshot": {"retrieval": sets}})
    with pytest.raises(CliptexError, match=message):
        retrieval.run(config, Job(name="photos", models_dir=tmp_path / "models", out=tmp_path / "out.json"))
    assert not (tmp_path / "out.json").exists()


def test_tars_of_the_users_are_called_own_and_another_number_of_images_is_refused(tmp_path):
    members = [(f"0000{n}.{kind}", data) for n in (0, 1) for kind, data in (("jpg", IMAGE), ("txt", b"a caption"))]
    write_tar(tmp_path / "pairs.tar", members)
    tiny = Student(architecture=ARCHITECTURE)
    student.export(student.build(tiny, 0), tiny, tmp_path / "models" / "clip" / "seed0")

    def judge(**given):
        sets = {"photos": {"shards": [str(tmp_path / "pairs.tar")], **given}}
        values = {"models": {"clip": {}}, "probes": {"baselines": []}, "zeroshot": {"retrieval": sets}}
        retrieval.run(
            Config.load(values), Job(name="photos", models_dir=tmp_path / "models", out=tmp_path / "out.json")
        )
        return read_json(tmp_path / "out.json")

    assert (judge()["source"], judge()["num_eval"], judge(images=1)["num_eval"]) == ("own", 2, 1)
    assert all("resized" in row["protocol"] for row in judge()["results"])
    with pytest.raises(CliptexError, match=r"retrieval\.photos: 2 images were read, not 3"):
        judge(images=3)


IMAGE = drawn_pair("", 0).image
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_the_miniatures_held_out_captions_are_judged_like_any_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.load(
        {
            "miniature": {"image_size_px": 32, "pairs": 6},
            "models": {"clip": {}},
            "seeds": [0, 1],
            "probes": {"baselines": ["random", "position"], "save_predictions": 3},
            "zeroshot": {"retrieval": {"captions": {"rendered": 12}, "none": None}},
        }
    )
    render_captions(config.miniature, 12, paths.benchmark("captions"))
    pairs = read_shard(paths.benchmark("captions") / "00000.tar")
    assert len({pair.caption for pair in pairs}) == len(pairs) == 12
    assert min(int(pair.key) for pair in pairs) >= 6  # none of those that are trained on
    tiny = Student(architecture=ARCHITECTURE)
    for seed in (0, 1):
        student.export(student.build(tiny, seed), tiny, paths.model("clip", seed))
    retrieval.run(config, Job(name="captions"))
    result = read_json(paths.RESULTS / "zeroshot/captions.json")
    assert (result["source"], result["num_eval"], result["num_captions"]) == ("miniature", 12, 12)
    assert [(row["task"], row["model"], row["seed"]) for row in result["results"]] == [
        (task, model, seed) for model in ("random", "clip") for seed in (0, 1) for task in TASKS
    ]
    assert result["chance"][TASKS[0]] == pytest.approx({"R@1": 100 / 12, "R@5": 500 / 12, "R@10": 1000 / 12})
    assert len(set(result["provenance"]["model_sha256"].values())) == 4
    parts = sha256_file(paths.RESULTS / "zeroshot/captions.per_image.npz")
    assert {row["per_image_sha256"] for row in result["results"]} == {parts}

    judged = read_per_image(paths.RESULTS / "zeroshot/captions.per_image.npz")
    assert len(judged.ids) == 12
    for row in result["results"]:
        arrays = judged.of(row["task"], f"{row['model']}/seed{row['seed']}")
        assert main_metric(row["task"], arrays)[0] == pytest.approx(row["metrics"]["R@1"])

    with np.load(paths.RESULTS / "zeroshot/captions.npz", allow_pickle=False) as file:
        kept = dict(file)
    assert kept["ids"].tolist() == [pair.key for pair in pairs][:3]
    assert (kept["image_2"] == np.asarray(opened(pairs[2].image))).all() and "image_3" not in kept
    assert kept["captions"].tolist() == [pair.caption for pair in pairs][:3]
    assert kept["image_of_caption"].tolist() == [0, 1, 2]

    import open_clip

    for seed in (0, 1):
        place = f"local-dir:{paths.model('clip', seed).resolve()}"
        model, _, preprocess = open_clip.create_model_and_transforms(place, require_pretrained=True)
        with torch.no_grad():
            texts = model.eval().encode_text(open_clip.get_tokenizer(place)([pair.caption for pair in pairs]))
            images = model.encode_image(torch.stack([preprocess(opened(pair.image)) for pair in pairs]))
        scores = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
        row = kept["rows"].tolist().index(f"clip/seed{seed}")
        captions = np.array([pair.caption for pair in pairs])
        keys = np.array([pair.key for pair in pairs])
        assert (kept["nearest_captions"][row] == captions[scores[:3].topk(5).indices]).all()
        assert (kept["nearest_images"][row] == keys[scores.T[:3].topk(5).indices]).all()
        for task, one in zip(TASKS, (scores, scores.T), strict=True):
            better = (one > one.diagonal()[:, None]).sum(1)
            row = next(r for r in result["results"] if (r["model"], r["seed"], r["task"]) == ("clip", seed, task))
            for k in (1, 5, 10):
                assert row["metrics"][f"R@{k}"] == pytest.approx(100 * float((better < k).float().mean()))


def opened(data):
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"photos": {}}, "one of rendered, shards and benchmark"),
        ({"photos": {"rendered": 3, "benchmark": "coco"}}, "one of rendered, shards and benchmark"),
        ({"imagenet": {"rendered": 3}}, "'imagenet' is the name of a benchmark"),
    ],
)
def test_a_mistaken_set_of_captions_is_refused(given, message):
    with pytest.raises(CliptexError, match=message):
        Config.load({"zeroshot": {"benchmarks": ["imagenet"], "retrieval": given}})


def test_a_set_that_is_not_there_is_refused_by_name():
    with pytest.raises(CliptexError, match=r"'others' is not one of \['photos'\]"):
        open_captioned_images(Config.load({"zeroshot": {"retrieval": {"photos": {"rendered": 3}}}}), "others")
    config = Config.load({"zeroshot": {"retrieval": {"photos": {"benchmark": "voc"}}}})
    with pytest.raises(CliptexError, match="'voc' has no captions"):
        open_captioned_images(config, "photos")
    config = Config.load({"zeroshot": {"retrieval": {"photos": {"shards": ["lost.tar"]}}}})
    with pytest.raises(CliptexError, match=r"lost\.tar: shard is missing"):
        list(open_captioned_images(config, "photos").items)

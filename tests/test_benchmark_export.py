"""Exports in clip_benchmark's layout hold what zero-shot sees here."""

import io
import tarfile

import numpy as np
import open_clip
import pytest
from official_layouts import write_imagenet, write_places365, write_voc
from PIL import Image

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file
from cliptex.core.plugins import find
from cliptex.data.shards import write_tar
from cliptex.evaluation.export_benchmark import export_benchmark


def samples_in(folder):
    """The samples of a split in the order of clip_benchmark: {suffix: bytes}."""
    out = []
    for number in range(int((folder / "nshards.txt").read_text())):
        with tarfile.open(folder / f"{number}.tar") as tar:
            keys = {}
            for member in tar:
                key, _, suffix = member.name.partition(".")
                keys.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        out += keys.values()
    return out


@pytest.mark.parametrize("templates", ["openai", "simple"])
def test_class_names_and_prompts_are_ours(tmp_path, monkeypatch, templates):
    monkeypatch.chdir(tmp_path)
    write_places365(paths.benchmark("places365"), 4, 3)
    export_benchmark(Config.load({"zeroshot": {"templates": templates}}), "places365", tmp_path / "out")
    # read as clip_benchmark reads them
    names = [line.strip() for line in (tmp_path / "out/classnames.txt").read_text().splitlines()]
    lines = (tmp_path / "out/zeroshot_classification_templates.txt").read_text().splitlines()
    assert names == ["outdoor apartment building", "beach", "living room"]
    official = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}[templates]
    theirs = [[line.strip().format(c=name) for line in lines] for name in names]
    assert theirs == [[template(name) for template in official] for name in names]
    assert len(lines) == {"openai": 80, "simple": 7}[templates]


def test_images_and_labels_are_the_benchmarks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = paths.benchmark("imagenet")
    write_imagenet(root, 6, 7, height=30, width=44)
    # what the reader takes but clip_benchmark's decoder does not know becomes PNG
    odd = root / "val" / "ILSVRC2012_val_00000003.JPEG"
    pixels = np.asarray(Image.open(odd))
    Image.fromarray(pixels).save(odd, "BMP")
    counts = export_benchmark(Config.load({}), "imagenet", tmp_path / "out", ["test", "train"], per_tar=3)
    assert counts == {"test": 7, "train": 6}
    data = find("benchmarks", "imagenet")(root)
    for split, part in (("test", "eval"), ("train", "train")):
        samples, found = data.samples(part), samples_in(tmp_path / "out" / split)
        assert len(found) == len(samples)
        for index, one in enumerate(found):
            assert int(one.pop("cls")) == samples[index]["label"]
            ((suffix, image),) = one.items()
            assert suffix == ("png" if split == "test" and index == 2 else "jpg")
            np.testing.assert_array_equal(
                np.asarray(Image.open(io.BytesIO(image)).convert("RGB")), samples[index]["image"]
            )
    record = read_json(tmp_path / "out/test/split.json")
    assert [file["samples"] for file in record["files"]] == [3, 3, 1] and record["split"] == "val"
    assert record["files"][2]["sha256"] == sha256_file(tmp_path / "out/test/2.tar")


def test_a_smaller_export_leaves_nothing_of_a_larger_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_imagenet(paths.benchmark("imagenet"), 3, 6)
    export_benchmark(Config.load({}), "imagenet", tmp_path / "out", per_tar=2)
    export_benchmark(Config.load({}), "imagenet", tmp_path / "out", per_tar=4)
    assert sorted(path.name for path in (tmp_path / "out/test").iterdir()) == [
        "0.tar",
        "1.tar",
        "nshards.txt",
        "split.json",
    ]


def test_an_export_that_breaks_off_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = paths.benchmark("imagenet")
    write_imagenet(root, 3, 6)
    export_benchmark(Config.load({}), "imagenet", tmp_path / "out", per_tar=2)
    (root / "val" / "ILSVRC2012_val_00000005.JPEG").write_bytes(b"broken")
    with pytest.raises(CliptexError, match=r"val_00000005\.JPEG: .*not a readable image"):
        export_benchmark(Config.load({}), "imagenet", tmp_path / "out", per_tar=2)
    assert not (tmp_path / "out/test/nshards.txt").exists()
    assert not list((tmp_path / "out/test").glob(".*"))


def test_captions_are_exported_as_retrieval_sees_them(tmp_path):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10] = 200
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise when it is shown
    stored = io.BytesIO()
    turned.save(stored, "PNG", exif=exif)
    plain = io.BytesIO()
    Image.fromarray(upright).save(plain, "WEBP", lossless=True)
    members = [("a.png", stored.getvalue()), ("a.txt", b"one\n two \n\nthree"), ("b.webp", plain.getvalue())]
    write_tar(tmp_path / "pairs.tar", [*members, ("b.txt", b"four")])
    config = Config.load({"zeroshot": {"retrieval": {"photos": {"shards": [str(tmp_path / "pairs.tar")]}}}})
    (tmp_path / "out").mkdir()
    assert export_benchmark(config, "photos", tmp_path / "out") == {"test": 2}
    assert (tmp_path / "out/dataset_type.txt").read_text() == "retrieval\n"
    first, second = samples_in(tmp_path / "out/test")
    assert first["txt"].decode().splitlines() == ["one", "two", "three"] and second["txt"] == b"four"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first["png"]))), upright)
    assert second["webp"] == plain.getvalue()
    with pytest.raises(CliptexError, match=r"'train' is not one of \['test'\]"):
        export_benchmark(config, "photos", tmp_path / "out", ["train"])


def test_what_the_layout_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(paths.benchmark("voc"), 1, 1)
    with pytest.raises(CliptexError, match="voc: has neither one class per image nor captions"):
        export_benchmark(Config.load({}), "voc", tmp_path / "out")
    write_imagenet(paths.benchmark("imagenet"), 3, 3)
    monkeypatch.setattr(find("benchmarks", "imagenet"), "class_names", ["dog", "cat ", "car"])
    with pytest.raises(CliptexError, match=r"imagenet: class name 'cat ' cannot be a line of classnames\.txt"):
        export_benchmark(Config.load({}), "imagenet", tmp_path / "out")

"""Installing official data: from the web, from the user's folder, from the benchmark's folder; with small trees."""

import csv
import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from official_layouts import (
    WNIDS,
    write_ade20k,
    write_coco,
    write_davis2017,
    write_imagenet,
    write_nyuv2,
    write_panoptic,
    write_places365,
    write_scannet1500,
    write_spair71k,
    write_voc,
    zip_panoptic,
)
from web_server import PlannedServer

from cliptex.benchmarks.base import Benchmark
from cliptex.benchmarks.reading import source
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import built_in, find
from cliptex.data import web as downloader
from cliptex.data.official import fetch as fetching
from cliptex.data.official.archives import OPTIONAL, archives, receipt
from cliptex.data.official.fetch import fetch, fetch_part
from cliptex.data.official.status import (
    benchmark_marks,
    chosen_variant,
    evaluation_only,
    missing_data,
    official_files,
    part_marks,
)

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TRAIN, EVAL = 6, 4
WRITERS = {
    ("voc", "train"): lambda root: write_voc(root, TRAIN, EVAL),
    ("voc", "trainaug"): lambda root: write_voc(root, TRAIN, EVAL, sbd=2),
    ("ade20k", None): lambda root: write_ade20k(root, TRAIN, EVAL),
    ("coco", None): lambda root: write_coco(root, TRAIN, EVAL),
    ("nyuv2", "bae"): lambda root: write_nyuv2(root, TRAIN, EVAL, 60, 80, "bae", rooms=True),
    ("nyuv2", "dsine"): lambda root: write_nyuv2(root, TRAIN, EVAL, 60, 80, "dsine", rooms=True),
    ("nyuv2", "ladicky"): lambda root: write_nyuv2(root, TRAIN, EVAL, 60, 80, "ladicky", rooms=True),
    ("imagenet", None): lambda root: write_imagenet(root, TRAIN, EVAL),
    ("places365", "easyformat"): lambda root: write_places365(root, TRAIN, EVAL),
    ("places365", "small"): lambda root: write_places365(root, TRAIN, EVAL, variant="small"),
    ("spair71k", None): lambda root: write_spair71k(root, TRAIN, EVAL),
    ("davis2017", None): lambda root: write_davis2017(root, TRAIN, EVAL),
    ("scannet1500", None): lambda root: write_scannet1500(root, EVAL, inside=False),
}
BY_HAND = [("nyuv2", "bae"), ("nyuv2", "dsine"), ("imagenet", None), ("scannet1500", None)]


def counts(name: str, variant: str | None) -> dict[str, int]:
    train = {"train": TRAIN + 2 * (variant == "trainaug")} if find("benchmarks", name).has_training_split else {}
    return train | {"eval": EVAL}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """(benchmark, variant) -> an unpacked data set in the official layout."""
    out = {}
    for (name, variant), write in WRITERS.items():
        root = tmp_path_factory.mktemp(f"{name}-{variant}")
        write(root)
        (root / "miniature.json").unlink()
        out[name, variant] = root
    return out


def pack(tree: Path, name: str, variant: str | None, folder: Path) -> dict[str, bytes]:
    """The official archives of a tree, by name; also written to a folder.

    As the publishers': folders are members, files are in no order, and there are further members.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in archives(name, variant):
        target = folder / row.file
        names = next(found for found in row.alternatives if all((tree / one).exists() for one in found))
        parts = [path for one in names for path in [tree / one, *sorted((tree / one).rglob("*"), reverse=True)]]
        if row.kind == "file":
            shutil.copy(tree / names[0], target)
        elif row.kind == "zip":
            with zipfile.ZipFile(target, "w") as file:
                for path in parts:
                    file.write(path, path.relative_to(tree))
                if row.file == "annotations_trainval2017.zip":
                    file.writestr("annotations/person_keypoints_val2017.json", "{}")
        elif row.kind == "tars":
            with tarfile.open(target, "w") as tar:
                for one in sorted((tree / row.into).iterdir()):
                    inner = io.BytesIO()
                    with tarfile.open(fileobj=inner, mode="w") as file:
                        for path in one.iterdir():
                            file.add(path, path.name)
                    member = tarfile.TarInfo(f"{one.name}.tar")
                    member.size = inner.tell()
                    inner.seek(0)
                    tar.addfile(member, inner)
        else:
            with tarfile.open(target, "w:gz" if target.suffix in (".gz", ".tgz") else "w") as tar:
                for path in parts:
                    tar.add(path, path.relative_to(tree / row.into), recursive=False)
                if row.file == "filelist_places365-standard.tar":
                    tar.add(tree / names[0], "places365_test.txt")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def table(path: Path, name: str, files: dict[str, bytes], url: str = "") -> str:
    """A table of mirrors: digests, and URLs of the files that may be downloaded."""
    lines = ["benchmark\tfile\tbytes\tdigest" + ("\turl" if url else "")]
    for file, data in files.items():
        digest = hashlib.md5(data).hexdigest()
        lines.append(f"{name}\t{file}\t{len(data)}\tmd5:{digest}" + (f"\t{url}/{file}" if url else ""))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def settings(name: str, variant: str | None = None, path: Path | None = None, **data) -> Config:
    given = {"variant": variant, "path": str(path) if path else None}
    benchmarks = {name: given}
    return Config.load(
        {
            "benchmark_data": {"source": "official", "benchmarks": benchmarks, **data},
            "probes": {"benchmarks": {name: {}}},
        }
    )


@pytest.fixture
def small(monkeypatch):
    """Sets the official numbers of samples to those of the small trees: `small(name, variant)`."""

    def set_counts(name, variant=None, **numbers):
        plugin = find("benchmarks", name)
        monkeypatch.setattr(plugin, "official_counts", counts(name, variant) | numbers, raising=False)

    return set_counts


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloader, "PAUSES_S", (0, 0))
    with PlannedServer() as one:
        yield one


def everything(root: Path) -> dict[str, tuple]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted([root, *root.rglob("*")])
    }


def assert_same_samples(name: str, root: Path, tree: Path, variant: str | None) -> None:
    """Samples read from `root` are those of the tree."""
    found, wanted = find("benchmarks", name)(root), find("benchmarks", name)(tree, {"variant": variant})
    if variant == "ladicky":
        fetching.find("benchmarks", name)(tree, {"variant": variant}).prepare()
    assert found.source == "official" and found.variant == variant
    for part in wanted.parts:
        ours, theirs = found.samples(part), wanted.samples(part)
        assert [sample["id"] for sample in ours] == [sample["id"] for sample in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for key in one.keys() - {"file", "truth_file"}:
                np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize(("name", "variant"), [key for key in WRITERS if key not in BY_HAND])
def test_archives_from_the_web_become_a_benchmark(tmp_path, monkeypatch, trees, server, small, name, variant):
    monkeypatch.chdir(tmp_path)
    small(name, variant)
    files = pack(trees[name, variant], name, variant, tmp_path / "packed")
    server.files = {f"/{file}": data for file, data in files.items()}
    server.plan = ["cut", 503]  # it goes on where it was
    config = settings(name, variant, archives=table(tmp_path / "mirrors.tsv", name, files, server.url))
    root = paths.benchmark(name)
    mark = fetch(config, name, root)
    assert mark["counts"] == counts(name, variant) and source(root) == "official"
    assert [record["file"] for record in mark["archives"]] == [row.file for row in archives(name, variant)]
    assert all(record["from"] == "download" and record["terms"] for record in mark["archives"])
    assert {record["digest"] for record in mark["archives"]} == {
        f"md5:{hashlib.md5(data).hexdigest()}" for data in files.values()
    }
    assert json.loads((root / "official.json").read_text())["terms"]
    assert_same_samples(name, root, trees[name, variant], variant)
    assert not list(paths.ARCHIVES.glob("[!.]*"))  # unpacked archives are not kept
    # once more: nothing is fetched or unpacked, and the mark has the same bytes
    before, asked = (root / "official.json").read_bytes(), len(server.asked)
    (root / "official.json").unlink()
    fetch(config, name, root)
    assert (root / "official.json").read_bytes() == before and len(server.asked) == asked


@pytest.mark.parametrize(("name", "variant"), list(WRITERS))
@pytest.mark.parametrize("form", ["archives", "trees"])
def test_a_folder_of_the_users_is_used_and_not_touched(tmp_path, monkeypatch, trees, small, form, name, variant):
    monkeypatch.chdir(tmp_path)
    small(name, variant)
    files = pack(trees[name, variant], name, variant, tmp_path / "packed")
    users = tmp_path / "packed" if form == "archives" else tmp_path / "tree"
    if form == "trees":
        shutil.copytree(trees[name, variant], users)
    before = everything(users)
    config = settings(name, variant, users, archives=table(tmp_path / "digests.tsv", name, files))
    root = paths.benchmark(name)
    mark = fetch(config, name, root)
    assert everything(users) == before
    assert mark["counts"] == counts(name, variant)
    assert_same_samples(name, root, trees[name, variant], variant)
    for record in mark["archives"]:
        assert record["from"].startswith(str(users))
    shutil.rmtree(root)  # what the remedy of an error may be: the user's files stay
    assert everything(users) == before


EVALUATIONS = {
    ("coco", None): {"retrieval": {"captions": None, "coco_captions": {"benchmark": "coco"}}},
    ("imagenet", None): {"benchmarks": ["imagenet"]},
    ("places365", "small"): {"benchmarks": ["places365"]},
}


@pytest.mark.parametrize(("name", "variant"), EVALUATIONS)
def test_a_benchmark_that_is_only_evaluated_needs_no_training_split(tmp_path, monkeypatch, trees, small, name, variant):
    """Later the training split is added, and what is there is kept."""
    monkeypatch.chdir(tmp_path)
    small(name, variant)
    monkeypatch.setattr("cliptex.benchmarks.imagenet.official_wnids", lambda: WNIDS)
    pack(trees[name, variant], name, variant, tmp_path / "packed")
    train = [row for row in archives(name, variant) if row.part == "train"]
    kept = tmp_path / "packed" / train[0].file
    kept.rename(tmp_path / kept.name)
    files = {path.name: path.read_bytes() for path in [*(tmp_path / "packed").iterdir(), tmp_path / kept.name]}
    data = {"source": "official", "archives": table(tmp_path / "digests.tsv", name, files)}
    data["benchmarks"] = {name: {"variant": variant, "path": str(tmp_path / "packed")}}
    evaluated = Config.load({"benchmark_data": data, "zeroshot": EVALUATIONS[name, variant]})
    planned = [file["file"] for file in official_files(evaluated)[name]]
    assert len(train) == 1 and planned == [row.file for row in archives(name, variant) if row.part != "train"]
    root = paths.benchmark(name)
    mark = fetch(evaluated, name, root)
    assert mark["counts"] == {"eval": EVAL} and mark["evaluation_only"] is True
    reader, whole = find("benchmarks", name)(root), find("benchmarks", name)(trees[name, variant], {"variant": variant})
    assert [sample["id"] for sample in reader.samples("eval")] == [sample["id"] for sample in whole.samples("eval")]
    assert name == "imagenet" or reader.class_names == whole.class_names
    if name == "coco":
        assert len(reader.captions("eval")) == EVAL
    with pytest.raises(CliptexError, match=f"{name}: only the data of the evaluation split were fetched; with"):
        reader.samples("train")
    assert evaluation_only(evaluated, name) and official_files(evaluated) == {}
    probed = Config.load({"benchmark_data": data, "probes": {"benchmarks": {name: {}}}})
    assert not evaluation_only(probed, name)
    (tmp_path / kept.name).rename(kept)
    assert "evaluation_only" not in fetch(probed, name, root)
    assert len(find("benchmarks", name)(root).samples("train")) == TRAIN
    assert not evaluation_only(evaluated, name)  # what is there stays


def panoptic(path: Path | None, classes: str = "panoptic", **data) -> Config:
    """A configuration that evaluates COCO's regions without training. path: the user's folder."""
    given = {"source": "official", "benchmarks": {"coco": {"path": str(path) if path else None}}, **data}
    section = {"classes": classes, "variants": {"boxes": {"region": "box"}}}
    entry = {"protocol": "miniature", "region_classification": section, "digest": "0"}
    return Config.load({"benchmark_data": given, "training_free": {"benchmarks": {"coco": entry}}})


PANOPTIC = "panoptic_annotations_trainval2017.zip"


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.fixture
def annotated(tmp_path, trees):
    """COCO's tree with panoptic annotations, and a folder with its archives but that of these."""
    tree = tmp_path / "tree"
    shutil.copytree(trees["coco", None], tree)
    images = json.loads((tree / "annotations/instances_val2017.json").read_text())["images"]
    pack(tree, "coco", None, tmp_path / "packed")
    write_panoptic(tree, {image["id"]: (image["height"], image["width"]) for image in images})
    return tree, tmp_path / "packed"


def test_panoptic_annotations_are_fetched_where_a_protocol_needs_them(tmp_path, monkeypatch, annotated, server, small):
    """From the publishers' zip of zips. Nothing that is there is fetched again."""
    monkeypatch.chdir(tmp_path)
    small("coco")
    tree, packed = annotated
    files = {path.name: path.read_bytes() for path in [*packed.iterdir(), zip_panoptic(tree, tmp_path / PANOPTIC)]}
    server.files = {f"/{file}": data for file, data in files.items()}
    mirrors = table(tmp_path / "mirrors.tsv", "coco", files, server.url)
    things, config = panoptic(None, "things", archives=mirrors), panoptic(None, archives=mirrors)
    planned = [[file["file"] for file in official_files(one)["coco"]] for one in (things, config)]
    assert planned == [["annotations_trainval2017.zip", "val2017.zip"], [*planned[0], PANOPTIC]]
    root = paths.benchmark("coco")
    with pytest.raises(CliptexError, match=r"coco: the benchmark itself is not installed; .*fetch --benchmark coco$"):
        fetch_part(config, "coco", root, "panoptic")
    fetch(things, "coco", root)
    mark, asked = (root / "official.json").read_bytes(), len(server.asked)
    assert part_marks(things) == {} and official_files(things) == {}
    assert part_marks(config) == {"coco": ["resources/coco/panoptic.json"]}
    assert [file["file"] for file in official_files(config)["coco"]] == [PANOPTIC]
    for _ in range(2):
        found = fetch_part(config, "coco", root, "panoptic")
        assert found["counts"] == {"eval": EVAL} and found["archives"][0]["files"] == EVAL + 1
    assert [path for path, _ in server.asked[asked:]] == [f"/{PANOPTIC}"]
    names = {path.relative_to(tree).as_posix() for path in (tree / "annotations").rglob("panoptic*/*.png")}
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.png")} == names and len(names) == EVAL
    assert not list(root.rglob("panoptic_train2017*")) and not list(root.rglob("*.zip"))
    assert part_marks(config) and official_files(config) == {}
    assert (root / "official.json").read_bytes() == mark
    regions = find("benchmarks", "coco")(root).stuff("eval")
    assert regions.class_names == ["sky-other-merged", "grass-merged"]


@pytest.mark.parametrize("form", ["unpacked", "archive"])
def test_panoptic_annotations_of_the_users_are_used_and_his_folder_is_not_touched(
    tmp_path, monkeypatch, annotated, small, form
):
    """Also if the other annotations are a link to the user's folder, into which nothing may be unpacked."""
    monkeypatch.chdir(tmp_path)
    small("coco")
    tree, _ = annotated
    if form == "archive":
        zip_panoptic(tree, tree / PANOPTIC)
        shutil.rmtree(tree / "annotations/panoptic_val2017")
    before = everything(tree)
    files = {PANOPTIC: (tree / PANOPTIC).read_bytes()} if form == "archive" else {}
    config = panoptic(tree, archives=table(tmp_path / "digests.tsv", "coco", files))
    root = paths.benchmark("coco")
    fetch(config, "coco", root)
    assert (root / "annotations").is_symlink()
    # what the user has unpacked needs no job; finished runs have none
    assert part_marks(config) == ({} if form == "unpacked" else {"coco": ["resources/coco/panoptic.json"]})
    if form == "archive":
        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_part(config, "coco", root, "panoptic")
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        small("coco")
    for _ in range(2):
        assert fetch_part(config, "coco", root, "panoptic")["archives"][0]["from"].startswith(str(tree))
    assert len(find("benchmarks", "coco")(root).captions("eval")) == EVAL
    assert everything(tree) == before


def test_panoptic_annotations_that_do_not_fit_are_named(tmp_path, monkeypatch, annotated, small):
    monkeypatch.chdir(tmp_path)
    small("coco")
    tree, _ = annotated
    config, root = panoptic(tree), paths.benchmark("coco")
    fetch(config, "coco", root)
    path = sorted((tree / "annotations/panoptic_val2017").iterdir())[1]
    path.rename(tmp_path / path.name)
    with pytest.raises(CliptexError, match=rf"{path.name}: is missing.*; .* --part panoptic"):
        fetch_part(config, "coco", root, "panoptic")
    file = tree / "annotations/panoptic_val2017.json"
    file.write_text(file.read_text().replace(f'"image_id": {int(path.stem)}', '"image_id": 7'))
    with pytest.raises(CliptexError, match=rf"panoptic_val2017\.json: has no image {int(path.stem)}; "):
        fetch_part(config, "coco", root, "panoptic")
    with pytest.raises(CliptexError, match="--part: coco has no part 'stuff'; leave the option out"):
        fetch_part(config, "coco", root, "stuff")
    rendered = panoptic(None, source="miniature")
    with pytest.raises(CliptexError, match=r"classes: the rendered coco has no panoptic annotations; set it to things"):
        part_marks(rendered)


def test_what_lies_in_place_is_checked_and_marked(tmp_path, monkeypatch, trees, small):
    """Installed manually in the benchmark's folder."""
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    root = paths.benchmark("ade20k")
    shutil.copytree(trees["ade20k", None], root)
    mark = fetch(settings("ade20k"), "ade20k", root)
    assert mark["archives"][0]["from"] == str(root.absolute()) and mark["archives"][0]["digest"] is None
    assert source(root) == "official"


def test_a_wrong_number_of_samples_is_an_error_with_both_numbers(tmp_path, monkeypatch, trees, small):
    monkeypatch.chdir(tmp_path)
    small("ade20k", train=20_210)
    with pytest.raises(CliptexError, match=r"ade20k: 6 samples to train, officially 20,210; .*docs/data\.md"):
        fetch(settings("ade20k", path=trees["ade20k", None]), "ade20k", paths.benchmark("ade20k"))
    assert not paths.benchmark_mark("ade20k", "official").exists()
    with pytest.raises(CliptexError, match="has neither miniature"):
        source(paths.benchmark("ade20k"))


@pytest.mark.parametrize("name", ["ade20k", "coco", "nyuv2"])
def test_a_users_subset_needs_no_official_number_or_digest(tmp_path, monkeypatch, trees, name):
    """The official counts are in force here, which the small trees do not have."""
    monkeypatch.chdir(tmp_path)
    variant = "bae" if name == "nyuv2" else None
    tree, root = trees[name, variant], paths.benchmark(name)
    config = settings(name, path=tree)
    entry = config.benchmark_data.benchmarks[name].model_copy(update={"source": "subset"})
    config = config.model_copy(
        update={"benchmark_data": config.benchmark_data.model_copy(update={"benchmarks": {name: entry}})}
    )
    assert {file["how"] for file in official_files(config)[name]} == {"tree"} and missing_data(config) == []
    mark = fetch(config, name, root)
    assert mark["source"] == source(root) == "subset" and mark["counts"] == counts(name, variant)
    data = find("benchmarks", name)(root)
    assert len(data.samples("eval")) == EVAL and data.expected("eval") is None
    assert benchmark_marks(config)[name] == str(paths.benchmark_mark(name, "subset"))
    with pytest.raises(CliptexError, match=r"has source 'subset', the configuration 'official'; use another"):
        benchmark_marks(settings(name, path=tree))
    paths.benchmark_mark(name, "miniature").write_text("{}")
    with pytest.raises(CliptexError, match=rf"source 'miniature', .* 'official'; .* or move resources/{name} away"):
        benchmark_marks(settings(name, path=tree))


def test_a_subset_is_not_completed_from_the_web(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/ADEChallengeData").mkdir(parents=True)
    given = {"ade20k": {"source": "subset", "path": str(tmp_path / "mine")}}
    config = Config.load({"benchmark_data": {"benchmarks": given}, "probes": {"benchmarks": {"ade20k": {}}}})
    (line,) = missing_data(config)
    assert line.endswith("has no ADEChallengeData2016, which a subset needs in the official layout, unpacked")
    with pytest.raises(CliptexError, match=r"mine: contains no ADEChallengeData2016, which a subset needs"):
        fetch(config, "ade20k", paths.benchmark("ade20k"))


def test_an_archive_of_another_digest_is_not_unpacked(tmp_path, monkeypatch, trees, server, small):
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    files = pack(trees["ade20k", None], "ade20k", None, tmp_path / "packed")
    mirrors = table(tmp_path / "mirrors.tsv", "ade20k", files, server.url)
    server.files = {"/ADEChallengeData2016.zip": b"another archive"}
    root = paths.benchmark("ade20k")
    with pytest.raises(CliptexError, match=r"ADEChallengeData2016\.zip is not the expected file: its MD5 is"):
        fetch(settings("ade20k", archives=mirrors), "ade20k", root)
    assert not (root / "ADEChallengeData2016").exists() and not list(paths.ARCHIVES.glob("*.zip"))
    path = tmp_path / "packed/ADEChallengeData2016.zip"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CliptexError, match=r"benchmarks\.ade20k\.path: .*zip is not the expected file: .* copy it again"
    ):
        fetch(settings("ade20k", path=tmp_path / "packed", archives=mirrors), "ade20k", root)
    assert path.exists() and not (root / "ADEChallengeData2016").exists()


@pytest.mark.parametrize("moment", ["unpack", "write_json", "_check"])
def test_killed_at_any_moment_it_goes_on_and_is_done_once(tmp_path, monkeypatch, trees, server, small, moment):
    """During unpacking, before the receipt is written, and while samples are checked."""
    monkeypatch.chdir(tmp_path)
    small("coco")
    files = pack(trees["coco", None], "coco", None, tmp_path / "packed")
    server.files = {f"/{file}": data for file, data in files.items()}
    config = settings("coco", archives=table(tmp_path / "mirrors.tsv", "coco", files, server.url))
    root, calls, real = paths.benchmark("coco"), [], getattr(fetching, moment)

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == (2 if moment == "unpack" else 1):
            if moment == "unpack":
                real(*arguments[:3], ("val2017/*2.jpg",), **options)
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(fetching, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(config, "coco", root)
    assert not (root / "official.json").exists()
    monkeypatch.setattr(fetching, moment, real)
    assert fetch(config, "coco", root)["counts"] == counts("coco", None)
    assert_same_samples("coco", root, trees["coco", None], None)
    assert sorted(path for path, _ in server.asked) == sorted(server.files)


def test_what_must_be_got_by_hand_is_named(tmp_path, monkeypatch, trees, small):
    monkeypatch.chdir(tmp_path)
    root = paths.benchmark("imagenet")
    with pytest.raises(
        CliptexError,
        match=r"imagenet\.path: is not set; set it to a folder with ILSVRC2012_img_train\.tar or train, .*manually",
    ):
        fetch(settings("imagenet"), "imagenet", root)
    (tmp_path / "given").mkdir()
    with pytest.raises(
        CliptexError, match=r"given: contains neither ILSVRC2012_img_train\.tar nor train, .*an agreement"
    ):
        fetch(settings("imagenet", path=tmp_path / "given"), "imagenet", root)
    with pytest.raises(CliptexError, match=r"imagenet\.path: .*/elsewhere is not a folder"):
        fetch(settings("imagenet", path=tmp_path / "elsewhere"), "imagenet", root)


def test_imagenet_sorted_into_folders_needs_no_devkit(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    small("imagenet")
    write_imagenet(tmp_path / "given", TRAIN, 12, flat=False)
    (tmp_path / "given/val" / WNIDS[0] / "note.txt").touch()
    small("imagenet", eval=12)
    mark = fetch(settings("imagenet", path=tmp_path / "given"), "imagenet", paths.benchmark("imagenet"))
    assert [record["file"] for record in mark["archives"]] == ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]


def test_a_folder_with_new_data_takes_the_place_of_an_old_one(tmp_path, monkeypatch, trees, small):
    """The old folder is gone; the new archive is not unpacked through a dangling link."""
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    files = pack(trees["ade20k", None], "ade20k", None, tmp_path / "packed")
    shutil.copytree(trees["ade20k", None], tmp_path / "old")
    root, digests = paths.benchmark("ade20k"), table(tmp_path / "digests.tsv", "ade20k", files)
    fetch(settings("ade20k", path=tmp_path / "old"), "ade20k", root)
    assert (root / "ADEChallengeData2016").is_symlink()
    (tmp_path / "old").rename(tmp_path / "moved")
    fetch(settings("ade20k", path=tmp_path / "packed", archives=digests), "ade20k", root)
    assert (root / "ADEChallengeData2016").is_dir() and not (root / "ADEChallengeData2016").is_symlink()
    (tmp_path / "moved").rename(tmp_path / "old")


def test_nyuv2_axes_of_the_normals_are_written_down(tmp_path, monkeypatch, small):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    small("nyuv2")
    tree = write_nyuv2(tmp_path / "tree", TRAIN, EVAL, 60, 80, "bae", rooms=True)
    straight = find("benchmarks", "nyuv2")(tree).samples("eval")[1]["normals"]
    for path in tree.rglob("norm/*.png"):  # with x to the left and z towards the camera
        pixels = np.asarray(Image.open(path)).copy()
        valid = pixels.any(-1)
        pixels[valid] = np.where([True, False, True], 255 - pixels[valid], pixels[valid])
        Image.fromarray(pixels).save(path)
    root = paths.benchmark("nyuv2")
    files = {file: (tree / file).read_bytes() for file in ("splits.mat", "nyu_depth_v2_labeled.mat")}
    config = settings("nyuv2", "bae", tree, archives=table(tmp_path / "digests.tsv", "nyuv2", files))
    mark = fetch(config, "nyuv2", root)
    assert mark["axes"] == {"order": [0, 1, 2], "signs": [-1, 1, -1]} and mark["cosine_with_depth"] > 0.9
    np.testing.assert_allclose(find("benchmarks", "nyuv2")(root).samples("eval")[1]["normals"], straight, atol=0.01)
    for path in sorted(tree.rglob("norm/*.png")):  # numbered from 1: those of the picture before
        path.rename(path.with_name(f"{int(path.stem) + 1:06d}.png"))
    with pytest.raises(CliptexError, match=r"\.png: is missing"):
        fetch(config, "nyuv2", root)


def test_rendered_data_are_not_mixed_with_official_ones(tmp_path, monkeypatch, trees):
    monkeypatch.chdir(tmp_path)
    root = paths.benchmark("ade20k")
    root.mkdir(parents=True)
    (root / ".miniature").touch()
    with pytest.raises(CliptexError, match="ade20k: contains rendered data"):
        fetch(settings("ade20k", path=trees["ade20k", None]), "ade20k", root)
    with pytest.raises(CliptexError, match="ade20k's data are rendered in this configuration"):
        fetch(Config.load({}), "ade20k", root)


def test_downloaded_archives_are_kept_on_request(tmp_path, monkeypatch, trees, server, small):
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    files = pack(trees["ade20k", None], "ade20k", None, tmp_path / "packed")
    server.files = {f"/{file}": data for file, data in files.items()}
    mirrors = table(tmp_path / "mirrors.tsv", "ade20k", files, server.url)
    fetch(settings("ade20k", archives=mirrors, keep_archives=True), "ade20k", paths.benchmark("ade20k"))
    assert (paths.ARCHIVES / "ADEChallengeData2016.zip").read_bytes() == files["ADEChallengeData2016.zip"]


def test_archives_of_the_users_are_kept_also_where_ours_lie(tmp_path, monkeypatch, trees, small):
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    files = pack(trees["ade20k", None], "ade20k", None, paths.ARCHIVES)
    before = everything(paths.ARCHIVES)
    digests = table(tmp_path / "digests.tsv", "ade20k", files)
    fetch(settings("ade20k", path=paths.ARCHIVES, archives=digests), "ade20k", paths.benchmark("ade20k"))
    assert everything(paths.ARCHIVES) == before
    shutil.rmtree(paths.benchmark("ade20k"))
    path = paths.ARCHIVES / "ADEChallengeData2016.zip"
    path.write_bytes(b"something else")
    with pytest.raises(CliptexError, match=r"resources/archives/ADE.*zip is not the expected file: .*move it away"):
        fetch(settings("ade20k", archives=digests), "ade20k", paths.benchmark("ade20k"))
    assert path.read_bytes() == b"something else"


class Mine(Benchmark):
    """A user's benchmark that is not in the table."""

    name, tasks, class_names = "mine", ("classification",), ("a", "b")

    def read(self, part):
        return [{"id": path.name} for path in sorted((self.root / part).iterdir())]


def test_a_benchmark_is_one_file_and_its_data_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("cliptex.benchmarks.mine")
    module.PLUGIN = Mine
    monkeypatch.setitem(sys.modules, "cliptex.benchmarks.mine", module)
    assert importlib.import_module("cliptex.benchmarks.mine").PLUGIN is Mine
    root = paths.benchmark("mine")
    with pytest.raises(CliptexError, match=r"mine\.path: is not set; set it to the folder with its data"):
        fetch(settings("mine"), "mine", root)
    for part in ("train", "eval"):
        (tmp_path / "given" / part).mkdir(parents=True)
        (tmp_path / "given" / part / "1.jpg").touch()
    mark = fetch(settings("mine", path=tmp_path / "given"), "mine", root)
    assert mark["counts"] == {"train": 1, "eval": 1} and source(root) == "official"
    assert missing_data(settings("mine", path=tmp_path / "given")) == []


# ---- tables and plans


def test_the_packages_table_is_what_the_sources_say():
    """Sizes and digests are those of published_archives.tsv, which names a source for each file; a size with "~" is a
    rounded one. What needs a browser, or is not checked and not of the first benchmarks, has no URL."""
    with (ROOT / "tests/published_archives.tsv").open() as file:
        published = {row["file"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    assert all(row["source"] for row in published.values())
    every = [
        *WRITERS,
        *((name, next(iter(find("benchmarks", name).variants), None)) for name in built_in("benchmarks")),
    ]
    rows = [(name, row) for name, variant in every for row in archives(name, variant)]
    rows += [(name, row) for name, variant in every for part in OPTIONAL for row in archives(name, variant, None, part)]
    assert {row.file for _, row in rows} == published.keys()
    for name, row in rows:
        file = row.file
        size, digest = published[file]["bytes"], published[file]["digest"]
        assert row.digest == digest and row.terms, file
        if size.startswith("~"):
            assert row.bytes == pytest.approx(int(size[1:]), rel=0.05), file
        else:
            assert row.bytes == (int(size) if size else None), file
        by_hand = name in ("imagenet", "cityscapes")
        by_hand |= file in ("nyu_dataset.zip", "dsine_eval.zip", "scannet_test_1500.tar")
        first = any(name == one for one, _ in WRITERS)
        assert bool(row.url) == (not by_hand and (first or bool(row.digest))), file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmark\tfile\tadress\n", "'adress' is not a column"),
        ("benchmark\tfile\tdigest\nvoc\tbenchmark.tgz\tmd5:12\n", r"line 2: 'md5:12' is not valid in column digest"),
        ("benchmark\tfile\turl\nvoc\tbenchmark.tgz\tfile:///etc/passwd\n", "is not valid in column url"),
        ("benchmark\tfile\tgives\nvoc\tbenchmark.tgz\t../x\n", "is not valid in column gives"),
        ("benchmark\tfile\tbytes\nvoc\tbenchmark.tgz\tmany\n", "'many' is not valid in column bytes"),
        ("benchmark\tfile\turl\nvoc\tbenchmark.tgz\n", "line 2: does not have 3 columns"),
        (
            "benchmark\tfile\turl\nvoc\tnew.tar\thttp://a/new.tar\n",
            "a new file needs all columns; missing: variant, kind",
        ),
        (None, r"benchmark_data\.archives: .* cannot be read"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, text, message):
    path = tmp_path / "mirrors.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CliptexError, match=message):
        archives("voc", "trainaug", str(path))


def test_a_mirror_changes_what_its_columns_say_and_nothing_else(tmp_path):
    path = tmp_path / "mirrors.tsv"
    path.write_text("benchmark\tfile\turl\nvoc\tbenchmark.tgz\thttp://mirror/benchmark.tgz\n")
    ours, theirs = archives("voc", "trainaug"), archives("voc", "trainaug", str(path))
    assert theirs[0] == ours[0] and theirs[1].url == "http://mirror/benchmark.tgz"
    assert theirs[1].digest == ours[1].digest == "md5:82b4d87ceb2ed10f6038a1cba92111cb"


def test_a_plan_says_what_is_downloaded_and_what_must_be_got(tmp_path, monkeypatch, trees, small):
    monkeypatch.chdir(tmp_path)
    config = Config.load(
        {
            "dataset": {"source": "webdataset", "shards": ["a.tar"]},
            "benchmark_data": {
                "benchmarks": {
                    "voc": {"variant": "trainaug"},
                    "nyuv2": {"path": "given"},
                    "coco": {"source": "miniature"},
                }
            },
            "probes": {"benchmarks": {"voc": {}, "nyuv2": {}, "coco": {}}},
            "zeroshot": {"benchmarks": ["imagenet"]},
        }
    )
    (tmp_path / "given").mkdir()
    found = official_files(config)
    assert {name: [(one["file"], one["how"]) for one in files] for name, files in found.items()} == {
        "voc": [("VOCtrainval_11-May-2012.tar", "download"), ("benchmark.tgz", "download")],
        "nyuv2": [
            *(("splits.mat", "download"), ("nyu_depth_v2_labeled.mat", "download"), ("nyu_dataset.zip", "missing")),
        ],
        # nothing is trained on it
        "imagenet": [("ILSVRC2012_img_val.tar", "missing"), ("ILSVRC2012_devkit_t12.tar.gz", "missing")],
    }
    assert [line.split("; ")[0] for line in missing_data(config)] == [
        "nyuv2: download nyu_dataset.zip manually",
        "imagenet: download ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz manually",
    ]
    assert benchmark_marks(config) == {
        "voc": "resources/voc/official.json",
        "nyuv2": "resources/nyuv2/official.json",
        "coco": "resources/coco/miniature.json",
        "imagenet": "resources/imagenet/official.json",
    }
    paths.benchmark("voc").mkdir(parents=True)
    (paths.benchmark("voc") / "official.json").write_text("{}")
    assert "voc" not in official_files(config)


def test_a_variant_that_there_is_not_is_named():
    assert chosen_variant(settings("voc"), "voc") == "train"
    assert chosen_variant(settings("coco"), "coco") is None
    with pytest.raises(CliptexError, match=r"voc\.variant: 'sbd' is not one of train, trainaug"):
        benchmark_marks(settings("voc", "sbd"))
    with pytest.raises(CliptexError, match=r"coco\.variant: 'x' is not allowed; coco has no variants"):
        benchmark_marks(settings("coco", "x"))
    with pytest.raises(CliptexError, match="benchmarks: 'vco' is neither a module"):
        benchmark_marks(settings("vco"))


def test_a_receipt_counts_only_while_what_it_speaks_of_is_there(tmp_path, monkeypatch, trees, small):
    monkeypatch.chdir(tmp_path)
    small("ade20k")
    files = pack(trees["ade20k", None], "ade20k", None, tmp_path / "packed")
    config = settings("ade20k", path=tmp_path / "packed", archives=table(tmp_path / "digests.tsv", "ade20k", files))
    root = paths.benchmark("ade20k")
    fetch(config, "ade20k", root)
    assert receipt(root, archives("ade20k", None)[0]).exists()
    shutil.rmtree(root / "ADEChallengeData2016")
    assert fetch(config, "ade20k", root)["counts"] == counts("ade20k", None)


# ---- the workflow


def tiny_voc(more: int = 10_582 - 1464) -> dict[str, bytes]:
    """VOC's and SBD's archives with the official number of images, of a few pixels. more: those only in SBD."""
    from PIL import Image
    from scipy.io import savemat

    picture, mask, classes = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(picture, "JPEG")
    indices = Image.fromarray(np.eye(4, dtype=np.uint8) * 7)
    indices.putpalette(bytes(768))
    indices.save(mask, "PNG")
    kind = [("Segmentation", "O")]
    savemat(classes, {"GTcls": np.array([[(np.eye(4, dtype=np.uint8),)]], dtype=kind)})
    names = {
        "train": [f"2007_{n:06d}" for n in range(1464)],
        "val": [f"2008_{n:06d}" for n in range(1449)],
        "more": [f"2009_{n:06d}" for n in range(more)],
    }
    voc, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    content = {f"{voc}/JPEGImages/{name}.jpg": picture.getvalue() for part in names.values() for name in part}
    for split in ("train", "val"):
        content[f"{voc}/ImageSets/Segmentation/{split}.txt"] = "\n".join(names[split]).encode()
        content |= {f"{voc}/SegmentationClass/{name}.png": mask.getvalue() for name in names[split]}
    more = {f"{sbd}/cls/{name}.mat": classes.getvalue() for name in names["more"]}
    more |= {f"{sbd}/train.txt": "\n".join(names["more"]).encode(), f"{sbd}/val.txt": names["val"][0].encode()}
    out = {}
    for file, members in (("VOCtrainval_11-May-2012.tar", content), ("benchmark.tgz", more)):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz" if file.endswith("gz") else "w") as tar:
            for name, body in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        out[file] = data.getvalue()
    return out


def test_the_workflow_fetches_official_data_before_it_probes(tmp_path, server):
    """As many images as VOC and SBD have, from a mirror; the plan of the probes then needs no further data."""
    files = tiny_voc()
    server.files = {f"/{file}": data for file, data in files.items()}
    given = {
        "source": "official",
        "archives": table(tmp_path / "mirrors.tsv", "voc", files, server.url),
        "benchmarks": {"voc": {"variant": "trainaug"}},
    }
    regions = {"benchmarks": {"coco": {"region_classification": {"classes": "panoptic"}}}}
    (tmp_path / "official.yaml").write_text(json.dumps({"benchmark_data": given, "training_free": regions}))

    def snakemake(*arguments):
        command = [BIN / "snakemake", *arguments, "--cores", "1", "--snakefile", ROOT / "Snakefile"]
        command += ["--directory", tmp_path / "run"]
        command += ["--configfile", ROOT / "config/test.yaml", tmp_path / "official.yaml"]
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout + result.stderr

    mark = "resources/voc/official.json"
    said = snakemake(mark)
    found = json.loads((tmp_path / "run" / mark).read_text())
    assert found["counts"] == {"train": 10_582, "eval": 1_449} and found["variant"] == "trainaug"
    assert [record["files"] for record in found["archives"]] == [10_582 + 1449 + 1464 + 1449 + 2, 10_582 - 1464 + 2]
    assert "imagenet: download ILSVRC2012_img_train.tar" in said  # what the other benchmarks of this configuration lack
    data = find("benchmarks", "voc")(tmp_path / "run/resources/voc")
    assert data.source == "official" and data.samples("train")[10_000]["mask"].tolist() == np.eye(4).tolist()
    targets = [f"results/{name}.json" for name in ("probes/voc", "probes/ade20k", "training_free/coco")]
    planned = snakemake(*targets, "--dry-run", "--printshellcmds")
    names = ("fetch_benchmark", "fetch_panoptic", "render_benchmark", "probe_voc_0")
    # VOC's data are there, ADE20K's and COCO's not
    assert [planned.count(f"rule {name}:") for name in names] == [2, 1, 0, 1]

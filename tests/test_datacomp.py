"""The suite of DataComp's sets, published scores of released models, and few-shot probes on clip_benchmark's layout."""

import csv
import io

import numpy as np
import pytest
import torch
from official_layouts import write_imagenet
from PIL import Image
from tiny import TINY

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.data.shards import write_tar
from cliptex.evaluation import few_shot
from cliptex.evaluation.clip_benchmark import clip_benchmark_files, few_shot_files, write_table
from cliptex.evaluation.export_benchmark import export_benchmark
from cliptex.evaluation.few_shot import draw, run_few_shot, samples_of
from cliptex.evaluation.suites import (
    PUBLISHED,
    dataset_root,
    datasets_of,
    evaluation_sets,
    few_shot_datasets,
    published_scores,
    sets_run,
)
from cliptex.models import clip

RELEASED = {"student": {"architecture": "ViT-B-16", "pretrained": "openai"}}
OUT = "results/clip_benchmark/table.json"


def loaded(**options):
    section = {"suite": "datacomp"} | options
    models = {"clip": {}, "cliptex": {"init": "clip", "steps": 1}}
    return Config.load(RELEASED | {"models": models, "seeds": [0, 1], "clip_benchmark": section})


def write_results(config, score):
    """A result file of clip_benchmark for every set. score: of a set, a model and a seed, percent."""
    sets = {one.dataset: one for one in evaluation_sets("datacomp")}
    names = {dataset.replace("/", "-"): dataset for dataset in datasets_of(config.clip_benchmark)}
    for path in clip_benchmark_files(config):
        dataset, model, seed = names[path.parts[-3]], path.parts[-2], int(path.stem.removeprefix("seed"))
        value = score(sets.get(dataset), model, seed)
        metrics = {"top1": value, "mean_per_class_recall": value}
        if sets.get(dataset) and sets[dataset].metric == "top1":
            metrics["mean_per_class_recall"] = 0.0
        elif sets.get(dataset) and sets[dataset].metric == "mean_per_class_recall":
            metrics["top1"] = 0.0
        else:  # the suite's metric is the mean of both directions
            metrics = {"image_to_text R@1": value + 8, "text_to_image R@1": value - 8}
        row = {"dataset": dataset, "task": "t", "split": "test", "model": model, "seed": seed, "metrics": metrics}
        provenance = {"model_sha256": {f"{model}/seed{seed}": f"{model}{seed}"}}
        write_json(path, row | {"clip_benchmark": "1.6.1", "provenance": provenance})


def published():
    return published_scores(PUBLISHED, "ViT-B-16", "openai", sets_run(loaded().clip_benchmark))


def test_the_suite_has_the_sets_of_open_clips_table():
    with PUBLISHED.open(newline="") as file:
        header, *rows = csv.reader(file)
    sets = evaluation_sets("datacomp")
    assert [one.name for one in sets] == header[5:] and len(sets) == 38
    # every row's own average is that of the 38 columns, so none is missing
    for row in rows:
        assert np.mean([float(cell) for cell in row[5:]]) == pytest.approx(float(row[4]), abs=1e-4)
    left_out = [one.name for one in sets if one.not_run]
    assert left_out == ["WinoGAViL", "iWildCam", "FMoW", "Dollar Street", "GeoDE"]
    assert len(sets_run(loaded().clip_benchmark)) == 33


def test_one_line_runs_the_suite_and_data_sets_can_be_added():
    config = Config.load({"clip_benchmark": {"suite": "datacomp", "datasets": {"wds/fer2013": "auto"}}})
    tasks = datasets_of(config.clip_benchmark)
    assert len(tasks) == 34 and tasks["wds/fer2013"] == "auto" and tasks["wds/flickr30k"] == "zeroshot_retrieval"
    assert datasets_of(Config.load({}).clip_benchmark) == {}
    with pytest.raises(
        CliptexError, match="'wds/vtab-pets' and the suite's 'wds/vtab/pets' would write the same files"
    ):
        datasets_of(
            Config.load({"clip_benchmark": {"suite": "datacomp", "datasets": {"wds/vtab-pets": "auto"}}}).clip_benchmark
        )


def test_an_unset_suite_changes_no_recorded_value():
    assert Config.load({}).plain()["clip_benchmark"].keys() == {"datasets", "root", "split", "batch_size", "workers"}


def test_without_a_root_the_suite_comes_from_the_hub_unless_its_folder_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = loaded().clip_benchmark
    hub = "https://huggingface.co/datasets/djghosh/wds_vtab-caltech101_test/tree/main"
    assert dataset_root(options, "wds/vtab/caltech101") == hub
    trained = "https://huggingface.co/datasets/clip-benchmark/wds_vtab-caltech101/tree/main"
    assert dataset_root(options, "wds/vtab/caltech101", train=True) == trained
    folder = tmp_path / "resources/clip_benchmark/vtab-caltech101"
    folder.mkdir(parents=True)
    assert dataset_root(options, "wds/vtab/caltech101") == "resources/clip_benchmark/vtab-caltech101"
    assert dataset_root(options, "wds/fer2013") == "resources/clip_benchmark/fer2013"
    assert dataset_root(loaded(root="d/{dataset}").clip_benchmark, "wds/vtab/pets") == "d/vtab/pets"


def test_a_released_model_is_compared_with_open_clips_table_and_the_mean_names_its_sets(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    config, figures = loaded(datasets={"wds/fer2013": "auto"}), published()
    shift = {"MNIST": -3.0, "STL-10": 0.15}
    better = {"Country211": 2.0, "SVHN": -1.0}

    def score(one, model, seed):
        if one is None:
            return 5.0  # not of the suite
        exact = figures[one.name] + shift.get(one.name, 0)
        return exact if model == "clip" else exact + better.get(one.name, 0) + seed - 0.5

    write_results(config, score)
    write_table(clip_benchmark_files(config), tmp_path / OUT, config)
    suite = read_json(tmp_path / OUT)["suite"]
    first = suite["published"][0]
    assert [(one["model"], one["seed"]) for one in suite["published"]] == [("clip", 0), ("clip", 1)]
    assert first["deviating"] == ["MNIST"] and first["sets"]["MNIST"]["deviates"]
    assert not first["sets"]["STL-10"]["deviates"] and "1 sets deviate" in caplog.text
    assert first["published_mean"] == pytest.approx(np.mean(list(figures.values())))
    assert first["mean"] == pytest.approx(first["published_mean"] + (0.15 - 3) / 33)
    assert [one["sets"] for one in suite["means"]] == [33] * 4
    (difference,) = suite["differences"]
    assert (difference["reference"], difference["model"]) == ("clip", "cliptex")
    assert (difference["better"], difference["worse"]) == (1, 1)
    assert difference["sets"]["Country211"] == pytest.approx(2) and difference["mean"] == pytest.approx(1 / 33)
    assert list(suite["not_run"])[-1] == "GeoDE" and "worst region" in suite["not_run"]["GeoDE"]


def test_a_mean_is_never_over_fewer_sets_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = loaded()
    write_results(config, lambda one, model, seed: 50.0)
    path = clip_benchmark_files(config)[0]
    result = read_json(path)
    write_json(path, result | {"metrics": {"mean_per_class_recall": 3.0, "mAP": 1.0}})
    with pytest.raises(CliptexError, match="wds/imagenet1k: clip/seed0 has no top1; evaluate it again"):
        write_table(clip_benchmark_files(config), tmp_path / OUT, config)
    path.unlink()
    with pytest.raises(CliptexError, match=r"wds-imagenet1k/clip/seed0\.json: no such file"):
        write_table(clip_benchmark_files(config), tmp_path / OUT, config)


def test_a_released_model_is_found_by_architecture_and_tag(tmp_path):
    sets = evaluation_sets("datacomp")[:1]
    quick = published_scores(PUBLISHED, "ViT-B-16-quickgelu", "openai", sets)
    assert quick == published_scores(PUBLISHED, "ViT-B-16", "openai", sets) == {"ImageNet 1k": pytest.approx(68.34)}
    assert published_scores(PUBLISHED, "ViT-B-16-quickgelu", "dfn2b", sets) == {}
    table = tmp_path / "t.csv"
    table.write_text("name,pretrained,ImageNet 1k\r\nViT-B-16,openai,68.3\r\n")
    with pytest.raises(CliptexError, match=r"t\.csv: ImageNet 1k of ViT-B-16, openai is '68\.3', not a fraction"):
        published_scores(table, "ViT-B-16", "openai", sets)
    table.write_text("name,pretrained\nViT-B-16,openai\n")
    with pytest.raises(CliptexError, match=r"t\.csv: has no column 'ImageNet 1k'"):
        published_scores(table, "ViT-B-16", "openai", sets)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a model, and a benchmark of 3 classes exported with its training split."""
    folder = tmp_path_factory.mktemp("few_shot")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        clip.export(clip.build(TINY, 0), TINY, paths.model("clip", 0))
        write_imagenet(paths.benchmark("imagenet"), 45, 12, classes=3)
        export_benchmark(Config.load({}), "imagenet", folder / "data/imagenet", ["test", "train"], per_tar=20)
    return folder


def test_few_shot_probes_run_on_an_exported_benchmark(exported, monkeypatch):
    monkeypatch.chdir(exported)
    section = {"datasets": {"wds/imagenet": "auto"}, "root": "data/{dataset_cleaned}", "shots": [4, 1, 8]}
    config = Config.load({"models": {"clip": {}}, "seeds": [0], "clip_benchmark": section})
    (out,) = few_shot_files(config)
    run_few_shot(config.clip_benchmark, "wds/imagenet", "clip", 0, paths.model("clip", 0), out)
    result = read_json(out)
    assert [(row["shots"], row["num_train"]) for row in result["results"]] == [(1, 3), (4, 12), (8, 24)]
    assert (result["num_eval"], result["num_classes"]) == (12, 3)
    for row in result["results"]:
        assert 0 <= row["metrics"]["top1"] <= 100 and row["hyperparameters"]["penalty"] in few_shot.HEAD.penalties
    first = out.read_bytes()
    run_few_shot(config.clip_benchmark, "wds/imagenet", "clip", 0, paths.model("clip", 0), out)
    assert out.read_bytes() == first, "the same seed gives the same result"
    row = {"dataset": "wds/imagenet", "task": "t", "split": "test", "model": "clip", "seed": 0, "clip_benchmark": "1"}
    digests = result["provenance"]
    (zero_shot,) = clip_benchmark_files(config)
    write_json(zero_shot, row | {"metrics": {"top1": 1.0}, "provenance": digests})
    write_table([zero_shot], exported / OUT, config)
    table = read_json(exported / OUT)["few_shot"]
    assert [mean["shots"] for mean in table["means"]] == [1, 4, 8] and table["means"][0]["sets"] == 1
    assert table["means"][2]["mean"] == result["results"][2]["metrics"]["top1"]
    write_json(zero_shot, row | {"metrics": {"top1": 1.0}, "provenance": {"model_sha256": {"clip/seed0": "other"}}})
    with pytest.raises(CliptexError, match="clip/seed0 had other weights than in clip_benchmark's results"):
        write_table([zero_shot], exported / OUT, config)


def test_few_shot_probes_have_scikit_learns_solution(monkeypatch):
    """Of sklearn.linear_model.LogisticRegression (lbfgs) at C = 1 / (penalty * images), on the k images alone."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    features = rng.normal(size=(4, 8))[labels] + rng.normal(size=(48, 8))
    x = torch.nn.functional.normalize(torch.from_numpy(features).float(), dim=1)
    chosen, held = draw(labels, 4, 0)
    fit, validation = np.concatenate(chosen), np.concatenate(held)
    eval_at = np.setdiff1d(np.arange(48), np.concatenate([fit, validation]))
    outcome = few_shot._probe(x, labels, fit.tolist(), validation.tolist(), x[eval_at], labels[eval_at])
    penalty = outcome.hyperparameters["penalty"]
    theirs = LogisticRegression(C=1 / (penalty * len(fit)), max_iter=1000, tol=1e-8).fit(x[fit], labels[fit])
    assert outcome.metrics["top1"] == pytest.approx(100 * theirs.score(x[eval_at], labels[eval_at]))


@pytest.mark.parametrize("seed", range(5))
def test_more_shots_contain_fewer_and_validation_has_other_images(seed):
    labels = np.random.default_rng(seed).integers(5, size=80)
    labels = np.concatenate([labels, [5, 5, 6]])  # classes with two images and with one
    few, many = draw(labels, 16, seed)
    for label, (chosen, held) in enumerate(zip(few, many, strict=True)):
        assert (labels[chosen] == label).all() and (labels[held] == label).all()
        assert not set(chosen) & set(held) and 1 <= len(chosen) <= 16 and len(held) <= 4
        assert len(held) or len(chosen) == 1
        again, _ = draw(labels, 16, seed)
        assert np.array_equal(again[label], chosen)


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def split_of(folder, members, text="1\n"):
    folder.mkdir(parents=True)
    write_tar(folder / "0.tar", members)
    (folder / "nshards.txt").write_text(text)


def test_broken_splits_are_one_line(tmp_path):
    with pytest.raises(CliptexError, match=r"none/train/nshards\.txt: not a number of tars, so there is no split"):
        next(samples_of(str(tmp_path / "none"), "train"))
    split_of(tmp_path / "a/train", [("x.png", png(1)), ("x.cls", b" 3\r\n")])
    assert [label for label, _ in samples_of(str(tmp_path / "a"), "train")] == [3]
    with pytest.raises(CliptexError, match="a/train: class 0 has no image"):
        options = Config.load({"clip_benchmark": {"root": str(tmp_path / "a"), "shots": [1]}}).clip_benchmark
        run_few_shot(options, "wds/a", "clip", 0, tmp_path, tmp_path / "out.json")
    split_of(tmp_path / "b/train", [("x.png", png(1)), ("x.txt", b"a caption")])
    with pytest.raises(CliptexError, match=r"0\.tar: sample x has no image or no class"):
        list(samples_of(str(tmp_path / "b"), "train"))
    split_of(tmp_path / "c/train", [("x.png", png(1)), ("x.cls", b"9" * 5000)])
    with pytest.raises(CliptexError, match="has no image or no class"):
        list(samples_of(str(tmp_path / "c"), "train"))


def test_few_shot_sets_are_those_with_a_training_split():
    options = loaded(datasets={"wds/fer2013": "auto", "wds/pairs": "zeroshot_retrieval"}, shots=[1, 2, 4, 8, 16])
    names = few_shot_datasets(options.clip_benchmark)
    assert len(names) == 23 and "wds/fer2013" in names and "wds/pairs" not in names
    assert not {"wds/imagenet-a", "wds/sun397", "wds/flickr30k"} & set(names)
    assert few_shot_datasets(loaded().clip_benchmark) == []

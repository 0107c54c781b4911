"""Benchmarks and experts from outside the package: found by import path, checked before the first job."""

import json
import os
import re
import subprocess
from typing import ClassVar

import numpy as np
import pytest
import yaml
from forked_jobs import forked
from PIL import Image
from safetensors.numpy import save_file
from small_run import ROOT, merged
from web_server import PlannedServer

from cliptex.benchmarks.base import Benchmark
from cliptex.cluster.check import problems
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file
from cliptex.core.plugins import find
from cliptex.data.official.fetch import fetch
from cliptex.data.official.status import benchmark_marks
from cliptex.experts.base import Expert
from cliptex.experts.network import NetworkExpert
from cliptex.experts.training import load_expert, train_expert


class Kinds(Benchmark):
    """Three samples whose ground truth is what a test sets."""

    tasks = ("semantic_segmentation", "depth", "normals", "classification")
    class_names = ("ground", "roof")
    truth: ClassVar = {}

    def read(self, part):
        image = np.zeros((4, 6, 3), np.uint8)
        return [{"id": str(number), "image": image, **self.truth} for number in range(3)]


class Unread(Benchmark):
    class_names = ()


class Weighted(Expert):
    task = "depth"

    def load(self, weights):
        self.path = weights

    def predict(self, images, keys):
        return [image[..., 0].astype(np.float32) for image in images]


class Unlearned(NetworkExpert):
    task = "depth"

    def build(self):
        raise AssertionError

    def label(self, images):
        raise AssertionError


class Learned(Unlearned):
    targets = ("depth",)

    def loss(self, batch, generator):
        raise AssertionError


def own(name="kinds", plugin="test_own_classes:Kinds", **entry):
    return {"benchmark_data": {"benchmarks": {name: {"plugin": plugin, **entry}}}, "probes": {"benchmarks": {name: {}}}}


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (own(), None),
        (own(plugin="test_own_classes:Unread"), "benchmark_data.benchmarks.kinds.plugin: Unread lacks 'read'"),
        (own(plugin="test_own_classes:Weighted"), "Weighted does not extend cliptex.benchmarks.base.Benchmark"),
        (own(plugin="nowhere:Kinds"), "benchmark_data.benchmarks.kinds.plugin: benchmarks: 'nowhere:Kinds' is neither"),
        ({"experts": {"a": {"plugin": "test_own_classes:Weighted"}}}, "experts.a: Weighted cannot be trained .* 'fit'"),
        ({"experts": {"a": {"plugin": "test_own_classes:Weighted", "weights": "local", "path": "setup"}}}, "not exist"),
        ({"experts": {"a": {"plugin": "test_own_classes:Weighted", "weights": "local", "path": "."}}}, None),
        ({"experts": {"a": {"plugin": "test_own_classes:Unlearned"}}}, "Unlearned cannot be trained here.* 'loss'"),
        ({"experts": {"a": {"plugin": "test_own_classes:Learned"}}}, None),
        ({"experts": {"a": {"plugin": "test_own_classes:Kinds"}}}, "experts.a: .*:Kinds does not extend .*base.Expert"),
        ({"experts": {"a": {"plugin": "test_own_classes:own"}}}, "experts.a: .*:own does not extend .*base.Expert"),
        ({"experts": {"a": {"plugin": "test_own_classes:Learned"}}, "backbone": {}}, "it lacks 'shared'"),
        ({"experts": {"a": {"plugin": "test_own_classes:Weighted", "weights": "random"}}}, "initialised .*'randomise'"),
    ],
)
def test_a_class_is_checked_before_the_first_job(over, problem):
    found = list(problems(Config.load(over)))
    assert len(found) == (problem is not None) and (problem is None or re.search(problem, found[0])), found


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (own("voc"), "voc.plugin: 'voc' is a benchmark of the package"),
        (own(source="subset", path="x"), "kinds.source: 'subset' is not for a benchmark of your own"),
        ({"benchmark_data": {"benchmarks": {"voc": {"source": "subset"}}}}, "voc.path: is not set"),
        ({"benchmark_data": {"benchmarks": {"voc": {"source": "own"}}}}, "voc.source: 'voc' is a benchmark of the"),
        ({"probes": {"benchmarks": {"other": {}}}}, "name the class in benchmark_data.benchmarks.other.plugin"),
        (own() | {"miniature": {"benchmarks": {"kinds": {"train": 2, "val": 2}}}}, "miniature.benchmarks.kinds"),
    ],
)
def test_a_contradiction_is_a_mistake_of_the_configuration(tmp_path, over, problem):
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    with pytest.raises(CliptexError, match=problem):
        Config.from_files([tmp_path / "over.yaml"])


def test_jobs_get_the_import_path_of_the_benchmarks_that_they_name():
    config = Config.load(merged(own(), {"probes": {"benchmarks": {"voc": {}}}, "zeroshot": {"benchmarks": ["kinds"]}}))
    added = {"benchmark_data": {"benchmarks": {"kinds": {"plugin": "test_own_classes:Kinds"}}}}
    for keys in (("probes.benchmarks.kinds",), ("zeroshot.benchmarks", "seeds")):
        assert json.loads(config.subset(*keys)).items() >= added.items()
    assert "benchmark_data" not in json.loads(config.subset("probes.benchmarks.voc", "labels", "train"))
    plain = Config.load({"benchmark_data": {"benchmarks": {"voc": {"path": "x"}}}})
    assert json.loads(plain.subset("benchmark_data.benchmarks"))["benchmark_data"]["benchmarks"] == {
        "voc": {"source": None, "variant": None, "path": "x"}
    }


def test_one_class_reads_several_data_sets_each_with_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.txt").touch()
    entry = {"plugin": "test_own_classes:Kinds", "path": "images"}
    config = Config.load({"benchmark_data": {"benchmarks": {"one": entry, "two": entry | {"source": "official"}}}})
    for name, source in (("one", "own"), ("two", "official")):
        assert fetch(config, name, paths.benchmark(name))["counts"] == {"train": 3, "eval": 3}
        data = find("benchmarks", name)(paths.benchmark(name))
        assert (data.name, data.source) == (name, source) and find("benchmarks", name) is find("benchmarks", name)
    assert benchmark_marks(config) == {name: f"resources/{name}/official.json" for name in ("one", "two")}


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ({"mask": np.array([[0, 1], [255, 2]], np.uint8)}, r"has the value 2, but the classes are 0\.\.1 and 255"),
        ({"mask": np.zeros((2, 2), np.int64)}, r"its mask is int64 \[2, 2\]"),
        ({"labels": np.array([0, 2])}, r"has class 2, but kinds has the classes 0\.\.1"),
        ({"label": -1}, "has class -1"),
        ({"depth": np.array([[1.0, -2.0]], np.float32)}, "has the depth -2; depths are metres"),
        ({"depth": np.array([[np.nan, np.inf]], np.float32)}, "has the depth inf"),
        ({"normals": np.array([[[0, 0, 1], [0, 2, 0]]], np.float32)}, "has a normal of length 2"),
        ({"mask": np.array([[0, 1], [255, 1]], np.uint8), "label": 1}, None),
        ({"depth": np.array([[np.nan, 3]]), "normals": np.array([[[np.nan] * 3, [0, 0, 1.01]]])}, None),
    ],
)
def test_wrong_ground_truth_is_named(tmp_path, monkeypatch, truth, problem):
    Config.load(own())
    monkeypatch.setattr(Kinds, "truth", truth)
    samples = find("benchmarks", "kinds")(tmp_path, {}).samples("eval")
    if problem is None:
        assert samples[2]["id"] == "2"
        return
    with pytest.raises(CliptexError, match=f"{tmp_path}: image 1: .*{problem}"):
        samples[1]
    monkeypatch.setattr(Kinds, "truth", truth | {"truth_file": tmp_path / "a.png"})
    with pytest.raises(CliptexError, match=r"a\.png: "):
        find("benchmarks", "kinds")(tmp_path, {}).samples("eval")[1]


@pytest.mark.parametrize("source", ["local", "url"])
def test_an_expert_needs_only_load_and_predict_for_weights(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with PlannedServer() as server:
        server.files["/a.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
        place = {"local": {"path": "a.safetensors"}, "url": {"url": f"{server.url}/a.safetensors"}}[source]
        entry = {"plugin": "test_own_classes:Weighted", "weights": source, **place}
        config = Config.load({"experts": {"mine": entry}})
        train_expert(config, "mine", tmp_path, tmp_path / "out", 0)
    record = read_json(tmp_path / "out/expert.json")
    assert (record["source"], record["weights_sha256"]) == (source, sha256_file(tmp_path / "a.safetensors"))
    assert load_expert("mine", config.experts["mine"], tmp_path / "out").path.is_file()


def test_the_workflow_plans_a_benchmark_of_a_folder_in_plugins(tmp_path):
    (tmp_path / "mine").mkdir()
    code = "from cliptex.benchmarks.base import Benchmark\n\n\nclass Sheds(Benchmark):\n"
    code += "    tasks = ('semantic_segmentation', 'classification')\n    class_names = ['ground', 'shed']\n\n"
    code += "    def read(self, part):\n        return []\n"
    (tmp_path / "mine/sheds_of_mine.py").write_text(code)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data/a.png")
    over = own("sheds", "sheds_of_mine:Sheds", path=str(tmp_path / "data")) | {"plugins": ["mine"]}
    over["zeroshot"] = {"benchmarks": ["sheds"]}
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    command = [str(forked("snakemake")), "--dry-run", "--cores", "1", "--directory", str(tmp_path), "--printshellcmds"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(tmp_path / "over.yaml")]
    command += ["--", "results/probes/sheds.json", "results/zeroshot/sheds.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "resources/sheds/official.json" in done.stdout
    jobs = [line for line in done.stdout.splitlines() if re.search(r"cliptex .* (probe|zeroshot) ", line)]
    assert len(jobs) >= 2 and all("sheds_of_mine:Sheds" in line for line in jobs), done.stdout[-3000:]

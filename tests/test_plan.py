"""`cliptex plan` and Snakemake's dry run say the same of any configuration."""

import importlib.util
import random
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from conftest import drawn_pair
from forked_jobs import forked
from small_run import ROOT

from cliptex.cli import common
from cliptex.cli.labels import plan
from cliptex.cluster.dry_run import described, planned_jobs
from cliptex.cluster.plan import make_plan
from cliptex.cluster.precheck import accepted_mark
from cliptex.core.errors import ConfigError
from cliptex.data.shards import write_shard
from cliptex.evaluation.protocols.resolve import with_protocols

BENCHMARKS = ("voc", "ade20k", "coco", "nyuv2", "imagenet", "places365")
JOB = re.compile(r"^(?:local)?rule (\w+):$", re.M)
OFFICIAL = re.compile(r"^ +output: resources/(\w+)/official\.json$", re.M)
OWN = """from cliptex.benchmarks.base import Benchmark

class Roofs(Benchmark):
    tasks = ("semantic_segmentation",)
    class_names = ["ground", "roof"]

    def read(self, part):
        return []
"""
TSV = "resources/cc3m/Train_GCC-training.tsv"


def dry_run(directory, files, *values, target="all"):
    """Rule -> jobs, benchmarks to fetch, and what Snakemake said; the first two None if it refuses."""
    command = [
        forked("snakemake"),
        "--dry-run",
        "--printshellcmds",
        "--cores",
        "1",
        "--directory",
        directory,
        "--snakefile",
    ]
    command += [ROOT / "Snakefile", *(["--configfile", *files] if files else [])]
    command += [*(["--config", *values] if values else []), "--", target]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    said = result.stdout + result.stderr
    if result.returncode:
        return None, None, said
    return Counter(JOB.findall(said)), set(OFFICIAL.findall(said)), said


def drawn_dataset(rng: random.Random) -> dict:
    source = rng.choice(["miniature", "urls", "local", "hub"])
    if source == "miniature":
        return {"dataset": {"source": "miniature"}, "miniature": {"pairs": rng.choice([1500, 4000])}}
    if source == "urls":
        urls = {"files": [TSV], "rows": rng.choice([9_000, 250_000]), "columns": ["caption", "url"]}
        return {"dataset": {"source": "urls", "urls": urls}}
    last = rng.choice([0, 7, 24])
    place = "tars/" if source == "local" else "hf://datasets/pixparse/cc3m-wds/"
    return {"dataset": {"source": "webdataset", "shards": [f"{place}{{0000..{last:04d}}}.tar"]}}


def drawn_overlay(rng: random.Random, folder) -> dict:
    """What a user might lay over a configuration; mostly one that can be planned, sometimes a contradiction."""
    over = drawn_dataset(rng)
    over["labels"], over["download"] = ({"shards_per_job": rng.choice([1, 3, 20])} for _ in range(2))
    over["seeds"] = rng.choice([[0], [3, 1], [0, 1, 2]])
    over["train"] = {"held_out": rng.choice([0, 100]), "watch": {"zero_shot": rng.choice([None, "imagenet"])}}
    models = {"clip": {"steps": rng.choice([0, 10])}, "clip_ft": {"steps": None, "epochs": rng.choice([0.5, 3])}}
    over["models"] = models
    if rng.random() < 0.3:
        over["student"] = {"architecture": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    dropped = rng.choice([None, None, "cliptex", "store", "expert", "all models", "store alone"])
    if dropped == "cliptex":
        models["cliptex"] = None
    if dropped in ("store", "expert", "store alone"):
        over["label_stores"] = {"depth": None}
        if dropped != "store alone":  # else what still names it is an error
            models["cliptex"] = {"tasks": {"depth": None}}
    if dropped == "expert":
        over["experts"] = {"dpt": None}
    if dropped == "all models":
        models |= dict.fromkeys(["clip_ft", "cliptex", "wise", "clip_ft_recipe"])
        over["report"] = {"yardstick": None}
        over["label_stores"] = dict.fromkeys(["segmentation", "depth", "normals"])
    if rng.random() < 0.4:
        over["experts"] = over.get("experts", {}) | {"mask_rcnn": {"weights": "hub", "repo": "someone/maskrcnn"}}
    kept = rng.sample(BENCHMARKS, rng.choice([1, 3, 6]))
    over["probes"] = {"models_per_job": rng.choice([1, 2, 5])}
    over["probes"]["benchmarks"] = dict.fromkeys(name for name in BENCHMARKS if name not in kept)
    over["zeroshot"] = {"benchmarks": rng.choice([[], ["imagenet"], ["places365", "imagenet"]]), "published": {}}
    if rng.random() < 0.5:
        over["zeroshot"]["retrieval"] = {"captions": None, "coco_captions": {"benchmark": "coco"}}
    sources = {name: {"source": "official"} for name in rng.sample(BENCHMARKS, rng.choice([0, 2]))}
    for source in sources.values():
        if rng.random() < 0.5:
            source["path"] = str(folder / rng.choice(["archives", "nowhere"]))
    over["benchmark_data"] = {"source": rng.choice([None, "miniature", "official"]), "benchmarks": sources}
    if rng.random() < 0.4:
        sources["nyuv2"] = {"source": "subset", "path": str(folder / rng.choice(["archives", "nowhere"]))}
    if rng.random() < 0.4:
        over["plugins"] = [str(folder)]
        sources["roofs"] = {"plugin": "roofs_of_the_plan:Roofs", "path": str(folder / "archives")}
        over["probes"]["benchmarks"]["roofs"] = {"protocol": "miniature"}
    return over


def check(tmp_path, monkeypatch, rng: random.Random) -> None:
    """The plan of a drawn configuration, in a folder that has some of its data, against the dry run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/ADEChallengeData2016.zip").touch()
    (tmp_path / "roofs_of_the_plan.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "roofs_of_the_plan", raising=False)
    if rng.random() < 0.8:
        (tmp_path / TSV).parent.mkdir(parents=True)
        (tmp_path / TSV).touch()
        write_shard(tmp_path / "tars/0000.tar", [drawn_pair("000000000", 0)])
        for number in range(1, 25):
            shutil.copy(tmp_path / "tars/0000.tar", tmp_path / f"tars/{number:04d}.tar")
    files = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    if is_paper := rng.random() < 0.3:
        files[0] = ROOT / "config/paper.yaml"
    else:
        files[0].write_text(yaml.safe_dump({"seeds": [5], "models": {"clip": {"steps": 7}}}))
    files[1].write_text(yaml.safe_dump(drawn_overlay(rng, tmp_path)))
    try:
        config = common.load_config([*map(str, files), "report={title: other}"])
    except ConfigError as error:
        jobs, _, said = dry_run(tmp_path, files, "report={title: other}")
        # the default may be the workflow's file or the package's
        problems = [line.partition("config.yaml:")[2] or line for line in error.lines]
        assert jobs is None and all(line in said for line in problems), (problems, said)
        return
    assert config.report.title == "other"
    config = with_protocols(config, [ROOT / "config/protocols"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the check of its classes takes seconds, and has its own tests
    accepted_mark(config).parent.mkdir(parents=True)
    accepted_mark(config).touch()
    jobs, fetched, said = dry_run(tmp_path, files, "report={title: other}")
    found = make_plan(config, measure=False)
    # what has to be put in place
    assert [line for line in found["missing"] if line not in said] == [], said[-3000:]
    absent = [line for line in found["missing"] if line.startswith(("resources/", "tars/"))]
    assert (jobs is None) == bool(absent), said[-3000:]
    if jobs is None:
        assert "MissingInputException" in said and absent[0].partition(":")[0].split()[0] in said
        return
    # what is downloaded
    assert fetched == found["benchmarks"].keys()
    released = [name for name in found["weights"] if name.startswith("models.")]
    experts = [name for name in found["weights"] if name not in ("student", *released)]
    assert (jobs["fetch_expert"], jobs["fetch_student"]) == (len(experts), "student" in found["weights"])
    assert jobs["fetch_released"] == len(released)
    has_pairs = found["images"]["shards"] > 0
    assert has_pairs == bool(jobs["index_shards"])
    assert (jobs["download_pairs"] > 0) == (has_pairs and config.dataset.source == "urls")
    # jobs
    assert jobs["label"] == sum(store["jobs"] for store in found["stores"].values())
    assert jobs["index_labels"] == len(found["stores"])
    assert jobs["train"] == len(found["models"]) * len(config.seeds)
    others = len(config.models) - len(found["models"])
    assert jobs["export_untrained"] + jobs["interpolate"] == others * len(config.seeds)
    assert is_paper or "interpolate" not in jobs


@pytest.mark.parametrize("seed", [2, 4, 14])  # tests/faults/test_plans.py draws many more
def test_the_plan_is_the_dry_run(tmp_path, monkeypatch, seed):
    check(tmp_path, monkeypatch, random.Random(seed))


def test_the_plan_prints_the_jobs_of_the_run(tmp_path, monkeypatch, capsys):
    """As `cliptex plan` is called, with files and values, before and after the list is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "started_in", tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")  # as in a clone
    urls = {"files": ["list.tsv"], "rows": 20_000}
    over = {"dataset": {"source": "urls", "urls": urls}, "train": {"held_out": 32}}
    over["models"] = {"clip": None, "clip_ft": {"init": None, "steps": None, "epochs": 1.5}, "cliptex": None}
    over["models"]["clip_ft_recipe"], over["report"] = None, {"yardstick": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(over))
    given = ["mine.yaml", "label_stores={depth: null, normals: null}", "seeds=[2, 3]"]
    plan(given, measure=False)
    printed = capsys.readouterr().out
    missing = "list.tsv: does not exist"
    assert f"jobs  ? ({missing}, and no job makes it)" in printed and f"missing  {missing};" in printed
    assert "clip_ft  468 steps of 64 pairs: 1.5 epochs of 19,968 pairs (dataset.urls.rows, an upper bound" in printed
    (tmp_path / "list.tsv").touch()
    jobs = planned_jobs(ROOT, ["mine.yaml"], given[1:])
    assert (jobs["train"], jobs["label"], jobs["index_labels"], jobs["build_shards"]) == (2, 1, 1, 1)
    assert described(jobs).startswith(f"jobs  {sum(jobs.values())}: ") and "probe_" not in described(jobs)


def test_the_counts_of_the_scaling_page_are_those_of_the_dry_run():
    """Of its first list; tests/faults/test_plans.py counts all."""
    page = (ROOT / "docs/scaling.md").read_text()
    for first, cell in scaling().counts("CC3M").items():
        assert f"\n| {first} | {cell} |" in page, "run: python docs/figures/scaling.py docs/scaling.md"


def scaling():
    """docs/figures/scaling.py as a module."""
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "docs/figures/scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

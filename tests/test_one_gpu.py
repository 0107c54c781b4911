"""The run for one GPU: what it downloads, its jobs, and that its experts and protocols exist."""

import re

import pytest
import yaml
from small_run import ROOT
from test_plan import dry_run

from cliptex.cluster.plan import make_plan
from cliptex.cluster.plan_text import shown
from cliptex.config import Config
from cliptex.core.plugins import find
from cliptex.data.official.status import missing_data
from cliptex.evaluation.protocols.resolve import protocol_of

FILE, DEFAULT = ROOT / "config/one_gpu.yaml", ROOT / "config/config.yaml"
BUDGET = 25e9
"""Bytes to download."""
TAR = 489e6
"""Bytes of a tar of pixparse/cc3m-wds; 30 of them."""
WEIGHTS = {
    "maskrcnn_resnet50_fpn_v2": 177.219 * 2**20,  # torchvision's metadata, in MiB
    "depth_anything_v2_small": 99.2e6,  # the repository's list of files
    "nll_angmf_scannet": 72.42e6 * 4,  # parameters in float32; no size is published
    "student": 149.62e6 * 4,  # likewise
}


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)  # a finished run in the repository would be what is planned
    return Config.from_files([FILE], default=DEFAULT)


def test_its_downloads_are_within_the_budget_and_need_no_account(config):
    plan = make_plan(config, measure=False)
    assert missing_data(config) == plan["missing"] == []
    files = [file for files in plan["benchmarks"].values() for file in files]
    assert {file["how"] for file in files} == {"download"}
    assert all(file["bytes"] for file in files)
    assert plan["images"]["shards"] == 30 and set(plan["weights"]) == WEIGHTS.keys()
    total = 30 * TAR + sum(file["bytes"] for file in files) + sum(WEIGHTS.values())
    assert total < BUDGET
    for path in (FILE, ROOT / "docs/howto/one-gpu.md"):
        assert f"{total / 1e9:.1f} GB" in path.read_text(encoding="utf-8")
    assert "total  8.44 GB of benchmarks to download" in shown(plan)


def test_the_hours_in_its_head_add_up():
    head = FILE.read_text(encoding="utf-8").partition("\ndataset:")[0]
    (rate,) = re.findall(r"an assumed (\S+) a second", head)
    rows = [(float(count), float(hours)) for count, hours in re.findall(r"= (\S+)  +(\S+) h$", head, re.M)]
    assert len(rows) == 7
    assert sum(count for count, _ in rows[:-1]) == pytest.approx(rows[-1][0], rel=0.02)
    for count, hours in rows:
        assert count / float(rate) / 3600 == pytest.approx(hours, abs=0.06)
    assert rows[-1][1] < 6


def test_its_parts_exist_and_what_is_the_miniatures_is_gone(config):
    for store in config.label_stores.values():
        settings = config.experts[store.expert]
        assert find("experts", settings.plugin)(settings.model_dump(mode="json")).task == store.task
    assert len(config.experts) == len(config.label_stores) == 3 and config.backbone is None
    assert list(config.probes.benchmarks) == ["voc", "ade20k", "nyuv2"]
    for benchmark, values in config.probes.benchmarks.items():
        assert protocol_of(benchmark, values).protocol == "light"
    miniature = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    given = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert not miniature["train"].keys() - given["train"].keys()
    assert list(config.models) == ["clip", "clip_ft", "cliptex", "wise"]
    assert {config.models[name].epochs for name in ("clip_ft", "cliptex")} == {3}


def test_it_is_planned_with_few_jobs(tmp_path):
    jobs, fetched, said = dry_run(tmp_path, [FILE])
    assert jobs is not None, said[-3000:]
    assert sum(jobs.values()) < 45
    assert (jobs["label"], jobs["train"], jobs["fetch_expert"]) == (9, 2, 3)
    assert fetched == {"voc", "ade20k", "nyuv2", "places365", "coco"}


def test_with_imagenet_it_needs_the_users_copy_and_checks_the_published_accuracy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/howto/one-gpu.md").read_text(encoding="utf-8")
    overlay = page.partition("```yaml\n")[2].partition("```")[0].replace("/data/imagenet", str(tmp_path / "archives"))
    (tmp_path / "archives").mkdir()
    (tmp_path / "imagenet.yaml").write_text(overlay)
    config = Config.from_files([FILE, tmp_path / "imagenet.yaml"], default=DEFAULT)
    paper = yaml.safe_load((ROOT / "config/paper.yaml").read_text(encoding="utf-8"))
    assert config.zeroshot.published == {"clip": paper["zeroshot"]["published"]["clip"]}
    assert config.student.pretrained == paper["student"]["pretrained"]
    (missing,) = missing_data(config)
    assert "ILSVRC2012_img_val.tar" in missing and "ILSVRC2012_img_train.tar" not in missing

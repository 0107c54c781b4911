"""What a change redoes, row by row of the table in docs/labels.md; and that plans of large data sets are quick.

Only dry runs: the finished run is one whose files are empty, marked as made by `snakemake --touch`.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forked_jobs import forked

pytestmark = pytest.mark.xdist_group("rerun")

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
MODELS = [f"results/models/{model}/seed0/train.json" for model in ("clip", "clip_ft", "cliptex")]
CONFIG = {
    "dataset": {"source": "webdataset", "shards": [f"data/{number:05d}.tar" for number in range(4)]},
    "experts": {"spare": {"plugin": "truth", "network": {"task": "depth"}}},
    "label_stores": {"spare": {"task": "depth", "expert": "spare"}},
    "labels": {"shards_per_job": 2},
    "miniature": {"benchmarks": {}},
}
LABELLING = {"label": 6, "index_labels": 3}


class Run:
    """A directory with a finished run, and a copy of the workflow that can be edited."""

    def __init__(self, folder: Path, program: Path | None = None):
        """program: Snakemake, by default a fork."""
        self.folder, self.code, self.program = folder / "run", folder / "code", program or forked("snakemake")
        self.folder.mkdir()
        for name in ("workflow", "config", "profiles", "envs", "cliptex"):
            shutil.copytree(ROOT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", self.code)
        for shard in CONFIG["dataset"]["shards"]:
            self.write(shard, "tar")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def snakemake(self, *arguments: str, config: dict | None = None, targets: list[str] = MODELS) -> str:
        (self.folder / "config.json").write_text(json.dumps(config or CONFIG))
        command = [
            self.program,
            "--cores",
            "2",
            "--snakefile",
            self.code / "Snakefile",
            "--directory",
            self.folder,
        ]
        command += [*arguments, "--configfile", self.folder / "config.json", "--", *targets]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(self.code)}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=self.code)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    def redone(self, *arguments: str, config: dict | None = None, targets: list[str] = MODELS) -> dict[str, int]:
        """Rule -> jobs of a dry run."""
        text = self.snakemake("--dry-run", *arguments, config=config, targets=targets)
        table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", text, re.S)
        if table is None:
            assert "Nothing to be done" in text
            return {}
        return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("rerun"))
    summary = run.snakemake("--summary")
    for line in summary.splitlines():
        name = line.split("\t")[0]
        if name.startswith(("results/", "resources/")):
            is_batch = re.fullmatch(r"results/labels/\w+/batch-\d+\.json", name)
            run.write(name, '{"shards": []}' if is_batch else "")
    run.snakemake("--touch", "--forceall")
    return run


def changed(section: str, **values) -> dict:
    """The configuration with other values; a dotted section is nested."""
    config = json.loads(json.dumps(CONFIG))
    part = config
    for name in section.split("."):
        part = part.setdefault(name, {})
    part.update(values)
    return config


def test_nothing_is_redone_when_nothing_changed(run):
    assert run.redone() == {}


@pytest.mark.parametrize("option", [{"batch_size": 3}, {"precision": "fp32"}, {"network": {"score_threshold": 0.1}}])
def test_an_experts_settings_redo_its_labels_and_the_models_that_learn_from_them(run, option):
    redone = run.redone(config=changed("experts.mask_rcnn", **option))
    assert redone == {"train_expert": 1, "label": 2, "index_labels": 1, "train": 1}


@pytest.mark.parametrize("size", ["max_side_px", "max_image_side_px"])
def test_the_size_of_labels_redoes_all_labels_but_no_expert(run, size):
    assert run.redone(config=changed("labels", **{size: 128})) == {**LABELLING, "train": 1}


@pytest.mark.parametrize(("per_job", "jobs"), [(1, 12), (4, 3)])
def test_how_many_shards_a_job_does_goes_through_all_that_is_labelled(run, per_job, jobs):
    """The jobs keep every label file (tests/test_labels.py), which the plan cannot know."""
    redone = run.redone(config=changed("labels", shards_per_job=per_job))
    assert redone == {"label": jobs, "index_labels": 3, "train": 1}


@pytest.mark.parametrize(
    "option", [{"licence": "MIT"}, {"sha256": "0" * 8}, {"revision": "v2"}, {"path": "elsewhere.pt"}]
)
def test_what_is_said_of_an_experts_weights_goes_through_its_labels(run, option):
    """Of the same weights the jobs keep every label (tests/test_labels.py)."""
    redone = run.redone(config=changed("experts.mask_rcnn", **option))
    assert redone == {"train_expert": 1, "label": 2, "index_labels": 1, "train": 1}


def test_what_is_asked_of_the_data_redoes_no_label(run):
    """Where other repeated images are dropped the jobs run, and keep the label files of all shards that stay as they
    are (tests/test_labels.py)."""
    assert run.redone(config=changed("dataset", min_yield=0.3)) == {}
    again = {"index_shards": 1, **LABELLING, "train": 3}
    assert run.redone(config=changed("dataset", max_repeats=3)) == again


def test_an_expert_that_no_model_learns_from_redoes_no_model(run):
    other = changed("experts.spare", batch_size=5)
    assert run.redone(config=other) == {}
    own = run.redone(config=other, targets=[*MODELS, "results/labels/spare/index.json"])
    assert own == {"train_expert": 1, "label": 2, "index_labels": 1}


def test_the_same_official_data_from_another_place_redo_nothing(run):
    target = "resources/voc/official.json"
    run.write(target, '{"source": "official"}')
    run.snakemake("--touch", "--forceall", targets=[target])
    elsewhere = {"path": "/data/voc"}
    assert run.redone(config=changed("benchmark_data.benchmarks", voc=elsewhere), targets=[target]) == {}
    other = run.redone(config=changed("benchmark_data.benchmarks", voc={"variant": "trainaug"}), targets=[target])
    assert other == {"fetch_benchmark": 1}


def test_images_of_earlier_versions_are_not_downloaded_again(tmp_path):
    """The download script has moved; its path is part of the records of finished runs."""
    run, target = Run(tmp_path), ["results/shards/index.json"]
    run.write("list.tsv", "")
    urls = {"files": ["list.tsv"], "columns": ["caption", "url"], "rows": 20}
    config = {"dataset": {"source": "urls", "urls": urls}, "miniature": {"benchmarks": {}}, "train": {"batch_size": 8}}
    config["train"]["held_out"] = 0
    rules = run.code / "workflow/rules/data.smk"
    text = rules.read_text()
    before = re.sub(r"recorded_job=(.*),\n +job=.*\n", r"job=\1,\n", text)
    assert before.count("img2dataset_job.py") == 1
    for name in ("resources/pairs/batch-000.json", "results/shards/batch-000.json", *target):
        run.write(name, "")
    rules.write_text(before)
    run.snakemake("--touch", "--forceall", "--notemp", config=config, targets=target)
    rules.write_text(text)
    assert run.redone(config=config, targets=target) == {}
    rules.write_text(before.replace("cliptex/img2dataset", "cliptex/data/img2dataset"))
    assert run.redone(config=config, targets=target) == {"download_pairs": 1, "build_shards": 1, "index_shards": 1}


def test_memory_threads_and_comments_redo_nothing(run):
    for name, comment in (
        ("cliptex/labels/label.py", "\n# a comment\n"),
        ("cliptex/experts/mask_rcnn.py", "\n# a comment\n"),
        ("workflow/rules/labels.smk", "\n# a comment\n"),
        ("config/config.yaml", "\n# a comment\n"),
    ):
        with (run.code / name).open("a") as file:
            file.write(comment)
    rules = run.code / "workflow/rules/labels.smk"
    text = rules.read_text()
    assert 'mem="6GB"' in text
    rules.write_text(text.replace('mem="6GB"', 'mem="9GB"').replace('runtime="8h"', 'runtime="9h"'))
    assert run.redone("--set-threads", "label=2", "train=2", "--set-resources", "train:mem=1GB") == {}


def test_a_new_version_of_the_label_stage_redoes_all_labels(run):
    path = run.code / "cliptex/versions.py"
    before = path.read_text()
    path.write_text(re.sub(r"^LABEL = (\d+)$", "LABEL = 99", before, flags=re.M))
    try:
        assert run.redone() == {**LABELLING, "train": 1}
    finally:
        path.write_text(before)


def test_a_lost_label_file_redoes_its_batch_alone(run):
    lost = {"file": "00003.parquet", "bytes": 9}
    for name, value in (
        ("batch-001.json", {"shards": [lost]}),
        ("index.json", {"files": [{"batch": "batch-001.json", **lost}]}),
    ):
        path = run.folder / "results/labels/depth" / name
        stamp = path.stat().st_mtime_ns
        path.write_text(json.dumps(value))
        os.utime(path, ns=(stamp, stamp))
    run.write("results/report.html", "")  # with it, `all` mends what was lost before it looks at anything else
    assert run.redone(targets=["all"]) == {"label": 1, "index_labels": 1, "all": 1}


@pytest.mark.parametrize(("shards", "budget_s"), [(331, 15), (1242, 30)])
def test_a_plan_of_a_large_data_set_is_quick(tmp_path, shards, budget_s):
    """CC3M and CC12M, all of the study at full size; by processor time, since the tests share the machine."""
    run = Run(tmp_path, BIN / "snakemake")
    for number in range(shards):
        run.write(f"data/{number:05d}.tar", "tar")
    config = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    config["dataset"] = {"source": "webdataset", "shards": [f"data/{number:05d}.tar" for number in range(shards)]}
    config["labels"]["shards_per_job"] = config["download"]["shards_per_job"] = 10
    run.redone(config=config, targets=["results/shards/index.json"])  # the student is checked once
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    redone = run.redone(config=config, targets=["all"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert redone["label"] == 3 * -(-shards // 10)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < budget_s

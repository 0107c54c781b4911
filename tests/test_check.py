"""What is checked before the first job: the configuration against the installed packages, and the code of the jobs."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import drawn_pair
from forked_jobs import forked
from small_run import BIN, ROOT, merged

from cliptex.cluster.check import problems
from cliptex.cluster.plan import make_plan
from cliptex.cluster.precheck import require_checked
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.core.provenance import require_code
from cliptex.data.shard_index import index_shards
from cliptex.data.shard_paths import data_sha256, shard_paths
from cliptex.data.shards import write_shard

VIT = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}}
VIT["text_cfg"] = {"context_length": 8, "width": 16, "heads": 2, "layers": 1}
GOOD = {
    "student": {"architecture": VIT},
    "experts": {"bright": {"plugin": "conftest:Brightness", "network": {"task": "depth"}}},
    "label_stores": {"depth": {"task": "depth", "expert": "bright"}},
    "models": {"cliptex": {"steps": 1, "tasks": {"depth": 1.0}}},
}


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({}, None),
        ({"student": {"architecture": "RN50"}}, "timm towers, not ModifiedResNet"),
        ({"student": {"architecture": "ViT-B-61"}}, "student.architecture: open_clip has no 'ViT-B-61'"),
        (
            {"student": {"architecture": "ViT-B-32", "pretrained": "laoin2b"}},
            "'laoin2b' is neither a file nor a tag",
        ),
        ({"experts": {"bright": {"plugin": "conftest:Darkness"}}}, "experts.bright: experts: module 'conftest'"),
        (
            {"experts": {"bright": {"plugin": "no_such:Expert"}}},
            "experts.bright.plugin: module 'no_such' is not",
        ),
        ({"label_stores": {"depth": {"task": "conftest:Nothing"}}}, "module 'conftest' has no 'Nothing'"),
        ({"models": {"cliptex": {"losses": {"depth": {"foo": 1}}}}}, "models.cliptex.losses.depth.foo: unknown key"),
        ({"zeroshot": {"benchmarks": ["voc"]}}, "zeroshot.benchmarks: 'voc': voc has no image classes"),
        ({"train": {"watch": {"zero_shot": "nyuv2"}}}, "train.watch.zero_shot: nyuv2 has no image classes"),
        (
            {"zeroshot": {"retrieval": {"mine": {"shards": ["/no/such/{00..01}.tar"]}}}},
            "zeroshot.retrieval.mine.shards: /no/such/00.tar does not exist",
        ),
    ],
)
def test_a_mistake_is_found_before_the_first_job(over, sentence):
    found = list(problems(Config.load(merged(GOOD, over))))
    assert (sentence is None) == (not found), found
    assert sentence is None or any(sentence in line for line in found), found
    assert all("\n" not in line for line in found)


def test_an_accepted_configuration_is_not_checked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CLIPTEX_CODE", raising=False)
    wrong = Config.load(
        GOOD | {"student": {"architecture": "ViT-B-61"}, "experts": {}, "label_stores": {}, "models": {"a": {}}}
    )
    with pytest.raises(CliptexError, match=r"^student\.architecture: open_clip has no 'ViT-B-61'"):
        require_checked(wrong)
    calls = []
    good = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: calls.append(command) or good)
    for _ in range(2):
        require_checked(wrong)
    assert len(calls) == 1


def test_a_package_that_differs_from_the_clone_is_refused(tmp_path):
    """README installs a copy, and `git pull` changes the clone alone."""
    shutil.copytree(ROOT / "cliptex", tmp_path / "cliptex", ignore=shutil.ignore_patterns("__pycache__"))
    require_code(*_digest_of(tmp_path / "cliptex"), ROOT / "cliptex")
    (tmp_path / "cliptex/versions.py").write_text("TRAIN = 99\n")
    command = [forked("snakemake"), "-n", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "all"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    message = f"{tmp_path}/cliptex: the installed package differs from the workflow's, {ROOT}/cliptex; run: pip install"
    assert message in result.stdout + result.stderr
    environment = environment | {"CLIPTEX_CODE": f"{'0' * 64}:/clone"}
    result = subprocess.run([BIN / "cliptex", "plan"], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "run: pip install /clone " in result.stderr


def test_an_installed_package_records_the_commit_of_its_clone(tmp_path):
    shutil.copytree(ROOT / "cliptex", tmp_path / "cliptex", ignore=shutil.ignore_patterns("__pycache__"))
    describe = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    asked = "from cliptex.core.provenance import provenance; print(provenance({})['git'] or '')"
    digest = _digest_of(ROOT / "cliptex")[0]
    for code, found in (("", ""), (f"{digest}:{ROOT}", commit), (f"{'0' * 64}:{ROOT}", "")):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "CLIPTEX_CODE": code}
        command = [sys.executable, "-c", asked]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
        assert done.stdout.strip() == found


def _digest_of(package_dir):
    from cliptex.core.provenance import code_sha256

    return code_sha256(package_dir), str(package_dir.parent)


def test_a_profile_that_nobody_edited_is_one_error(tmp_path):
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    # without the options of the executor, an extra that may be missing here
    profile = {key: value for key, value in profile.items() if key != "executor" and not key.startswith("slurm-")}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    command = [forked("snakemake"), "-n", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "all"]
    command += ["--workflow-profile", tmp_path / "profile", "--cores", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "default-resources: slurm_account, slurm_partition: still CHANGE_ME" in result.stdout + result.stderr


def test_a_plan_does_not_take_the_results_of_other_data_for_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = Config.load(GOOD | {"miniature": {"pairs": 8, "pairs_per_shard": 8, "image_size_px": 64}})
    write_shard(shard_paths(small)[0], [drawn_pair(f"{number:09d}", number) for number in range(8)])
    index_shards(shard_paths(small), paths.SHARD_INDEX, 0.5, data_sha256=data_sha256(small))
    assert make_plan(small, measure=False)["images"]["number_from"] == "results/shards/index.json"
    urls = {"files": ["list.tsv"], "rows": 8, "rows_per_shard": 8}
    other = Config.load(GOOD | {"dataset": {"source": "urls", "urls": urls}})
    plan = make_plan(other, measure=False)
    assert plan["images"]["number_from"].startswith("dataset.urls.rows")
    assert plan["images"]["bytes_from"].startswith("JPEG photographs")
    assert plan["missing"] == [
        "list.tsv: does not exist; the download needs this URL list (dataset.urls.files, docs/data.md)"
    ]
    # an index of an earlier version has no digest
    write_json(paths.SHARD_INDEX, read_json(paths.SHARD_INDEX) | {"data_sha256": None})
    assert make_plan(small, measure=False)["images"]["number"] == 8

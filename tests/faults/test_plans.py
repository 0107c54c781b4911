"""Plans of many drawn configurations, and the check of a released CLIP through the workflow."""

import random
import subprocess

import pytest
import yaml
from small_run import BIN, ROOT
from test_plan import check, scaling
from tiny import TINY

from cliptex.cluster.dry_run import planned_jobs
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file
from cliptex.models import clip as student

pytestmark = pytest.mark.faults
WEIGHTS = "open_clip_model.safetensors"


@pytest.mark.parametrize("seed", range(100, 120))
def test_the_plan_is_the_dry_run(tmp_path, monkeypatch, seed):
    check(tmp_path, monkeypatch, random.Random(seed))


def test_what_stops_the_dry_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CliptexError, match=r"^models: there are none to evaluate; add at least one$"):
        planned_jobs(ROOT, values=["models={_replace: true}", "report={yardstick: null}"])


def test_the_scaling_page_is_up_to_date(tmp_path):
    page = tmp_path / "scaling.md"
    page.write_text((ROOT / "docs/scaling.md").read_text())
    scaling().main(str(page))
    assert page.read_text() == (ROOT / "docs/scaling.md").read_text(), (
        "run: python docs/figures/scaling.py docs/scaling.md"
    )


def test_a_released_clip_is_checked_with_its_weights_and_that_benchmark_alone(tmp_path):
    """Through the workflow, in an empty folder; the published figure is wrong, and is said to be."""
    student.export(student.build(TINY, 7), TINY, tmp_path / "released")
    over = {
        "miniature": {"image_size_px": 48, "benchmarks": {"imagenet": {"train": 4, "val": 4}}},
        "student": {"architecture": {"_replace": True, **TINY.architecture}, "pretrained": "released"},
        "models": {"clip": {"steps": 0, "patch_dropout": 0.0}},
        "seeds": [0, 1],
        "zeroshot": {"published": {"clip": {"imagenet": 55.5}}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(over))
    command = [BIN / "snakemake", "--cores", "2", "--directory", tmp_path, "--snakefile", ROOT / "Snakefile"]
    command += [
        "--configfile",
        tmp_path / "mine.yaml",
        "--retries",
        "0",
        "--config",
        "probes={models: [clip], baselines: []}",
    ]
    command += ["--", "results/zeroshot/imagenet.json"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    said = result.stdout + result.stderr
    assert result.returncode == 1
    assert "zeroshot.published.clip.imagenet: 55.5 % is published" in said, said[-3000:]
    assert sha256_file(tmp_path / "results/models/clip/seed0" / WEIGHTS) == sha256_file(
        tmp_path / "results/models/clip/seed1" / WEIGHTS
    )
    assert {path.name for path in (tmp_path / "results").iterdir()} <= {"models", "timings", "zeroshot"}
    assert {path.name for path in (tmp_path / "resources").iterdir()} == {"imagenet"}

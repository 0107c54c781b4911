"""SIGKILL in the stages that evaluate and report: no partial output counts as finished; reruns give the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import finished, run
from conftest import STUDENT
from official_layouts import write_imagenet, write_nyuv2

from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.evaluation import probe, zeroshot
from cliptex.evaluation.job import Job
from cliptex.evaluation.results import tabulate
from cliptex.evaluation.targets import probe_files
from cliptex.models import clip as student
from cliptex.training.run import train

NYUV2 = {task: {"heads": {"linear": {"grid": 8, "penalties": [0.01, 1.0]}}} for task in ("depth", "normals")}


def kill_thrice(folder: Path, arguments: list[str], outputs: list[Path]) -> None:
    """Kill the command while it writes, at any moment, and while it writes again, without cleaning up in between."""
    touches = run(folder, arguments)
    expected = finished(outputs)
    assert expected
    for output in outputs:
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    rng = np.random.default_rng(0)
    writing = 1 + np.flatnonzero(touches)
    moments = rng.choice(writing, 2, replace=False).tolist()
    moments.insert(1, int(rng.integers(1, len(touches) + 1)))
    for moment in moments:
        run(folder, arguments, moment)
        left = finished(outputs)
        assert {path: expected.get(path) for path in left} == left, moment
    assert finished(outputs) != expected  # otherwise nothing was interrupted
    run(folder, arguments)
    assert finished(outputs) == expected


@pytest.fixture
def folder(tmp_path):
    """A tiny exported model and two benchmarks."""
    student_config = Student(architecture=STUDENT)
    student.export(student.build(student_config, 0), student_config, tmp_path / paths.model("clip", 0))
    write_nyuv2(tmp_path / paths.benchmark("nyuv2"), 8, 4)
    write_imagenet(tmp_path / paths.benchmark("imagenet"), 6, 6)
    return tmp_path


def test_probes_survive_kills(folder):
    # no feature cache, so that every run writes the same files
    config = {"probes": {"benchmarks": {"nyuv2": NYUV2}, "save_predictions": 2, "cache_gb": 0}}
    arguments = ["probe", "--benchmark", "nyuv2", "--models", "random,position,clip", "--config", json.dumps(config)]
    kill_thrice(folder, arguments, [folder / "results/probes"])


def test_zero_shot_survives_kills(folder):
    config = {"models": {"clip": {}}, "probes": {"baselines": ["random"]}}
    arguments = ["zeroshot", "--benchmark", "imagenet", "--config", json.dumps(config)]
    kill_thrice(folder, arguments, [folder / "results/zeroshot"])


def test_report_survives_kills(tiny, tmp_path):
    models = {name: tiny.models[name] for name in ("clip", "clip_ft", "cliptex")}
    plain = tiny.model_copy(update={"models": models}).plain()
    plain["probes"] = {"benchmarks": {"nyuv2": NYUV2}, "save_predictions": 2}
    plain["zeroshot"] = {"benchmarks": ["imagenet"]}
    config = Config.load(plain)
    write_nyuv2(paths.benchmark("nyuv2"), 8, 4)
    write_imagenet(paths.benchmark("imagenet"), 6, 6)
    for name in models:
        train(config, name, 0)
    results, everyone = paths.RESULTS, ["random", "position", *models]
    probe.run(config, Job(name="nyuv2", models=tuple(everyone), seeds=(0,)))
    tabulate("nyuv2", probe_files(config, "nyuv2"), results / "probes/nyuv2.json")
    out = results / "zeroshot/imagenet.json"
    zeroshot.run(config, Job(name="imagenet", out=out))
    outputs = [tmp_path / paths.REPORT, tmp_path / results / "report.html"]
    kill_thrice(tmp_path, ["report", "--config", json.dumps(config.plain())], outputs)

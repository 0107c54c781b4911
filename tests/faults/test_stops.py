"""Preemption of a training of several processes, started as the rule does: `cliptex train` that becomes torchrun."""

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import PATIENCE_S, content
from pipeline import fault

from cliptex.training.checkpoints import EXIT_STOPPED

pytestmark = pytest.mark.faults
STEPS = 24
FOLDER = "results/models/cliptex/seed0"


@pytest.fixture(scope="module")
def launched(pipeline, tmp_path_factory):
    """The stage, its command for two processes and more steps, and what that makes where nothing stops it."""
    stage = pipeline.stage("train", "cliptex")
    arguments = list(stage.arguments)
    arguments[arguments.index("--gpus") + 1] = "2"
    config = json.loads(arguments[-1])
    config["models"]["cliptex"]["steps"] = STEPS
    command = [sys.executable, "-m", "cliptex", *arguments[:-1], json.dumps(config)]
    folder = pipeline.before(stage, tmp_path_factory.mktemp("launched"))
    ended = begin(command, folder)
    assert ended.wait(PATIENCE_S) == 0, said(folder)
    return stage, command, {name: content(folder / name) for name in stage.made}


def begin(command, folder):
    with (folder / ".said.txt").open("w") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)


def said(folder):
    return (folder / ".said.txt").read_text()[-3000:]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_launcher_that_is_asked_to_stop_saves_and_goes_on_later(pipeline, launched, tmp_path, name):
    stage, command, expected = launched
    folder = pipeline.before(stage, tmp_path / "run")
    checkpoints = folder / FOLDER / "checkpoints"
    with fault("preemption", f"{name} to torchrun with two processes"):
        launcher = begin(command, folder)
        while not list(checkpoints.glob("step-*.pt")):
            assert launcher.poll() is None, said(folder)
            time.sleep(0.02)
        launcher.send_signal(getattr(signal, name))
        assert launcher.wait(PATIENCE_S) == EXIT_STOPPED, said(folder)
        assert not (folder / FOLDER / "train.json").exists()
        newest = max(int(path.stem[5:]) for path in checkpoints.glob("step-*.pt"))
        log = (folder / stage.arguments[1]).read_text()
        assert f"{name} after step {newest}; state saved" in log, log
        launcher = begin(command, folder)
        assert launcher.wait(PATIENCE_S) == 0, said(folder)
        assert f"resuming from step {newest}" in (folder / stage.arguments[1]).read_text()
        assert {name: content(folder / name) for name in stage.made} == expected

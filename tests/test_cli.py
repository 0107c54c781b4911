import json
import subprocess
import sys
from pathlib import Path

import pytest

from cliptex import __version__
from cliptex.cli import app

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands)


def cliptex(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "cliptex", *arguments], capture_output=True, text=True, cwd=cwd)


def test_version():
    assert cliptex("--version").stdout.strip() == __version__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_importing_torch(command):
    code = "import sys; from cliptex.cli import app\ntry: app([sys.argv[1], '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'mmseg', 'open_clip')))"
    result = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {batchsize: 3}")
    result = cliptex("train", "--model", "clip", "--config", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("error: mine.yaml: train.batchsize: unknown key")
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_log_file_holds_the_error_too(tmp_path):
    result = cliptex(
        "--log", "logs/a.log", "index-shards", "--config", json.dumps({"miniature": {"pairs": 4}}), cwd=tmp_path
    )
    assert result.returncode == 1
    assert "results/shards/00000.tar: shard is missing" in result.stderr
    assert "results/shards/00000.tar: shard is missing" in (tmp_path / "logs/a.log").read_text()


def test_the_workflow_is_parsed_without_heavy_imports():
    code = "import cliptex.config, cliptex.labels_on_disk, cliptex.probes, cliptex.shard_batches, sys\n"
    code += "[cliptex.probes.heads(b) for b in ('voc', 'ade20k', 'coco', 'nyuv2', 'imagenet', 'places365')]\n"
    code += "print([m for m in ('torch', 'numpy.random', 'pyarrow', 'scipy', 'h5py', 'trimesh') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "torch" not in result.stdout
    assert "scipy" not in result.stdout

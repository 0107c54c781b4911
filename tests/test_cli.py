import json
import re
import subprocess
import sys
from pathlib import Path

from cliptex import __version__
from cliptex.cli import app

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands)


def cliptex(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "cliptex", *arguments], capture_output=True, text=True, cwd=cwd)


def test_version():
    assert cliptex("--version").stdout.strip() == __version__


def test_every_command_has_help_without_importing_torch():
    code = (
        "import sys; from cliptex.cli import app\n"
        "for command in sys.argv[1:]:\n"
        "    try: app([command, '--help'])\n"
        "    except SystemExit as end: assert not end.code, command\n"
        "    heavy = [name for name in ('torch', 'transformers', 'mmseg', 'open_clip') if name in sys.modules]\n"
        "    assert not heavy, (command, heavy)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"Usage: .*?([a-z-]+) \[OPTIONS\]", result.stdout) == COMMANDS


def test_the_commands_of_the_workflow_exist_with_their_options():
    import typer

    commands = typer.main.get_command(app).commands
    rules = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    shells = re.findall(r'shell:\n((?: +".*"\n)+)', rules)
    called = {}
    for shell in shells:
        text = "".join(re.findall(r'"(.*)"', shell))
        if found := re.fullmatch(r"cliptex (?:--log \{log\} )(?:--threads \S+ )?([a-z-]+)( .*)", text):
            called[found[1]] = set(re.findall(r"--[a-z-]+", found[2]))
    own = [shell for shell in shells if "cliptex " not in shell]
    assert len(called) + len(own) == len(shells)
    assert len(own) == 1  # the downloader's, which runs in an environment of its own
    for name, options in called.items():
        assert name in commands, name
        assert options <= {option for given in commands[name].params for option in given.opts}, name


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {batchsize: 3}")
    result = cliptex("render-pairs", "--shard", "0", "--config", "mine.yaml", cwd=tmp_path)
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

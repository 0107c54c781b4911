import json
import logging
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cliptex import __version__
from cliptex.cli import app, main
from cliptex.core import progress

ROOT = Path(__file__).parent.parent


def walk(command, name=()):
    """Each command and group with the words that call it."""
    yield name, command
    for sub, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*name, sub))


ALL = dict(walk(typer.main.get_command(app)))
COMMANDS = [name for name, command in ALL.items() if not hasattr(command, "commands")]


def cliptex(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "cliptex", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


def test_version_names_what_computes_without_importing_it():
    lines = dict(line.split(" ", 1) for line in cliptex("--version").stdout.splitlines())
    assert lines["cliptex"].split()[0] == __version__
    for package in ("torch", "open_clip_torch", "mmsegmentation", "snakemake"):
        assert lines[package] == version(package)
    code = "import sys; from cliptex.core.provenance import versions; versions(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("name", ALL, ids=" ".join)
def test_every_command_and_every_option_says_what_it_is(name):
    command = ALL[name]
    assert command.help and len(command.help.split()) > 3
    silent = [param.name for param in command.params if not getattr(param, "help", None)]
    assert silent == []


def test_every_command_has_help_without_importing_torch():
    code = (
        "import sys; from cliptex.cli import app\n"
        "for command in sys.argv[1:]:\n"
        "    try: app([*command.split(), '--help'], prog_name='cliptex')\n"
        "    except SystemExit as end: assert not end.code, command\n"
        "    heavy = [name for name in ('torch', 'transformers', 'mmseg', 'open_clip') if name in sys.modules]\n"
        "    assert not heavy, (command, heavy)\n"
    )
    names = [" ".join(name) for name in COMMANDS]
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"Usage: cliptex ([a-z -]+) \[OPTIONS\]", result.stdout) == names


def test_the_commands_of_the_workflow_exist_with_their_options():
    commands = typer.main.get_command(app).commands
    rules = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    shells = re.findall(r'shell:\n((?: +".*"\n)+)', rules)
    called, ours = {}, 0
    for shell in shells:
        text = "".join(re.findall(r'"(.*)"', shell))
        if command := re.fullmatch(r"cliptex (?:--log \{log\} )(?:--threads \S+ )?([a-z-]+)( .*)", text):
            called.setdefault(command[1], set()).update(re.findall(r"--[a-z-]+", command[2]))
            ours += 1
    own = [shell for shell in shells if "cliptex " not in shell]
    assert ours + len(own) == len(shells)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "error: Missing option '--model' (see cliptex train --help)"),
        (["trai"], "error: No such command 'trai'. Did you mean 'train'? (see cliptex --help)"),
        (["label", "--stor", "x"], "error: No such option: --stor"),
        (
            ["plan", "--debug"],
            "error: No such option: --debug (put it before the command: cliptex --debug ...)",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, message):
    result = cliptex(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_of_a_mistake(tmp_path):
    for arguments, environment in ((["--debug"], {}), ([], {"CLIPTEX_DEBUG": "1"})):
        result = cliptex(*arguments, "index-labels", "--store", "x", "--config", "{}", cwd=tmp_path, **environment)
        assert result.returncode == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.strip().endswith("error: --store: 'x' is not one of []")


def test_what_nobody_foresaw_is_one_line_and_its_traceback_in_the_log_file(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("the first line\nthe second")

    monkeypatch.setattr("cliptex.config.Config.load", broken)
    monkeypatch.chdir(tmp_path)
    for options, shown in ((["--log", "a.log"], False), (["--debug"], True), ([], False)):
        with fresh_logging(), pytest.raises(SystemExit) as end:
            monkeypatch.setattr(sys, "argv", ["cliptex", *options, "plan"])
            main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert ("Traceback" in said) is shown
        where = f"the traceback is in {tmp_path / 'a.log'}" if "--log" in options else "cliptex --debug ... shows"
        assert f"error: RuntimeError: the first line ({where}" in said.splitlines()[-1]
        assert shown or len(said.splitlines()) == 1
    assert "in broken" in (tmp_path / "a.log").read_text()


@contextmanager
def fresh_logging():
    """What a command does to logging, undone."""
    ours, bars = logging.getLogger("cliptex"), progress.bars
    handlers, levels = logging.root.handlers[:], (logging.root.level, ours.level)
    logging.root.handlers[:] = []
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            handler.close()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(levels[0])
        ours.setLevel(levels[1])
        logging.captureWarnings(False)
        progress.bars = bars


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("bash", {"COMP_WORDS": "cliptex tabulate-p", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "cliptex tabulate-p"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "cliptex tabulate-p", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_complete_commands(shell, environment):
    result = cliptex(_CLIPTEX_COMPLETE=f"complete_{shell}", **environment)
    assert "tabulate-probes" in result.stdout
    assert "zeroshot" not in result.stdout


def test_shells_complete_options():
    words = {"COMP_WORDS": "cliptex labels export --st", "COMP_CWORD": "3"}
    assert cliptex(_CLIPTEX_COMPLETE="complete_bash", **words).stdout.split() == ["--stores"]


def test_the_log_file_holds_the_error_too(tmp_path):
    result = cliptex(
        "--log", "logs/a.log", "index-shards", "--config", json.dumps({"miniature": {"pairs": 4}}), cwd=tmp_path
    )
    assert result.returncode == 1
    assert "results/shards/00000.tar: shard is missing" in result.stderr
    assert "results/shards/00000.tar: shard is missing" in (tmp_path / "logs/a.log").read_text()


def test_the_workflow_is_parsed_without_heavy_imports():
    code = "import cliptex.config, cliptex.labels.lost, cliptex.evaluation.targets, cliptex.data.shard_paths, sys\n"
    code += (
        "[cliptex.evaluation.targets.heads(b) for b in ('voc', 'ade20k', 'coco', 'nyuv2', 'imagenet', 'places365')]\n"
    )
    code += "print([m for m in ('torch', 'numpy.random', 'pyarrow', 'scipy', 'h5py', 'trimesh') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "torch" not in result.stdout
    assert "scipy" not in result.stdout

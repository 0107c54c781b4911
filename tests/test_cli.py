import json
import logging
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cliptex import __version__
from cliptex.cli import app, main
from cliptex.core import paths, progress
from cliptex.core.files import read_json

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
    commands |= {f"labels {name}": command for name, command in commands["labels"].commands.items()}
    rules = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    shells = re.findall(r'shell:\n((?: +".*"\n)+)', rules)
    called, ours = {}, 0
    for shell in shells:
        text = "".join(re.findall(r'"(.*)"', shell))
        if command := re.fullmatch(r"cliptex (?:--log \{log\} )(?:--threads \S+ )?((?:labels )?[a-z-]+)( .*)", text):
            called.setdefault(command[1], set()).update(re.findall(r"--[a-z-]+", command[2]))
            ours += 1
    own = [shell for shell in shells if "cliptex " not in shell]
    assert ours + len(own) == len(shells)
    assert len(own) == 1  # the downloader's, which runs in an environment of its own
    for name, options in called.items():
        assert name in commands, name
        assert options <= {option for given in commands[name].params for option in given.opts}, name


def test_mistakes_are_a_line_each_and_exit_code_1(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {batchsize: 3}\nseeds: [one]")
    result = cliptex("render-pairs", "--shard", "0", "--config", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert [line.partition("error: ")[2] for line in lines] == [
        "mine.yaml:1: train.batchsize: unknown key; did you mean batch_size?",
        "mine.yaml:2: seeds.0: must be a whole number, got 'one'",
    ]


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


def test_every_command_with_a_configuration_takes_several_files():
    commands = [command for name, command in ALL.items() if name != ("init",)]  # takes the name of one
    options = [param for command in commands for param in command.params if "--config" in param.opts]
    assert len(options) > 25 and all(param.multiple for param in options)


def test_a_run_elsewhere_is_named_as_to_snakemake(tmp_path):
    """--config stays relative to where the command is started, and the default configuration there is the default."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("miniature: {pairs: 4, pairs_per_shard: 4}")
    (tmp_path / "mine.yaml").write_text("miniature: {benchmarks: {voc: {train: 1, val: 1}}}")
    (tmp_path / "run").mkdir()
    result = cliptex("--directory", "run", "index-shards", "--config", "mine.yaml", cwd=tmp_path)
    assert "error: results/shards/00000.tar: shard is missing" in result.stderr
    for folder, message in (("walk", "walk: no such folder"), ("mine.yaml", "mine.yaml: no such folder")):
        result = cliptex("--directory", folder, "index-shards", cwd=tmp_path)
        assert result.returncode == 1 and f"error: --directory {message}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "inspect", "--config", "{}"], "label_stores: empty, so there is nothing to do; give the run's"),
        (["plan", "--config", "{}"], "configuration: no label stores, models or benchmarks, so there is nothing"),
        (["plan", "--config", "{}", "--config", "a.yaml"], "--config: JSON text is a whole configuration; give it"),
        (["index-labels", "--store", "dept"], "--store: 'dept' is not one of [depth, normals, segmentation]; did you"),
        (["labels", "export", "--out", "x", "--shards", "9-0"], "--shards: '9-0' has no shards; write the smaller"),
    ],
)
def test_what_leads_to_nothing_is_an_error(tmp_path, arguments, message):
    result = cliptex(*arguments, cwd=tmp_path)
    assert result.returncode == 1 and f"error: {message}" in result.stderr


def test_a_wrong_environment_variable_is_one_line():
    result = cliptex("--threads", "2", "config-schema", LOCAL_WORLD_SIZE="abc")
    assert result.returncode == 1
    assert "error: LOCAL_WORLD_SIZE='abc': must be a whole number; unset" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_interrupted_command_says_what_to_do(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cliptex.config.Config.from_files", interrupted)
    monkeypatch.setattr(sys, "argv", ["cliptex", "plan"])
    with fresh_logging(), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_mistake(tmp_path):
    for arguments, environment in ((["--debug"], {}), ([], {"CLIPTEX_DEBUG": "1"})):
        result = cliptex(*arguments, "index-labels", "--store", "x", "--config", "{}", cwd=tmp_path, **environment)
        assert result.returncode == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.strip().endswith("error: --store: 'x' is not one of []")


def test_what_nobody_foresaw_is_one_line_and_its_traceback_in_the_log_file(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("the first line\nthe second")

    monkeypatch.setattr("cliptex.config.Config.from_files", broken)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").touch()
    for options, shown in ((["--log", "a.log"], False), (["--debug"], True), ([], False)):
        with fresh_logging(), pytest.raises(SystemExit) as end:
            monkeypatch.setattr(sys, "argv", ["cliptex", *options, "plan"])
            main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert ("Traceback" in said) is shown
        where = f"the traceback is in {tmp_path / 'a.log'}" if "--log" in options else "cliptex --debug ... shows"
        named = " ".join(["error: cliptex", *options, "plan"])
        assert f"{named}: RuntimeError: the first line ({where}" in said.splitlines()[-1]
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
    # in the folder of the log, and of a job that failed, too
    assert read_json(tmp_path / "results/timings/a/all.json")["processor_seconds"] > 0


BURN = "import time\ndef burn():\n    while time.process_time() < 0.5: pass\n"
FORKED = "from multiprocessing import get_context; worker = get_context('forkserver').Process(target=burn.burn)\n"


@pytest.mark.parametrize(
    "work",
    [
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import burn; burn.burn()'])",
        FORKED + "worker.start(); worker.join()",  # as the loader's, whose parent is the fork server
    ],
    ids=["subprocess", "worker"],
)
def test_a_job_records_its_processor_seconds_with_those_of_its_subprocesses(work, tmp_path):
    def used():
        taken = resource.getrusage(resource.RUSAGE_CHILDREN)
        return taken.ru_utime + taken.ru_stime

    (tmp_path / "burn.py").write_text(BURN)
    code = f"import burn\n{work}\n"
    code += "from pathlib import Path; from cliptex.core.provenance import record_usage\n"
    code += "record_usage(Path('a.json')); record_usage(Path('/proc/none/a.json'))"
    before = used()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    recorded = read_json(tmp_path / "a.json")["processor_seconds"]
    assert recorded >= 0.5
    assert work.startswith(FORKED) or recorded == pytest.approx(used() - before, rel=0.05, abs=0.05)


def test_a_jobs_record_is_next_to_snakemakes_own():
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    pairs = re.findall(r'log:\s+f?"(logs/[^"]+)",?\s+benchmark:\s+f?"([^"]+)"', text)
    assert len(pairs) > 15
    for log, table in pairs:
        assert paths.job_usage(Path(log)) == Path(table).with_suffix(".json")
    assert paths.job_usage(Path("mine.log")) is paths.job_usage(Path("/logs/label/a.log")) is None


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

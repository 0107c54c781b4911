"""Runs without a clone: folders that use the package's workflow as a Snakemake module."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT

import cliptex
from cliptex.cli import common
from cliptex.cluster import folder
from cliptex.core.errors import CliptexError, ConfigError

COMMAND = [sys.executable, "-m", "cliptex"]


def run(*arguments, cwd):
    """`cliptex ARGUMENTS` in `cwd`, with all output in `stdout`."""
    command = list(map(str, [*COMMAND, *arguments]))
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd)


@pytest.fixture(autouse=True)
def nothing_of_other_tests(monkeypatch):
    """A command with --directory that another test ran in this process would be remembered."""
    monkeypatch.setattr(common, "started_in", Path())


@pytest.fixture
def made(tmp_path):
    """A folder for config/test.yaml."""
    folder.create(tmp_path / "made", "test")
    return tmp_path / "made"


@pytest.mark.xdist_group("workflow")
def test_a_run_of_the_clone_continues_in_a_folder_and_has_nothing_to_do(finished, made):
    """So inputs, parameters and commands are the same; --directory is passed on to Snakemake."""
    done = run("--directory", made, "run", "--directory", finished, "--dry-run", cwd=made.parent)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout


def test_a_folder_has_its_own_configuration_and_profiles_and_passes_options_on(made):
    """In a folder where nothing has run yet."""
    with (made / "profiles/default/config.yaml").open("a") as profile:
        profile.write("set-threads: {train: 2}\ncores: 7\n")
    (made / "config/config.yaml").write_text(
        (made / "config/config.yaml").read_text().replace("\nseeds: [0]", "\nseeds: [4]")
    )
    arguments = ["run", "-n", "-p", "--config", "train={batch_size: 3}", "--", "results/models/clip/seed4/train.json"]
    done = run(*arguments, cwd=made)
    assert done.returncode == 0, done.stdout
    train = re.search(r"^rule train:\n.*?\n\n", done.stdout, re.M | re.S)[0]
    assert "model=clip, seed=4" in train and "threads: 2" in train


def test_a_command_reads_the_configuration_of_the_folder_it_is_started_in(made, monkeypatch):
    monkeypatch.chdir(made)
    assert common.load_config([]).miniature.pairs == 128
    (made / "config/test.yaml").write_text("seeds: [4]")
    assert common.load_config([]).seeds == [4]
    assert common.load_config(["seeds=[5]"]).seeds == [5]
    (made / "config/test.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config/test\.yaml: cannot be read"):
        common.load_config([])


def test_configurations_of_the_package_are_found_by_their_path_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common.load_config(["config/paper.yaml"]).seeds == [0, 1, 2]
    (tmp_path / "config").mkdir()
    (tmp_path / "config/paper.yaml").write_text("seeds: [5]")
    assert common.load_config(["config/paper.yaml"]).seeds == [5]


@pytest.mark.parametrize("name", folder.choices())
def test_every_configuration_of_the_package_makes_a_folder(name, tmp_path, monkeypatch):
    folder.create(tmp_path / "made", name)
    monkeypatch.chdir(tmp_path / "made")
    chosen = common.load_config([])
    monkeypatch.chdir(ROOT)
    assert chosen == common.load_config([] if name == "miniature" else [f"config/{name}.yaml"])


def test_a_folder_in_use_or_an_unknown_configuration_is_refused(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").touch()
    for arguments, message in (
        (["used"], "used: not empty; give a new or an empty folder"),
        (["used/mine.txt"], "used/mine.txt: a file; give a new or an empty folder"),
        (["new", "--config", "papr"], "--config: 'papr' is not one of [miniature, one_gpu, paper, test]; did you mean"),
    ):
        done = run("init", *arguments, cwd=tmp_path)
        assert done.returncode == 1 and len(done.stdout.splitlines()) == 1 and message in done.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "mine.txt"]


def test_a_folder_for_another_version_names_both_and_what_to_do(made):
    text = (made / "Snakefile").read_text()
    (made / "Snakefile").write_text(text.replace(cliptex.__version__, "0.0.9"))
    done = run("run", "-n", cwd=made)
    assert done.returncode == 1
    assert (
        f"is for cliptex 0.0.9, but {cliptex.__version__} is installed; run: pip install cliptex==0.0.9" in done.stdout
    )


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ("dict(config)", [], "config: must be the whole configuration; write `config: config`"),
        (
            "config",
            ["--software-deployment-method", "conda"],
            "install the package from a clone; run Snakemake in a clone",
        ),
    ],
)
def test_what_only_a_clone_can_do_is_refused(made, changed, options, message):
    text = (made / "Snakefile").read_text()
    (made / "Snakefile").write_text(text.replace("        config\n", f"        {changed}\n"))
    done = run("run", "-n", *options, cwd=made)
    assert done.returncode == 1 and message in done.stdout


def test_all_cores_are_the_default_unless_options_or_the_profile_name_a_number(made, monkeypatch):
    monkeypatch.chdir(made)
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command[3:]))
    (made / "mine").mkdir()
    (made / "mine/config.yaml").write_text("jobs: 3\n")
    given = (["-n"], ["--cores", "3"], ["-j4", "all"], ["--workflow-profile", "mine"], ["--help"], ["-n", "--", "a"])
    for arguments in given:
        folder.run(arguments)
    assert started == [["--cores", "all", *given[0]], *given[1:5], ["--cores", "all", *given[5]]]
    monkeypatch.chdir(made.parent)
    with pytest.raises(CliptexError, match=r"has no Snakefile; run: cliptex init FOLDER"):
        folder.run([])


def test_the_snakefile_of_a_folder_is_formatted(made):
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", made / "Snakefile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout

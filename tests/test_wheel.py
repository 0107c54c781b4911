"""The package as it is published: an sdist and a wheel, installed where there is no clone, run the workflow."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from small_run import ROOT

pytestmark = pytest.mark.wheel
MADE_HERE = (".*", "*.egg-info", "build", "dist", "logs", "resources", "results", "site")
"""What a clone may hold that is not in the repository."""
SHIPPED = ("Snakefile", "config/**/*.yaml", "envs/*.yaml", "profiles/**/*.yaml", "workflow/**/*.yaml")
SHIPPED += ("workflow/**/*.smk", "workflow/**/*.rst")


def output(*command, cwd, **environment):
    environment = {"PATH": os.defpath, "HOME": str(cwd), "PYTHONUTF8": "1"} | environment
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the repository, without what a clone may hold besides."""
    folder = tmp_path_factory.mktemp("clone") / "source"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*MADE_HERE))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel that is built from the sdist, as `build` does by default."""
    folder = tmp_path_factory.mktemp("build")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder / "tools", "build"], check=True)
    environment = os.environ | {"PYTHONPATH": str(folder / "tools")}
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = (folder / "dist").glob("*.whl")
    return path


def installed(environment, *what):
    """The programs of a fresh environment with the package. Its dependencies are those of this environment, as they are
    gigabytes; the README's test command installs them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    install = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "-q", "--no-deps"]
    subprocess.run([*install, *what], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return environment / "bin"


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    return installed(tmp_path_factory.mktemp("environment"), "--no-index", wheel)


def test_the_wheel_has_the_workflow(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT).as_posix() for pattern in SHIPPED for path in ROOT.glob(pattern)}
    assert len(files) > 50
    assert {f"cliptex/core/shipped/{name}" for name in files} - names == set()


def test_the_installed_package_runs_the_test_configuration_to_its_end(programs, tmp_path):
    where = output(programs / "python", "-c", "import cliptex; print(cliptex.__file__)", cwd=tmp_path)
    assert where.startswith(str(programs.parent))
    output(programs / "cliptex", "init", "night", "--config", "test", cwd=tmp_path)
    output(programs / "cliptex", "--directory", "night", "run", cwd=tmp_path)
    assert "</html>" in (tmp_path / "night/results/report.html").read_text()
    done = output(programs / "cliptex", "run", "--dry-run", cwd=tmp_path / "night")
    assert "Nothing to be done" in done


def test_snakemake_finds_the_console_of_an_editable_installation(source, tmp_path):
    """As CONTRIBUTING installs it. Snakemake looks for plugins in paths, not behind an import hook."""
    programs = installed(tmp_path / "environment", "--editable", source)
    found = "{module.name: module.module_finder.path for module in pkgutil.iter_modules()}"
    show = f"import pkgutil; print({found}['snakemake_logger_plugin_cliptex'])"
    assert output(programs / "python", "-P", "-c", show, cwd=tmp_path).strip() == str(source)

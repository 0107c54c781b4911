"""A cluster for the tests of this folder. Without SLURM they skip and say why; where CI is set that is a failure."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from runs import BEGUN


def missing(reason: str) -> None:
    """Skip, but never in CI."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{reason} (CI is set, where nothing may be skipped)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def plugin():
    """Snakemake's plugin for SLURM."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        missing("snakemake-executor-plugin-slurm: not installed; pip install '.[slurm]'")


@pytest.fixture(scope="session")
def cluster(plugin):
    """SLURM with two nodes; nothing of it is left afterwards but its logs, in SLURM_TEST_FOLDER if that is set."""
    if reason := unavailable():
        missing(reason)
    folder = os.environ.get("SLURM_TEST_FOLDER") or tempfile.mkdtemp(prefix="cliptex-slurm-")
    with Cluster(Path(folder)) as running:
        yield running


@pytest.fixture(autouse=True)
def no_run_outlives_its_test(request):
    """Neither Snakemake nor, if there is a cluster, its jobs."""
    yield
    going_on = [run for run in BEGUN if run.process.poll() is None]
    for run in going_on:
        run.end()
    if going_on and "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").end_jobs()
    BEGUN.clear()

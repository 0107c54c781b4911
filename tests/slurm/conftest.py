"""A cluster for the tests of this folder. Without SLURM they are skipped with a reason; in CI this is a failure."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from runs import STARTED


def missing(reason: str) -> None:
    """Skip the test; in CI, fail."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{reason} (CI is set, so nothing may be skipped)")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def plugin():
    """Requires Snakemake's SLURM plugin."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        missing("snakemake-executor-plugin-slurm: not installed; pip install '.[slurm]'")


@pytest.fixture(scope="session")
def cluster(plugin):
    """SLURM with two nodes; afterwards only its logs are left, in SLURM_TEST_FOLDER if that is set."""
    if reason := unavailable():
        missing(reason)
    folder = os.environ.get("SLURM_TEST_FOLDER") or tempfile.mkdtemp(prefix="cliptex-slurm-")
    with Cluster(Path(folder)) as running:
        yield running


@pytest.fixture(autouse=True)
def no_run_outlives_its_test(request):
    """End Snakemake and, if there is a cluster, its jobs."""
    yield
    unfinished = [run for run in STARTED if run.process.poll() is None]
    for run in unfinished:
        run.end()
    if unfinished and "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").end_jobs()
    STARTED.clear()

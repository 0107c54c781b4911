import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cliptex.core import progress
from cliptex.core.errors import CliptexError
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import code, provenance

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["segmentation", "depth", "normals"])
def test_our_own_are_found_by_name(name):
    assert find("tasks", name).name == name


def test_a_users_own_is_found_by_import_path():
    assert find("tasks", "cliptex.tasks.depth:Depth") is find("tasks", "depth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dept", "'dept' is neither a module of cliptex/tasks/ nor an importable"),
        ("nobody.here:Task", "'nobody.here:Task' is neither"),
        ("cliptex.tasks.depth:Nothing", "module 'cliptex.tasks.depth' has no 'Nothing'"),
    ],
)
def test_what_does_not_exist_is_named(name, message):
    with pytest.raises(CliptexError, match=message):
        find("tasks", name)


def test_long_work_says_how_far_it_is_in_a_log(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "cliptex"):
        assert list(track(range(3), "count")) == [0, 1, 2]
    assert re.search(r"count: 2/3, [\d.e+]+ per second, 00:00 left", caplog.text)
    assert progress._pace(10, 40.0, 100) == ", 4 s each, 06:00 left"
    assert progress._pace(100, 40.0, None) == ", 2.5 per second"


def test_short_work_is_quiet(caplog):
    with caplog.at_level(logging.INFO, "cliptex"):
        assert list(track(iter("ab"), "count")) == ["a", "b"]
    assert caplog.text == ""


def test_provenance_tells_code_apart_where_there_is_no_commit(tmp_path):
    shutil.copytree(ROOT / "cliptex", tmp_path / "cliptex", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "import json; from cliptex.core.provenance import provenance; print(json.dumps(provenance({})))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def asked():
        command = [sys.executable, "-c", ask]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
        return json.loads(shown.stdout)

    same = asked()
    assert same["git"] is None and same["code_sha256"] == provenance({})["code_sha256"]
    with (tmp_path / "cliptex/tasks/depth.py").open("a") as file:
        file.write("# another\n")
    other = asked()
    assert code(other) == other["code_sha256"][:12] != code(same)
    assert code(same | {"git": "a1b2c3d"}) == "a1b2c3d" and code({"git": None}) is None


def test_provenance_tells_configurations_apart():
    one, other = provenance({"a": 1}), provenance({"a": 2})
    assert one["config_sha256"] != other["config_sha256"]
    assert one["packages"]["torch"] == other["packages"]["torch"]

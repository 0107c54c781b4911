"""The table of benchmarks: what runs, what is counted as failed, and the page that shows it."""

import importlib.util
import json
import sys

import pytest
from small_run import ROOT

HERE = ROOT / "benchmarks"
PAGE = ROOT / "docs/performance.md"


@pytest.fixture(scope="module")
def table():
    """benchmarks/all.py."""
    sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location("all_benchmarks", HERE / "all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(HERE))


def test_every_benchmark_has_a_quick_form(table):
    names = {path.stem for path in table.files()}
    assert {"dag", "label", "loader", "precision", "probe", "render", "store", "train"} <= names
    assert not names & {"all", "gpu", "machine"}
    lacking = [path.name for path in (*table.files(), HERE / "gpu.py") if '"--quick"' not in path.read_text()]
    assert lacking == []


GOOD = {"benchmark": "good", "ratio": 1.2345, "spread": [1, 1.5], "goal": ">= 1", "holds": True, "what": "a | b"}
SCRIPTS = {
    "good": f"import sys, json; assert sys.argv[1:] == ['--quick']; print('words'); print(json.dumps([{GOOD!r}]))",
    "raises": "print('[]'); raise SystemExit('no such network')",
    "silent": "print('done')",
    # a process of its own holds the pipes open
    "slow": "import subprocess as s, time; print('[]', flush=True); s.Popen(['sleep', '60']); time.sleep(60)",
}


def test_a_benchmark_that_fails_is_a_row_and_is_counted(table, tmp_path, monkeypatch, capsys):
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(table, "HERE", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: ratios -->\nFORMER\n<!-- end of table -->\nafter\n")
    assert table.main(["--quick", "--limit", "4", "--page", str(page)]) == 1
    shown = page.read_text()
    assert "FORMER" not in shown and shown.startswith("before") and shown.endswith("after\n")
    assert "| `good` | 1.23 | 1 to 1.5 | >= 1 | yes | a \\| b |" in shown
    record = json.loads((tmp_path / "performance.json").read_text())
    failed = {run["file"]: run["failed"] for run in record["runs"] if "failed" in run}
    assert failed["raises.py"] == "exit code 1: no such network"
    assert failed["silent.py"] == "its last line is not JSON"
    assert failed["slow.py"].startswith("exit code 1: not done in ")
    assert record["failed"] == list(failed) and "**3 failed**" in shown
    assert capsys.readouterr().out.strip() in shown


def test_a_measure_that_fails_on_a_gpu_is_a_row_beside_the_others(table):
    row = {"benchmark": "train/cliptex", "images_per_s": 1234.5, "waiting": 0.02, "cores": 3.5, "peak_memory_mb": 20000}
    rows = [row | {"ratio": 1.06, "against": "time of train/open_clip"}, {"benchmark": "x", "error": "E: no"}]
    about = {"processor": "p", "cores": 2, "device": "H", "python": "3", "torch": "2", "commit": "c", "date": "d"}
    record = {
        "machine": about,
        "quick": False,
        "only": [],
        "seconds": 3,
        "processor_seconds": 2,
        "failed": [],
        "runs": [{"file": "gpu.py", "results": rows}],
    }
    first, *lines = table.gpu(record).splitlines()
    assert first.startswith("H, p, 2 cores")
    assert "| `train/cliptex` | 1,234 | 2 % | 3.5 | 20000 | 1.06 | time of train/open_clip |" in lines
    assert "| `x` | failed: E: no | – | – | – | – | – |" in lines
    assert len({line.replace("\\|", "").count("|") for line in lines if line}) == 1


@pytest.mark.parametrize(("name", "records"), [("ratios", "performance.json"), ("gpu", "gpu.json")])
def test_the_page_shows_the_records_next_to_it(table, name, records):
    page, path = PAGE.read_text(encoding="utf-8"), PAGE.with_name(records)
    if not path.exists():
        assert name == "gpu" and "No GPU was measured" in page
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    assert table.replaced(page, name, table.TABLES[name](record)) == page


def test_a_page_without_marks_is_refused(table):
    with pytest.raises(ValueError, match="<!-- table: gpu -->"):
        table.replaced("a page", "gpu", "a table")

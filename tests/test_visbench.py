"""Depth and normals metrics are VisBench's, and results can be exchanged with its boards.

The folder visbench_0.27.0 has predictions, what VisBench 0.27.0 measures on them, and records as it publishes them
(results/corpus/visbench.jsonl in github.com/turhancan97/VisBench, feafbaf, MIT licence). With VisBench installed in an
environment of its own, whose Python CLIPTEX_VISBENCH names, the tests also run it.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.evaluation.metrics.depth import depth_metrics
from cliptex.evaluation.metrics.normals import normals_metrics
from cliptex.evaluation.metrics.segmentation import segmentation_metrics
from cliptex.evaluation.results import ProbeTable, Row, write_result
from cliptex.report.visbench import TASKS, export_records, import_records

GOLDEN = Path(__file__).parent / "visbench_0.27.0"
VISBENCH = os.environ.get("CLIPTEX_VISBENCH")
needs_visbench = pytest.mark.skipif(VISBENCH is None, reason="CLIPTEX_VISBENCH names no Python that has visbench")


def ours(arrays):
    """Our metrics of stored predictions under VisBench's names and in its units."""
    normals_truth = np.where(np.any(arrays["normals_truth"] != 0, -1, keepdims=True), arrays["normals_truth"], np.nan)
    depth = depth_metrics(zip(arrays["depth_truth"], arrays["depth"], strict=True), 1e-3, 10, "image")
    normals = normals_metrics(zip(normals_truth, arrays["normals"], strict=True), "image")
    return {
        task: {theirs: metrics[name] * factor for name, (theirs, factor) in TASKS[task].metrics.items()}
        for task, metrics in (("depth", depth), ("normals", normals))
    }


def run_visbench(*arguments):
    command = [VISBENCH, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_metrics_of_stored_predictions_equal_visbenchs(task):
    """To a millionth: VisBench computes in float32, in which an angle near zero has about four digits."""
    theirs = read_json(GOLDEN / "metrics.json")
    assert theirs["visbench"] == "0.27.0"
    with np.load(GOLDEN / "predictions.npz") as arrays:
        assert ours(arrays)[task] == pytest.approx(theirs[task], rel=1e-6)
        assert (arrays["depth_truth"] == 0).any(axis=(1, 2)).all(), "pixels without ground truth are in every image"


@needs_visbench
def test_the_stored_metrics_are_what_visbench_measures():
    found = json.loads(run_visbench(GOLDEN / "metrics.py", GOLDEN / "predictions.npz"))
    stored = read_json(GOLDEN / "metrics.json")
    for task in ("depth", "normals"):
        assert found[task] == pytest.approx(stored[task], rel=1e-6)


def row(task, seed, metrics, **others):
    fields = {"task": task, "model": "clip_ft", "seed": seed, "head": "linear", "metrics": metrics}
    known = {"protocol": "words", "protocol_name": "probe3d", "protocol_digest": "ab12"}
    return Row(**fields | known | {"num_parameters": 7, "seconds": 1.5, "hyperparameters": {"penalty": 0.1}} | others)


def table(path, benchmark, rows, protocol):
    digests = {f"clip_ft/seed{seed}": f"{seed}" * 64 for seed in (0, 1)}
    result = ProbeTable(
        schema_version=1,
        benchmark=benchmark,
        source="miniature",
        variant=None,
        split="test",
        num_train=40,
        num_eval=20,
        class_names=[],
        results=rows,
        protocol=protocol,
        provenance={"model_sha256": digests, "packages": {"torch": "2.0"}},
    )
    write_result(path, result)
    return path


@pytest.fixture
def tables(tmp_path):
    confusion = np.array([[5, 1, 0], [2, 7, 0], [0, 0, 0]])
    with np.load(GOLDEN / "predictions.npz") as arrays:
        depth = depth_metrics(zip(arrays["depth_truth"], arrays["depth"], strict=True), 1e-3, 10)
    rows = [row("depth", seed, depth) for seed in (0, 1)]
    rows.append(row("normals", 0, {"mean": 20.0, "median": 10.0, "rmse": 30.0, "within_11_25": 40.0}))
    voc = [row("semantic_segmentation", 0, segmentation_metrics(confusion)), row("detection", 0, {"AP": 3.0})]
    return [
        table(
            tmp_path / "nyuv2.json",
            "nyuv2",
            rows,
            {"depth": {"averaging": "image"}, "normals": {"averaging": "pooled"}},
        ),
        table(tmp_path / "voc.json", "voc", voc, {}),
    ]


def test_export_and_import_give_the_same_rows(tables, tmp_path):
    left_out = export_records(tables, tmp_path / "board.jsonl")
    assert left_out == [
        "nyuv2, normals: its metrics are pooled, VisBench's are means over images (1 rows)",
        "voc, detection: VisBench has no task with these metrics (1 rows)",
    ]
    assert import_records(tmp_path / "board.jsonl", tmp_path / "rows.json") == {}
    rows = read_json(tmp_path / "rows.json")["rows"]
    sources = [json.loads(path.read_text())["results"] for path in tables]
    expected = [one for results in sources for one in results if one["task"] in ("depth", "semantic_segmentation")]
    assert [one["dataset"] for one in rows] == ["nyuv2", "nyuv2", "voc"]
    for found, source in zip(rows, expected, strict=True):
        for key in ("task", "model", "seed", "head", "protocol", "protocol_name", "protocol_digest"):
            assert found[key] == source[key]
        exchanged = {name: source["metrics"][name] for name in TASKS[source["task"]].metrics}
        assert found["metrics"] == pytest.approx(exchanged)


@needs_visbench
def test_visbench_reads_and_ranks_the_exported_records(tables, tmp_path):
    export_records(tables, tmp_path / "board.jsonl")
    code = (
        "import sys; from pathlib import Path\n"
        "from visbench.results import read_records\n"
        "from visbench.results.leaderboard import group_comparable, rank, shared_metrics\n"
        "records = read_records(Path(sys.argv[1]))\n"
        "for group in group_comparable(records).values():\n"
        "    names = shared_metrics(group)\n"
        "    print(group[0].task, len(group), *names, len(rank(group, names[0])))\n"
    )
    lines = run_visbench("-c", code, tmp_path / "board.jsonl").splitlines()
    assert lines == ["depth 2 abs_rel d1 d2 d3 rmse 2", "semantic_segmentation 1 mean_acc miou pixel_acc 1"]


def test_published_records_are_imported(tmp_path):
    left_out = import_records(GOLDEN / "published_records.jsonl", tmp_path / "rows.json")
    assert left_out == {"detection": 1}
    rows = {one["task"]: one for one in read_json(tmp_path / "rows.json")["rows"]}
    assert rows.keys() == {"classification", "depth", "normals", "semantic_segmentation"}
    assert rows["depth"]["model"] == "clip_vitb16" and rows["depth"]["protocol_name"] == "probe3d"
    assert rows["depth"]["metrics"]["delta1"] == pytest.approx(63.2091, abs=1e-4)
    assert rows["semantic_segmentation"]["metrics"]["mIoU"] == pytest.approx(65.4583, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"schema_version": 10}, "line 2 has schema version 10, newer than 9"),
        (lambda record: record | {"metrics": {"d1": "high"}}, r"metrics\.d1 is wrong \('high'\); line 2"),
        (lambda record: record | {"metrics": {"d1": float("nan")}}, "line 2: d1 is not finite"),
        (lambda record: record | {"metrics": {"iou": 0.5}}, "line 2 has none of the metrics of depth"),
        (lambda record: [record], "its content is wrong"),
    ],
)
def test_a_wrong_record_names_its_line(tmp_path, change, message):
    lines = (GOLDEN / "published_records.jsonl").read_text().splitlines()
    record = next(record for record in map(json.loads, lines) if record["task"] == "depth")
    path = tmp_path / "board.jsonl"
    path.write_text("\r\n" + json.dumps(change(record)) + "\r\n")
    with pytest.raises(CliptexError, match=message):
        import_records(path, tmp_path / "rows.json")
    path.write_text('{"task": \n')
    with pytest.raises(CliptexError, match="line 1 is not JSON"):
        import_records(path, tmp_path / "rows.json")
    assert not (tmp_path / "rows.json").exists()

"""An unforeseen error in the loop of any stage ends it with exit code 2 and one line that names file and key."""

import logging
import re
import sys
from pathlib import Path

import pytest
from official_layouts import write_imagenet

from cliptex import cli
from cliptex.core import paths
from cliptex.core.files import write_json

KEY = r"\d{5}\.tar, key '\d{9}'"
PLANTED = {
    "render-pairs --shard 0": ("data.miniature.sets.render", "pair 000000000"),
    "render-experts --part val": ("data.miniature.sets.render", r"val\.h5, image 0"),
    "render-benchmark --name voc": ("data.miniature.layouts.render", r"voc, train scene \d+"),
    "build-shards --batch 0": ("data.download.describe_shard", r"00000\.tar"),
    "label --store depth --batch 0 --workers 0": ("tasks.depth.Depth.encode", KEY),
    "index-labels --store depth": ("labels.index.check_keys", r"depth/00000\.parquet"),
    "labels export --stores depth --out out": ("labels.export._sample", KEY),
    "labels audit --stores depth": ("labels.audit.compare", KEY),
    "train --model clip": ("training.batch.crop_image", KEY),
    "train --model fresh": ("tasks.depth.Depth.target", r"label store depth, key '\d{9}'"),
    "export-benchmark --name imagenet --out out": ("evaluation.export_benchmark._members_of", "imagenet.* image "),
    "plan --no-measure": ("cluster.dry_run.planned_jobs", "cliptex plan --no-measure"),
    "report": ("report.build_report", "cliptex report"),
}
"""Command, function that fails, and what the line names: what is worked on, or else the command."""


def planted(*_, **__):
    raise RuntimeError("planted\nwith more lines")


def test_an_unforeseen_error_is_one_line_with_file_and_key(tiny, monkeypatch, caplog):
    write_imagenet(paths.benchmark("imagenet"), 3, 3, height=16, width=16)
    plain = tiny.plain()
    plain["models"]["fresh"] = {"steps": 2, "tasks": {"depth": 1.0}}
    write_json("config.json", plain)
    for command, (function, named) in PLANTED.items():
        labels = paths.labels("depth") / "00000.parquet"
        if is_labelling := command.startswith("label "):
            labels.rename("kept.parquet")
        caplog.clear()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(f"cliptex.{function}", planted)
            patch.setattr(sys, "argv", ["cliptex", *command.split(), "--config", "config.json"])
            cli.main()
        if is_labelling:
            Path("kept.parquet").rename(labels)
        said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR and not hasattr(r, "is_traceback")]
        assert ended.value.code == 2 and len(said) == 1, (command, said)
        assert re.search(rf"^error: \S*.*{named}.*: RuntimeError: planted \(", said[0]), (command, said)

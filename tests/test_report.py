"""The report, on a results tree with the schemas of the real stages; labels and shards are made by those stages."""

import base64
import csv
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from urllib.parse import unquote

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from official_layouts import write_coco, write_nyuv2, write_voc

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.core.plugins import find
from cliptex.core.provenance import machine, provenance
from cliptex.data.images import encode_jpeg
from cliptex.data.shard_index import index_shards
from cliptex.data.shards import Pair, write_shard, write_tar
from cliptex.evaluation.drawing import BoxDrawing
from cliptex.evaluation.measures import metric_of
from cliptex.evaluation.metrics.display import direction
from cliptex.evaluation.per_image import main_metric, per_image_path, read_per_image, write_per_image
from cliptex.evaluation.suites import sets_run, suite_summary
from cliptex.evaluation.thumbnails import (
    box_thumbnails,
    depth_thumbnails,
    mask_thumbnails,
    normals_thumbnails,
    thumbnails_path,
)
from cliptex.experts.base import Expert
from cliptex.experts.training import train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.report import build_report
from cliptex.report.bootstrap import Interval
from cliptex.report.charts.style import FURTHER, PAGE
from cliptex.report.compare.runs import shown_config
from cliptex.report.differences import Comparison, differences_table
from cliptex.report.evaluators import evaluators
from cliptex.report.figures import WIDTH_INCHES, gains_chart
from cliptex.report.gains import ProbeGain, probe_gains
from cliptex.report.gallery import EvaluatedImage, _read_pairs, draw
from cliptex.report.gather import Scores, gather
from cliptex.report.page import make_parts
from cliptex.report.statistics import (
    GainStatus,
    clear_best,
    difference,
    gain_over,
    pooled_std,
    relative_gain,
    sample_std,
    signed,
)
from cliptex.report.table import Cell, Column, Group, Table
from cliptex.report.tables.provenance import stage_of
from cliptex.report.timings import TimedJob, run_times
from cliptex.report.verdict import further_sentence, verdict
from cliptex.report.zeroshot import ZeroShot

pytestmark = pytest.mark.xdist_group("report")

CAPTIONS = ["a <script>alert('x')</script> chair & a “sofa”", 'quotes " and | pipes </figcaption>', "a plain caption"]
HOSTILE_KEY = "<script>alert(1)\"' onerror=x ${y} \x1b[2J"
MODELS = ("random", "position", "clip", "clip_ft", "cliptex")
MAIN = {  # benchmark, task, head, metric -> one mean a model, in the order of MODELS
    ("voc", "semantic_segmentation", "linear", "mIoU"): (8.4, 5.1, 9.2, 10.1, 11.9),
    ("voc", "semantic_segmentation", "pspnet", "mIoU"): (10.2, 6.0, 9.6, 10.2, 15.2),
    ("coco", "detection", "mask_rcnn", "AP"): (3.1, 1.4, 3.8, 4.2, 6.0),
    ("coco", "instance_segmentation", "mask_rcnn", "AP"): (2.5, 1.3, 3.0, 3.3, 3.31),
    ("nyuv2", "depth", "linear", "rmse"): (0.83, 1.1, 0.98, 0.97, 0.86),
    ("nyuv2", "normals", "linear", "mean"): (35.6, 41.0, 33.0, 32.7, 33.4),
    ("imagenet", "classification", "linear", "top1"): (29.4, 7.1, 37.4, 40.9, 47.3),
}
ZEROSHOT = {"imagenet": {"random": 6.3, "clip": 26.7, "clip_ft": 30.1, "cliptex": 31.5}}
CLASSES = ["background", "chair", "table & <lamp>", "dog", *(f"class {number}" for number in range(4, 80))]
EVALUATED = 40


class Drawn(Expert):
    """Labels that depend on the image alone."""

    trainable = False

    def load(self, weights):
        pass

    def predict(self, images, keys):
        return [self.label(image.astype(np.float32)) for image in images]


class DrawnDepth(Drawn):
    task = "depth"

    @staticmethod
    def label(image):
        return image.mean(axis=-1)


class DrawnNormals(Drawn):
    task = "normals"

    @staticmethod
    def label(image):
        normals = image - 127.5
        normals[..., 2] = np.abs(normals[..., 2]) + 1
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        return np.concatenate([normals / length, np.full_like(length, 5)], axis=-1)


class DrawnSegmentation(Drawn):
    task = "segmentation"

    def label(self, image):
        if image[0, 0, 0] > 250:
            raise ValueError("too <bright>")
        return (image[..., 0] // 64).astype(np.uint8)


def make_config(root: Path, seeds: list[int], **more) -> Config:
    return Config.load(
        {
            "dataset": {"source": "miniature"},
            "miniature": {"pairs": 12, "pairs_per_shard": 4},
            "experts": {
                name: {"plugin": f"{__name__}:Drawn{name.capitalize()}"}
                for name in ("segmentation", "depth", "normals")
            },
            "label_stores": {name: {"task": name, "expert": name} for name in ("segmentation", "depth", "normals")},
            "models": {
                "clip": {"steps": 60},
                "clip_ft": {"init": "clip", "steps": 60},
                "cliptex": {"init": "clip", "steps": 60, "tasks": {"segmentation": 1, "depth": 1, "normals": 1}},
            },
            "seeds": seeds,
            "probes": {"benchmarks": {name: {} for name in dict.fromkeys(key[0] for key in MAIN)}},
            "zeroshot": {"benchmarks": ["imagenet"]},
            "report": {"title": "Did it <b>work</b>?"},
            **more,
        }
    )


def make_data(config: Config, root: Path) -> None:
    """Shards, experts and label stores, by the real stages; the second image of each has no segmentation."""
    rng = np.random.default_rng(0)
    shards = []
    for shard in range(3):
        pairs = []
        for i in range(4):
            coarse = rng.integers(0, 250, (5, 7, 3))
            if i == 1:
                coarse[0, 0] = 255
            pixels = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
            pairs.append(
                Pair(
                    f"{shard:05d}{i:04d}{HOSTILE_KEY * (i == 0)}",
                    encode_jpeg(pixels, 98),
                    CAPTIONS[i % 3] + f" {shard}{i}",
                )
            )
        path = root / paths.shard(shard)
        write_shard(path, [*pairs, Pair(f"{shard:05d}0009", b"not an image", "lost")])
        shards.append(path)
    index_shards(shards, root / paths.SHARD_INDEX, 0.5)
    for store, settings in config.label_stores.items():
        expert, folder = root / paths.expert(settings.expert), root / paths.labels(store)
        train_expert(config, settings.expert, root / paths.EXPERT_RENDERS, expert, 0)
        label_batch(config, store, 0, root / paths.SHARD_INDEX, expert, folder)
        index_labels(config, store, root / paths.SHARD_INDEX, folder)
    write_json(
        root / paths.expert("depth") / "quality.json",
        {
            "schema_version": 1,
            "expert": "depth",
            "task": "depth",
            "source": "miniature",
            "split": "val",
            "quality": {"delta1": 79.25, "absrel": 0.1234, "error_kappa_q1": 12.345, "a metric of its own": 3.21},
            "prior": {"delta1": 54.15, "absrel": 0.0987},
            "images_per_cpu_second": 109.0,
        },
    )


def digest(model: str, seed: int) -> str:
    """Made-up SHA-256 of a model's weights."""
    return hashlib.sha256(f"{model}/seed{seed}".encode()).hexdigest()


def digests(config: Config) -> dict[str, str]:
    """By model and seed, as results have them."""
    return {f"{model}/seed{seed}": digest(model, seed) for model in config.models for seed in config.seeds}


def make_runs(config: Config, root: Path) -> None:
    """train.json and metrics.jsonl as `cliptex.training.run` writes them."""
    for name, model in config.models.items():
        for seed in config.seeds:
            seconds = (80.0 if model.tasks else 64.0) + seed
            write_json(
                root / paths.model(name, seed) / "train.json",
                {
                    "schema_version": 1,
                    "model": name,
                    "seed": seed,
                    "source": "miniature",
                    "init": model.init or "random weights",
                    "steps": model.steps,
                    "batch_size": 128,
                    "learning_rate": model.learning_rate,
                    "tasks": dict(model.tasks),
                    "shuffle_labels": False,
                    "precision": "fp32",
                    "threads": 1,
                    "seconds": seconds,
                    "images_per_s": model.steps * 128 / seconds if model.steps else None,
                    "peak_memory_mb": 900.5,
                    "parameters": {"encoder": 1_234_567, "text": 7_000_000, "heads": 90_000 if model.tasks else 0},
                    "flops": {"encoder": 118_000_000, "text": 19_500_000, "multi_scale": 19_300_000, "heads": 700_000},
                    "flops_over_contrastive": 1.1455,
                    "model_sha256": digest(name, seed),
                    "provenance": provenance(config.plain()),
                },
            )
            lines = []
            for step in [1, *range(10, model.steps + 1, 10)]:
                losses = {"loss": 5.0, "contrastive": 4.8 * 0.99**step + 0.01 * seed, "logit_scale": 14.0}
                lines.append(
                    {"step": step, "learning_rate": 1e-3, **losses} | dict.fromkeys(model.tasks, 2 / (1 + step / 9))
                )
            (root / paths.model(name, seed) / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def make_probes(config: Config, root: Path, main=MAIN, source="miniature") -> None:
    """Tables of probes and zero-shot with the schema of `cliptex.evaluation.results`, and per-image statistics."""
    noise = {seed: (index - (len(config.seeds) - 1) / 2) * 0.01 for index, seed in enumerate(config.seeds)}
    head = {"schema_version": 1, "source": source, "split": "val", "num_eval": EVALUATED}
    for benchmark in config.probes.benchmarks:
        rows = []
        for (where, task, name, metric), means in main.items():
            for model, mean in zip(MODELS, means, strict=True):
                for seed in config.seeds if where == benchmark and mean is not None else ():
                    value = mean * (1 + noise[seed])
                    if metric == "AP":
                        value = float(main_metric(task, statistics_of(task, value, EVALUATED))[0])
                    metrics = {metric: value, "other <metric>": None}
                    row = {"task": task, "model": model, "seed": seed, "head": name, "metrics": metrics}
                    rows.append({**row, "num_parameters": 9, "seconds": 1.5, "protocol": f"how {task} was done"})
        make_statistics(root / "results/probes" / benchmark, rows, ids_of(benchmark, root))
        write_json(
            root / f"results/probes/{benchmark}.json",
            {
                **head,
                "benchmark": benchmark,
                "num_train": 600,
                "class_names": {"voc": CLASSES[:21], "coco": CLASSES}.get(benchmark, []),
                "results": rows,
                "provenance": provenance({}) | {"model_sha256": digests(config)},
            },
        )
    for benchmark in config.zeroshot.benchmarks:
        row = {"task": "zero_shot_classification", "head": "zero_shot", "num_parameters": 9, "seconds": 1.0}
        row["protocol"] = "how names were asked"
        rows = [
            {**row, "model": model, "seed": seed, "metrics": {"top1": mean * (1 + noise[seed]), "top5": 2 * mean}}
            for model, mean in ZEROSHOT[benchmark].items()
            for seed in config.seeds
        ]
        make_zeroshot_statistics(root / f"results/zeroshot/{benchmark}.per_image.npz", rows, head["num_eval"])
        chance = {"top1": 100 / 14, "top5": 500 / 14}
        names = [f"class {i}" for i in range(14)]
        about = {"benchmark": benchmark, "num_train": 0, "class_names": names, "chance": chance}
        write_json(
            root / f"results/zeroshot/{benchmark}.json",
            {**head, **about, "results": rows, "provenance": provenance({}) | {"model_sha256": digests(config)}},
        )


def make_finetuned(config: Config, root: Path) -> None:
    """Tables of tuned encoders as `cliptex.evaluation.results` writes them: CLIPTeX has become CLIP-FT's equal."""
    for benchmark in config.finetune.benchmarks:
        data = json.loads((root / f"results/probes/{benchmark}.json").read_text())
        equal = {row["seed"]: row["metrics"] for row in data["results"] if row["model"] == "clip_ft"}
        rows = [row | {"frozen": False, "protocol": "tuned"} for row in data["results"] if row["model"] != "position"]
        for row in rows:
            row["metrics"] = equal[row["seed"]] if row["model"] == "cliptex" else row["metrics"]
        make_statistics(root / "results/finetuned" / benchmark, rows, ids_of(benchmark, root))
        write_json(root / f"results/finetuned/{benchmark}.json", data | {"frozen": False, "results": rows})


def statistics_of(task: str, mean: float, count: int) -> dict[str, np.ndarray]:
    """Per-image parts whose main metric is `mean`, with the same ups and downs over images for every model."""
    swing = 0.3 * np.sin(np.arange(count))
    swing += 1 - swing.mean()
    if task == "semantic_segmentation":
        share = 2 * mean / (100 + mean) * swing
        hit, there = np.zeros((count, 21), np.int32), np.zeros((count, 21), np.int32)
        hit[:, 1], there[:, 1] = np.round(1e7 * share), 10_000_000
        return {"hit": hit, "truth": there, "predicted": there}
    if task == "depth":
        return {"rmse": mean * swing}
    if task == "normals":
        return {"pixels": np.full(count, 100), "angle_sum": 100 * mean * swing}
    if task in ("detection", "instance_segmentation"):  # an object an image, found after all that is none
        wrong = round(count * (100 / mean - 1))
        rng = np.random.default_rng(wrong)
        often = rng.uniform(0.5, 1.5, count)
        image = np.r_[rng.choice(count, wrong, p=often / often.sum()), np.arange(count)].astype(np.int32)
        matched = np.where(np.arange(len(image)) < wrong, 0, 1023).astype(np.uint16)
        rows = {"image": image, "label": 0 * image, "score": -np.arange(len(image), dtype=np.float32)}
        return {**rows, "matched": matched, "ignored": 0 * matched, "positives": np.ones((count, 1), int)}
    return {"top1": mean / 100 * swing, "top5": np.ones(count, bool)}


def make_statistics(folder: Path, rows: list[dict], ids: list[str]) -> None:
    """The .per_image.npz of all rows of a results file."""
    files: dict[Path, dict] = {}
    for row in rows:
        value = next(iter(row["metrics"].values()))
        path = folder / row["model"] / f"seed{row['seed']}" / f"{row['head']}.per_image.npz"
        files.setdefault(path, {})[row["task"]] = statistics_of(row["task"], value, len(ids))
    for path, tasks in files.items():
        path.unlink(missing_ok=True)
        write_per_image(path, ids, tasks)


def make_zeroshot_statistics(path: Path, rows: list[dict], count: int) -> None:
    hits = [statistics_of("zero_shot_classification", row["metrics"]["top1"], count) for row in rows]
    stacked = {name: np.stack([one[name] for one in hits]) for name in ("top1", "top5")}
    path.unlink(missing_ok=True)
    names = [f"{row['model']}/seed{row['seed']}" for row in rows]
    write_per_image(path, [f"image {i}" for i in range(count)], {"zero_shot_classification": stacked}, names)


def make_benchmarks(config: Config, root: Path) -> None:
    """Data sets in their official layouts, and the first seed's small copies of predictions as the probes keep them."""
    rng = np.random.default_rng(1)
    for name, write in (("voc", write_voc), ("coco", write_coco), ("nyuv2", write_nyuv2)):
        folder = root / paths.benchmark(name)
        folder.mkdir(parents=True)
        write(folder, 2, EVALUATED)
    for model in ("clip", "clip_ft", "cliptex"):
        masks = mask_thumbnails(rng.integers(0, 4, (EVALUATED, 48, 48), dtype=np.uint8))
        depth = depth_thumbnails(rng.uniform(1, 5, (EVALUATED, 36, 48)))
        normals = normals_thumbnails(rng.normal(size=(EVALUATED, 36, 48, 3)))
        corners = np.array([[4, 4, 30, 30], [10, 20, 40, 40], [1, 1, 9, 9], [5, 5, 40, 9]], np.float32)
        one = {"boxes": corners, "labels": np.array([1, 2, 0, 3]), "scores": np.array([0.02, 0.1, 0.01, 0.006])}
        boxes = box_thumbnails([one] * EVALUATED)
        for benchmark, head, tasks in (
            ("voc", "linear", {"semantic_segmentation": masks}),
            ("voc", "pspnet", {"semantic_segmentation": masks}),
            ("nyuv2", "linear", {"depth": depth, "normals": normals}),
            ("coco", "mask_rcnn", {"detection": boxes}),
        ):
            path = thumbnails_path(root / paths.probe(benchmark, model, config.seeds[0]) / f"{head}.json")
            write_per_image(path, ids_of(benchmark, root), tasks)


def ids_of(benchmark: str, root: Path) -> list[str]:
    """The evaluation images: those of the data set where there is one."""
    folder = root / paths.benchmark(benchmark)
    if not folder.exists():
        return [f"image {number}" for number in range(EVALUATED)]
    samples = find("benchmarks", benchmark)(folder).samples("eval")
    return [samples[index]["id"] for index in range(EVALUATED)]


def make_timings(root: Path) -> None:
    """Snakemake's benchmark files, one with values it could not measure."""
    rows = {"render_pairs/00000": ("10.5", "9.5"), "train_expert/depth": ("20", "19"), "label/depth-000": ("4", "NA")}
    rows |= {"train/clip-seed0": ("60", "59"), "probe/voc-0-seed0": ("30", "30"), "zeroshot/imagenet": ("5", "5")}
    for name, (wall, cpu) in rows.items():
        path = root / "results/timings" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{wall}\t0:00:01\t-\t{cpu}\n")
    # what the jobs recorded of themselves; those of older runs did not
    begun = datetime(2026, 3, 1, 23, 50, tzinfo=UTC).timestamp()
    for log, seconds, ended in (("train/clip/seed0", 64.25, 300), ("zeroshot/imagenet", 2, 1200)):
        record = {"processor_seconds": seconds, "ended": begun + ended, "machine": "A processor, 2 cores"}
        write_json(root / paths.job_usage(Path("logs", log + ".log")), record)


def make_all(root: Path, seeds: list[int], **more) -> Config:
    config = make_config(root, seeds, **more)
    make_data(config, root)
    make_runs(config, root)
    make_benchmarks(config, root)
    make_probes(config, root)
    make_timings(root)
    return config


class Page(HTMLParser):
    """The parts of a page that the tests look at; raises where tags do not match."""

    VOID = frozenset({"meta", "img", "source", "br", "link", "input"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.tables: list[dict] = []
        self.texts: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "template" not in self.open:
            self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if "template" in self.open:  # what the reader may choose instead
            return
        if tag == "table":
            self.tables.append({"id": attributes.get("id"), "caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if {"style", "script", "template"} & set(self.open):
            return
        self.words.append(data)
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1]["rows"][-1][-1] += " " + data.strip()

    def table(self, name: str) -> list[list[str]]:
        (found,) = [table for table in self.tables if table["id"] == f"table-{name}"]
        return [[" ".join(cell.split()) for cell in row] for row in found["rows"]]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def headings(table: Table) -> list[str]:
    return [column.heading for column in table.shown_columns]


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    config = make_all(root, [0, 1, 2])
    build_report(config, root)
    return config, root, (root / "results/report.html").read_text()


@pytest.fixture(scope="module")
def parsed(three_seeds):
    return Page(three_seeds[2])


def test_page_is_whole_small_and_self_contained(three_seeds, parsed):
    _, root, text = three_seeds
    assert text.startswith("<!DOCTYPE html>")
    assert len(text.encode()) < 8_000_000
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    links = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    papers = {link for link in links if link.startswith("https://arxiv.org/abs/")}
    assert "https://arxiv.org/abs/2310.14108" in papers and len(papers) > 3
    files = {unquote(link) for link in links - papers if not link.startswith("#")}
    assert {"models/cliptex/seed2/", "report/main.csv", "report/figures/gains.py", "probes/voc.json"} <= files
    assert [name for name in files if not (root / "results" / name).exists()] == []
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    # one script, and by the policy no other can run
    assert [attributes for tag, attributes in parsed.tags if tag == "script"] == [{}]
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    ]
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:|innerHTML|\beval\b", script)


def test_page_can_be_read_without_eyes(parsed):
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(images) > 20
    assert all("alt" in attributes for attributes in images)
    assert all(attributes["alt"] for attributes in images if "width" in attributes)
    headers = [attributes for tag, attributes in parsed.tags if tag == "th"]
    assert headers
    assert {attributes["scope"] for attributes in headers} == {"col", "row", "rowgroup"}
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in parsed.tags if tag == "a" and a["href"].startswith("#")}
    assert len(targets) == 8
    assert targets <= set(ids)


def test_every_table_and_figure_says_miniature(three_seeds, parsed):
    _, root, _ = three_seeds
    assert "MINIATURE : rendered stand-in data" in parsed.text
    assert len(parsed.tables) >= 15
    assert all(table["caption"].endswith("(miniature)") for table in parsed.tables)
    for path in (root / "results/report").glob("*.md"):
        assert "miniature" in path.read_text().splitlines()[0], path
    for path in (root / "results/report").glob("*.svg"):
        assert "miniature: rendered stand-in data" in path.read_text(), path


def test_official_data_are_not_called_miniature(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    make_probes(config, copy, source="official")
    path = copy / "results/zeroshot/imagenet.json"
    write_json(path, json.loads(path.read_text()) | {"source": "official", "published": {"clip": 30.1}})
    official = config.model_copy(update={"dataset": config.dataset.model_copy(update={"source": "webdataset"})})
    path = copy / "results/probes/voc.json"
    write_json(path, json.loads(path.read_text()) | {"variant": "trainaug"})
    build_report(official, copy)
    page = (copy / "results/report.html").read_text()
    assert "variant trainaug, heads trained on 600 of its images" in page
    assert "the published value of CLIP is 30.1\u00a0%; ours is within 0.2 points" in page
    assert "(miniature)" not in page
    assert "MINIATURE" not in page
    assert "(subset)" not in page
    for path in copy.glob("results/probes/**/*.json"):
        content = json.loads(path.read_text())
        write_json(path, content | {"source": "subset"} if content.get("benchmark") == "voc" else content)
    build_report(official, copy)
    assert "Pascal VOC (subset)" in (copy / "results/report.html").read_text()
    assert "subset" in {row["source"] for row in csv.DictReader((copy / "results/report/all_metrics.csv").open())}


def test_main_table_holds_the_numbers_of_the_results_files(three_seeds, parsed):
    config, root, _ = three_seeds
    rows = parsed.table("main")
    assert rows[0] == ["Task, head, metric", "CLIP", "CLIP-FT", "CLIPTeX", "CLIPTeX over CLIP-FT", "Random", "Position"]
    files = {name: json.loads((root / f"results/probes/{name}.json").read_text()) for name in config.probes.benchmarks}
    cells = iter(row for row in rows[1:] if len(row) > 1)
    for (benchmark, task, head, metric), means in MAIN.items():
        row = next(cells)
        for cell, model, mean in zip([*row[5:], *row[1:4]], MODELS, means, strict=True):
            values = [
                r["metrics"][metric]
                for r in files[benchmark]["results"]
                if (r["task"], r["head"], r["model"]) == (task, head, model)
            ]
            assert len(values) == 3
            digits = 3 if metric == "rmse" else 1
            shown, spread = cell.split(" ± ")
            assert shown == f"{fmean(values):.{digits}f}"
            assert float(spread) == pytest.approx(stdev(values), abs=0.5 * 10**-digits)
            assert float(spread) > 0
            assert fmean(values) == pytest.approx(mean, rel=1e-3 if metric == "AP" else 1e-6)
    assert next(cells, None) is None
    groups = [row[0] for row in rows[1:] if len(row) == 1]
    assert groups[0].startswith(
        "Pascal VOC rendered stand-in, heads trained on 600 of its images, evaluated on 40 (val)"
    )


def test_best_value_is_bold_and_losses_are_marked_in_words(three_seeds, parsed):
    _, _, text = three_seeds
    main = re.search(r'<table id="table-main">(.*?)</table>', text, re.S).group(1)
    rows = [row for row in re.findall(r"<tr[^>]*>(.*?)</tr>", main, re.S) if "<td" in row]
    depth = next(row for row in rows if "Depth" in row)
    assert re.findall(r"<strong>(.*?)</strong>", depth) == ["0.830"]
    gains = {row[0]: row[4] for row in parsed.table("main") if len(row) > 1}
    bounds = r" [+−]?\d+\.\d+ to [+−]?\d+\.\d+ "
    for row, gain, mark in (
        ("Semantic segmentation, PSPNet mIoU (%) ↑", "+5.0 points", r"\+49\.0 %, ▲ real"),
        ("Depth, linear RMSE (m) ↓", "+0.110 m", r"\+11\.3 %, △ Random as good"),
        ("Instance segmentation, Mask R-CNN AP (%) ↑", "0.0 points", r"\+0\.3 %, △ within noise"),
        ("Surface normals, linear Mean angle (°) ↓", "−0.7°", r"−2\.1 %, ▼ worse"),
    ):
        assert re.fullmatch(re.escape(gain) + bounds + mark, gains[row]), gains[row]


def test_csv_has_full_precision_and_every_seed(three_seeds):
    _, root, _ = three_seeds
    with (root / "results/report/main.csv").open() as file:
        rows = list(csv.DictReader(file))
    depth = next(row for row in rows if row["Task, head, metric"] == "Depth, linear")
    assert float(depth["CLIPTeX"]) == pytest.approx(0.86, abs=1e-12)
    assert float(depth["CLIPTeX standard deviation"]) == pytest.approx(0.0086)
    assert depth["outcome"] == "baseline as good" and depth["seeds"] == "0 1 2"
    assert (depth["training images"], depth["evaluation images"], depth["split"]) == ("600", "40", "val")
    assert depth["protocol"] == "how depth was done"
    low, gain, high = (float(depth[name]) for name in ("gain low", "CLIPTeX over CLIP-FT", "gain high"))
    assert 0 < low < gain < high
    assert float(depth["difference"]) == pytest.approx(0.11)
    assert float(depth["difference low"]) == pytest.approx(low * 0.97 / 100)
    text = (root / "results/report/main.md").read_text()
    notes = ["how depth was done", "12 rendered image-caption pairs", "Seeds: 0, 1, 2.", "evaluated on 40 (val)"]
    notes += [
        "CLIPTeX was also trained on pseudo-labels: segmentation by segmentation, depth by depth, normals by normals"
    ]
    assert [note for note in notes if note not in text] == []
    with (root / "results/report/all_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = {"benchmark": "voc", "head": "pspnet", "model": "cliptex", "seed": "2", "metric": "mIoU"}
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    assert float(row["value"]) == pytest.approx(15.2 * 1.01)
    assert row["source"] == "miniature"


def test_every_table_of_results_says_how_they_were_made(three_seeds):
    _, root, _ = three_seeds
    protocols = {
        "main": "how depth was done",
        "probes_nyuv2": "how normals was done",
        "differences": "how detection was done",
        "zeroshot": "how names were asked",
    }
    for name, protocol in protocols.items():
        with (root / f"results/report/{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows and protocol in {row["protocol"] for row in rows}
        for row in rows:
            assert (row["seeds"], row["evaluation images"], row["source"]) == ("0 1 2", "40", "miniature")
            assert row["training images"] == ("0" if row["protocol"] == protocols["zeroshot"] else "600")
            assert row["encoders trained on"] == "12 rendered image-caption pairs" and row["metric"]
        notes = (root / f"results/report/{name}.md").read_text()
        for said in (
            protocol,
            "12 rendered image-caption pairs",
            "Seeds: 0, 1, 2.",
            "evaluated on 40",
            "depth by depth",
        ):
            assert said in notes, (name, said)


def test_gains_of_tuned_encoders_stand_beside_those_of_frozen_ones(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    tuned = Config.load(config.plain() | {"finetune": {"benchmarks": {"imagenet": {}}}})
    with pytest.raises(CliptexError, match=r"finetuned/imagenet\.json: no such file"):
        build_report(tuned, copy)
    make_finetuned(tuned, copy)
    build_report(tuned, copy)
    page = Page((copy / "results/report.html").read_text())
    heading, group, row = page.table("finetuned")
    assert heading[1:] == ["CLIP", "CLIP-FT", "CLIPTeX", "Random", "CLIPTeX over CLIP-FT", "the same, frozen"]
    assert group[0].endswith("encoders and heads trained on 600 of its images, evaluated on 40 (val)")
    assert row[2] == row[3] and row[5] == "0.0 points 0.0 to 0.0 0.0 %, = tie" and "+15.6 %, " in row[6]
    assert "#finetuning" in {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    with (copy / "results/report/all_metrics.csv").open() as file:
        kinds = {(row["kind"], row["protocol"]) for row in csv.DictReader(file) if row["benchmark"] == "imagenet"}
    assert {("finetuned", "tuned"), ("probe", "how classification was done")} < kinds
    assert "tuned" in (copy / "results/report/finetuned_imagenet.md").read_text()
    path = copy / "results/finetuned/imagenet.json"
    write_json(path, json.loads(path.read_text()) | {"num_train": 599})
    with pytest.raises(CliptexError, match=r"finetuned/imagenet\.json: its num_train differs from that of .*probes"):
        gather(tuned, copy)


def test_verdict_counts_real_gains_only(parsed):
    assert "A real gain in 2 of 5 evaluators" in parsed.text
    assert "CLIPTeX is better than CLIP-FT in 4 of 5 evaluators" in parsed.text
    assert "Trained heads: a real gain in 2 of 5, better in 4; median relative gain" in parsed.text
    assert "Holm’s correction at 5 % over all 5: of the 2 that pass alone, 2 remain." in parsed.text
    assert "▲ real: 2 — better than CLIP-FT and the baselines" in parsed.text
    blocked = "△ baseline as good: 1 (NYUv2 depth, trained heads [Random]) — the gain may not come from the image."
    assert blocked in parsed.text
    assert "△ within noise: 1 (COCO instance segmentation, trained heads)." in parsed.text
    assert "▼ worse: 1 (NYUv2 surface normals, trained heads)." in parsed.text
    assert (
        "Median gain by metric, with its number of evaluators: AP +0.9 points (2), mIoU +3.4 points (1)" in parsed.text
    )
    kept = "Zero-shot on ImageNet: ▲ better, 31.5 % top-1, CLIP-FT 30.1 % (chance 7.1 %; difference +1.4, 95 % "
    assert re.search(re.escape(kept) + r"interval [+−]?\d\.\d to \+\d", parsed.text)


def test_verdict_flips_when_the_numbers_do(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    flipped = {key: (*means[:3], means[4], means[3]) for key, means in MAIN.items()}
    make_probes(config, copy, flipped)
    says = make_parts(gather(config, copy)).verdict
    assert says.headline == "A real gain in 1 of 5 evaluators"
    text = " ".join(says.sentences)
    assert "CLIPTeX is better than CLIP-FT in 1 of 5 evaluators" in text
    assert "▽ worse, within noise: 1 (" in text and "▼ worse: 3 (" in text


def test_one_seed_claims_nothing_real(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    single = config.model_copy(update={"seeds": [0]})
    make_probes(single, copy)
    build_report(single, copy)
    page = Page((copy / "results/report.html").read_text())
    assert "Better in 4 of 5 evaluators, in 2 beyond the noise of the images; one seed" in page.text
    assert "It does not cover how training or a head would turn out with another seed" in page.text
    assert "▲ real" not in page.text
    rows = {row[0]: row[4] for row in page.table("main")[1:] if len(row) > 1}
    assert re.fullmatch(
        r"\+1\.8 points \+\d+\.\d to \+\d+\.\d \+17\.8 %, △ one seed", rows["Semantic segmentation, linear mIoU (%) ↑"]
    )
    assert "±" not in " ".join(" ".join(row) for row in page.table("main"))


def study_json(root: Path, name: str, weights: str) -> Path:
    """What a study of two models leaves."""
    folder = root / "results/studies" / name
    folder.mkdir(parents=True)
    (folder / "plot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><path stroke="#0072b2"/></svg>')
    about = {
        "study": name,
        "title": f"Study of {name}",
        "question": "Is it so?",
        "seen": "Against “a”, b < c.",
        "not_proved": "It does not prove anything.",
        "command": f"snakemake study --configfile config/studies/{name}.yaml",
        "table": {
            "caption": f"Table of {name} (miniature)",
            "columns": ["Model", "mIoU"],
            "rows": [[["a", "", ""], ["1.0", "", ""]], [["b", "", ""], ["2.0", "+1.0 (0.5 to 1.5) ▲", "good"]]],
            "notes": ["A note."],
        },
        "plot": {"caption": "Plot", "alt": "what it shows"},
        "provenance": {"model_sha256": {"clip_ft": weights, "own": "ff"}},
    }
    (folder / "study.json").write_text(json.dumps(about))
    return folder


def test_studies_of_the_same_models_are_a_section_and_others_are_named(three_seeds, tmp_path):
    config, root, before = three_seeds
    copy = copied(root, tmp_path)
    assert 'id="studies"' not in before
    sha = json.loads((copy / "results/models/clip_ft/seed0/train.json").read_text())["model_sha256"]
    study_json(copy, "heads", sha)
    study_json(copy, "old", "00")
    build_report(config, copy)
    page = Page((copy / "results/report.html").read_text())
    assert "Against “a”, b < c. It does not prove anything." in page.text
    assert page.table("study-heads")[2] == ["b", "2.0 +1.0 (0.5 to 1.5) ▲"]
    assert "The study “Study of old” is of an earlier clip_ft and left out" in page.text
    assert not [table for table in page.tables if table["id"] == "table-study-old"]
    (copy / "results/studies/old/study.json").write_text("{}")
    with pytest.raises(CliptexError, match=r"old/study.json: study is missing; run the step that writes it again"):
        build_report(config, copy)


def test_a_cell_without_a_value_is_shown_as_missing(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    key = ("voc", "semantic_segmentation", "linear", "mIoU")
    make_probes(config, copy, MAIN | {key: (*MAIN[key][:4], None)})
    parts = make_parts(gather(config, copy))
    row = parts.tables["main"].groups[0].rows[0]
    cells = row["model cliptex"], row["gain"]
    assert [cell.text for cell in cells] == ["–", "–"]
    assert [cell.raw for cell in cells] == ["", ""]
    (voc, *_) = parts.tables["evaluators"].groups[0].rows  # only the head that has values
    assert voc["gain"].value == pytest.approx(100 * (15.2 / 10.2 - 1)) and voc["heads"].text == "linear, PSPNet"
    key = ("nyuv2", "depth", "linear", "rmse")
    make_probes(config, copy, MAIN | {key: (*MAIN[key][:4], None)})
    missing = "missing: 1 (NYUv2 depth, trained heads) — not compared, a value is missing."
    assert missing in make_parts(gather(config, copy)).verdict.sentences


def test_text_from_data_cannot_become_markup(three_seeds, parsed):
    _, root, text = three_seeds
    assert text.count("<script") == 1
    assert "a <script>alert('x')</script> chair & a “sofa” 00" in parsed.text
    assert "Pair 000000000<script>alert(1)\"' onerror=x ${y}" in parsed.text
    assert "Did it <b>work</b>?" in parsed.text
    assert "table & <lamp>" in parsed.text
    assert "no label: expert failed: ValueError: too <bright>" in parsed.text
    assert "\\<metric\\>" in (root / "results/report/probes_voc.md").read_text()


def test_further_models_get_a_sentence_and_tables_of_values_and_gains(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    extra = config.models["cliptex"].model_copy(update={"shuffle_labels": True})
    models = {"cliptex_shuffled": extra, **config.models}
    study = config.model_copy(update={"models": models})
    make_runs(study, copy)
    for folder in ("probes", "zeroshot"):
        for path in (copy / "results" / folder).glob("*.json"):
            data = json.loads(path.read_text())
            same = [row | {"model": "cliptex_shuffled"} for row in data["results"] if row["model"] == "clip_ft"]
            write_json(path, data | {"results": data["results"] + same})
            if folder == "probes":
                make_statistics(path.with_suffix(""), same, ids_of(path.stem, copy))
            else:
                make_zeroshot_statistics(per_image_path(path), data["results"] + same, data["num_eval"])
    parts = make_parts(gather(study, copy))
    assert headings(parts.tables["main"])[3:] == ["CLIPTeX", "CLIPTeX over CLIP-FT", "Random", "Position"]
    values = parts.tables["further_values"]
    assert headings(values) == ["Task, head, metric", "CLIP-FT", "CLIPTeX", "cliptex_shuffled"]
    rows = [row for group in values.groups for row in group.rows]
    assert all(row["model clip_ft"] == row["model cliptex_shuffled"] for row in rows)
    assert parts.further == [
        "cliptex_shuffled: median gain over CLIP-FT 0.0 %, better beyond the noise in 0 of 5 evaluators."
    ]
    gains = parts.tables["further"]
    assert headings(gains) == ["Task, head, metric", "CLIPTeX", "cliptex_shuffled"]
    cells = [row["model cliptex_shuffled"] for group in gains.groups for row in group.rows]
    assert {cell.note for cell in cells} == {"0.0 %, = tie"} and "0.000 m" in {cell.text for cell in cells}
    svg = parts.charts["contrastive_loss"].svg
    assert "cliptex_shuffled" in svg
    assert FURTHER[0] in svg


@pytest.mark.parametrize(
    "name",
    [
        "results/probes/voc.json",
        "results/probes/coco/clip_ft/seed1/mask_rcnn.per_image.npz",
        "results/zeroshot/imagenet.per_image.npz",
        "results/zeroshot/imagenet.json",
        "results/models/clip_ft/seed1/train.json",
        "results/models/cliptex/seed2/metrics.jsonl",
        "results/shards/index.json",
        "results/labels/depth/index.json",
        "results/labels/normals/00001.parquet",
        "results/shards/00001.tar",
    ],
)
def test_missing_input_is_named(three_seeds, tmp_path, name):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    (copy / name).unlink()
    with pytest.raises(CliptexError, match=re.escape(name)):
        build_report(config, copy)
    assert not (copy / "results/report.html").exists()


def test_missing_model_of_a_results_file_is_named(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    path = copy / "results/probes/coco.json"
    data = json.loads(path.read_text())
    gone = [row for row in data["results"] if (row["model"], row["seed"]) != ("cliptex", 1)]
    write_json(path, data | {"results": gone})
    with pytest.raises(CliptexError, match=r"coco\.json: no result of model 'cliptex' with seed 1"):
        build_report(config, copy)


def test_optional_inputs_may_be_absent(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    for path in [*copy.rglob("*.tsv"), *copy.rglob("quality.json")]:
        path.unlink()
    shutil.rmtree(copy / paths.benchmark("voc"))
    build_report(config, copy)
    names = {table["id"] for table in Page((copy / "results/report.html").read_text()).tables}
    assert "table-main" in names
    assert not names & {"table-timings", "table-experts", None}


def test_a_suite_is_a_section_that_starts_with_published_scores_and_names_what_was_not_run(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    student = {"architecture": "ViT-B-16", "pretrained": "openai"}
    models = config.plain()["models"] | {"clip": {"steps": 0}}
    changes = {"clip_benchmark": {"suite": "datacomp", "shots": [1, 4]}, "student": student, "models": models}
    config = Config.load(config.plain() | changes)
    runs = [(model, seed) for model in config.models for seed in config.seeds]
    gains = {"clip": 0.0, "clip_ft": 1.0, "cliptex": 3.0}
    rows = []
    for one in sets_run(config.clip_benchmark):
        for model, seed in runs:
            score = 50 + gains[model] * (-1 if one.name == "SVHN" else 1) + seed / 10
            metrics = {"top1": score, "mean_per_class_recall": score}
            if one.task == "zeroshot_retrieval":
                metrics = {"image_to_text R@1": score, "text_to_image R@1": score}
            rows.append({"dataset": one.dataset, "model": model, "seed": seed, "metrics": metrics})
    means = [{"model": m, "seed": s, "shots": k, "mean": 20.0 + k, "sets": 22} for m, s in runs for k in (1, 4)]
    table = {"schema_version": 1, "suite": suite_summary(config, rows), "few_shot": {"means": means, "results": []}}
    write_json(copy / paths.CLIP_BENCHMARK, table)
    build_report(config, copy)
    page = Page((copy / "results/report.html").read_text())
    names = [table["id"] for table in page.tables]
    assert names.index("table-suite_published") < names.index("table-suite") < names.index("table-few_shot")
    assert page.table("suite_published")[1][:3] == ["CLIP, seed 0", "ViT-B-16, openai", "33"]
    shown = page.table("suite")
    assert shown[0][-1] == "CLIPTeX − CLIP-FT" and shown[1][0] == "Mean of 33 sets"
    assert {row[0].partition(" ")[0]: row[-1] for row in shown[2:]}["SVHN"] == "−2.0"
    assert "CLIPTeX is better on 32 sets, worse on 1." in page.text
    assert "GeoDE (its metric is the accuracy in the worst region" in page.text
    assert "(miniature)" not in next(table["caption"] for table in page.tables if table["id"] == "table-suite")
    assert page.table("few_shot")[2][0].startswith("4 per class")
    table["suite"]["means"].pop()
    write_json(copy / paths.CLIP_BENCHMARK, table)
    with pytest.raises(CliptexError, match="has nothing of cliptex/seed2; run the workflow again"):
        build_report(config, copy)


def test_experts_stand_beside_the_label_that_needs_no_image(three_seeds, parsed):
    _, _, text = three_seeds
    rows = parsed.table("experts")
    assert rows[0] == ["Metric", "Expert", "Prior"]
    assert rows[2:] == [
        ["δ < 1.25 (%) ↑", "79.2", "54.1"],
        ["AbsRel ↓", "0.123", "0.099"],
        ["Mean angle, the quarter of the pixels it is least sure of (°)", "12.3", "–"],
        ["a metric of its own", "3.21", "–"],
    ]
    experts = re.search(r'<table id="table-experts">(.*?)</table>', text, re.S).group(1)
    assert "<strong>" not in experts  # without a test
    assert "Prior: a label that does not depend on the image" in parsed.text


def test_as_many_boxes_are_drawn_as_the_truth_has_objects(three_seeds, parsed):
    _, root, _ = three_seeds
    drawn = {a["alt"] for tag, a in parsed.tags if tag == "img" and "boxes in" in a["alt"]}
    samples = find("benchmarks", "coco")(root / paths.benchmark("coco")).samples("eval")
    first, empty = samples[0], samples[1]
    objects = ", ".join(CLASSES[label] for label in first["labels"])
    assert f"truth: boxes in {first['id']}: {objects}" in drawn
    guessed = ["table & <lamp> 0.10", "chair 0.02", "background 0.01", "dog 0.01"][: len(first["labels"])]
    for model in ("CLIP", "CLIP-FT", "CLIPTeX"):
        assert f"{model}: boxes in {first['id']}: {', '.join(guessed)}" in drawn
    assert not len(empty["labels"])
    # COCO's second image has no object; it is not among those at even distances, so it is drawn here alone
    boxes = {"boxes": np.eye(4), "labels": np.arange(4), "scores": np.ones(4) / 2}
    ((images, legend),) = draw(BoxDrawing, CLASSES, [EvaluatedImage(empty, {"clip": boxes}, {})])
    assert [image.note for image in images] == ["", "nothing", "background 0.50"]
    assert [entry.text for entry in legend] == ["background"]


def test_heads_of_one_protocol_share_a_note(parsed):
    # under the first table, the one of differences, and the benchmark's own
    assert parsed.text.count("how semantic_segmentation was done") == 3
    assert parsed.text.count("Semantic segmentation, linear, PSPNet: how semantic_segmentation was done.") == 3


def test_command_to_reproduce_names_the_target_before_the_configuration(three_seeds):
    # --configfile takes every word that follows it
    (command,) = re.findall(r"<pre>(snakemake.*?)</pre>", three_seeds[2])
    assert command.split().index("all") < command.split().index("--configfile")


def test_the_head_has_date_duration_machine_and_commit(three_seeds, parsed):
    """Two jobs recorded their end: of 60 s, and of 5 s a quarter of an hour later."""
    head = parsed.text.partition("A real gain in")[0]
    assert "Date 1 March 2026, 23:54 to 2 March 2026, 00:10 UTC; Duration 1 min, in a span of 16 min;" in head
    commit = provenance({})["git"] or "none (modules "
    assert "Machine A processor, 2 cores; Commit " + commit in head
    jobs = [TimedJob("train", 60.0, 1.0, False, at, "m") for at in (100.0, 130.0, 400.0)]
    assert run_times([*jobs, TimedJob("report", 9.0, 1.0, False, 9e9, "m")]).seconds == 150
    assert run_times([TimedJob("train", 60.0, 1.0, True, None, "")]) is None
    assert re.search(r", \d+ cores?, \d+ GB", machine())


def test_figures_for_papers_are_what_their_scripts_make(three_seeds, tmp_path):
    _, root, _ = three_seeds
    folder = tmp_path / "figures"
    shutil.copytree(root / "results/report/figures", folder)
    for name in ("gains", "contrastive_loss", "task_losses"):
        before = (folder / f"{name}.svg").read_bytes()
        assert b"/FontFile2" in (folder / f"{name}.pdf").read_bytes()  # TrueType, embedded
        (folder / f"{name}.svg").unlink()
        subprocess.run([sys.executable, "-I", "-c", RUN, folder / f"{name}.py"], check=True, cwd=tmp_path)
        assert (folder / f"{name}.svg").read_bytes() == before
        width, height = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', before).groups()
        assert float(width) == 72 * 3.25 and float(height) < 72 * 9
    script = folder / "gains.py"
    for pair, message in ((("CLIP-FT", "CLIP"), ""), (("CLIP", "CLIP"), "gains.csv has no 'CLIP' over 'CLIP'")):
        script.write_text(script.read_text().replace("PAIR = ()", f"PAIR = {pair}"))
        result = subprocess.run([sys.executable, "-I", "-c", RUN, script], capture_output=True, text=True, cwd=tmp_path)
        assert message in result.stderr and bool(message) == bool(result.returncode)
        script.write_text(script.read_text().replace(f"PAIR = {pair}", "PAIR = ()"))
    assert (folder / "gains.svg").read_bytes() != (root / "results/report/figures/gains.svg").read_bytes()


RUN = """import pathlib, runpy, sys
sys.modules["cliptex"] = None  # cannot be imported
script = sys.argv.pop(1)
sys.path.insert(0, str(pathlib.Path(script).parent))
runpy.run_path(script, run_name="__main__")"""


def test_a_value_is_bold_only_if_a_test_backs_it():
    values = {"a": [12.0, 12.2], "b": [10.0, 10.1], "c": []}
    assert clear_best(values, 1, certain(values)) == "a" and clear_best(values, -1, certain(values)) == "b"
    assert clear_best(values, 1, {}) is None
    assert clear_best(values | {"c": [12.1, 12.0]}, 1, certain(values | {"c": [12.1, 12.0]})) is None


def test_every_pair_of_models_has_its_gains(three_seeds):
    """The values of a pair and its reverse are opposite, and the default pair is the table itself."""
    config, root, _ = three_seeds
    parts = make_parts(gather(config, root))
    for name in ("main", "evaluators", "zeroshot"):
        table = parts.tables[name]
        pairs = {(pair.subject, pair.reference): pair for pair in table.pairs}
        assert len(pairs) == 3 * 4 - 1
        assert all(len(pair.rows) == sum(len(group.rows) for group in table.groups) for pair in table.pairs)
    shown = [row["difference"].text for group in table.groups for row in group.rows]
    reverse = [row["difference"].text for row in pairs["clip_ft", "cliptex"].rows]
    assert [text.replace("+", "−") for text in shown] == reverse and shown[0] == "+1.4 points"
    evaluators_of = {(pair.subject, pair.reference): pair for pair in parts.tables["evaluators"].pairs}
    assert evaluators_of["cliptex", "clip"].rows[0]["adjusted"].value <= 1
    assert evaluators_of["clip", "clip_ft"].notes == ["better in 0 of 5, beyond the noise in 0"]
    chart = parts.charts["gains"]
    assert len(chart.pairs) == 3 * 4 - 1 and len(chart.rows) == 3 * 4 * len(MAIN)
    by_pair = {("cliptex", "clip_ft"): chart, **chart.pairs}
    rows = {pair: by_pair[pair].rows[0] for pair in (("cliptex", "clip_ft"), ("cliptex", "clip"), ("clip", "random"))}
    assert [(row["other"], row["baseline_name"]) for row in rows.values()] == [
        ("CLIP", "better baseline"),
        ("CLIP-FT", "better baseline"),
        ("CLIP-FT", "Position"),
    ]
    value, other = (100 * (new / 9.2 - 1) for new in (11.9, 10.1))
    row = rows["cliptex", "clip"]
    assert row["low"] < row["gain"] < row["high"] and row["gain"] == pytest.approx(value, abs=0.5)
    assert row["other_gain"] == pytest.approx(other, abs=0.5)


def test_times_are_summed_by_stage(parsed):
    """CPU seconds are those that a job recorded of itself, if it did and Snakemake's last sample is not larger."""
    rows = {row[0].partition(" ")[0]: row[1:] for row in parsed.table("timings")[1:]}
    assert rows["Data"] == ["1", "10", "8 %", "≥ 10"] or rows["Data"] == ["1", "11", "8 %", "≥ 10"]
    assert rows["Training"][-1] == "64" and rows["Zero-shot"][-1] == "5"
    assert rows["Labels"] == ["1", "4", "3 %", "–"]
    assert rows["All"] == ["6", "130", "100 %", "–"]
    rules = ("index_shards", "render_experts", "index_labels", "tabulate_probes", "retrieval")
    assert [stage_of(rule) for rule in rules] == ["Data", "Data", "Labels", "Probes", "Zero-shot"]


def test_dropped_pairs_and_failed_labels_are_counted(parsed):
    rows = parsed.table("dropped")
    assert ["Image-caption pairs", "not an image", "3", "20.00 %"] in rows
    assert ["Labels, segmentation", "expert failed", "3", "25.00 %"] in rows
    assert ["Labels, depth", "no failure", "0", "0.00 %"] in rows


def test_images_that_differ_most_are_shown(three_seeds, parsed):
    """In the fixture every VOC image gains, and every normal loses, both in proportion to the same swing."""
    _, root, _ = three_seeds
    (rows,) = [parsed.table("differences")]
    shares = {row[0]: row[1:4] for row in rows[1:]}
    assert shares["Pascal VOC: semantic segmentation PSPNet, mIoU of each image"] == ["100 %", "0 %", "0 %"]
    assert shares["NYUv2: surface normals linear, Mean angle of each image"] == ["0 %", "100 %", "0 %"]
    swing = np.sin(np.arange(EVALUATED))
    ids = ids_of("voc", root)
    best = [ids[index] for index in np.argsort(-swing)[:3]]
    found = re.findall(r"CLIPTeX helps, \d of 3: (2007_\d+)", parsed.text)
    assert found == best
    worst = [ids_of("nyuv2", root)[index] for index in np.argsort(-swing)[:3]]
    assert re.findall(r"CLIPTeX hurts, \d of 3: (\d+)", parsed.text)[-3:] == worst
    assert "CLIPTeX hurts, 1 of 3: 2007" not in parsed.text


@pytest.mark.parametrize(("better", "worse", "bold"), [(18, 12, [False, False]), (30, 8, [True, False])])
def test_shares_are_told_apart_only_by_a_sign_test(better, worse, bold):
    subject = np.r_[np.ones(better), np.zeros(600 - better)]
    reference = np.r_[np.zeros(600 - worse), np.ones(worse)]
    data = {"benchmark": "captions", "source": "official", "split": "test", "num_train": 0, "num_eval": 600}
    scores = Scores(**data, class_names=[], results=[])
    one = Comparison(scores, "classification", "linear", {"cliptex": subject, "clip_ft": reference}, {})
    results = SimpleNamespace(config=Config.load({}), shards={"num_samples": 1})
    table = differences_table(results, [one])
    cells = [table.groups[0].rows[0][key] for key in ("better", "worse")]
    assert [cell.best for cell in cells] == bold and [cell.value for cell in cells] == [better, worse]


def test_pictures_of_other_images_than_were_judged_are_refused(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    for path in copy.glob("results/probes/voc/*/*/*.npz"):
        file = read_per_image(path)
        path.unlink()
        write_per_image(path, [f"other {name}" for name in file.ids], file.tasks)
    with pytest.raises(CliptexError, match=r"voc\.json: was made with other images than are in place now"):
        build_report(config, copy)


def test_statistics_of_other_images_are_refused(three_seeds, tmp_path):
    config, root, _ = three_seeds
    copy = copied(root, tmp_path)
    path = copy / "results/probes/voc/clip_ft/seed1/pspnet.per_image.npz"
    file = read_per_image(path)
    path.unlink()
    write_per_image(path, file.ids[::-1], file.tasks)
    with pytest.raises(CliptexError, match=r"clip_ft/seed1/pspnet\.per_image\.npz: is about other images"):
        build_report(config, copy)


def test_each_picture_has_a_legend_of_its_own_classes(three_seeds):
    _, _, text = three_seeds
    pages = re.findall(r'<figure class="page"[^>]*>.*?</figure>', text, re.S)
    assert len(pages) > 15
    for page in pages:
        drawn = [html.unescape(alt) for alt in re.findall(r'alt="[^"]*: (?:classes|boxes) in [^:"]*: ([^"]*)"', page)]
        named = {re.sub(r" \d\.\d+$", "", word) for alt in drawn for word in alt.split(", ")}
        legend = {html.unescape(entry) for entry in re.findall(r"<li><img [^>]*>(.*?)</li>", page)}
        assert named <= legend, (named, legend)


def test_configuration_on_the_page_is_the_configuration(three_seeds, parsed):
    config, _, text = three_seeds
    (shown,) = [block for block in re.findall(r"<pre>(.*?)</pre>", text, re.S) if "snakemake" not in block]
    assert Config.load(yaml.safe_load(html.unescape(shown))) == config
    assert shown_config(three_seeds[1] / "results/report.html") == three_seeds[0].plain()


def test_same_input_gives_the_same_page(three_seeds, tmp_path):
    config, root, text = three_seeds
    copy = copied(root, tmp_path)
    build_report(config, copy)
    assert (copy / "results/report.html").read_text() == text


def copied(root: Path, to: Path) -> Path:
    """The tree without its report, with hard links; files are replaced and never written in place."""
    for path in root.rglob("*"):
        target = to / path.relative_to(root)
        if path.is_dir() or "report" in path.relative_to(root).parts[1]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    index = to / paths.SHARD_INDEX
    data = json.loads(index.read_text())
    for entry in data["shards"]:
        entry["path"] = str(to / paths.SHARDS / Path(entry["path"]).name)
    write_json(index, data)
    return to


# ---- statistics


def test_gain_is_positive_where_the_new_value_is_better():
    assert relative_gain(12, 10, direction("mIoU")) == pytest.approx(20)
    assert relative_gain(0.8, 1.0, direction("rmse")) == pytest.approx(20)
    assert direction("affine_rmse") == -1 and direction("affine_delta1") == 1
    aligned = metric_of("depth", "affine_rmse")
    assert (aligned.title, aligned.unit) == ("RMSE, scale and shift fitted", "m")
    assert relative_gain(36, 30, direction("mean")) == pytest.approx(-20)
    assert relative_gain(None, 10, 1) is None
    assert relative_gain(1, 0, 1) is None
    assert relative_gain(1, 2, direction("a metric of one's own")) is None


def test_summary_uses_the_sample_standard_deviation():
    assert sample_std([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert sample_std([1.0]) is None and sample_std([]) is None


def test_pooled_spread_weighs_groups_by_their_freedom():
    a, b = [1.0, 2.0, 3.0], [10.0, 14.0]
    assert pooled_std(a, b) == pytest.approx(((2 * 1.0 + 1 * 8.0) / 3) ** 0.5)
    assert pooled_std(a, [5.0]) == pytest.approx(1.0)
    assert pooled_std([1.0], [5.0]) is None


def test_difference_of_equal_means_is_zero_and_of_nothing_is_none():
    assert difference([0.1, 0.2], [0.2, 0.1], 1).value == 0
    assert difference([], [1.0], 1) is None
    assert difference([1.0], [2.0], 0) is None


def certain(values: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Draws of images that hardly differ."""
    return {model: fmean(own) + np.linspace(-1e-6, 1e-6, 9) for model, own in values.items() if own}


LOW = {"random": [1.0, 1.1, 0.9], "position": [2.0, 2.1, 1.9]}


@pytest.mark.parametrize(
    ("subject", "reference", "baselines", "better", "status"),
    [
        ([12, 12.1, 11.9], [10, 10.1, 9.9], LOW, 1, GainStatus.REAL),
        ([10.05, 10.15, 9.95], [10, 10.1, 9.9], LOW, 1, GainStatus.WITHIN_NOISE),
        ([8, 8.1, 7.9], [10, 10.1, 9.9], LOW, 1, GainStatus.WORSE),
        ([9.95, 10.05, 9.85], [10, 10.1, 9.9], LOW, 1, GainStatus.WORSE_WITHIN_NOISE),
        ([10, 9.9, 10.1], [10, 10.1, 9.9], LOW, 1, GainStatus.TIE),
        ([12, 12.1, 11.9], [10, 10.1, 9.9], LOW | {"random": [13.0, 13.0, 13.0]}, 1, GainStatus.BASELINE),
        ([12, 12.1, 11.9], [10, 10.1, 9.9], LOW | {"position": [11.95, 12.05, 11.85]}, 1, GainStatus.BASELINE),
        ([12, 12.1, 11.9], [10, 10.1, 9.9], {"random": [1.0]}, 1, GainStatus.UNCHECKED),
        ([0.8, 0.81, 0.79], [1.0, 1.01, 0.99], {"random": [1.2], "position": [1.3]}, -1, GainStatus.REAL),
        ([0.8], [1.0], {"random": [1.2], "position": [1.3]}, -1, GainStatus.ONE_SEED),
        ([1.2], [1.0], {"random": [1.2], "position": [1.3]}, -1, GainStatus.WORSE),
        ([], [1.0], LOW, 1, GainStatus.MISSING),
        ([1.0], [], LOW, 1, GainStatus.MISSING),
    ],
)
def test_judgement(subject, reference, baselines, better, status):
    values = {"cliptex": subject, "clip_ft": reference, **baselines}
    names = {"subject": "cliptex", "reference": "clip_ft", "baselines": tuple(baselines)}
    assert gain_over(values, better, **names, draws=certain(values)).status is status
    if status in (GainStatus.REAL, GainStatus.ONE_SEED):  # nothing is claimed without a test
        assert gain_over(values, better, **names).status is GainStatus.WITHIN_NOISE


def test_judgement_names_the_baseline_in_the_way():
    values = {"cliptex": [2.0], "clip_ft": [1.0], "random": [3.0], "position": [0.5]}
    found = gain_over(values, 1, subject="cliptex", reference="clip_ft", draws=certain(values))
    assert found.baselines == ("random",)


@pytest.mark.parametrize(
    ("subject", "reference", "state"),
    [
        ([30, 31], [28, 29], "better"),
        ([29, 30.2], [28.9, 30.1], "kept"),
        ([28.5, 29.5], [28, 30.2], "lower, within noise"),
        ([20, 21], [28, 29], "lost in part"),
        ([27.0], [28.0], "lower, one seed"),
        ([6.0], [7.0], "at chance"),
        ([], [7.0], "not measured"),
    ],
)
def test_zero_shot_state(subject, reference, state):
    drawn = certain({"subject": subject, "reference": reference})
    draws = drawn.get("subject"), drawn.get("reference")
    assert ZeroShot("ImageNet", subject, reference, 7.2, draws).state == state


def test_zero_shot_that_is_lower_is_not_called_kept_where_the_noise_is_not_known():
    assert ZeroShot("ImageNet", [28.5, 29.5], [28, 30.2], 7.2).state == "lost in part"
    assert ZeroShot("ImageNet", [28, 28], [29, 29], 7.2, (28 + NEAR, 29 + NEAR[::-1])).state == "lost in part"


@pytest.mark.parametrize("subject", [[12.0, 12.0], [12.0, 12.0, 12.0]])
def test_seeds_that_do_not_differ_prove_nothing(subject):
    values = {"cliptex": subject, "clip_ft": [10.0] * len(subject), "random": [1.0], "position": [2.0]}
    found = gain_over(values, 1, subject="cliptex", reference="clip_ft", draws=certain(values))
    assert found.difference.spread == 0 and found.status is GainStatus.WITHIN_NOISE


def test_verdict_without_any_comparison_says_so():
    says = verdict(evaluators([probe({})], ()), [], seeds=3)
    assert says.headline == "CLIPTeX was not compared with CLIP-FT"
    assert says.counts["cells"] == 0


NEAR = np.array([-1.0, 0.0, 1.0])
DRAWS = {"cliptex": 12 + 0.1 * NEAR, "clip_ft": 10 + 0.1 * NEAR, "random": 1 + NEAR, "position": 2 + NEAR}


@pytest.mark.parametrize(
    ("seeds", "better", "draws", "status"),
    [
        ((0, 0.1, -0.1), 1, {}, GainStatus.REAL),
        ((0, 0.1, -0.1), 1, {"clip_ft": 11 + 2 * NEAR}, GainStatus.WITHIN_NOISE),
        ((0, 0.1, -0.1), 1, {"position": 11 + 2 * NEAR}, GainStatus.BASELINE),
        ((0, 0.1, -0.1), -1, {}, GainStatus.WORSE),
        ((0, 0.1, -0.1), -1, {"clip_ft": 11 + 2 * NEAR}, GainStatus.WORSE_WITHIN_NOISE),
        ((0, 3.0, -3.0), 1, {}, GainStatus.WITHIN_NOISE),  # the images say so, the seeds do not
        ((0,), 1, {}, GainStatus.ONE_SEED),
        ((0,), 1, {"clip_ft": 11 + 2 * NEAR}, GainStatus.WITHIN_NOISE),
        ((0,), 1, {"random": 11 + 2 * NEAR}, GainStatus.BASELINE),
    ],
)
def test_a_gain_counts_beyond_the_noise_of_seeds_and_of_images(seeds, better, draws, status):
    values = {
        "cliptex": [12 + s for s in seeds],
        "clip_ft": [10 + s for s in seeds],
        "random": [1.0],
        "position": [2.0],
    }
    found = gain_over(values, better, subject="cliptex", reference="clip_ft", draws=DRAWS | draws)
    assert found.status is status
    assert (
        found.percent_interval.low <= found.percent <= found.percent_interval.high or status is GainStatus.WITHIN_NOISE
    )


def test_interval_of_a_relative_gain_is_in_percent_of_the_reference_and_signed_as_the_gain():
    draws = {"a": np.full(100, 0.8), "b": np.linspace(1.0, 1.2, 100)}
    found = gain_over({"a": [0.8], "b": [1.0]}, -1, subject="a", reference="b", draws=draws)
    assert found.percent == pytest.approx(20)
    assert found.difference.interval.low == pytest.approx(0.205)
    assert found.percent_interval.low == pytest.approx(20.5) and found.percent_interval.high == pytest.approx(39.5)


def probe(values, draws=None, head="linear", family="trained_head", task="depth", benchmark="nyuv2", metric="mIoU"):
    """A row of the report, as `cliptex.report.gains` makes them."""
    pair = {"subject": "cliptex", "reference": "clip_ft"}
    gain = gain_over(values, 1, **pair, baselines=(), needed=(), draws=draws or {})
    return ProbeGain(benchmark, task, head, metric, values, gain, draws or {}, "official", family)


def test_verdict_has_an_interval_of_the_median_gain():
    values, draws = {"cliptex": [12.0], "clip_ft": [10.0]}, {"cliptex": 12 + NEAR, "clip_ft": 10 + 0 * NEAR}
    found = evaluators([probe(values, draws, task=task) for task in ("depth", "normals", "detection")], ())
    (sentence, *_) = verdict(found, [], seeds=1).sentences
    assert "median relative gain +20.0 % (95 % interval +10.5 to +29.5 %)" in sentence


@pytest.mark.parametrize(
    ("subject", "reference", "shift", "state"),
    [
        ([30, 31], [28, 29], 1.0, "better"),
        ([30, 31], [28, 29], 3.0, "kept"),
        ([28, 29], [29.5, 30.5], 1.0, "lost in part"),
        ([28, 29], [29.5, 30.5], 3.0, "lower, within noise"),
        ([28], [29], 0.5, "lower, one seed"),
        ([28], [29], 2.0, "lower, within noise"),
    ],
)
def test_zero_shot_is_lost_only_beyond_the_noise(subject, reference, shift, state):
    draws = fmean(subject) + shift * NEAR, np.full(3, fmean(reference))
    assert ZeroShot("ImageNet", subject, reference, 7.2, draws).state == state


def test_a_sentence_on_a_further_model():
    values = {"a": [2.0, 2.1], "b": [1.0, 1.1]}
    better = [
        gain_over(values, 1, subject="a", reference="b", draws=certain(values)),
        gain_over({}, 1, subject="a", reference="b"),
    ]
    assert further_sentence("A", better) == (
        "A: median gain over CLIP-FT +95.2 %, better beyond the noise in 1 of 1 evaluators."
    )
    one_seed = [gain_over({"a": [2.0], "b": [1.0]}, 1, subject="a", reference="b")]
    assert further_sentence("A", one_seed) == "A: median gain over CLIP-FT +100.0 %, better in 1 of 1 evaluators."
    assert further_sentence("A", []) == "A was not compared with CLIP-FT."


def test_two_recipes_are_a_yardstick_next_to_each_gain_and_nothing_else(three_seeds, tmp_path):
    config, root, before = three_seeds
    assert "Gap of two recipes" not in before and "yardstick" not in json.dumps(config.plain())
    copy = copied(root, tmp_path)
    recipe = config.models["clip_ft"].model_copy(update={"learning_rate": 5e-4})
    report = config.report.model_copy(update={"yardstick": ["clip_ft", "clip_ft_recipe"]})
    both = config.model_copy(update={"models": {**config.models, "clip_ft_recipe": recipe}, "report": report})
    make_runs(both, copy)
    for folder in ("probes", "zeroshot"):
        for path in (copy / "results" / folder).glob("*.json"):
            data = json.loads(path.read_text())
            rows = [row | {"model": "clip_ft_recipe"} for row in data["results"] if row["model"] == "clip"]
            write_json(path, data | {"results": data["results"] + rows})
            if folder == "probes":
                make_statistics(path.with_suffix(""), rows, ids_of(path.stem, copy))
            else:
                make_zeroshot_statistics(per_image_path(path), data["results"] + rows, data["num_eval"])
    build_report(both, copy)
    text = (copy / "results/report.html").read_text()
    page, again = Page(text), Page(before)
    for name in ("main", "zeroshot", "evaluators"):
        with_gap, without = page.table(name), again.table(name)
        place = with_gap[0].index("Gap of two recipes")
        assert [row[:place] + row[place + 1 :] for row in with_gap] == without
    gaps = {row[0]: row[5] for row in page.table("main") if len(row) > 1}
    assert re.fullmatch(r"0\.010 [+−]0\.\d+ to \+0\.\d+ gain larger", gaps["Depth, linear RMSE (m) ↓"])
    assert re.fullmatch(r"0\.3 .* loss larger", gaps["Surface normals, linear Mean angle (°) ↓"])
    assert gaps["Instance segmentation, Mask R-CNN AP (%) ↑"].endswith(" gain not larger")
    sentence = "between CLIP-FT and clip_ft_recipe, two ordinary recipes, in 3 of 5 evaluators, beyond the noise in "
    assert sentence in page.text
    shown = [row[0] for table in page.tables if table["id"] in ("table-main", "table-cost") for row in table["rows"]]
    assert not any("clip_ft_recipe" in cell for cell in shown) and "clip_ft_recipe: median gain" not in page.text
    with (copy / "results/report/main.csv").open() as file:
        depth = next(row for row in csv.DictReader(file) if row["Task, head, metric"] == "Depth, linear")
    assert float(depth["Gap of two recipes"]) == pytest.approx(0.01) and float(depth["gain beyond gap low"]) > 0
    with (copy / "results/report/all_metrics.csv").open() as file:
        assert "clip_ft_recipe" in {row["model"] for row in csv.DictReader(file)}


def test_rows_without_a_trained_head_have_a_section_and_count_as_evaluators_of_their_own(three_seeds, tmp_path):
    config, root, before = three_seeds
    assert 'id="untrained"' not in before
    copy = copied(root, tmp_path)
    path = copy / "results/probes/voc.json"
    data = json.loads(path.read_text())
    rows = [row | {"head": "knn", "family": "no_head"} for row in data["results"] if row["head"] == "pspnet"]
    write_json(path, data | {"results": data["results"] + rows})
    make_statistics(path.with_suffix(""), rows, ids_of("voc", copy))
    build_report(config, copy)
    page = Page((copy / "results/report.html").read_text())
    assert "A real gain in 3 of 6 evaluators" in page.text
    assert "No trained head: a real gain in 1 of 1, better in 1; median relative gain +49.0 %" in page.text
    assert page.table("main") == Page(before).table("main")
    group, row = page.table("untrained")[1:]
    assert group[0].startswith("Pascal VOC") and row[0].startswith("Semantic segmentation, ")
    assert row[1] == "No trained head" and row[5].startswith("+5.0 points") and row[5].endswith("+49.0 %, ▲ real")
    groups = [row[0] for row in page.table("evaluators")[1:] if len(row) == 1]
    assert [name.split(" better")[0] for name in groups] == ["Trained heads", "No trained head"]
    assert "#untrained" in {attributes.get("href") for _, attributes in page.tags}
    assert len((copy / "results/report/untrained.csv").read_text().splitlines()) == 2


def test_signed_numbers_have_a_true_minus_and_no_signed_zero():
    assert [signed(2.04), signed(-2.06), signed(-0.01)] == ["+2.0", "−2.1", "0.0"]


def test_markdown_cells_cannot_end_early():
    columns = [Column("x", "x", numeric=False), Column("y", "y")]
    table = Table("t", "a | b", columns, [Group([{"x": Cell("a|b"), "y": Cell("1.0", 1.0, best=True)}])])
    assert "| a\\|b | **1.0** |" in table.markdown()
    assert table.csv() == "x,y\na|b,1.0\n"


def test_the_gallery_reads_a_user_s_tar_in_any_order_and_form(tmp_path):
    """As shards.py does: `photo (1).jpg` before `photo.jpg`, suffixes in capitals, captions in JSON."""
    image = encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    members = [("photo (1).JPG", image), ("photo (1).json", b'{"caption": "first"}')]
    members += [("photo.jpg", image), ("photo.txt", b"second"), ("a.jpg", image), ("a.txt", b"third")]
    write_tar(tmp_path / "mine.tar", members)
    found = _read_pairs(tmp_path / "mine.tar", ["a", "photo", "photo (1)"])
    assert found == {"photo (1)": (image, "first"), "photo": (image, "second"), "a": (image, "third")}
    with pytest.raises(CliptexError, match=r"mine\.tar: 'b' is not in it"):
        _read_pairs(tmp_path / "mine.tar", ["a", "b"])


def test_labels_of_the_chart_of_gains_do_not_touch(three_seeds):
    """However wide the intervals are."""
    config, root, _ = three_seeds
    results = gather(config, root)
    probes = probe_gains(results)
    for low, high in ((-20, 20), (-63, 136), (-200, 200)):
        wide = replace(probes[0].gain, percent=float(high), percent_interval=Interval(low, high))
        chart = gains_chart(results, [replace(probes[0], gain=wide), *probes[1:]])
        figure = Figure(figsize=(WIDTH_INCHES, chart.height), layout="constrained")
        with matplotlib.rc_context(PAGE):
            chart.draw(figure)
            figure.draw_without_rendering()
            (axes,) = figure.axes
            low, high = axes.get_xlim()
            shown = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
            ends = [label.get_window_extent() for label in shown]
        assert len(ends) > 2
        # a fifth of a label's width apart, for the reader's own font may be wider
        assert all(left.x1 + 0.2 * left.width < right.x0 for left, right in pairwise(ends))

"""Evaluate exported models with the clip_benchmark command, and gather the results in one table.

Reads   results/models/{model}/seed{seed}/, and tars in clip_benchmark's layout, from a folder or from the hub.
Writes  results/clip_benchmark/{dataset}/{model}/seed{seed}.json, and table.json and table.csv next to these folders.
Holds   every number is clip_benchmark's (https://github.com/LAION-AI/CLIP_benchmark), only converted to percent.

Imports nothing heavy: the workflow needs the names of the files.
"""

import csv
import json
import logging
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from cliptex.config import PUBLISHED_TOLERANCE, ClipBenchmark, Config, dataset_slug
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, reading, replacing, require_file, write_json
from cliptex.core.finite import require_finite
from cliptex.evaluation.results import OUTDATED
from cliptex.evaluation.suites import dataset_root, datasets_of, few_shot_datasets, suite_summary

log = logging.getLogger("cliptex")
METRICS = {"acc1": "top1", "acc5": "top5", "mean_average_precision": "mAP"}
METRICS |= {f"text_retrieval_recall@{k}": f"image_to_text R@{k}" for k in (1, 5, 10)}
METRICS |= {f"image_retrieval_recall@{k}": f"text_to_image R@{k}" for k in (1, 5, 10)}
"""Name of a metric in clip_benchmark -> name here. Text retrieval is from an image to its captions."""
COLUMNS = ("dataset", "task", "split", "model", "seed", "metrics", "clip_benchmark")
FORM = {**dict.fromkeys(COLUMNS, str), "seed": int, "metrics": {str: int | float | None}}
FORM |= {"provenance": {"model_sha256": dict}}
"""Of the result of a data set, a model and a seed (`cliptex.core.files.read_checked`)."""
FEW_SHOT = {"dataset": str, "model": str, "seed": int, "results": [{"shots": int, "metrics": {str: int | float}}]}
FEW_SHOT |= {"provenance": {"model_sha256": dict}}
"""Of the few-shot probes of a data set, a model and a seed."""
MAIN = ("top1", "mAP", "image_to_text R@1")
"""The metrics of the mean: of each data set the first one that it has."""


def clip_benchmark_files(config: Config) -> list[Path]:
    """The result files, by data set, model and seed."""
    return [
        paths.clip_benchmark(dataset_slug(dataset), model, seed)
        for dataset in datasets_of(config.clip_benchmark)
        for model in config.probes.models or config.models
        for seed in config.seeds
    ]


def few_shot_files(config: Config) -> list[Path]:
    """The result files of the few-shot probes, by data set, model and seed."""
    return [
        paths.few_shot(dataset_slug(dataset), model, seed)
        for dataset in few_shot_datasets(config.clip_benchmark)
        for model in config.probes.models or config.models
        for seed in config.seeds
    ]


def run_clip_benchmark(
    options: ClipBenchmark, dataset: str, task: str, model: str, seed: int, folder: Path, out: Path
) -> None:
    """Evaluate the exported model in `folder` on one data set, and write the metrics in percent to `out`."""
    from cliptex.core.provenance import provenance
    from cliptex.models.clip import WEIGHTS_FILE, load

    if find_spec("clip_benchmark") is None:
        raise CliptexError("clip-benchmark is not installed; run: pip install 'cliptex[clip-benchmark]'")
    require_file(folder / WEIGHTS_FILE, "train that model first")
    root = dataset_root(options, dataset)
    if dataset.startswith("wds/") and "://" not in root:
        shard_count = Path(root) / options.split / "nshards.txt"
        if not shard_count.exists():
            raise CliptexError(
                f"{shard_count}: no such file, so {dataset} is missing; see clip_benchmark.root in config/README.md"
            )
    sha256 = load(folder).weights_sha256  # with its checks: the command loads whatever the folder has
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".clip_benchmark-") as scratch:
        result_file = Path(scratch) / "result.json"
        arguments = ["--dataset", dataset, "--dataset_root", root, "--split", options.split]
        # --pretrained is ignored for a local folder, but must not be empty
        arguments += ["--task", task, "--model", f"local-dir:{folder.resolve()}", "--pretrained", "cliptex"]
        arguments += ["--batch_size", str(options.batch_size), "--num_workers", str(options.workers)]
        arguments += ["--recall_k", "1", "5", "10"]
        command = [*JOB, "eval", *arguments, "--no_amp", "--quiet"]
        log.info("run: %s", shlex.join(command))
        # --output is a template, so braces in the path are escaped
        process = subprocess.run(
            [*command, "--output", str(result_file).replace("{", "{{").replace("}", "}}")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if process.returncode or not result_file.exists():
            log.error("%s", process.stdout)
            last = next((line for line in reversed(process.stdout.splitlines()) if line.strip()), "no output")
            raise CliptexError(f"clip_benchmark failed on {dataset} with {model}, seed {seed}: {last.strip()}")
        # not read_json: NaN is not strict JSON
        with reading(result_file, "a result of clip_benchmark", "reinstall clip_benchmark"):
            output = json.loads(result_file.read_text(encoding="utf-8"))
            scores, task = output["metrics"].items(), output["task"]
    for name, value in scores:
        if METRICS.get(name) in MAIN:  # others are NaN, for instance top-5 for fewer than five classes
            require_finite(value, f"{folder}: clip_benchmark's {name} on {dataset}", "check its weights")
    metrics = {METRICS.get(name, name): 100 * value if math.isfinite(value) else None for name, value in scores}
    log.info("%s %s seed %d: %s", dataset, model, seed, metrics)
    result = {
        "schema_version": 1,
        "dataset": dataset,
        "task": task,
        "split": options.split,
        "root": root,
        "model": model,
        "seed": seed,
        "metrics": metrics,
        "clip_benchmark": version("clip-benchmark"),
        "provenance": provenance({"arguments": arguments}) | {"model_sha256": {f"{model}/seed{seed}": sha256}},
    }
    write_json(out, result)


JOB = (sys.executable, "-m", "cliptex.evaluation.clip_benchmark_job")


def write_table(files: Sequence[Path], out: Path, config: Config | None = None) -> None:
    """Write the table `out`, and next to it a CSV with a row per data set and metric, a column per model and seed.

    config: that of the run, for the summary of its suite; None for a table without one."""
    if not files:
        raise CliptexError("clip_benchmark.datasets: there are none, so there is no table; add at least one")
    rows: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    for path in files:
        result = read_checked(path, FORM, remedy=OUTDATED)
        place = dataset_slug(result["dataset"]), result["model"], f"seed{result['seed']}.json"
        if place != path.parts[-3:]:
            raise CliptexError(f"{path}: is of {'/'.join(place)}; put that file back, or {OUTDATED}")
        if not any(result["metrics"].get(name) is not None for name in MAIN):
            raise CliptexError(f"{path}: metrics has none of {', '.join(MAIN)}; {OUTDATED}")
        first = rows[0] if rows else result
        if result["clip_benchmark"] != first["clip_benchmark"]:
            raise CliptexError(f"{path}: another version of clip_benchmark than {files[0]}; {OUTDATED}")
        digests |= result["provenance"]["model_sha256"]
        rows.append(result)
    runs = list(dict.fromkeys((row["model"], row["seed"]) for row in rows))
    means = [{"model": model, "seed": seed} | _mean(rows, model, seed) for model, seed in runs]
    table = {
        "schema_version": 1,
        "results": [{key: row[key] for key in COLUMNS} for row in rows],
        "means": means,
        **({"suite": suite_summary(config, rows)} if config and config.clip_benchmark.suite else {}),
        "provenance": rows[0]["provenance"] | {"model_sha256": digests},
    }
    if config and (few_shot := few_shot_files(config)):
        table["few_shot"] = _few_shot(few_shot, digests)
    for entry in table.get("suite", {}).get("published", []):
        if deviating := entry["deviating"]:
            log.warning(
                "%s (%s, %s): %d sets deviate from open_clip's table by more than %g points: %s",
                *(entry[key] for key in ("model", "architecture", "pretrained")),
                len(deviating),
                PUBLISHED_TOLERANCE,
                ", ".join(deviating),
            )
    with replacing(out.with_suffix(".csv")) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", "metric", *(f"{model}/seed{seed}" for model, seed in runs)])
        values = {(row["dataset"], row["model"], row["seed"]): row["metrics"] for row in rows}
        for dataset in dict.fromkeys(row["dataset"] for row in rows):
            for metric in values[(dataset, *runs[0])]:
                scores = [values[(dataset, *run)].get(metric) for run in runs]
                writer.writerow([dataset, metric, *("" if value is None else f"{value:.4f}" for value in scores)])
    write_json(out, table)


def _mean(rows: Sequence[dict[str, Any]], model: str, seed: int) -> dict[str, Any]:
    """The mean of the data sets' main metrics (`MAIN`), and the number of data sets."""
    main = [
        next(value for name in MAIN if (value := row["metrics"].get(name)) is not None)
        for row in rows
        if (row["model"], row["seed"]) == (model, seed)
    ]
    return {"mean": fmean(main), "datasets": len(main)}


def _few_shot(files: Sequence[Path], digests: dict[str, str]) -> dict[str, Any]:
    """Top-1 of the few-shot probes, and its mean over the data sets by model, seed and number of shots."""
    results = []
    for path in files:
        result = read_checked(path, FEW_SHOT, remedy=OUTDATED)
        for name, digest in result["provenance"]["model_sha256"].items():
            if digests.get(name, digest) != digest:
                raise CliptexError(f"{path}: {name} had other weights than in clip_benchmark's results; {OUTDATED}")
        results += [
            {key: result[key] for key in ("dataset", "model", "seed")} | {"shots": row["shots"], **row["metrics"]}
            for row in result["results"]
        ]
    groups = dict.fromkeys((row["model"], row["seed"], row["shots"]) for row in results)
    means = []
    for model, seed, shots in groups:
        scores = [row["top1"] for row in results if (row["model"], row["seed"], row["shots"]) == (model, seed, shots)]
        means.append({"model": model, "seed": seed, "shots": shots, "mean": fmean(scores), "sets": len(scores)})
    return {"means": means, "results": results}

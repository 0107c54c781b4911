"""Results of probes as records of VisBench's boards, and the other way round.

Reads   results/probes/{benchmark}.json, or a file of records.
Writes  a file of records: JSON Lines, sorted keys, in schema version 9 of VisBench 0.27.0
        (`visbench.results.schema.ResultRecord`); or the rows of such a file as JSON, with metrics and units as here.
Holds   only metrics that both define alike are exchanged; what is left out is named.

VisBench (github.com/turhancan97/VisBench, MIT licence) ranks frozen encoders. It compares records only if task, data,
split, protocol and options agree: the name and digest of the protocol are among the options, so records of this
package are ranked among each other and never with VisBench's own, whose heads are trained differently.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cliptex.core.errors import CliptexError
from cliptex.core.files import check_form, reading, replacing, require_file, write_json
from cliptex.evaluation.probes.classification import ClassificationProbe
from cliptex.evaluation.probes.depth import DepthProbe
from cliptex.evaluation.probes.normals import NormalsProbe
from cliptex.evaluation.probes.segmentation import SegmentationProbe
from cliptex.evaluation.results import ProbeTable, Row, read_result

SCHEMA_VERSION = 9
VISBENCH_VERSION = "0.27.0"
"""Whose schema is written."""
KEY = "cliptex/"
"""Start of `backbone_key` of records of this package; the SHA-256 of the weights follows."""


class BoardTask(NamedTuple):
    """A task of VisBench. metrics: our name -> its name and factor; averaging: the one that it uses, if ours varies."""

    name: str
    level: str
    metrics: dict[str, tuple[str, float]]
    averaging: str | None = None


TASKS = {
    SegmentationProbe.name: BoardTask(
        SegmentationProbe.name,  # theirs has the same name
        "high_level",
        {"mIoU": ("miou", 0.01), "mAcc": ("mean_acc", 0.01), "aAcc": ("pixel_acc", 0.01)},
    ),
    DepthProbe.name: BoardTask(
        "depth",
        "mid_level",
        {f"delta{power}": (f"d{power}", 0.01) for power in (1, 2, 3)} | {"rmse": ("rmse", 1), "absrel": ("abs_rel", 1)},
        "image",
    ),
    NormalsProbe.name: BoardTask(
        "surface_normal",
        "mid_level",
        {"mean": ("mean", 1), "median": ("median", 1), "rmse": ("rmse", 1)}
        | {name: (f"d{k}", 0.01) for k, name in enumerate(("within_11_25", "within_22_5", "within_30"), start=1)},
        "image",
    ),
    ClassificationProbe.name: BoardTask(
        "classification", "high_level", {"top1": ("top1", 0.01), "top5": ("top5", 0.01)}
    ),
}
"""By our names. Detection is not exchanged: COCO's average precision samples 101 recalls, VisBench's does not."""
FORM: dict[str, Any] = {"schema_version": int, "metrics": {str: int | float}, "task_params": dict}
FORM |= dict.fromkeys(("backbone", "backbone_key", "task", "dataset", "split", "timestamp", "visbench_version"), str)
FORM |= {"seed": int | None}
"""What is read of a record."""


def export_records(tables: Sequence[Path], out: Path) -> list[str]:
    """Write the records of all rows of probe tables, and return what was left out, a sentence each.

    Raises CliptexError for a table that is missing or broken, and if there is no record at all."""
    records, left_out = [], Counter()
    for path in tables:
        table = read_result(path, ProbeTable)
        time = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
        for row in table.results:
            if reason := _not_exchanged(table, row):
                left_out[f"{table.benchmark}, {row.task}: {reason}"] += 1
            else:
                records.append(_record(table, row, time))
    if not records:
        raise CliptexError(
            f"{out}: no result has a task of VisBench ({', '.join(TASKS)}); add a benchmark to probes.benchmarks"
        )
    with replacing(out) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, sort_keys=True, allow_nan=False) + "\n" for record in records)
    return [f"{reason} ({count} rows)" for reason, count in left_out.items()]


def _not_exchanged(table: ProbeTable, row: Row) -> str | None:
    task = TASKS.get(row.task)
    if task is None:
        return "VisBench has no task with these metrics"
    if not row.frozen:
        return "its encoder was fine-tuned"
    averaging = table.protocol.get(row.task, {}).get("averaging")
    if task.averaging and averaging != task.averaging:
        return f"its metrics are {averaging}, VisBench's are means over images"
    if all(row.metrics.get(name) is None for name in task.metrics):
        return "it has none of VisBench's metrics"
    return None


def _record(table: ProbeTable, row: Row, time: str) -> dict[str, Any]:
    task, options = TASKS[row.task], table.protocol.get(row.task, {})
    run = f"{row.model}/seed{row.seed}"
    digest = table.provenance.get("model_sha256", {}).get(run)
    features = options.get("features", {})
    pooling = features.get("point", "pooled") if row.task == ClassificationProbe.name else "none"
    return {
        "backbone": run,
        "backbone_key": KEY + str(digest or row.model),
        "task": task.name,
        "level": task.level,
        "dataset": table.benchmark,
        "split": table.split,
        "dataset_size": table.num_eval,
        "dataset_fingerprint": None,
        "dataset_params": {
            "source": table.source,
            "variant": table.variant,
            "num_train": table.num_train,
            "num_classes": len(table.class_names),
        },
        "pooling": pooling,
        "pooling_requested": pooling,
        "feature_mode": "dense_only",  # as all its probes of one layer
        "metrics": {
            theirs: row.metrics[ours] * factor
            for ours, (theirs, factor) in task.metrics.items()
            if row.metrics.get(ours) is not None
        },
        "task_params": {
            "protocol": f"cliptex_{row.protocol_name}",
            "protocol_digest": row.protocol_digest,
            "head": row.head,
        },
        "training": {"num_parameters": row.num_parameters, "hyperparameters": row.hyperparameters},
        "hardware": {"torch": table.provenance.get("packages", {}).get("torch")},
        "layer": None,
        "layers": None,
        "finetune": None,
        "seed": row.seed,
        "duration_seconds": row.seconds,
        "notes": row.protocol,
        "timestamp": time,
        "visbench_version": VISBENCH_VERSION,
        "schema_version": SCHEMA_VERSION,
    }


def import_records(path: Path, out: Path) -> dict[str, int]:
    """Write the rows of a file of records as JSON, and return the number of records by task that were left out.

    A row has `dataset`, `split`, `backbone_key` and `visbench_version`, and the keys of results here; in the record of
    another package `model` is the backbone, and `head` that of the options, or `linear`.
    Raises CliptexError for a line that is no record."""
    ours, left_out, rows = {task.name: (name, task) for name, task in TASKS.items()}, Counter(), []
    for number, record in _records(path):
        if record["task"] not in ours or record.get("finetune"):
            left_out[record["task"]] += 1
            continue
        name, task = ours[record["task"]]
        metrics = {
            metric: record["metrics"][theirs] / factor
            for metric, (theirs, factor) in task.metrics.items()
            if theirs in record["metrics"]
        }
        if not metrics:
            raise CliptexError(f"{path}: line {number} has none of the metrics of {record['task']}; remove it")
        options = record["task_params"]
        is_ours = record["backbone_key"].startswith(KEY)
        row = Row(
            task=name,
            model=record["backbone"].rpartition("/seed")[0] if is_ours else record["backbone"],
            seed=record.get("seed") or 0,
            head=str(options.get("head", "linear")),
            metrics=metrics,
            protocol=record.get("notes") or "",
            protocol_name=str(options["protocol"]).removeprefix("cliptex_") if "protocol" in options else None,
            protocol_digest=options.get("protocol_digest"),
        )
        about = {key: record[key] for key in ("dataset", "split", "backbone_key", "visbench_version")}
        rows.append(about | row.model_dump(exclude_unset=True))
    write_json(out, {"schema_version": 1, "rows": rows, "left_out": dict(left_out)})
    return dict(left_out)


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and content of each record. Versions of the schema only add keys, so that older ones can be read."""
    remedy = "remove the line, or write the file with `visbench` again"
    require_file(path, "correct the name")
    with reading(path, "records of VisBench", remedy), path.open(encoding="utf-8") as file:
        lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CliptexError(f"{path}: line {number} is not JSON ({error}); {remedy}") from error
        with_defaults = {"task_params": {}, "seed": None} | record if isinstance(record, dict) else record
        check_form(path, with_defaults, FORM, f"line {number}: {remedy}")
        if record["schema_version"] > SCHEMA_VERSION:
            raise CliptexError(
                f"{path}: line {number} has schema version {record['schema_version']}, newer than "
                f"{SCHEMA_VERSION}, the last that is known; update cliptex"
            )
        if name := next((name for name, value in record["metrics"].items() if not math.isfinite(value)), None):
            raise CliptexError(f"{path}: line {number}: {name} is not finite; {remedy}")
        yield number, with_defaults

"""Tables of label stores, experts and dropped data."""

from collections.abc import Mapping, Sequence
from typing import Any

from cliptex.core.licences import is_non_commercial
from cliptex.evaluation.measures import metric_of
from cliptex.evaluation.metrics.display import is_known
from cliptex.experts.training_sets import TrainingSet, in_words
from cliptex.report import names
from cliptex.report.gather import Results
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table
from cliptex.report.tables.cells import count, count_cell, metric_label


def labels_table(results: Results, trained_on: Mapping[str, Sequence[TrainingSet]] | None = None) -> Table | None:
    """Contents of the label stores; None without any. trained_on: expert -> its training sets."""
    if not results.stores:
        return None
    columns = [Column("store", "Label store", numeric=False), Column("expert", "Expert", numeric=False)]
    columns += [Column("images", "Images"), Column("labelled", "Labelled"), Column("failed", "Failed")]
    columns += [Column("valid", "Valid pixels"), Column("bytes", "Bytes an image")]
    return Table(
        "labels",
        "Label stores",
        columns,
        [Group([_store_row(results, name, index, trained_on or {}) for name, index in results.stores.items()])],
        [
            "Valid pixels: share of a label’s pixels with a value, mean over images. Bytes: of the label alone.",
            *_non_commercial(results),
        ],
    )


def _non_commercial(results: Results) -> list[str]:
    """A note on label stores whose licence excludes commercial use; none without such stores."""
    stores = [
        f"{name} ({index['licence']})" for name, index in results.stores.items() if is_non_commercial(index["licence"])
    ]
    if not stores:
        return []
    return [
        f"Labels whose licence excludes commercial use: {', '.join(stores)}; it may bind models that learn from them."
    ]


def _store_row(
    results: Results, name: str, index: dict[str, Any], trained_on: Mapping[str, Sequence[TrainingSet]]
) -> Row:
    valid = index["statistics"]["scalars"].get("coverage", {}).get("mean")
    taken = index.get("from")
    expert = {} if taken else results.experts.get(index["expert"]) or {}
    size = f"{count(expert['num_parameters'])} parameters, " if expert.get("num_parameters") else ""
    if index.get("weights") == "random":
        size = f"RANDOM weights, for tests and benchmarks only; {size}"
    sets = trained_on.get(index["expert"])
    learned = f"; trained on {in_words(sets)}" if sets else ""
    source = f", taken from {taken['source']}, which has {100 * taken['share']:.1f} % of the images" if taken else ""
    stored = f"stored as {index['codec']['name']}"
    if (kept := index["statistics"].get("variance_kept")) is not None:
        stored += f", {100 * kept:.1f} % of the teacher’s variance kept"
    return {
        "store": Cell(name, note=stored),
        "expert": Cell(names.head(index["expert"]), note=f"{size}licence {index['licence']}{source}{learned}"),
        "images": count_cell(index["images"]),
        "labelled": Cell(f"{100 * index['coverage']:.2f} %", 100 * index["coverage"]),
        "failed": count_cell(index["images"] - index["labelled"]),
        "valid": Cell(f"{100 * valid:.1f} %", 100 * valid) if valid is not None else Cell(MISSING),
        "bytes": count_cell(index["bytes_per_image"]),
    }


def agreement_table(results: Results) -> Table | None:
    """Agreement of label stores of one task; None without several."""
    return agreement_of_pairs(results.agreements) if results.agreements else None


def agreement_of_pairs(pairs: Sequence[dict[str, Any]]) -> Table:
    """pairs: of agreement.json."""
    columns = [Column("stores", "Label stores", numeric=False), Column("images", "Images")]
    columns += [Column("agreement", "Agreement"), Column("metrics", "Metrics", numeric=False)]
    return Table(
        "agreement",
        "Label stores of the same task",
        columns,
        [Group([_agreement_row(pair) for pair in pairs])],
        [
            "Agreement: mean over the pixels that both label, 1 = equal. Metrics: of the second store, with the first "
            "in place of the ground truth. Stores with different classes are not compared."
        ],
    )


def _agreement_row(pair: dict[str, Any]) -> Row:
    metrics = []
    for name, value in (pair["quality"] or {}).items():
        text = metric_of(pair["task"], name).format(value) if is_known(name) else f"{value:.3g}"
        metrics.append(f"{metric_label(pair['task'], name) if is_known(name) else name.replace('_', ' ')} {text}")
    known = pair["agreement"] is not None
    return {
        "stores": Cell(" and ".join(pair["stores"]), note=names.task(pair["task"]).lower()),
        "images": count_cell(pair["images"]),
        "agreement": Cell(f"{pair['agreement']:.3f}", pair["agreement"]) if known else Cell(MISSING),
        "metrics": Cell(", ".join(metrics) or MISSING),
    }


def experts_table(results: Results) -> Table | None:
    """Held-out quality of every evaluated expert, and of an image-independent prior; None without any."""
    groups = []
    for name, expert in results.experts.items():
        if not expert or not (quality := expert["quality_file"]):
            continue
        source = "rendered stand-in" if quality["source"] == "miniature" else quality["source"]
        notes = [names.task(quality["task"]).lower(), source, f"{quality['split']} split"]
        if "images_per_cpu_second" in quality:
            notes.append(f"{quality['images_per_cpu_second']:.0f} images a CPU second")
        rows = [_quality_row(quality, metric) for metric in quality["quality"]]
        groups.append(Group(rows, names.head(name), ", ".join(notes)))
    if not groups:
        return None
    return Table(
        "experts",
        "Experts: quality on held-out images",
        [Column("metric", "Metric", numeric=False), Column("expert", "Expert"), Column("prior", "Prior")],
        groups,
        [
            "Prior: a label that does not depend on the image: the mean depth or normal of the training renders at "
            "each pixel, or background everywhere. An expert no better than this ignores the image."
        ],
        group_column="expert",
    )


def _quality_row(quality: dict[str, Any], name: str) -> Row:
    metric, known = metric_of(quality["task"], name), is_known(name)
    values = {"expert": quality["quality"][name]}
    if name in quality.get("prior", {}):
        values["prior"] = quality["prior"][name]
    text, label = (metric.format, metric_label(quality["task"], name)) if known else ("{:.3g}".format, name)
    cells = {key: Cell(text(value), value) for key, value in values.items()}
    return {"metric": Cell(label.replace("_", " ")), "prior": Cell(MISSING), **cells}


def dropped_table(results: Results) -> Table:
    """Pairs left out of training and missing labels, with the reasons."""
    dropped = results.shards["dropped"]
    total = results.shards["num_samples"] + sum(dropped.values())
    rows = _reason_rows("Image-caption pairs", dropped, total, "none dropped")
    for name, index in results.stores.items():
        rows += _reason_rows(f"Labels, {name}", index["failures"], index["images"], "no failure")
    columns = [Column("what", "What", numeric=False), Column("reason", "Reason", numeric=False)]
    columns += [Column("count", "Count"), Column("share", "Share")]
    return Table("dropped", "Data left out", columns, [Group(rows)])


def _reason_rows(what: str, counts: dict[str, int], total: int, none: str) -> list[Row]:
    """A row for each reason, the most frequent first; without any a row with the text `none`."""
    ranked = sorted(counts.items(), key=lambda item: -item[1]) or [(none, 0)]
    return [
        {
            "what": Cell(what),
            "reason": Cell(reason),
            "count": count_cell(number),
            "share": Cell(f"{100 * number / total:.2f} %", 100 * number / total) if total else Cell(MISSING),
        }
        for reason, number in ranked
    ]

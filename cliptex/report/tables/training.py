"""The table of what each model was trained on, and of what training cost."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any

from cliptex.report import names
from cliptex.report.gather import Results
from cliptex.report.statistics import sample_std
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table
from cliptex.report.tables.cells import count, model_columns, model_key

Record = dict[str, Any]
"""The contents of train.json."""
PARTS = {
    "Image encoder": (("encoder",), "an image", ""),
    "Text encoder": (("text",), "a caption", ""),
    "Heads": (("multi_scale", "heads"), "an image", "; removed after training"),
}
"""Part of a model -> its keys in train.json, what it computes on, and a note on its parameters."""


def cost_table(results: Results) -> Table:
    """Training data and cost; one column a model."""
    train, samples = results.config.train, results.shards["num_samples"]
    records = {name: [run.record for run in runs.values()] for name, runs in results.shown_runs.items()}

    def row(
        title: str, note: str, value: Callable[[Record], Any], show: Callable[[Any], str] = str, untrained: bool = False
    ) -> Row:
        """Mean and spread over seeds. untrained: whether models without training steps have the value, too."""
        cells = {model_key(name): _cell(runs, value, show, untrained) for name, runs in records.items()}
        return {"quantity": Cell(title, note=note), **cells}

    def seen(record: Record) -> int:
        return record["steps"] * record["batch_size"]

    data = [
        row("Starts from", "", start, untrained=True),
        row("Steps", "", itemgetter("steps"), count, untrained=True),
        row("Batch size", "pairs a step", itemgetter("batch_size"), count),
        row("Pairs seen", "", seen, count),
        row("Unique pairs", "", lambda record: samples, count),
        row("Epochs", "", lambda record: seen(record) / samples, "{:.1f}".format),
        row("Peak learning rate", "", itemgetter("learning_rate"), "{:g}".format),
        row("Weight decay", "", lambda record: train.weight_decay, "{:g}".format),
        row("Labels learned", "store × weight of its loss", _weights),
    ]
    cost = [
        row("Time", "seconds", itemgetter("seconds"), count),
        row("Time a step", "milliseconds", lambda record: 1000 * record["seconds"] / record["steps"], count),
        row("Throughput", "images a second", itemgetter("images_per_s"), count),
        row("Peak memory", "MB", itemgetter("peak_memory_mb"), count, untrained=True),
    ]
    for part, (keys, _, note) in PARTS.items():
        cost.append(row(part, f"parameters{note}", _parameters(keys), count, untrained=True))
    for part, (keys, of, _) in PARTS.items():
        cost.append(row(part, f"million operations, {of} forward", _megaflops(keys), "{:.1f}".format))
    for what, of in {"flops": "forward operations", "time": "time forward and backward in one process,"}.items():
        key, note = f"{what}_over_contrastive", f"{of} relative to contrastive training"
        cost.append(row("All of a pair", note, lambda record, key=key: record.get(key), "× {:.2f}".format))
    notes = ["Mean over seeds, ± sample standard deviation where they differ."] * (len(results.config.seeds) > 1)
    notes.append(
        "Time, time a step and throughput include data loading and depend on what else ran on the machine, so they do "
        "not compare models. The last row does: the time of a forward and backward pass relative to the same without "
        "pseudo-labels, both measured in one process after the last step. Operations: of matrix products, convolutions "
        "and attention; a multiply-add counts as two. Heads are not exported: encoders have the same size and speed."
    )
    return Table(
        "cost",
        "Training: data and cost",
        [Column("quantity", "Quantity", numeric=False), *model_columns(results.shown_runs)],
        [Group(data, "What it was trained on"), Group(cost, "What it cost")],
        notes,
    )


def _cell(
    records: Sequence[Record], value: Callable[[Record], Any], show: Callable[[Any], str], untrained: bool
) -> Cell:
    if not untrained and not records[0]["steps"]:
        return Cell(MISSING)
    values = [value(record) for record in records]
    if None in values:
        return Cell(MISSING)
    if isinstance(values[0], str):
        return Cell(values[0])
    mean, std = fmean(values), sample_std(values)
    spread = f" ± {show(std)}" if std and show(std) != show(0.0) else ""
    return Cell(f"{show(mean)}{spread}", mean)


def controlled_cost(results: Results) -> tuple[str, str] | None:
    """What pseudo-labels cost in training, under controlled conditions: a ratio, and which one it is; None if unknown.

    Training measures the time with and without pseudo-labels in turn, in one process and on one batch, so other jobs
    disturb it little. Without that the operations of a forward pass are compared, which are counted.
    """
    records = [run.record for run in results.runs.get(names.SUBJECT, {}).values()]
    time, flops = ([one.get(f"{key}_over_contrastive") for one in records] for key in ("time", "flops"))
    counted = f"operations of its forward pass × {fmean(flops):.2f}" if flops and None not in flops else ""
    if time and None not in time:
        text = (
            "cost of training: time of a step’s forward and backward pass with pseudo-labels over that without, "
            "measured in turn in one process on one batch"
        )
        return f"× {fmean(time):.2f}", f"{text}; {counted}" if counted else text
    if counted:
        text = (
            "cost of training: operations of a pair’s forward pass with pseudo-labels over those without; the time was "
            "not measured"
        )
        return f"× {fmean(flops):.2f}", text
    return None


def _parameters(keys: Sequence[str]) -> Callable[[Record], int]:
    return lambda record: sum(record["parameters"].get(key, 0) for key in keys)


def _megaflops(keys: Sequence[str]) -> Callable[[Record], float | None]:
    return lambda record: sum(record["flops"][key] for key in keys) / 1e6 if record.get("flops") else None


def start(record: Record) -> str:
    """The model that training started from, or the two that were interpolated; of a path the last part."""
    if mixed := record.get("interpolate"):
        alpha = mixed["alpha"]
        return f"{alpha:g} × {names.model(mixed['of'])} + {1 - alpha:g} × {names.model(mixed['with'])}"
    return names.model(record["init"].rstrip("/").rpartition("/")[2])


def _weights(record: Record) -> str:
    return ", ".join(f"{store} × {weight:g}" for store, weight in record["tasks"].items()) or "none"

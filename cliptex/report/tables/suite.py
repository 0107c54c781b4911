"""Tables of DataComp's suite of evaluation sets: released models next to their published scores, then all models."""

from collections.abc import Sequence
from statistics import fmean

from cliptex.config import PUBLISHED_TOLERANCE
from cliptex.report import names
from cliptex.report.gather import Results
from cliptex.report.statistics import sample_std, signed
from cliptex.report.table import MISSING, Cell, Column, Group, Row, Table, text_table
from cliptex.report.tables.cells import model_columns, model_key

METRICS = {
    "top1": "top-1 (%)",
    "mean_per_class_recall": "mean recall of the classes (%)",
    "mean R@1": "R@1, mean of both directions (%)",
}


def published_table(results: Results) -> Table | None:
    """Released models: measured and published means, and the sets that deviate; None without a released model."""
    if results.suite is None or not (entries := results.suite["suite"]["published"]):
        return None
    rows = []
    for entry in entries:
        deviating = [
            f"{name} {signed(entry['sets'][name]['measured'] - entry['sets'][name]['published'])}"
            for name in entry["deviating"]
        ]
        rows.append(
            [
                f"{names.model(entry['model'])}, seed {entry['seed']}",
                f"{entry['architecture']}, {entry['pretrained']}",
                Cell(str(len(entry["sets"])), len(entry["sets"])),
                Cell(f"{entry['mean']:.2f}", entry["mean"]),
                Cell(f"{entry['published_mean']:.2f}", entry["published_mean"]),
                Cell(", ".join(deviating) or "none", tone="bad" if deviating else ""),
            ]
        )
    headings = ["Model", "Released as", "Sets", "Mean (%)", "Published mean (%)", "Sets that deviate (points)"]
    table = text_table("suite_published", "Released models next to open_clip's table of results", headings, rows)
    table.notes.append(
        f"A set deviates if its score differs from the published one by more than {PUBLISHED_TOLERANCE} points. Read "
        "the other models' scores on such a set with care: its data, prompts or preprocessing differ."
    )
    return table


def suite_table(results: Results) -> Table | None:
    """Every set that was run and their mean, by model; None without a suite."""
    if results.suite is None:
        return None
    suite, models = results.suite["suite"], results.models
    against = next(
        (one for one in suite["differences"] if {one["model"], one["reference"]} == {names.SUBJECT, names.REFERENCE}),
        None,
    )
    sign = 1 if against and against["model"] == names.SUBJECT else -1
    means = [
        _row(
            f"Mean of {suite['means'][0]['sets']} sets",
            "",
            {model: [one["mean"] for one in suite["means"] if one["model"] == model] for model in models},
            against and sign * against["mean"],
        )
    ]
    sets = [
        _row(
            one["name"],
            METRICS[one["metric"]],
            {
                model: [value for run, value in one["values"].items() if run.rpartition("/")[0] == model]
                for model in models
            },
            against and sign * against["sets"][one["name"]],
        )
        for one in suite["sets"]
    ]
    better, worse = ("better", "worse") if sign > 0 else ("worse", "better")
    notes = [] if against is None else [f"CLIPTeX is better on {against[better]} sets, worse on {against[worse]}."]
    reasons = "; ".join(f"{name} ({reason})" for name, reason in suite["not_run"].items())
    notes.append(f"Not run, and in no mean: {reasons}.")
    difference = [Column("difference", f"{names.model(names.SUBJECT)} − {names.model(names.REFERENCE)}")]
    columns = [Column("set", "Set, metric", numeric=False), *model_columns(models), *(difference if against else [])]
    caption = f"{len(sets)} of DataComp's 38 evaluation sets, zero-shot, by clip_benchmark"
    return Table("suite", caption, columns, [Group(means), Group(sets)], notes)


def few_shot_table(results: Results) -> Table | None:
    """Mean top-1 of the few-shot linear probes, by number of shots and model; None without them."""
    if results.suite is None or not (few_shot := results.suite.get("few_shot")):
        return None
    rows = []
    for shots in dict.fromkeys(one["shots"] for one in few_shot["means"]):
        means = [one for one in few_shot["means"] if one["shots"] == shots]
        values = {model: [one["mean"] for one in means if one["model"] == model] for model in results.models}
        rows.append(_row(f"{shots} per class", f"mean of {means[0]['sets']} sets", values, None))
    columns = [Column("set", "Training images", numeric=False), *model_columns(results.models)]
    return Table("few_shot", "Few-shot linear probes, mean top-1 (%)", columns, [Group(rows)])


def _row(name: str, metric: str, values: dict[str, Sequence[float]], difference: float | None) -> Row:
    cells = {model_key(model): _cell(scores) for model, scores in values.items()}
    if difference is not None:
        cells["difference"] = Cell(signed(difference), difference)
    return {"set": Cell(name, note=metric)} | cells


def _cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(MISSING)
    std = sample_std(values)
    return Cell(f"{fmean(values):.1f}", fmean(values), "" if std is None else f"± {std:.1f}")

"""The report's tables, built from the gathered results."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cliptex.config import AS_PUBLISHED
from cliptex.core.provenance import code
from cliptex.evaluation.per_image import MAIN_METRIC, num_images
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, drawn_anew, draws, resampled
from cliptex.report.gather import Results, Scores
from cliptex.report.statistics import (
    DENSE_TASKS,
    ONE_SEED,
    Judgement,
    Outcome,
    ZeroShot,
    direction,
    judge,
    ranging,
    signed,
    summary,
)
from cliptex.report.table import MISSING, Cell, Group, Table, best_of, text_row

ARROWS = {1: "↑", -1: "↓", 0: ""}
OUTCOME_MARKS = {
    Outcome.REAL: ("▲ real", "good"),
    Outcome.ONE_SEED: ("△ one seed", ""),
    Outcome.WITHIN_NOISE: ("△ within noise", ""),
    Outcome.UNCHECKED: ("△ baseline missing", ""),
    Outcome.TIE: ("= tie", ""),
    Outcome.WORSE_WITHIN_NOISE: ("▽ worse, within noise", "bad"),
    Outcome.WORSE: ("▼ worse", "bad"),
    Outcome.MISSING: ("", ""),
}
ZEROSHOT_MARKS = {
    "kept": ("▲ kept", "good"),
    "kept within noise": ("▽ lower, within noise", ""),
    "lower, undecided": ("▽ lower, one seed", "bad"),
    "lost": ("▼ lost in part", "bad"),
    "at chance": ("at chance", ""),
}
STAGES = ("Data", "Experts", "Labels", "Training", "Probes", "Fine-tuning", "Zero-shot", "Report")


@dataclass(frozen=True)
class MainCell:
    """One cell of the main table: a benchmark's task and head by its main metric, model -> one value a seed.

    draws: model -> the metric in every draw of evaluation images and seeds.
    """

    benchmark: str
    task: str
    head: str
    metric: str
    values: dict[str, list[float]]
    judgement: Judgement
    draws: dict[str, np.ndarray]

    @property
    def label(self) -> str:
        """`NYUv2 depth, linear`."""
        return f"{names.benchmark(self.benchmark)} {names.task(self.task).lower()}, {names.head(self.head)}"


def main_cells(results: Results) -> list[MainCell]:
    """Every cell of every probed benchmark, in the config's order of benchmarks."""
    return _cells(results, results.probes, results.baselines)


def finetuned_cells(results: Results) -> list[MainCell]:
    """The same of encoders that were trained end to end; there the one baseline is an untrained encoder."""
    return _cells(results, results.finetuned, results.config.finetune.baselines, ("random",))


def _cells(
    results: Results,
    benchmarks: Mapping[str, Scores],
    baselines: Sequence[str],
    needed: Sequence[str] = ("random", "position"),
) -> list[MainCell]:
    out = []
    for name, scores in benchmarks.items():
        for task, head in scores.cells():
            metric = _main_metric(scores, task, head)
            values = scores.values(task, head, metric)
            drawn = _drawn(results, scores, task, head, metric)
            judgement = judge(
                values,
                direction(metric),
                subject=names.SUBJECT,
                reference=names.REFERENCE,
                baselines=baselines,
                needed=needed,
                draws=drawn,
            )
            out.append(MainCell(name, task, head, metric, values, judgement, drawn))
    return out


def _drawn(results: Results, scores: Scores, task: str, head: str, metric: str) -> dict[str, np.ndarray]:
    """Model -> its metric in draws of the evaluation images and seeds, the same draws for every model and head."""
    if metric != MAIN_METRIC.get(task):
        return {}
    images = scores.images(task, head)
    if not images:
        return {}
    count = num_images(next(iter(images.values()))[0])
    weights = draws(count, results.config.report.resamples, zlib.crc32(scores.benchmark.encode()))
    return {model: resampled(task, seeds, weights) for model, seeds in images.items()}


def zeroshot_cells(results: Results) -> list[ZeroShot]:
    """The main metric of subject and reference in every zero-shot task."""
    out = []
    for name, scores in results.zeroshot.items():
        for task, head in scores.cells():
            metric = _main_metric(scores, task, head)
            values = scores.values(task, head, metric)
            subject, reference = values.get(names.SUBJECT, []), values.get(names.REFERENCE, [])
            drawn = _drawn(results, scores, task, head, metric)
            pair = drawn.get(names.SUBJECT), drawn.get(names.REFERENCE)
            several = len({task for task, _ in scores.cells()}) > 1
            where = names.benchmark(name) + (f" ({names.task(task).lower()})" if several else "")
            shown = names.metric(metric).lower() if metric == "top1" else names.metric(metric)
            out.append(ZeroShot(where, subject, reference, scores.guess(task, metric), pair, shown, (name, task)))
    return out


def main_table(results: Results, cells: Sequence[MainCell]) -> Table:
    """Benchmark, task, head and main metric against baselines and models; gain of CLIPTeX over CLIP-FT."""
    models = [model for model in results.models if model in names.MODELS]
    shown = [*models, *results.baselines]
    headings = list(map(names.model, shown))
    columns = ["Task, head, metric", *headings[: len(models)], "CLIPTeX over CLIP-FT", *headings[len(models) :]]
    groups = _value_groups(
        results,
        results.probes,
        cells,
        shown,
        (len(models), lambda cell: [_gain_cell(cell.judgement)]),
        lambda cell: _difference_cells(cell.judgement),
    )
    several = len(results.config.seeds) > 1
    notes = [
        f"↑ higher is better, ↓ lower is better. Mean ± sample standard deviation over {len(results.config.seeds)} "
        "seeds; the best mean of a row is bold."
        if several
        else "↑ higher is better, ↓ lower is better. The best value of a row is bold."
    ]
    imaged = any(cell.judgement.gain_interval for cell in cells)
    if imaged:
        notes.append(
            f"Below each gain its {LEVEL:.0f} % interval over {drawn_anew(results.config.seeds)}: they are drawn anew "
            f"with replacement {_count(results.config.report.resamples)} times, and both models are judged on the same "
            "draws (paired bootstrap; in percent of CLIP-FT’s value)."
        )
    if several:
        notes.append(
            "Real: CLIPTeX's mean is better than that of CLIP-FT, of Random and of Position, each by more than the "
            "pooled standard deviation of the two compared, √(Σ squared deviations from each model's own mean / "
            f"(n₁ + n₂ − 2)){', and each with an interval above zero' if imaged else ''}. Within noise: not so."
        )
    else:
        notes.append(
            "“One seed” marks a gain over CLIP-FT and over both baselines"
            + (", each with an interval above zero. " + ONE_SEED if imaged else ". One seed cannot show the spread.")
        )
    notes.append(
        "Random: an encoder that was never trained. Position: a code of where in the image a patch lies, the same for "
        "every image. A score that a baseline reaches too needs no knowledge of the picture."
    )
    return Table(
        "main",
        "Dense and classification probes on frozen encoders",
        [*columns, *_csv_columns(shown), *DIFFERENCE_COLUMNS],
        groups,
        frozenset(range(1, len(columns))),
        notes,
        "benchmark",
        shown.index(names.SUBJECT) + 1 if names.SUBJECT in shown else None,
        fine_notes(results, results.probes.values()),
        len(_csv_columns(shown)) + len(DIFFERENCE_COLUMNS),
    )


DIFFERENCE_COLUMNS = ("outcome", "gain low", "gain high", "difference", "difference low", "difference high")


def _difference_cells(judgement: Judgement) -> list[Cell]:
    """For the CSV: outcome, bounds of the relative gain in percent, the difference and its bounds in the metric."""
    against = judgement.difference
    bounds = against.interval if against else None
    gain = judgement.gain_interval
    return [
        Cell(judgement.outcome.value),
        _number_cell(gain and gain.low),
        _number_cell(gain and gain.high),
        _number_cell(against and against.value),
        _number_cell(bounds and bounds.low),
        _number_cell(bounds and bounds.high),
    ]


ABOUT_COLUMNS = (
    "metric",
    "seeds",
    "source",
    "variant",
    "split",
    "training images",
    "evaluation images",
    "encoders trained on",
    "protocol",
)


def about_cells(results: Results, scores: Scores, task: str, head: str, metric: str) -> list[Cell]:
    """For the CSV, under `ABOUT_COLUMNS`: how a row's numbers were made."""
    rows = [row for row in scores.rows if (row.task, row.head) == (task, head)]
    return [
        Cell(metric),
        Cell(" ".join(map(str, sorted({row.seed for row in rows})))),
        Cell(scores.source),
        Cell(scores.variant or MISSING),
        Cell(scores.split),
        _number_cell(scores.num_train),
        _number_cell(scores.num_eval),
        Cell(_training_set(results)),
        Cell("; ".join(dict.fromkeys(row.protocol for row in rows if row.protocol))),
    ]


def _csv_columns(shown: Sequence[str]) -> list[str]:
    return [*(f"{names.model(model)} standard deviation" for model in shown), *ABOUT_COLUMNS]


def _csv_cells(
    results: Results, scores: Scores, task: str, head: str, metric: str, values: Sequence[Sequence[float]]
) -> list[Cell]:
    """For the CSV, under `_csv_columns`: the spread of each model's values, and how they were made."""
    spreads = [summary(one) for one in values]
    about = about_cells(results, scores, task, head, metric)
    return [*(_number_cell(spread and spread.std) for spread in spreads), *about]


def _number_cell(value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(str(value), value)


def fine_notes(results: Results, benchmarks: Iterable[Scores]) -> list[str]:
    """Under a table of results: protocol and samples of each benchmark, what the encoders were trained on, seeds."""
    notes = []
    for scores in benchmarks:
        about = _sizes(scores)
        protocols = [f"{what}: {text}" for text, what in _protocols(scores).items()]
        notes.append(f"{names.benchmark(scores.benchmark)}: {'. '.join([about, *protocols])}.")
    return [*notes, *_training_sets(results)]


def _training_set(results: Results) -> str:
    kind = {"miniature": "rendered image-caption pairs", "urls": "image-caption pairs from a list of urls"}
    pairs = _count(results.shards["num_samples"])
    return f"{pairs} {kind.get(results.config.dataset.source, 'image-caption pairs')}"


def _training_sets(results: Results) -> list[str]:
    config = results.config
    notes = [f"Encoders were trained on {_training_set(results)}."]
    for name, model in config.models.items():
        if model.tasks:
            stores = [f"{store} by {names.head(config.label_stores[store].expert)}" for store in model.tasks]
            notes.append(f"{names.model(name)} learned their pseudo-labels too: {', '.join(stores)}.")
    seeds = config.seeds
    return [*notes, f"{'Seeds' if len(seeds) > 1 else 'Seed'}: {', '.join(map(str, seeds))}."]


def _value_groups(
    results: Results,
    benchmarks: Mapping[str, Scores],
    cells: Sequence[MainCell],
    shown: Sequence[str],
    inserted: tuple[int, Callable[[MainCell], list[Cell]]] = (0, lambda cell: []),
    csv_only: Callable[[MainCell], list[Cell]] = lambda cell: [],
) -> list[Group]:
    """Rows of every benchmark: task, head and main metric, and the values of the models `shown`.

    inserted: cells of another kind, after so many models. After these come the cells under `_csv_columns`, and those
    of `csv_only`.
    """
    groups = []
    for name, scores in benchmarks.items():
        rows = []
        for cell in cells:
            if cell.benchmark != name:
                continue
            best = best_of([fmean(cell.values[m]) for m in shown if m in cell.values], direction(cell.metric))
            head = f"{names.task(cell.task)}, {names.head(cell.head)}"
            first = Cell(head, note=_metric_label(cell.task, cell.metric))
            seeds = [cell.values.get(model, []) for model in shown]
            values = [_value_cell(one, cell.task, cell.metric, best) for one in seeds]
            extra = [*_csv_cells(results, scores, cell.task, cell.head, cell.metric, seeds), *csv_only(cell)]
            at, more = inserted
            rows.append([first, *values[:at], *more(cell), *values[at:], *extra])
        groups.append(Group(rows, names.benchmark(name), _sizes(scores)))
    return groups


def finetuned_table(results: Results, tuned: Sequence[MainCell], frozen: Sequence[MainCell]) -> Table | None:
    """The main metric of encoders that were trained end to end, and the gain of CLIPTeX beside that of frozen ones."""
    if not tuned:
        return None
    shown = [*results.models, *results.config.finetune.baselines]
    before = {(cell.benchmark, cell.task, cell.head): cell.judgement for cell in frozen}

    def gains_of(cell: MainCell) -> list[Cell]:
        of_frozen = before.get((cell.benchmark, cell.task, cell.head), Judgement(Outcome.MISSING))
        return [_gain_cell(cell.judgement), _gain_cell(of_frozen)]

    groups = _value_groups(
        results,
        results.finetuned,
        tuned,
        shown,
        (len(shown), gains_of),
        lambda cell: _difference_cells(cell.judgement),
    )
    gains = ["CLIPTeX over CLIP-FT", "the same, frozen"]
    columns = ["Task, head, metric", *(names.model(name) for name in shown), *gains]
    more = [*_csv_columns(shown), *DIFFERENCE_COLUMNS]
    return Table(
        "finetuned",
        "End-to-end fine-tuning",
        [*columns, *more],
        groups,
        frozenset(range(1, len(columns))),
        [
            "Here the encoder learns on the benchmark together with the head. The last two columns: CLIPTeX's relative "
            "gain over CLIP-FT then, and with frozen encoders; intervals and marks as in the first table. Random: the "
            "same network trained from scratch."
        ],
        "benchmark",
        shown.index(names.SUBJECT) + 1 if names.SUBJECT in shown else None,
        fine_notes(results, results.finetuned.values()),
        len(more),
    )


def further_models(results: Results) -> list[str]:
    """Models beside the paper's three, such as the controls of a study."""
    return [model for model in results.models if model not in names.MODELS]


def judge_model(cell: MainCell, model: str, baselines: Sequence[str]) -> Judgement:
    """The cell's judgement of any model against CLIP-FT."""
    return judge(
        cell.values,
        direction(cell.metric),
        subject=model,
        reference=names.REFERENCE,
        baselines=baselines,
        draws=cell.draws,
    )


def further_values_table(results: Results, cells: Sequence[MainCell]) -> Table | None:
    """Values of every further model beside CLIP-FT's and CLIPTeX's; None without any."""
    further = further_models(results)
    if not further:
        return None
    shown = [model for model in (names.REFERENCE, names.SUBJECT) if model in results.models] + further
    columns = ["Task, head, metric", *map(names.model, shown)]
    return Table(
        "further_values",
        "Further models beside CLIP-FT and CLIPTeX",
        [*columns, *_csv_columns(shown)],
        _value_groups(results, results.probes, cells, shown),
        frozenset(range(1, len(columns))),
        ["As in the first table."],
        "benchmark",
        fine=fine_notes(results, results.probes.values()),
        csv_only=len(_csv_columns(shown)),
    )


def further_table(results: Results, cells: Sequence[MainCell]) -> Table | None:
    """Gain of every further model over CLIP-FT, beside CLIPTeX's; None without any."""
    further = further_models(results)
    shown = [names.SUBJECT] * (names.SUBJECT in results.models) + further
    if not further or names.REFERENCE not in results.models:
        return None
    groups = []
    for name in results.probes:
        rows = []
        for cell in cells:
            if cell.benchmark == name:
                judged = [judge_model(cell, model, results.baselines) for model in shown]
                head = f"{names.task(cell.task)}, {names.head(cell.head)}"
                more = [one for judgement in judged for one in _difference_cells(judgement)]
                more += about_cells(results, results.probes[name], cell.task, cell.head, cell.metric)
                gains = map(_gain_cell, judged)
                rows.append([Cell(head, note=_metric_label(cell.task, cell.metric)), *gains, *more])
        groups.append(Group(rows, names.benchmark(name)))
    columns = ["Task, head, metric", *map(names.model, shown)]
    more = [f"{names.model(model)} {column}" for model in shown for column in DIFFERENCE_COLUMNS]
    more += ABOUT_COLUMNS
    return Table(
        "further_models",
        "Gain over CLIP-FT of CLIPTeX and of the further models",
        [*columns, *more],
        groups,
        frozenset(range(1, len(columns))),
        ["Relative gain in percent, signed so that + is better; intervals and marks as in the first table."],
        "benchmark",
        fine=fine_notes(results, results.probes.values()),
        csv_only=len(more),
    )


def zeroshot_table(results: Results, zeroshot: Sequence[ZeroShot]) -> Table | None:
    """Zero-shot metrics beside chance; None where none was run."""
    if not results.zeroshot:
        return None
    there = {row.model for scores in results.zeroshot.values() for row in scores.rows}
    models = [*(name for name in results.baselines if name in there), *results.models]
    against = {item.key: item for item in zeroshot}
    groups = []
    for name, scores in results.zeroshot.items():
        rows = []
        for task, head in scores.cells():
            for metric in _metrics(scores, task, head):
                values = scores.values(task, head, metric)
                shown = [values.get(model, []) for model in models]
                best = best_of([fmean(v) for v in shown if v], direction(metric))
                chance = scores.guess(task, metric)
                first = Cell(names.task(task), note=_metric_label(task, metric))
                guess = Cell(MISSING) if chance is None else Cell(f"{chance:.1f}", chance)
                cells = [_value_cell(v, task, metric, best) for v in shown]
                item = against[name, task] if metric == _main_metric(scores, task, head) else None
                extra = _csv_cells(results, scores, task, head, metric, shown)
                rows.append([first, guess, *cells, _points_cell(item), *extra, *_points_csv(item)])
        classes = f", {len(scores.class_names)} classes" if scores.class_names else ""
        groups.append(Group(rows, names.benchmark(name), _sizes(scores) + classes))
    columns = ["Task, metric", "Chance", *map(names.model, models), "CLIPTeX − CLIP-FT"]
    more = [*_csv_columns(models), "difference low", "difference high"]
    notes = [
        "Last column, for the first metric of each task: difference of the means in points, its "
        f"{LEVEL:.0f} % interval over {drawn_anew(results.config.seeds)} (paired bootstrap), and whether zero-shot is "
        "kept: not below CLIP-FT by more than the noise."
    ]
    notes += [
        f"{names.benchmark(name)}: {figure:g} % is published of {names.model(model)}; ours is within {AS_PUBLISHED} "
        "points of it."
        for name, scores in results.zeroshot.items()
        for model, figure in scores.published.items()
    ]
    return Table(
        "zeroshot",
        "Zero-shot",
        [*columns, *more],
        groups,
        frozenset(range(1, len(columns))),
        notes,
        group_column="benchmark",
        key=models.index(names.SUBJECT) + 2 if names.SUBJECT in models else None,
        fine=fine_notes(results, results.zeroshot.values()),
        csv_only=len(more),
    )


def _points_cell(item: ZeroShot | None) -> Cell:
    """The difference of subject and reference in points, with its interval and what it means."""
    against = item.against if item else None
    if against is None:
        return Cell(MISSING)
    mark, tone = ZEROSHOT_MARKS[item.state]
    bounds = ranging(against.interval) if against.interval else ""
    return Cell(signed(against.value), against.value, mark, bounds, tone=tone)


def _points_csv(item: ZeroShot | None) -> list[Cell]:
    bounds = item.against.interval if item and item.against else None
    return [_number_cell(bounds and bounds.low), _number_cell(bounds and bounds.high)]


Record = dict[str, Any]


def cost_table(results: Results) -> Table:
    """What each model saw and what it cost; one column a model."""
    train, samples = results.config.train, results.shards["num_samples"]
    columns = ["Quantity", *map(names.model, results.runs)]

    def across(
        title: str, note: str, value: Callable[[Record], Any], show: Callable[[Any], str] = str, trained: bool = True
    ) -> list[Cell]:
        """A row: mean over seeds, and their spread where they differ. trained: nothing for a model of no steps."""
        row = [Cell(title, note=note)]
        for runs in results.runs.values():
            records = [run.record for run in runs.values()]
            if trained and not records[0]["steps"]:
                row.append(Cell(MISSING))
                continue
            values = [value(record) for record in records]
            if None in values:
                row.append(Cell(MISSING))
                continue
            if isinstance(values[0], str):
                row.append(Cell(values[0]))
                continue
            spread = summary(values)
            text = show(spread.mean)
            if spread.std and show(spread.std) != show(0.0):
                text += f" ± {show(spread.std)}"
            row.append(Cell(text, spread.mean))
        return row

    def seen(record: Record) -> int:
        return record["steps"] * record["batch_size"]

    data = [
        across("Starts from", "", _start, trained=False),
        across("Steps", "", lambda record: record["steps"], _count, trained=False),
        across("Batch size", "pairs a step", lambda record: record["batch_size"], _count),
        across("Pairs seen", "", seen, _count),
        across("Unique pairs", "", lambda record: samples, _count),
        across("Epochs", "", lambda record: seen(record) / samples, "{:.1f}".format),
        across("Peak learning rate", "", lambda record: record["learning_rate"], "{:g}".format),
        across("Weight decay", "", lambda record: train.weight_decay, "{:g}".format),
        across("Labels learned", "store × weight of its loss", lambda record: _weights(record["tasks"])),
    ]
    cost = [
        across("Time", "seconds", lambda record: record["seconds"], _count),
        across("Time a step", "milliseconds", lambda record: 1000 * record["seconds"] / record["steps"], _count),
        across("Throughput", "images a second", lambda record: record["images_per_s"], _count),
        across("Peak memory", "MB", lambda record: record["peak_memory_mb"], _count, trained=False),
        *(
            across(title, note, lambda record, parts=parts: _parameters(record, parts), _count, trained=False)
            for title, note, parts in (
                ("Image encoder", "parameters", ("encoder",)),
                ("Text encoder", "parameters", ("text",)),
                ("Heads", "parameters; thrown away after training", ("multi_scale", "heads")),
            )
        ),
        *(
            across(title, note, lambda record, parts=parts: _megaflops(record, parts), "{:.1f}".format)
            for title, note, parts in (
                ("Image encoder", "million operations, an image forward", ("encoder",)),
                ("Text encoder", "million operations, a caption forward", ("text",)),
                ("Heads", "million operations, an image forward", ("multi_scale", "heads")),
            )
        ),
        across(
            "All of a pair",
            "operations forward, over those of contrastive training",
            lambda record: record.get("flops_over_contrastive"),
            "× {:.2f}".format,
        ),
    ]
    groups = [Group(data, "What it was trained on"), Group(cost, "What it cost")]
    notes = [
        "Times are of the machine that trained the models, with whatever else it was doing. Operations: of matrix "
        "products, convolutions and attention, a multiply-add counts two."
    ]
    if len(results.config.seeds) > 1:
        notes.insert(0, "Mean over seeds, ± sample standard deviation where they differ.")
    if (overhead := step_overhead(results)) is not None:
        notes.append(
            f"Time of a CLIPTeX step, compared with one of CLIP-FT: {signed(overhead, 0)} %. It loads labels and has "
            "heads beside the encoder. The heads are not exported: both encoders have the same size and speed."
        )
    key = list(results.runs).index(names.SUBJECT) + 1 if names.SUBJECT in results.runs else None
    return Table("cost", "Training: data and cost", columns, groups, frozenset(range(1, len(columns))), notes, key=key)


def step_overhead(results: Results) -> float | None:
    """How much longer a step of CLIPTeX takes than one of CLIP-FT, percent; None where either was not trained."""
    seconds = []
    for name in (names.SUBJECT, names.REFERENCE):
        records = [run.record for run in results.runs.get(name, {}).values()]
        steps = [record["seconds"] / record["steps"] for record in records if record["steps"]]
        if not steps or not min(steps):
            return None
        seconds.append(fmean(steps))
    return 100 * (seconds[0] / seconds[1] - 1)


def labels_table(results: Results) -> Table | None:
    """What the label stores hold; None without any."""
    rows = []
    for name, index in results.stores.items():
        failed = index["images"] - index["labelled"]
        valid = index["statistics"]["scalars"].get("coverage", {}).get("mean")
        expert = results.experts.get(index["expert"]) or {}
        size = f"{_count(expert['num_parameters'])} parameters, " if expert.get("num_parameters") else ""
        if index.get("weights") == "random":
            size = f"RANDOM weights, for tests and benchmarks only; {size}"
        rows.append(
            [
                Cell(name, note=f"stored as {index['codec']['name']}"),
                Cell(names.head(index["expert"]), note=f"{size}licence {index['licence']}"),
                Cell(_count(index["images"]), index["images"]),
                Cell(f"{100 * index['coverage']:.2f} %", 100 * index["coverage"]),
                Cell(_count(failed), failed),
                Cell(f"{100 * valid:.1f} %", 100 * valid) if valid is not None else Cell(MISSING),
                Cell(_count(index["bytes_per_image"]), index["bytes_per_image"]),
            ]
        )
    columns = ["Label store", "Expert", "Images", "Labelled", "Failed", "Valid pixels", "Bytes an image"]
    notes = ["Valid pixels: share of a label’s pixels that hold a value, mean over images. Bytes: of the label alone."]
    return Table("labels", "Label stores", columns, [Group(rows)], frozenset(range(2, 7)), notes) if rows else None


def experts_table(results: Results) -> Table | None:
    """Held-out quality of every expert that was judged, beside that of a label without image; None without any."""
    groups = []
    for name, expert in results.experts.items():
        judged = expert and expert["judged"]
        if not judged:
            continue
        rows, prior = [], judged.get("prior", {})
        for metric, value in judged["quality"].items():
            known = direction(metric) != 0 or names.known(metric)
            label = _metric_label(judged["task"], metric) if known else metric.replace("_", " ")
            values = [value, prior[metric]] if metric in prior else [value]
            best = best_of(values, direction(metric)) if len(values) > 1 else None
            texts = [names.number(one, judged["task"], metric) if known else f"{one:.3g}" for one in values]
            cells = [Cell(text, one, best=one == best) for text, one in zip(texts, values, strict=True)]
            rows.append([Cell(label), *cells, *[Cell(MISSING)] * (2 - len(cells))])
        source = "rendered stand-in" if judged["source"] == "miniature" else judged["source"]
        about = [names.task(judged["task"]).lower(), source, f"{judged['split']} split"]
        if "images_per_cpu_second" in judged:
            about.append(f"{judged['images_per_cpu_second']:.0f} images a CPU second")
        groups.append(Group(rows, names.head(name), ", ".join(about)))
    if not groups:
        return None
    return Table(
        "experts",
        "Experts: quality on held-out images",
        ["Metric", "Expert", "Prior"],
        groups,
        frozenset({1, 2}),
        [
            "Prior: a label that needs no image, the same for every picture: at each pixel the mean depth or the mean "
            "normal of the training renders, or background everywhere. An expert that is no better than this does not "
            "see what is in the picture. The better of the two is bold."
        ],
        group_column="expert",
    )


def metrics_table(results: Results, scores: Scores, models: Sequence[str]) -> Table:
    """Every metric of one benchmark, probed or fine-tuned on; one row a task, head and metric."""
    rows = []
    for task, head in scores.cells():
        for metric in _metrics(scores, task, head):
            values = scores.values(task, head, metric)
            shown = [values.get(model, []) for model in models]
            best = best_of([fmean(v) for v in shown if v], direction(metric))
            label = Cell(f"{names.task(task)}, {names.head(head)}", note=_metric_label(task, metric))
            values = [_value_cell(v, task, metric, best) for v in shown]
            rows.append([label, *values, *_csv_cells(results, scores, task, head, metric, shown)])
    columns, more = ["Task, head, metric", *map(names.model, models)], _csv_columns(models)
    return Table(
        f"{'probes' if scores.frozen else 'finetuned'}_{scores.benchmark}",
        f"{names.benchmark(scores.benchmark)}{'' if scores.frozen else ', fine-tuned'}, all metrics",
        [*columns, *more],
        [Group(rows)],
        frozenset(range(1, len(columns))),
        fine=fine_notes(results, [scores]),
        csv_only=len(more),
    )


def long_rows(results: Results) -> list[list[Any]]:
    """Every number of every seed, tidy: one row each, heading first; for the CSV only."""
    columns = ["kind", "benchmark", "source", "variant", "split", "num_train", "num_eval"]
    out: list[list[Any]] = [[*columns, "task", "head", "protocol", "model", "seed", "metric", "value"]]
    for kind, scores in results.judged:
        about = [kind, scores.benchmark, scores.source, scores.variant, scores.split, scores.num_train, scores.num_eval]
        for row in scores.rows:
            judged = [*about, row.task, row.head, row.protocol, row.model, row.seed]
            for metric, value in row.metrics.items():
                out.append([*judged, metric, value])
    return out


def timing_table(results: Results) -> Table | None:
    """Where the time went: wall and CPU seconds by stage; None where the workflow kept no timings."""
    if not results.timings:
        return None
    stages: dict[str, list] = {}
    for timing in results.timings:
        stages.setdefault(stage_of(timing.rule), []).append(timing)
    order = [*(stage for stage in STAGES if stage in stages), *(stage for stage in stages if stage not in STAGES)]
    total = sum(timing.wall for timing in results.timings)
    rows = []
    for stage in order:
        wall, jobs = sum(t.wall for t in stages[stage]), sum(t.jobs for t in stages[stage])
        rows.append(
            [
                Cell(stage, note=", ".join(t.rule for t in stages[stage])),
                Cell(_count(jobs), jobs),
                Cell(_count(wall), wall),
                Cell(f"{100 * wall / total:.0f} %" if total else MISSING, 100 * wall / total if total else None),
                _cpu_cell([t.cpu for t in stages[stage]]),
            ]
        )
    jobs = sum(timing.jobs for timing in results.timings)
    everything = [Cell("All"), Cell(_count(jobs), jobs), Cell(_count(total), total), Cell("100 %", 100.0)]
    rows.append([*everything, _cpu_cell([timing.cpu for timing in results.timings])])
    return Table(
        "timings",
        "Where the time went",
        ["Stage", "Jobs", "Job seconds", "Share", "CPU seconds"],
        [Group(rows)],
        frozenset(range(1, 5)),
        ["Seconds are summed over jobs; jobs run side by side, so the run itself took less than their sum."],
    )


def stage_of(rule: str) -> str:
    """The stage to which a rule's time is counted, by the words in its name."""
    words = (
        ("zeroshot", "Zero-shot"),
        ("retrieval", "Zero-shot"),
        ("probe", "Probes"),
        ("finetune", "Fine-tuning"),
        ("label", "Labels"),
        *((word, "Data") for word in ("render", "fetch", "download", "retrieve", "unpack", "shard")),
        ("expert", "Experts"),
        ("train", "Training"),
        ("report", "Report"),
    )
    return next((stage for word, stage in words if word in rule), rule)


def dropped_table(results: Results) -> Table:
    """Pairs left out of training and labels that are missing, with the reasons."""
    rows = []
    total = results.shards["num_samples"] + sum(results.shards["dropped"].values())
    for reason, count in sorted(results.shards["dropped"].items(), key=lambda item: -item[1]):
        rows.append([Cell("Image-caption pairs"), Cell(reason), Cell(_count(count), count), _share_cell(count, total)])
    if not rows:
        rows.append([Cell("Image-caption pairs"), Cell("none dropped"), Cell("0", 0), _share_cell(0, total)])
    for name, index in results.stores.items():
        failures = index["failures"]
        for reason, count in sorted(failures.items(), key=lambda item: -item[1]):
            share = _share_cell(count, index["images"])
            rows.append([Cell(f"Labels, {name}"), Cell(reason), Cell(_count(count), count), share])
        if not failures:
            rows.append([Cell(f"Labels, {name}"), Cell("no failure"), Cell("0", 0), _share_cell(0, index["images"])])
    return Table("dropped", "Data left out", ["What", "Reason", "Count", "Share"], [Group(rows)], frozenset({2, 3}))


def provenance_table(results: Results) -> Table:
    """Which code and configuration made each result."""
    rows = []
    kinds = {"probe": "Probes", "finetuned": "Fine-tuning", "zeroshot": "Zero-shot"}
    for kind, scores in results.judged:
        rows.append(_provenance_row(f"{kinds[kind]}, {names.benchmark(scores.benchmark)}", scores.provenance))
    for name, runs in results.runs.items():
        for seed, run in runs.items():
            rows.append(
                _provenance_row(f"Training, {names.model(name)}, seed {seed}", run.record.get("provenance", {}))
            )
    return Table(
        "provenance",
        "Code and configuration behind each result",
        ["Result", "cliptex", "Code", "Configuration (SHA-256)", "Python", "Machine"],
        [Group(rows)],
        notes=[
            "Code: the commit, or, of an installed package, the beginning of its modules' SHA-256. The configuration's "
            "hash covers the keys that the stage was given."
        ],
    )


def packages_table(results: Results) -> Table:
    """Versions of the packages that made the numbers; several where results differ."""
    versions: dict[str, set[str]] = {}
    for source in _provenances(results):
        for package, version in source.get("packages", {}).items():
            versions.setdefault(package, set()).add(version)
    rows = [text_row(package, ", ".join(sorted(found))) for package, found in sorted(versions.items())]
    return Table("packages", "Package versions", ["Package", "Version"], [Group(rows)])


def weights_table(results: Results) -> Table | None:
    """SHA-256 of every model's exported weights, as the trainings and the probes recorded them; None without any."""
    rows = []
    for name, runs in results.runs.items():
        for seed, run in runs.items():
            digest = run.record.get("model_sha256")
            if isinstance(digest, str):
                rows.append(text_row(f"{names.model(name)}, seed {seed}", digest))
    if not rows:
        found: dict[str, str] = {}
        for source in _provenances(results):
            found |= {str(name): str(digest) for name, digest in source.get("model_sha256", {}).items()}
        rows = [text_row(name, digest) for name, digest in sorted(found.items())]
    return Table("weights", "Exported weights", ["Model", "SHA-256"], [Group(rows)]) if rows else None


def _provenances(results: Results) -> list[dict[str, Any]]:
    found = [scores.provenance for _, scores in results.judged]
    return found + [run.record.get("provenance", {}) for runs in results.runs.values() for run in runs.values()]


def _provenance_row(what: str, source: dict[str, Any]) -> list[Cell]:
    values = (source.get("cliptex"), code(source), *map(source.get, ("config_sha256", "python", "machine")))
    texts = [str(value) if value else MISSING for value in values]
    texts[2] = texts[2][:12]
    cells = text_row(what, *texts)
    if source.get("config_sha256"):
        cells[3] = Cell(texts[2], source["config_sha256"])
    return cells


def _protocols(scores: Scores) -> dict[str, str]:
    """Protocol -> the tasks and heads that follow it, in words."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in scores.rows:
        if row.protocol:
            heads = found.setdefault(row.protocol, {}).setdefault(row.task, [])
            if (head := names.head(row.head)) not in heads:
                heads.append(head)
    return {
        protocol: "; ".join(f"{names.task(task)}, {', '.join(heads)}" for task, heads in tasks.items())
        for protocol, tasks in found.items()
    }


def _main_metric(scores: Scores, task: str, head: str) -> str:
    metrics = _metrics(scores, task, head)
    main = MAIN_METRIC.get(task)
    return main if main in metrics else metrics[0]


def _metrics(scores: Scores, task: str, head: str) -> list[str]:
    """Names of all metrics of a cell, in order of appearance."""
    found = (metric for row in scores.rows if (row.task, row.head) == (task, head) for metric in row.metrics)
    return list(dict.fromkeys(found))


def _metric_label(task: str, metric: str) -> str:
    unit = names.unit(task, metric)
    return f"{names.metric(metric)}{f' ({unit})' if unit else ''} {ARROWS[direction(metric)]}".strip()


def _value_cell(values: Sequence[float], task: str, metric: str, best: float | None) -> Cell:
    spread = summary(values)
    if spread is None:
        return Cell(MISSING)
    text = names.number(spread.mean, task, metric)
    note = "" if spread.std is None else f"± {_spread(spread.std, task, metric)}"
    return Cell(text, spread.mean, note, best=spread.mean == best)


def _spread(std: float, task: str, metric: str) -> str:
    """A standard deviation with the digits of its metric, and one more where it would read as zero."""
    text = names.number(std, task, metric)
    return text if float(text) or not std else f"{std:.1g}" if std >= 1e-4 else text


def _gain_cell(judgement: Judgement) -> Cell:
    if judgement.outcome is Outcome.MISSING:
        return Cell(MISSING)
    if judgement.outcome is Outcome.BASELINE:
        mark, tone = f"△ {' and '.join(map(names.model, judgement.baselines))} as good", ""
    else:
        mark, tone = OUTCOME_MARKS[judgement.outcome]
    if judgement.gain is None:
        return Cell(MISSING, None, mark, tone=tone)
    bounds = ranging(judgement.gain_interval) if judgement.gain_interval else ""
    return Cell(f"{signed(judgement.gain)} %", judgement.gain, mark, bounds, tone=tone)


def _sizes(scores: Scores) -> str:
    """Which data, and how many images, in words."""
    about = ["rendered stand-in"] if scores.source == "miniature" else []
    if scores.variant and scores.source == "official":
        about.append(f"variant {scores.variant}")
    judged = f"judged on {_count(scores.num_eval)}"
    if scores.num_train:
        what = "heads" if scores.frozen else "encoders and heads"
        about += [f"{what} trained on {_count(scores.num_train)} of its images", judged]
    else:
        about.append(f"{judged} images")
    return f"{', '.join(about)} ({scores.split})"


def _parameters(record: Record, parts: tuple[str, ...]) -> int:
    return sum(record["parameters"].get(part, 0) for part in parts)


def _megaflops(record: Record, parts: tuple[str, ...]) -> float | None:
    flops = record.get("flops")
    return sum(flops[part] for part in parts) / 1e6 if flops else None


def _start(record: Record) -> str:
    """The model it started from, as written elsewhere, or the two it lies between; a path keeps its last part."""
    if mixed := record.get("interpolate"):
        alpha = mixed["alpha"]
        return f"{alpha:g} × {names.model(mixed['of'])} + {1 - alpha:g} × {names.model(mixed['with'])}"
    return names.model(record["init"].rstrip("/").rpartition("/")[2])


def _weights(tasks: dict[str, float]) -> str:
    return ", ".join(f"{store} × {weight:g}" for store, weight in tasks.items()) or "none"


def _cpu_cell(seconds: Sequence[float | None]) -> Cell:
    if any(value is None for value in seconds):
        return Cell(MISSING)
    return Cell(_count(sum(seconds)), sum(seconds))


def _share_cell(count: int, total: int) -> Cell:
    return Cell(f"{100 * count / total:.2f} %", 100 * count / total) if total else Cell(MISSING)


def _count(value: float) -> str:
    """Thousands apart by a narrow space that ends no line."""
    return f"{value:,.0f}".replace(",", "\u202f")


def dense(cells: Sequence[MainCell]) -> list[MainCell]:
    """The cells of dense tasks."""
    return [cell for cell in cells if cell.task in DENSE_TASKS]

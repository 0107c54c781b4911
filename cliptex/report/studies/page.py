"""A study's page: one plot, one table, two sentences.

Reads   results/studies/{study}/probes/ and zeroshot/, results/models/*/train.json, results/experts/.
Writes  results/studies/{study}/: table.csv, table.md, plot.svg, plot.png, and study.json with all numbers and
        sentences; results/studies/{study}.html, last: one file that opens offline.
Holds   every sentence is made from the numbers by rule (`cliptex.report.studies.words`); a page of rendered data says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cliptex import __version__, versions
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, write_json
from cliptex.core.provenance import provenance
from cliptex.evaluation.corruptions import CLEAN
from cliptex.report import names
from cliptex.report.bootstrap import LEVEL, Interval, drawn_anew
from cliptex.report.figures import Chart
from cliptex.report.pictures import embedded
from cliptex.report.studies import study_of, words
from cliptex.report.studies.measures import Compared, Measure, compare, read_measures
from cliptex.report.studies.plots import dots_plot, scatter_plot
from cliptex.report.studies.words import Findings
from cliptex.report.table import Cell, Group, Table

COMMAND = "snakemake --cores 8 study --configfile config/studies/{name}.yaml"


@dataclass(frozen=True)
class StudyPage:
    """What a study says: its parts as they stand on its page and in the report.

    seen, not_proved: the two sentences. about: JSON values for study.json.
    """

    name: str
    title: str
    question: str
    seen: str
    not_proved: str
    table: Table
    chart: Chart
    miniature: bool
    about: dict[str, Any]


def build_study(config: Config, root: Path = Path()) -> StudyPage:
    """Make a study's page from the results of its runs under `root`; config: the study's (`study_config`)."""
    page = study_page(config, Path(root))
    folder = Path(root) / paths.study(page.name)
    for name, text in (("table.csv", page.table.csv()), ("table.md", page.table.markdown())):
        with replacing(folder / name) as scratch:
            scratch.write_text(text)
    page.chart.save(folder)
    write_json(folder / "study.json", page.about)
    with replacing(folder.with_suffix(".html")) as scratch:
        scratch.write_text(render(page))
    return page


def study_page(config: Config, root: Path) -> StudyPage:
    """Gather and compare. Raises CliptexError that names the first file that is missing or broken."""
    study = study_of(config)
    labels = {model: names.model(model) for model in study.judged} | dict(study.rows)
    measures = read_measures(config, root)
    if not measures:
        raise CliptexError("study: neither `probes` nor `zeroshot` names a benchmark; name at least one")
    resamples = config.report.resamples
    findings = [(measure, compare(measure, study.reference, study.judged, resamples)) for measure in measures]
    runs = {model: read_json(root / paths.model(model, config.seeds[0]) / "train.json") for model in study.judged}
    flops = {model: run["flops_over_contrastive"] for model, run in runs.items()}
    miniature = any(measure.source == "miniature" for measure in measures)
    seen, chart, table = _FORMS[study.form](_Found(config, findings, labels, flops, miniature))
    intervals = sum(len(compared) - 1 for _, compared in findings)
    not_proved = words.not_proved(findings, len(config.seeds), intervals, study.limits, miniature)
    table.notes.extend(_quality_notes(config, root))
    about = {
        "schema_version": 1,
        "version": versions.STUDY,
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "source": "miniature" if miniature else "official",
        "command": COMMAND.format(name=study.name),
        "seeds": config.seeds,
        "reference": study.reference,
        "seen": seen,
        "not_proved": not_proved,
        "interval": {"level_percent": LEVEL, "resamples": resamples, "over": f"{drawn_anew(config.seeds)}, paired"},
        "models": {model: _about_model(labels[model], run) for model, run in runs.items()},
        "experts": {name: _about_expert(root, name) for name in study.experts},
        "results": [_row(measure, one) for measure, compared in findings for one in compared.values()],
        "table": {
            "caption": table.caption,
            "columns": table.columns,
            "rows": [[[cell.text, cell.note, cell.tone] for cell in row] for row in table.groups[0].rows],
            "notes": table.notes,
        },
        "plot": {"caption": chart.caption, "alt": chart.alt},
        "provenance": provenance(study.model_dump(mode="json"))
        | {"model_sha256": {model: run["model_sha256"] for model, run in runs.items()}},
    }
    return StudyPage(study.name, study.title, study.question, seen, not_proved, table, chart, miniature, about)


@dataclass(frozen=True)
class _Found:
    """What a form is made from. flops: forward computation of a training step, relative to contrastive alone."""

    config: Config
    findings: Findings
    labels: Mapping[str, str]
    flops: Mapping[str, float]
    miniature: bool

    @property
    def reference(self) -> str:
        return self.config.study.reference

    @property
    def subject(self) -> str:
        """The one other model, of forms that compare two."""
        others = [model for model in self.labels if model != self.reference]
        if len(others) != 1:
            raise CliptexError(f"study.shown: the form {self.config.study.form!r} compares two models; name one")
        return others[0]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(measure.key for measure, _ in self.findings))


Form = tuple[str, Chart, Table]


def _differences(found: _Found) -> Form:
    seen = words.differences(found.findings, found.labels, found.reference)
    return seen, _differences_plot(found), _models_table(found)


def _differences_plot(found: _Found) -> Chart:
    panels = [
        (measure, [(found.labels[model], one) for model, one in compared.items() if model != found.reference])
        for measure, compared in found.findings
    ]
    caption = f"Difference to “{found.labels[found.reference]}”"
    return dots_plot(panels, caption, _alt("dot", found, "each model"), found.miniature)


def _tradeoff(found: _Found) -> Form:
    zeroshot = [(measure, compared) for measure, compared in found.findings if measure.head == "zero_shot"]
    dense = [(measure, compared) for measure, compared in found.findings if measure.dense]
    if len(zeroshot) != 1 or not dense:
        raise CliptexError(
            "study.form: `tradeoff` needs one benchmark in study.zeroshot and a dense one in study.probes"
        )
    ((measure, compared),) = zeroshot
    seen = words.tradeoff(found.findings, found.labels, found.reference)
    chart = scatter_plot(
        dense,
        found.labels,
        {model: _point(one) for model, one in compared.items()},
        f"{measure.title}: difference, points",
        f"Differences to “{found.labels[found.reference]}”: dense metrics against zero-shot",
        _alt("scatter", found, "each model"),
        found.miniature,
    )
    return seen, chart, _models_table(found)


def _cost(found: _Found) -> Form:
    dense = [(measure, compared) for measure, compared in found.findings if measure.dense]
    if not dense:
        raise CliptexError("study.form: `cost` needs a dense benchmark in study.probes")
    seen = words.cost(found.findings, found.labels, found.reference, found.flops)
    chart = scatter_plot(
        dense,
        found.labels,
        {model: (value, value, value) for model, value in found.flops.items()},
        "forward computation in training, contrastive alone = 1",
        f"Difference to “{found.labels[found.reference]}” against cost",
        _alt("scatter", found, "each model"),
        found.miniature,
    )
    return seen, chart, _models_table(found)


def _robustness(found: _Found) -> Form:
    shown = list(dict.fromkeys(measure.variant for measure, _ in found.findings))
    if CLEAN not in shown:
        raise CliptexError("study.corruptions: is missing; the form `robustness` needs it")
    rows = {variant: variant.replace("-", " ") for variant in shown}
    seen = words.robustness(found.findings, found.labels, found.reference, found.subject)
    return seen, *_two_models(found, rows, lambda measure: measure.variant, "images")


def _finetuning(found: _Found) -> Form:
    rows = {False: "frozen", True: "fine-tuned"}
    seen = words.finetuning(found.findings, found.labels, found.reference, found.subject)
    return seen, *_two_models(found, rows, lambda measure: measure.tuned, "encoders")


_FORMS = {
    "differences": _differences,
    "tradeoff": _tradeoff,
    "cost": _cost,
    "robustness": _robustness,
    "finetuning": _finetuning,
}


def _two_models(found: _Found, rows: Mapping[Any, str], row_of: Any, what: str) -> tuple[Chart, Table]:
    """Plot and table of the subject against the reference: a row for each value of `row_of`, a column a metric."""
    subject, labels = found.subject, found.labels
    cells = {(m.key, row_of(m)): (m, c[subject], c[found.reference]) for m, c in found.findings}
    first = {key: next(m for m, _ in found.findings if m.key == key) for key in found.keys}
    panels = [(first[key], [(name, cells[key, row][1]) for row, name in rows.items()]) for key in found.keys]
    caption = f"“{labels[subject]}” against “{labels[found.reference]}”"
    chart = dots_plot(panels, caption, _alt("dot", found, f"the two models for each kind of {what}"), found.miniature)
    body = [[Cell(name), *(_pair_cell(*cells[key, row]) for key in found.keys)] for row, name in rows.items()]
    columns = [what, *(_column(measure) for measure in first.values())]
    note = f"Values: {labels[found.reference]} → {labels[subject]}; below them the difference. {_signed_note(found)}"
    return chart, _table(found, columns, body, [note])


def _models_table(found: _Found) -> Table:
    """A row a model, a column a measure, and what training costs."""
    body = []
    for model, label in found.labels.items():
        cells = [_value_cell(measure, compared[model]) for measure, compared in found.findings]
        body.append([Cell(label), *cells, Cell(f"{found.flops[model]:.2f}", found.flops[model])])
    columns = ["Model", *(_column(measure) for measure, _ in found.findings), "Forward computation, contrastive = 1"]
    reference = found.labels[found.reference]
    return _table(found, columns, body, [f"Below each value the difference to “{reference}”. {_signed_note(found)}"])


def _signed_note(found: _Found) -> str:
    return (
        f"Differences are signed so that + is better, with their {LEVEL:.0f} % interval over "
        f"{drawn_anew(found.config.seeds)}; where it holds zero, no difference is seen."
    )


def _table(found: _Found, columns: list[str], body: list[list[Cell]], notes: list[str]) -> Table:
    suffix = " (miniature)" if found.miniature else ""
    caption = f"{found.config.study.title}{suffix}"
    return Table("table", caption, columns, [Group(body)], frozenset(range(1, len(columns))), notes)


def _column(measure: Measure) -> str:
    unit = f" ({measure.unit})" if measure.unit else ""
    return f"{measure.title}{unit} {'↑' if measure.better > 0 else '↓'}"


def _value_cell(measure: Measure, one: Compared) -> Cell:
    note = f"{words.amount(measure, one)}{_flag(one)}" if one.bounds else ""
    return Cell(measure.shown(one.value), one.value, note, tone=_TONES[one.state])


def _pair_cell(measure: Measure, one: Compared, reference: Compared) -> Cell:
    text = f"{measure.shown(reference.value)} → {measure.shown(one.value)}"
    return Cell(text, one.difference, f"{words.amount(measure, one)}{_flag(one)}", tone=_TONES[one.state])


_TONES = {"better": "good", "worse": "bad", "no difference seen": ""}


def _flag(one: Compared) -> str:
    return {"better": " ▲", "worse": " ▼", "no difference seen": ""}[one.state]


def _point(one: Compared) -> tuple[float, float, float]:
    bounds = one.bounds or Interval(one.difference, one.difference)
    return one.difference, bounds.low, bounds.high


def _alt(kind: str, found: _Found, what: str) -> str:
    return (
        f"{kind.capitalize()} charts, one for each metric: the difference of {what} to "
        f"{found.labels[found.reference]}. The numbers are in the table."
    )


def _about_model(label: str, run: Mapping[str, Any]) -> dict[str, Any]:
    kept = (
        "init",
        "steps",
        "learning_rate",
        "tasks",
        "flops_over_contrastive",
        "parameters",
        "seconds",
        "images_per_s",
    )
    return {"label": label} | {key: run.get(key) for key in kept}


def _about_expert(root: Path, name: str) -> dict[str, Any]:
    record = read_json(root / paths.expert(name) / "expert.json")
    return {key: record[key] for key in ("task", "plugin", "network", "quality", "weights_sha256")}


QUALITY = {"segmentation": "mIoU", "depth": "delta1", "normals": "mean"}


def _quality_notes(config: Config, root: Path) -> list[str]:
    """A line a task: how good the study's own experts are on held-out renders, beside those of the main run."""
    own = study_of(config).experts
    taught_all = [name for name in own if not own[name].network.get("classes")]
    others = {store.expert for store in config.label_stores.values()} - own.keys()
    lines = []
    for task, metric in QUALITY.items():
        said = {}
        for name in (*sorted(others), *taught_all):
            path = root / paths.expert(name) / "expert.json"
            record = read_json(path) if path.exists() else {}
            value = (record.get("quality") or {}).get(metric)
            if record.get("task") == task and value is not None:
                said[name] = f"{names.head(name)} {names.number(value, task, metric)}"
        if said.keys() & own.keys():
            unit = names.unit(task, metric)
            lines.append(f"On held-out renders, {names.metric(metric)} ({unit}) of {task}: {', '.join(said.values())}.")
    return lines


def _row(measure: Measure, one: Compared) -> dict[str, Any]:
    def pair(bounds: Interval | None) -> list[float] | None:
        return None if bounds is None else [bounds.low, bounds.high]

    return {
        "benchmark": measure.benchmark,
        "task": measure.task,
        "head": measure.head,
        "metric": measure.metric,
        "images": measure.images,
        **({"variant": measure.variant} if measure.variant else {}),
        **({"frozen": False} if measure.tuned else {}),
        "model": one.model,
        "value": one.value,
        "value_interval": pair(one.interval),
        "better_by": one.difference,
        "better_by_interval": pair(one.bounds),
        "seed_spread": one.spread,
        "state": one.state,
    }


def render(page: StudyPage) -> str:
    """The page as HTML text; no request leaves it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("cliptex.report.studies").joinpath("page.html").read_text())
    return template.render(
        page=page,
        css=Markup(files("cliptex.report").joinpath("page.css").read_text()),
        light=embedded(page.chart.svg.encode(), "image/svg+xml"),
        dark=embedded(page.chart.dark_svg.encode(), "image/svg+xml"),
        command=page.about["command"],
        provenance=page.about["provenance"],
        version=__version__,
    )

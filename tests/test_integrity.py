"""The report takes nothing for what it is not: mixed, edited and broken results are refused or marked, text is text."""

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_report import EVALUATED, MAIN, digest, make_probes, make_runs

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import sha256_file, write_json
from cliptex.core.redact import CONTROLS
from cliptex.evaluation.per_image import read_per_image, write_per_image
from cliptex.report import html, records
from cliptex.report.found_studies import found_studies
from cliptex.report.gather import FinishedRun, gather
from cliptex.report.integrity import _check_sources, check, check_thumbnails
from cliptex.report.page import Parts, make_parts
from cliptex.report.table import FORMULA, Cell, Column, Group, Table
from cliptex.report.tables.data import dropped_table, experts_table, labels_table

TABLE, SHOTS = Path("results/probes/nyuv2.json"), Path("results/zeroshot/imagenet.json")
FOLDER = TABLE.with_suffix("")


def small_config() -> Config:
    return Config.load(
        {
            "models": {"clip_ft": {"steps": 4}, "cliptex": {"steps": 4}},
            "seeds": [0, 1],
            "probes": {"benchmarks": {"nyuv2": {}}},
            "zeroshot": {"benchmarks": ["imagenet"]},
            "report": {"resamples": 100},
        }
    )


CONFIG = small_config()


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A run of two models and two seeds with results of two probe tasks and zero-shot."""
    root = tmp_path_factory.mktemp("valid")
    make_runs(CONFIG, root)
    make_probes(CONFIG, root, {key: means for key, means in MAIN.items() if key[0] == "nyuv2"})
    for path in (root / TABLE, root / SHOTS):
        table = json.loads(path.read_text())
        wanted = {"clip_ft", "cliptex", "random"} | ({"position"} if path == root / TABLE else set())
        write_json(path, table | {"results": [row for row in table["results"] if row["model"] in wanted]})
    table = json.loads((root / TABLE).read_text())
    for row in table["results"]:
        parts = root / FOLDER / row["model"] / f"seed{row['seed']}" / f"{row['head']}.per_image.npz"
        row["per_image_sha256"] = sha256_file(parts)
    write_json(root / TABLE, table)
    for row in table["results"]:
        path = root / FOLDER / row["model"] / f"seed{row['seed']}" / f"{row['head']}.json"
        own = [r for r in table["results"] if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        write_json(path, table | {"results": own})
    write_json(root / paths.SHARD_INDEX, {"schema_version": 1, "num_samples": 12, "dropped": {}, "shards": []})
    return root


@pytest.fixture
def run(valid, tmp_path) -> Path:
    shutil.copytree(valid, tmp_path, dirs_exist_ok=True)
    return tmp_path


def parts_of(root: Path) -> Parts:
    return make_parts(gather(CONFIG, root))


def edit(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_run_that_belongs_together_has_no_notes(valid):
    assert check(gather(CONFIG, valid)) == []


def set_row(path: Path, number: int, **keys) -> None:
    rows = json.loads(path.read_text())["results"]
    rows[number] |= keys
    edit(path, results=rows)


def add_points(root: Path) -> None:
    for path in (root / TABLE, root / FOLDER / "random/seed0/linear.json"):
        rows = json.loads(path.read_text())["results"]
        rows[0]["metrics"]["rmse"] += 20
        edit(path, results=rows)


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def seed_copied(root: Path) -> None:
    """All of seed 0's results of CLIPTeX, under the name of seed 1; the weights are those of two trainings."""
    as_earlier_versions(root)
    source, target = (root / FOLDER / "cliptex" / f"seed{seed}" for seed in (0, 1))
    for name in ("linear.per_image.npz", "linear.json"):
        shutil.copy(source / name, target / name)
    rows = json.loads((root / TABLE).read_text())["results"]
    of_seed = {row["task"]: row["metrics"] for row in rows if (row["model"], row["seed"]) == ("cliptex", 0)}
    for row in rows:
        row["metrics"] = of_seed[row["task"]] if row["model"] == "cliptex" else row["metrics"]
    edit(root / TABLE, results=rows)
    own = [row for row in rows if (row["model"], row["seed"]) == ("cliptex", 1)]
    edit(target / "linear.json", results=own)


def with_digest(root: Path, path: Path, name: str, sha256: str) -> None:
    provenance = json.loads((root / path).read_text())["provenance"]
    provenance["model_sha256"][name] = sha256
    edit(root / path, provenance=provenance)


def without_row(root: Path) -> None:
    rows = json.loads((root / TABLE).read_text())["results"]
    gone = next(row for row in rows if (row["model"], row["seed"], row["task"]) == ("cliptex", 1, "normals"))
    edit(root / TABLE, results=[row for row in rows if row is not gone])


def as_earlier_versions(root: Path) -> None:
    """Results without the digests of their per-image parts."""
    for path in (root / TABLE, *(root / FOLDER).glob("*/*/*.json")):
        rows = json.loads(path.read_text())["results"]
        edit(path, results=[{key: row[key] for key in row if key != "per_image_sha256"} for row in rows])


def parts_from(root: Path, change, digests: bool = False) -> None:
    if not digests:
        as_earlier_versions(root)
    path = root / FOLDER / "cliptex/seed0/linear.per_image.npz"
    file = read_per_image(path)
    path.unlink()
    write_per_image(path, file.ids, change({task: dict(arrays) for task, arrays in file.tasks.items()}))


TRAIN = "results/models/{}/train.json"
REFUSED = {
    "twenty points more": (add_points, r"nyuv2\.json: depth of random, seed 0, linear: rmse is 20\.\d+, but 0\.8\d+"),
    "an edited table": (
        lambda root: set_row(root / TABLE, 0, metrics={"rmse": 0.83, "other": 99.0}),
        r"nyuv2\.json: depth of random.* but \[\{.*linear\.json; tabulate it again",
    ),
    "an edited zero-shot table": (
        lambda root: set_row(root / SHOTS, -1, metrics={"top1": 90.0}),
        r"imagenet\.json: zero_shot_classification of cliptex, seed 1, zero_shot: top1 is 90\.0, but 3",
    ),
    "no main metric": (
        lambda root: set_row(root / SHOTS, 0, metrics={"top5": 1.0}),
        r"imagenet\.json: .* top1 is None, but",
    ),
    "parts of another model": (
        lambda root: swap(*(root / FOLDER / f"{m}/seed0/linear.per_image.npz" for m in ("clip_ft", "cliptex"))),
        r"nyuv2\.json: .* rmse is .*, but .* from its per-image parts in .*per_image\.npz; put the file of that run",
    ),
    "parts of another seed": (
        lambda root: swap(*(root / FOLDER / f"cliptex/seed{s}/linear.per_image.npz" for s in (0, 1))),
        r"of cliptex, seed 0, linear: rmse is .*, but .* from its per-image parts",
    ),
    "parts of another benchmark": (
        lambda root: shutil.copy(
            root / "results/zeroshot/imagenet.per_image.npz", root / FOLDER / "cliptex/seed0/linear.per_image.npz"
        ),
        r"cliptex/seed0/linear\.per_image\.npz: has nothing of depth, cliptex/seed0",
    ),
    "parts with the same metric": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": tasks["depth"]["rmse"][::-1]}}, True),
        r"seed0/linear\.per_image\.npz: is not the file that was written with the results",
    ),
    "parts of fewer images": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": np.full(7, 0.86 * 0.995)}}),
        r"linear\.per_image\.npz: ",
    ),
    "results of another head or seed": (
        lambda root: shutil.copy(
            root / FOLDER / "cliptex/seed0/linear.json", root / FOLDER / "cliptex/seed1/linear.json"
        ),
        r"depth of cliptex, seed 1, linear is .*, but \[\] in .*seed1/linear\.json",
    ),
    "a table of another benchmark": (
        lambda root: shutil.copy(root / TABLE, root / SHOTS),
        r"zeroshot/imagenet\.json: is of the benchmark 'nyuv2'",
    ),
    "train.json of another model": (
        lambda root: swap(*(root / TRAIN.format(f"{m}/seed0") for m in ("clip_ft", "cliptex"))),
        r"clip_ft/seed0/train\.json: is of 'cliptex', seed 0; put the file of that run back, or train clip_ft",
    ),
    "train.json of another seed": (
        lambda root: shutil.copy(root / TRAIN.format("cliptex/seed0"), root / TRAIN.format("cliptex/seed1")),
        r"cliptex/seed1/train\.json: is of 'cliptex', seed 0",
    ),
    "train.json of another training": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256="f" * 64),
        r"nyuv2\.json: cliptex/seed1 was evaluated with the weights [0-9a-f]{12}, but .*train\.json is of f{12} ",
    ),
    "a table of other weights": (
        lambda root: with_digest(root, SHOTS, "clip_ft/seed0", "e" * 64),
        r"imagenet\.json: clip_ft/seed0 was evaluated with the weights e{12}",
    ),
    "two seeds with the same weights": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256=digest("cliptex", 0)),
        r"cliptex/seed1/train\.json: its weights \(SHA-256 [0-9a-f]+\) are also those of seed 0",
    ),
    "a row twice": (
        lambda root: edit(root / TABLE, results=json.loads((root / TABLE).read_text())["results"] * 2),
        r"nyuv2\.json: 2 rows of depth, linear, random, seed 0",
    ),
    "a seed fewer": (without_row, r"nyuv2\.json: no row of normals, linear, cliptex, seed 1"),
    "parts without a task": (
        lambda root: parts_from(root, lambda tasks: {"depth": tasks["depth"]}),
        r"cliptex/seed0/linear\.per_image\.npz: has nothing of normals",
    ),
    "parts without an array": (
        lambda root: parts_from(root, lambda tasks: tasks | {"normals": {"pixels": tasks["normals"]["pixels"]}}),
        r"normals of cliptex, seed 0, linear: mean cannot be computed from its per-image parts",
    ),
    "parts of another shape": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": tasks["depth"]["rmse"][:7]}}),
        r"nyuv2\.json: depth|linear\.per_image\.npz: depth",
    ),
    "parts that are text": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": np.array(["a"] * EVALUATED)}}),
        r"linear: rmse cannot be computed from its per-image parts",
    ),
    "NaN": (
        lambda root: set_row(root / TABLE, 0, metrics={"rmse": math.nan}),
        r"nyuv2\.json: damaged, or not valid JSON \(NaN",
    ),
    "NaN in a metric that is not the main one": (
        lambda root: set_row(root / SHOTS, 0, metrics={"top1": 6.3, "top5": math.inf}),
        r"imagenet\.json: damaged, or not valid JSON \(Infinity",
    ),
}
MARKED = {
    "no digests": (
        lambda root: edit(root / TABLE, provenance={}),
        "nyuv2.json does not record the weights of clip_ft/seed0, clip_ft/seed1, cliptex/seed0, cliptex/seed1.",
    ),
    "train.json without a digest": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256=None),
        "imagenet.json does not record the weights of cliptex/seed1.",
    ),
    "results of seeds that are not asked for": (
        lambda root: edit(
            root / TABLE,
            results=(rows := json.loads((root / TABLE).read_text())["results"]) + [rows[0] | {"seed": 7}],
        ),
        "nyuv2.json also has random/seed7, left out since",
    ),
    "another configuration": (
        lambda root: edit(root / TRAIN.format("cliptex/seed0"), learning_rate=0.5),
        "CLIPTeX, seed 0, was trained with models.cliptex.learning_rate = 0.5, now 0.001.",
    ),
    "a seed copied from another": (
        seed_copied,
        "cliptex/seed1/linear.per_image.npz is the same as ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name, run):
    change, message = REFUSED[name]
    change(run)
    with pytest.raises(CliptexError, match=message) as caught:
        parts_of(run)
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


@pytest.mark.parametrize("name", MARKED)
def test_what_is_only_missing_is_said_on_the_page(name, run):
    change, sentence = MARKED[name]
    change(run)
    parts = parts_of(run)
    assert any(sentence in note for note in parts.notes), parts.notes
    if name == "a seed copied from another":
        assert parts.verdict.counts["real"] == 0


def test_several_heads_on_one_task_count_once(run):
    rows = json.loads((run / TABLE).read_text())["results"]
    for parts in (run / FOLDER).glob("*/*/linear.per_image.npz"):
        for head in ("psp", "pspnet"):
            shutil.copy(parts, parts.with_name(f"{head}.per_image.npz"))
    edit(run / TABLE, results=[row | {"head": head} for row in rows for head in ("psp", "pspnet")])
    assert parts_of(run).verdict.counts["cells"] == 2


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("name", ["probes/nyuv2/cliptex/seed0/linear", "zeroshot/imagenet"])
def test_cut_parts_are_named(run, name, kept):
    """Whether the file is cut short or has other bytes in the middle."""
    path = run / "results" / f"{name}.per_image.npz"
    whole = path.read_bytes()
    cut = int(kept * len(whole)) if isinstance(kept, float) else kept
    for content in (whole[:cut], whole[:cut] + b"\xff" * 9 + whole[cut + 9 :]):
        path.write_bytes(content)
        with pytest.raises(CliptexError, match=r"\.per_image\.npz: |\.json: .* from its per-image parts") as caught:
            parts_of(run)
        assert "\n" not in str(caught.value)


def paths_in(value, prefix: tuple = ()):
    """The keys of a JSON value and of all values in it; of a list those of the first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*prefix, key)
        yield from paths_in(item, (*prefix, key))


def altered(value, keys: tuple, change):
    """The value with `change` applied to the dictionary or list that holds the last of `keys`."""
    value = json.loads(json.dumps(value))
    holder = value
    for key in keys[:-1]:
        holder = holder[key]
    change(holder, keys[-1])
    return value


CHANGES = {
    "deleted": lambda holder, key: holder.pop(key),
    **{repr(bad): lambda holder, key, bad=bad: holder.__setitem__(key, bad) for bad in (None, "x", [], {}, -1, 1e308)},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", [TABLE, SHOTS, Path(TRAIN.format("cliptex/seed0")), paths.SHARD_INDEX], ids=str)
def test_no_key_that_is_missing_or_wrong_is_more_than_an_error_of_one_line(file, change, run):
    """Each is refused, with the file's name, or is of no consequence, or is shown as missing."""
    whole = json.loads((run / file).read_text())
    for keys in paths_in(whole):
        (run / file).write_text(json.dumps(altered(whole, keys, CHANGES[change])))
        try:
            parts = parts_of(run)
        except CliptexError as error:
            assert file.name in str(error) and "\n" not in str(error), keys
        else:
            for table in filter(None, (*parts.tables.values(), *parts.metrics)):
                assert "nan" not in table.csv().lower() + table.markdown().lower()
            assert keys[:1] != ("results",) or "metrics" not in keys or keys[-1] in ("other <metric>", "top5"), keys


@pytest.mark.parametrize(
    "line", ["", "x", "[]", '{"contrastive": 1}', '{"step": "1"}', '{"step": 1, "contrastive": NaN}']
)
def test_a_line_of_the_log_that_is_wrong_is_named(run, line):
    path = run / "results/models/cliptex/seed0/metrics.jsonl"
    path.write_text(path.read_text() + line)
    if line:
        with pytest.raises(CliptexError, match=r"seed0/metrics\.jsonl: [^\n]+$"):
            gather(CONFIG, run)
    else:
        gather(CONFIG, run)


INDEX = {
    "task": "depth",
    "expert": "dpt",
    "licence": "MIT",
    "codec": {"name": "uint8"},
    "images": 12,
    "labelled": 11,
    "coverage": 0.9,
    "bytes_per_image": 9.5,
    "failures": {"bad": 1},
    "statistics": {"scalars": {"coverage": {"mean": 1.0}}},
    "weights": "trained",
}
QUALITY = {"task": "depth", "source": "miniature", "split": "val", "quality": {"delta1": 9.0}, "prior": {"delta1": 8.0}}
STUDY = {
    **dict.fromkeys(("study", "title", "question", "seen", "not_proved", "command"), "text"),
    "table": {"caption": "c", "columns": ["a"], "rows": [[["1", "", ""]]], "notes": ["n"]},
    "plot": {"caption": "c", "alt": "a"},
    "provenance": {"model_sha256": {"clip": "ab"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_records_of_other_stages_are_shown_or_refused(change, tmp_path):
    def labels(index):
        results = SimpleNamespace(stores={"depth": index}, experts={}, shards={"num_samples": 1, "dropped": {}})
        return labels_table(results), dropped_table(results)

    def quality(record):
        return (experts_table(SimpleNamespace(experts={"dpt": {"quality_file": record}})),)

    for value, kind, use in ((INDEX, records.LABEL_INDEX, labels), (QUALITY, records.QUALITY, quality)):
        for keys in paths_in(value):
            wrong = altered(value, keys, CHANGES[change])
            try:
                records.validate("f.json", wrong, kind)
            except CliptexError as error:
                assert str(error).startswith("f.json: ") and "\n" not in str(error)
            else:
                assert all(table.csv() and table.markdown() for table in use(wrong))
    folder = tmp_path / "results/studies/one"
    folder.mkdir(parents=True)
    (folder / "plot.svg").write_text("<svg/>")
    for keys in paths_in(STUDY):
        (folder / "study.json").write_text(json.dumps(altered(STUDY, keys, CHANGES[change])))
        try:
            shown, _ = found_studies(tmp_path, {})
        except CliptexError as error:
            assert "study.json: " in str(error) and "\n" not in str(error), keys
        else:
            assert all(study.table.csv() is not None for study in shown)


@pytest.mark.parametrize(
    "text",
    [
        "=cmd|' /C calc'!A0",
        "+1+cmd",
        "-2",
        "@SUM(A1)",
        "\t=1",
        "\r\n=1",
        "cat\u202egnp",
        "a\u2066b\u200f",
        "</script><script>alert(1)</script>",
        "\" onload='x'",
        "one\ntwo\n# three",
        "$x^2$ and `code` and ~~gone~~",
        "![x](http://host/y) | a_b __init__ &lt;b&gt;",
        "half an emoji \ud83d",
        "\x00\x1b[2J\x85",
    ],
)
def test_text_of_data_is_text_in_every_format(text):
    """A name of a class or model from a file is neither markup, nor a formula, nor a control character."""
    cells = {"x": Cell(text, note=text), "y": Cell("−1.5", -1.5)}
    table = Table("t", text, [Column("x", text, numeric=False), Column("y", "y")], [Group([cells], text, text)])
    rows = list(csv.reader(io.StringIO(table.csv(), newline="")))
    assert len(rows) == 2 and rows[1][2] == "-1.5"  # a number stays one
    assert not any(cell.startswith(FORMULA) for row in rows for cell in (row[0], row[1]))
    markdown = table.markdown()
    assert len(markdown.splitlines()) == 6 and not re.search(r"(?<!\\)[<~`$&\[]", markdown)
    record = dict.fromkeys(("title", "question", "not_proved", "command", "study"), text) | {
        "provenance": {"git": text}
    }
    chart = html.embedded_chart("plot", text, text, "<svg/>")
    shown = {
        "lines": [text],
        "miniature": False,
        "agreement": None,
        "results_table": table,
        "plot": chart,
        "version": "0",
    }
    page = html.render("studies/page.html", record=record, **shown)
    assert page.count("<script") == 1 and " onload='" not in page
    for out in (table.csv(), markdown, page):
        assert not CONTROLS.search(out)
        out.encode()


def test_thumbnails_of_other_results_are_refused(tmp_path):
    path = tmp_path / "linear.thumbnails.npz"
    path.write_bytes(b"images")
    row = SimpleNamespace(model="cliptex", seed=0, thumbnails_sha256=sha256_file(path))
    check_thumbnails(TABLE, path, row)
    path.write_bytes(b"others")
    with pytest.raises(CliptexError, match=r"thumbnails.npz: is not the file .* of cliptex, seed 0: its SHA-256"):
        check_thumbnails(TABLE, path, row)


def test_sources_that_have_changed_since_are_named():
    def run(sha256, **more):
        return {0: FinishedRun({"model_sha256": sha256} | more, [])}

    mixture = {"of": "cliptex", "with": "clip", "alpha": 0.5, "of_sha256": "aa", "with_sha256": "bb"}
    runs = {"cliptex": run("aa"), "clip": run("cc"), "wise": run("dd", interpolate=mixture)}
    runs |= {"tuned": run("gg", init="clip", init_sha256="bb"), "again": run("hh", init="clip", init_sha256="cc")}
    stores = {name: INDEX | {"weights_sha256": "ee"} for name in ("depth", "mine")} | {"old": INDEX}
    results = SimpleNamespace(stores=stores, experts={"dpt": {"weights_sha256": "ff"}}, runs=runs)
    assert _check_sources(results) == [
        "The label store depth is of other weights than dpt has now.",
        "The label store mine is of other weights than dpt has now.",
        "wise, seed 0, is interpolated from an earlier clip than the page's.",
        "tuned, seed 0, started from an earlier clip than the page's.",
    ]
    same = SimpleNamespace(stores=stores, experts={"dpt": {"weights_sha256": "ee"}}, runs={"wise": runs["wise"]})
    assert _check_sources(same) == []


def test_an_export_takes_only_the_weights_of_its_training(run, tmp_path):
    model_card = pytest.importorskip("cliptex.report.model_card")
    folder = run / "results/models/cliptex/seed0"
    for name in (model_card.CONFIG_FILE, model_card.WEIGHTS_FILE):
        (folder / name).write_text("{}")
    with pytest.raises(CliptexError, match=r"seed0/open_clip_model\.safetensors: is not the file that was trained"):
        model_card.export_model(CONFIG, "cliptex", 0, tmp_path / "out", workdir=run)
    assert not (tmp_path / "out" / model_card.WEIGHTS_FILE).exists()
    swap(*(run / TRAIN.format(f"cliptex/seed{seed}") for seed in (0, 1)))
    with pytest.raises(CliptexError, match=r"seed0/train\.json: is of 'cliptex', seed 1"):
        model_card.export_model(CONFIG, "cliptex", 0, tmp_path / "out", workdir=run)


def test_a_model_card_shows_only_results_that_are_its_own(run, caplog):
    model_card = pytest.importorskip("cliptex.report.model_card")

    def measured():
        return model_card._results(CONFIG, "cliptex", 0, digest("cliptex", 0), run)

    assert sorted(result["metric"] for result in measured()) == ["mean", "rmse", "top1"] and not caplog.records
    set_row(run / SHOTS, -2, metrics={"top1": 90.0})
    assert sorted(result["metric"] for result in measured()) == ["mean", "rmse"]
    assert "left out of the card: " in caplog.text and "top1 is 90.0, but 31" in caplog.text
    with_digest(run, TABLE, "cliptex/seed0", "e" * 64)
    assert measured() == [] and "was evaluated with the weights eeeeeeeeeeee" in caplog.text


def test_no_text_of_a_label_store_changes_the_layout_of_a_model_card():
    card_experts = pytest.importorskip("cliptex.report.card_experts")
    evil = "MIT |\n\n# Licence\n<b>`x`</b> [a](b) \u202e"
    store = INDEX | {"store": "depth", "licence": evil, "expert": evil, "weights": evil, "weights_sha256": evil}
    for text in (card_experts.experts_section([store]), card_experts.licence_section(evil, [store])):
        assert not any(line.startswith("# ") for line in text.splitlines()) and "\u202e" not in text
        assert not re.search(r"(?<!\\)[<\[]", text)
    *_, row = card_experts.experts_section([store]).splitlines()
    assert len(re.findall(r"(?<!\\)\|", row)) == 8

"""Studies: configuration, comparison of models, summary, page, and the results kept in docs/."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.core.plugins import find
from cliptex.evaluation.per_image import main_metric, per_image_path, read_per_image, write_per_image
from cliptex.evaluation.protocols.resolve import with_protocols
from cliptex.report.bootstrap import Interval
from cliptex.report.studies import study_config, study_of
from cliptex.report.studies.forms import FORMS, StudyResults
from cliptex.report.studies.measures import ComparedModel, StudyMeasure, compare, read_measures
from cliptex.report.studies.page import build_study
from cliptex.report.studies.summary import amount, limits

ROOT = Path(__file__).parent.parent
STUDIES = sorted(p for p in (ROOT / "config/studies").glob("*.yaml") if "study" in yaml.safe_load(p.read_text()))
RESULT = {
    "schema_version": 1,
    "benchmark": "voc",
    "source": "miniature",
    "split": "val",
    "num_train": 8,
    "num_eval": 8,
    "class_names": [],
    "results": [],
}
"""A results file without rows; studies read the rows' per-image parts."""


def merged(base: dict, over: dict) -> dict:
    """As Snakemake lays one config over another."""
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }


def laid_over(over: dict) -> Config:
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return with_protocols(Config.load(merged(base, over)))


def study(name: str) -> Config:
    return laid_over(yaml.safe_load((ROOT / f"config/studies/{name}.yaml").read_text()))


# ---- what is planned


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_shares_what_the_main_run_has(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples/edges"))
    config = study(path.stem)
    main, own = laid_over({}), study_config(config)
    assert config.study.name == path.stem
    assert f"snakemake --cores 8 study --configfile config/studies/{path.name}" in path.read_text()
    for keys in (["dataset.source", "student", "train"], ["labels"], ["miniature"], ["backbone"]):
        assert own.subset(*keys) == main.subset(*keys)
    for section in ("models", "label_stores", "experts"):
        for name in getattr(main, section):
            assert own.subset(f"{section}.{name}") == main.subset(f"{section}.{name}")
    assert {name: model.init for name, model in config.study.models.items()} == dict.fromkeys(
        config.study.models, "clip"
    )
    steps = main.models["cliptex"].steps, main.models["cliptex"].learning_rate
    assert {(model.steps, model.learning_rate) for model in config.study.models.values()} <= {steps}
    for name, model in config.study.models.items():  # what its training job gets is whole
        stores = [f"label_stores.{store}" for store in model.tasks]
        job = Config.load(own.subset("dataset.source", "student", "train", f"models.{name}", *stores))
        assert job.models[name] == model
    for name, store in config.study.label_stores.items():
        assert any(name in model.tasks for model in config.study.models.values()), f"{name} is made and not used"
        task = find("tasks", store.task)
        settings = config.study.experts[store.expert]
        assert find("experts", settings.plugin)(settings.model_dump(mode="json")).task == task.name
    assert {store.expert for store in config.study.label_stores.values()} == set(config.study.experts)


def test_first_experiments_has_every_subset_of_the_experts():
    config = study_config(study("first_experiments"))
    subsets = {frozenset(config.models[name].tasks) for name in config.study.compared}
    assert len(subsets) == len(config.study.compared) == 8
    weights = config.models["cliptex"].tasks
    assert all(
        weights[task] == weight for name in config.study.compared for task, weight in config.models[name].tasks.items()
    )


def test_loss_weights_is_a_grid_of_the_main_runs_weights():
    config = study_config(study("loss_weights"))
    usual = config.models["cliptex"].tasks
    grid = set()
    for name in config.study.compared:
        model = config.models[name]
        factors = {round(model.tasks[task] / weight, 6) for task, weight in usual.items() if model.tasks}
        assert len(factors) <= 1, name
        grid.add((model.contrastive_weight, *factors))
    assert grid == {(1,), (0, 1), *itertools.product((1, 0.3), (0.3, 1, 3))}


def test_experts_swaps_and_spoils_each_expert_alone():
    config = study_config(study("experts"))
    usual = config.models["cliptex"].tasks
    changed = set()
    for name in config.study.compared:
        stores = [store for store in config.models[name].tasks if store not in usual]
        of_degraded = [config.experts[config.label_stores[store].expert].network.get("strength") for store in stores]
        changed.add((frozenset(config.label_stores[store].task for store in stores), *set(of_degraded)))
    alone = [frozenset([task]) for task in usual]
    assert changed == {
        (frozenset(),),
        *((task, None) for task in alone),
        *((task, 0.6) for task in alone),
        *((frozenset(usual), strength) for strength in (0.3, 0.6)),
    }


def test_only_the_heads_differ_in_heads_and_the_classes_in_alignment():
    config = study_config(study("heads"))
    seen = set()
    for name in config.study.compared:
        model = config.models[name]
        if model.tasks:
            assert model.tasks == config.models["cliptex"].tasks
            seen.add((model.heads or config.train.heads, model.multi_scale or config.train.multi_scale))
    assert seen == {("light", "ppm"), ("light", "none"), ("heavy", "ppm"), ("heavier", "ppm")}

    from cliptex.data.miniature.kinds import KINDS

    experts = study("alignment").study.experts.values()
    known = [set(expert.network.get("classes") or [kind.coco for kind in KINDS if kind.coco]) for expert in experts]
    voc = {kind.coco for kind in KINDS if kind.voc}
    assert [(len(classes), len(classes & voc)) for classes in known] == [(16, 11), (5, 5), (5, 0)]
    assert len({json.dumps({**e.network, "classes": None}, sort_keys=True) for e in experts}) == 1
    assert len({json.dumps(e.training, sort_keys=True) for e in experts}) == 1


def test_a_study_keeps_the_heads_it_asks_for_and_the_protocols_digest():
    config = study("first_experiments")
    own = study_config(config)
    assert list(own.probes.benchmarks) == ["voc", "nyuv2"]
    entry = own.probes.benchmarks["voc"]
    assert list(entry["semantic_segmentation"]["heads"]) == ["linear"]
    assert entry["digest"] == config.probes.benchmarks["voc"]["digest"]
    assert own.probes.models == [name for name, _ in config.study.rows]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"models": {"clip": {}}}, r"study.models.clip: the main run has one of this name"),
        ({"shown": ["clipp"]}, r"study.shown: 'clipp' is not one of"),
        ({"probes": {"vok": ["linear"]}}, r"study.probes: 'vok' is not one of"),
        ({"probes": {"voc": ["liner"]}}, r"study.probes.voc: 'liner' is not one of its heads"),
        ({"zeroshot": ["voc"]}, r"study.zeroshot: 'voc' is not one of"),
        ({"rows": [["clip_ft", "x"]]}, r"study.rows: must name clip_ft, cliptex, each once; check 'cliptex'"),
        ({"models": {"a": {"tasks": {"dept": 1}}}}, r"models.a.tasks.dept: 'dept' is not one of"),
    ],
)
def test_a_mistake_in_a_study_is_named(over, message):
    about = {"name": "mine", "title": "t", "question": "q", "limits": "l"}
    with pytest.raises(CliptexError, match=message):
        study_config(laid_over({"study": about | over}))


def test_without_a_study_nothing_changes_and_the_target_says_so():
    config = laid_over({})
    assert study_config(config) is config
    with pytest.raises(CliptexError, match="study: there is none; add a file of config/studies/"):
        study_of(config)


def test_a_studys_file_alone_is_no_configuration():
    config = Config.load(ROOT / "config/studies/heads.yaml")
    with pytest.raises(CliptexError, match=r"study.probes: 'voc' is not one of \[\]; .*snakemake study --configfile"):
        read_measures(config, Path())


# ---- what is said

LABELS = {"base": "base", "good": "good one", "bad": "bad one", "same": "same one"}


def made_up(gains: dict[str, float], noise: float = 0.0, images: int = 200, seed: int = 0) -> StudyMeasure:
    """A depth measure in which a model's error lies `gains` below the reference's 1.0, image by image, with noise."""
    rng = np.random.default_rng(seed)
    base = 1 + 0.2 * rng.random(images)
    statistics = {"base": [{"rmse": base}]}
    for model, gain in gains.items():
        statistics[model] = [{"rmse": base - gain + noise * rng.standard_normal(images)}]
    return StudyMeasure("nyuv2", "depth", "linear", statistics)


def test_a_difference_is_one_only_where_the_paired_interval_leaves_out_zero():
    measure = made_up({"good": 0.1, "bad": -0.1, "same": 0.001}, noise=0.1)
    found = compare(measure, "base", ["base", "good", "bad", "same"], 2000)
    assert {model: one.state for model, one in found.items()} == {
        "base": "no difference seen",
        "good": "better",
        "bad": "worse",
        "same": "no difference seen",
    }
    good = found["good"]
    assert good.difference == pytest.approx(0.1, abs=0.02)  # lower error, positive difference
    # the interval of a mean of 200 differences with deviation 0.1
    assert (good.bounds.high - good.bounds.low) / 2 == pytest.approx(1.96 * 0.1 / np.sqrt(200), rel=0.2)


def test_with_seeds_a_difference_must_also_exceed_their_spread():
    measure = made_up({"good": 0.1})
    base = measure.statistics["base"][0]["rmse"]
    far = {"base": [{"rmse": base}, {"rmse": base + 0.5}], "good": [{"rmse": base - 0.1}, {"rmse": base + 0.4}]}
    found = compare(StudyMeasure("nyuv2", "depth", "linear", far), "base", ["good"], 2000)["good"]
    assert found.bounds.excludes_zero and found.spread > 0.3
    assert found.state == "no difference seen"


def findings_of(*measures: StudyMeasure) -> list:
    return [(measure, compare(measure, "base", list(measure.statistics), 2000)) for measure in measures]


def results_of(form: str, labels: dict[str, str], findings: list, flops: dict[str, float] | None = None):
    about = {"name": "mine", "title": "t", "question": "q", "limits": "l", "reference": "base", "form": form}
    return StudyResults(Config.load({"study": about}), findings, labels, flops or dict.fromkeys(labels, 1.0), True)


def test_the_sentence_names_each_model_once_with_its_numbers():
    measure = made_up({"good": 0.1, "bad": -0.1, "same": 0.001}, noise=0.1)
    findings = findings_of(measure)
    (line,) = FORMS["differences"](results_of("differences", LABELS, findings)).lines
    good, bad = (amount(measure, findings[0][1][model]) for model in ("good", "bad"))
    assert line == f"{measure.title}: ▲ 1 of 3, “good one” {good}; ▼ 1 of 3, “bad one” {bad}"
    nothing = made_up({"good": 0.0, "bad": 0.0}, noise=0.1)
    labels = {model: LABELS[model] for model in nothing.statistics}
    (line,) = FORMS["differences"](results_of("differences", labels, findings_of(nothing))).lines
    assert line == f"{nothing.title}: no difference in 2"


def test_a_label_is_text_in_the_plot():
    labels = {"base": "base", "good": "costs $5 & <b> $6"}
    form = FORMS["differences"](results_of("differences", labels, findings_of(made_up({"good": 0.1}, noise=0.1))))
    assert "costs $5 &amp; &lt;b&gt; $6" in form.chart.svg


def test_seeds_that_do_not_differ_prove_nothing():
    measure = made_up({"good": 0.1})
    twice = {model: seeds * 2 for model, seeds in measure.statistics.items()}
    found = compare(StudyMeasure("nyuv2", "depth", "linear", twice), "base", ["good"], 200)["good"]
    assert found.bounds.excludes_zero and found.spread == 0 and found.state == "no difference seen"


def test_of_many_models_the_sentence_names_the_ends():
    gains = {f"model{number}": 0.05 * number for number in range(1, 6)}
    measure = made_up({**gains, **dict.fromkeys(("same0", "same1", "same2", "same3"), 0.0)}, noise=0.02)
    labels = {name: f"the {name}" for name in measure.statistics}
    findings = findings_of(measure)
    (line,) = FORMS["differences"](results_of("differences", labels, findings)).lines
    most, least = (amount(measure, findings[0][1][name]) for name in ("model5", "model1"))
    assert line == f"{measure.title}: ▲ 5 of 9, “the model5” {most} to “the model1” {least}"


def zero_shot(hits: dict[str, float], images: int = 400) -> StudyMeasure:
    rng = np.random.default_rng(1)
    draw = rng.random(images)
    statistics = {model: [{"top1": draw < rate, "top5": draw < 1}] for model, rate in hits.items()}
    return StudyMeasure("imagenet", "zero_shot_classification", "zero_shot", statistics)


def test_a_trade_off_names_what_is_lost_and_the_best_that_keeps_it():
    dense = made_up({"good": 0.1, "bad": 0.3, "same": 0.05}, noise=0.05)
    shot = zero_shot({"base": 0.5, "good": 0.5, "bad": 0.2, "same": 0.52})
    lost, kept = FORMS["tradeoff"](results_of("tradeoff", LABELS, findings_of(dense, shot))).lines
    assert re.search(r"▼ 1 of 3, “bad one” −", lost)
    assert re.search(r"▲ 2 of 2, “good one”", kept) and "bad one" not in kept  # which gains more
    shot = zero_shot({"base": 0.5, "good": 0.5, "bad": 0.5, "same": 0.5})
    lost, kept = FORMS["tradeoff"](results_of("tradeoff", LABELS, findings_of(dense, shot))).lines
    assert lost == f"{shot.title}: no difference in 3" and "▲ 3 of 3, “bad one”" in kept


def test_the_cheapest_that_is_not_seen_to_be_worse_than_the_best_is_named():
    findings = findings_of(made_up({"good": 0.2, "bad": 0.05, "same": 0.199}, noise=0.05))
    flops = {"base": 1.0, "good": 1.5, "bad": 1.05, "same": 1.2}
    _, line = FORMS["cost"](results_of("cost", LABELS, findings, flops)).lines
    assert re.match(r"cheapest without a difference to the best in .*: “same one” at 1\.20 times", line)


def test_what_is_not_proved_counts_the_intervals():
    text = limits([200, 200], 1, 40, "whether it rains", miniature=True)
    assert "one training run a model, 200 rendered images a benchmark" in text
    assert "about 2.0 of the 40 intervals exclude zero by chance" in text
    assert text.endswith("; not shown: whether it rains.")
    text = limits([200, 300], 3, 40, "x", miniature=False)
    assert "3 training runs a model, 200 to 300 images" in text and "rendered" not in text


# ---- the page


def results(root: Path, config: Config, rates: dict[str, float]) -> None:
    """Small made-up results of a study's runs: a zero-shot rate and a depth error of each model."""
    folder = root / "results/studies" / config.study.name
    ids = [f"{number:04d}" for number in range(80)]
    rng = np.random.default_rng(0)
    draw, base = rng.random(80), 1 + rng.random(80)
    for benchmark, heads in config.study.probes.items():
        for model, rate in rates.items():
            for head in heads:
                path = folder / "probes" / benchmark / model / "seed0" / f"{head}.json"
                write_json(path, RESULT)
                counts = np.stack([rng.binomial(50, rate, 80), np.full(80, 50), np.full(80, 50)])
                per_task = {
                    "voc": {
                        "semantic_segmentation": dict(
                            zip(("hit", "truth", "predicted"), counts[..., None], strict=True)
                        )
                    },
                    "nyuv2": {
                        "depth": {"rmse": base - rate},
                        "normals": {"pixels": np.full(80, 9), "angle_sum": 9 * base},
                    },
                }[benchmark]
                write_per_image(per_image_path(path), ids, per_task)
    for benchmark in config.study.zeroshot:
        path = folder / "zeroshot" / f"{benchmark}.json"
        write_json(path, RESULT)
        top1 = np.stack([draw < rate for rate in rates.values()])
        tasks = {"zero_shot_classification": {"top1": top1, "top5": top1 | True}}
        write_per_image(per_image_path(path), ids, tasks, rows=[f"{model}/seed0" for model in rates])
    for number, model in enumerate(rates):
        run = {"flops_over_contrastive": 1 + number / 10, "model_sha256": f"{number:064d}", "init": "clip", "tasks": {}}
        write_json(root / "results/models" / model / "seed0/train.json", run)
    for expert in config.study.experts:
        record = dict.fromkeys(("task", "plugin", "network", "quality", "weights_sha256"))
        write_json(root / "results/experts" / expert / "expert.json", record)


@pytest.mark.parametrize("name", ["first_experiments", "heads"])
def test_a_page_has_one_plot_one_table_and_two_sentences(tmp_path, name):
    config = study_config(study(name))
    rates = {model: 0.3 + 0.05 * number for number, model in enumerate(config.study.compared)}
    results(tmp_path, config, rates)
    page = build_study(config, tmp_path)
    folder = tmp_path / "results/studies" / name
    text = (folder.parent / f"{name}.html").read_text()
    assert text.count("<figure") == text.count("<table") == 1
    assert "MINIATURE" in text and "://" not in text
    about = json.loads((folder / "study.json").read_text())
    for sentence in (about["seen"], about["not_proved"]):
        assert sentence.endswith(".") and sentence.count(". ") == 0
    assert page.record == about
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "study.json", "table.csv", "table.md", "plot.svg", "plot.png",
    }  # fmt: skip
    rows = {(row["benchmark"], row["task"], row["model"]): row for row in about["results"]}
    assert rows["imagenet", "zero_shot_classification", config.study.compared[-1]]["state"] == "better"
    value = rows["voc", "semantic_segmentation", "clip_ft"]["value"]
    assert f"{value:.1f}" in (folder / "table.md").read_text()
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(rates)
    assert "miniature: rendered stand-in data" in (folder / "plot.svg").read_text()
    if name == "heads":
        assert build_study(config, tmp_path).record == about  # the same draws again


def test_a_page_marks_what_an_expert_has_seen_and_shows_how_far_stores_agree(tmp_path):
    config = study_config(study("teachers"))
    results(tmp_path, config, {model: 0.3 + 0.05 * number for number, model in enumerate(config.study.compared)})
    plain = build_study(config, tmp_path)
    folder = tmp_path / "results/studies/teachers"
    for path in folder.rglob("*.json"):
        if path.name != "study.json":
            write_json(path, RESULT | {"source": "official"})
    path = tmp_path / "results/experts/pyramid_depth/expert.json"
    stated = [{"name": "nyuv2", "split": "", "how": ""}]
    write_json(path, json.loads(path.read_text()) | {"source": "hub", "trained_on": stated})
    assert build_study(config, tmp_path).agreement is None
    pair = {"stores": ["depth", "other_depth"], "task": "depth", "images": 12, "agreement": 0.75, "quality": None}
    write_json(folder / "agreement.json", {"pairs": [pair]})
    page = build_study(config, tmp_path)
    headings = [column.heading for column in page.form.table.columns]
    assert [heading for heading in headings if "‡" in heading] == [
        "RMSE of depth on NYUv2 ‡ (linear) (m) ↓",
        "mean angle of normals on NYUv2 ‡ (linear) (°) ↓",
    ]
    note = "‡ An expert may have been trained on the evaluated images: NYUv2 by pyramid_depth: NYUv2."
    assert note in page.form.table.notes and note in page.record["table"]["notes"]
    assert "‡" in (folder / "plot.svg").read_text() and "RMSE of depth on NYUv2 ‡ (linear): ▲" in page.record["seen"]
    text = (folder.parent / "teachers.html").read_text()
    assert text.count("<table") == 2 and "depth and other_depth" in text and "0.750" in text
    assert page.record["agreement"] == [pair]
    assert not any(mark in json.dumps(plain.record, ensure_ascii=False) for mark in "†‡")


def test_frozen_and_tuned_encoders_are_told_apart(tmp_path):
    """A gain that only frozen encoders have is not said to survive."""
    config = study_config(study("finetune"))
    results(tmp_path, config, {"clip_ft": 0.3, "cliptex": 0.5})
    folder = tmp_path / "results/studies/finetune/probes"
    for path in folder.rglob("*"):
        if path.is_file():
            model = "clip_ft"  # tuned, the two are the same
            source = folder / path.relative_to(folder).parts[0] / model / "seed0" / path.name
            tuned = tmp_path / "results/finetuned" / path.relative_to(folder)
            tuned.parent.mkdir(parents=True, exist_ok=True)
            tuned.write_bytes(source.read_bytes())
    page = build_study(config, tmp_path)
    assert re.match(r"mIoU on Pascal VOC \(linear\): ▲ 1 of 2, “frozen” \+", page.record["seen"])
    assert "fine-tuned" not in page.record["seen"]
    assert [row["row"].text for row in page.form.table.groups[0].rows] == ["frozen", "fine-tuned"]
    rows = [row for row in page.record["results"] if row["model"] == "cliptex" and row["benchmark"] == "voc"]
    assert [(row.get("frozen", True), row["state"]) for row in rows] == [
        (True, "better"),
        (False, "no difference seen"),
    ]


def test_each_kind_of_harm_has_a_row_of_its_own(tmp_path):
    config = study_config(study("robustness"))
    config = config.model_copy(update={"study": config.study.model_copy(update={"zeroshot": []})})
    results(tmp_path, config, {"clip_ft": 0.3, "cliptex": 0.5})
    for path in (tmp_path / "results/studies/robustness/probes").rglob("*.per_image.npz"):
        arrays = dict(np.load(path))
        # the first half of the images clean, the others in fog, where the two models are the same
        names = [
            f"{'clean' if number < 40 else 'fog-3'}/{name}" for number, name in enumerate(arrays.pop("ids").tolist())
        ]
        other = np.load(str(path).replace("cliptex", "clip_ft"))
        tasks = {}
        for key, values in arrays.items():
            task, _, name = key.partition(".")
            tasks.setdefault(task, {})[name] = np.concatenate([values[:40], other[key][40:]])
        write_per_image(path, names, tasks)
    page = build_study(config, tmp_path)
    assert [row["row"].text for row in page.form.table.groups[0].rows] == ["clean", "fog 3"]
    states = {
        (row["benchmark"], row["task"], row["variant"]): row["state"]
        for row in page.record["results"]
        if row["model"] == "cliptex"
    }
    assert states["voc", "semantic_segmentation", "clean"] == states["nyuv2", "depth", "clean"] == "better"
    assert states["voc", "semantic_segmentation", "fog-3"] == states["nyuv2", "depth", "fog-3"] == "no difference seen"
    assert "mIoU on Pascal VOC (linear): no difference in 1; " in page.record["seen"]
    assert "; mIoU on Pascal VOC (linear): mean 0.0 (0.0 to 0.0); " in page.record["seen"]


def test_images_that_differ_between_models_are_refused(tmp_path):
    config = study_config(study("heads"))
    results(tmp_path, config, dict.fromkeys(config.study.compared, 0.4))
    path = tmp_path / "results/studies/heads/probes/voc/heavy/seed0/linear.per_image.npz"
    counts = dict.fromkeys(("hit", "truth", "predicted"), np.ones((80, 1), np.int32))
    write_per_image(path, [f"x{number}" for number in range(80)], {"semantic_segmentation": counts})
    with pytest.raises(CliptexError, match=r"heavy/seed0/linear.json: evaluated on other images than"):
        build_study(config, tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"metrics": {"mIoU": 90.0}},
            r"heavy/seed0/linear\.json: .* mIoU is 90\.0, but \d+\.\d+ from its per-image parts",
        ),
        ({"model": "light"}, r"heavy/seed0/linear\.json: is not of heavy/seed0; put the file of that run back"),
        (
            {"sha256": "e" * 64},
            r"linear\.json: heavy/seed0 was evaluated with the weights e{12}, but .*train\.json is of 0",
        ),
    ],
)
def test_results_of_another_model_or_edited_ones_are_refused(tmp_path, keys, message):
    config = study_config(study("heads"))
    results(tmp_path, config, dict.fromkeys(config.study.compared, 0.4))
    path = tmp_path / "results/studies/heads/probes/voc/heavy/seed0/linear.json"
    counts = read_per_image(per_image_path(path)).tasks["semantic_segmentation"]
    right = {"mIoU": float(main_metric("semantic_segmentation", counts)[0])}
    row = {"task": "semantic_segmentation", "head": "linear", "model": "heavy", "seed": 0, "metrics": right}
    evaluated = {"model_sha256": {"heavy/seed0": keys.get("sha256", "")}}
    write_json(path, RESULT | {"results": [row | keys], "provenance": evaluated})
    with pytest.raises(CliptexError, match=message):
        build_study(config, tmp_path)


def test_a_state_follows_the_interval_not_the_value():
    one = ComparedModel("m", 1.0, None, 0.3, Interval(-0.1, 0.7), None, np.zeros(1))
    assert one.state == "no difference seen"


# ---- what is kept of the runs

KEPT = ROOT / "docs/results/studies"


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/study.json")), ids=lambda path: path.parent.name)
def test_a_kept_study_is_small_and_its_parts_agree(path):
    about = json.loads(path.read_text())
    readme = (KEPT / "README.md").read_text()
    for text in (about["title"], about["question"], about["command"]):
        assert text in readme
    for name in ("plot.svg", "table.md", "study.json"):
        assert f"]({about['study']}/{name})" in readme
    assert (ROOT / about["command"].split("--configfile ")[1]).exists()
    assert all(file.stat().st_size < 500_000 for file in path.parent.iterdir())
    table = (path.parent / "table.md").read_text()
    for row in about["results"]:
        beyond_images = bool(row["better_by_interval"]) and row["better_by_interval"][0] > 0
        beyond_seeds = row["better_by"] > (row["seed_spread"] or 0) or row["model"] == about["reference"]
        assert (row["state"] == "better") == (beyond_images and beyond_seeds)
    assert all(model["label"].replace("|", "") in table.replace("\\", "") for model in about["models"].values()) or (
        "variant" in about["results"][0] or any("frozen" in row for row in about["results"])
    )

"""Two runs side by side: paired tests over the same images, what differs, and what one of the runs has not."""

import html
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import SCHEMES, SIZES, scrolling, violations
from test_report import MAIN, MODELS, Page, make_config, make_probes, make_runs

from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.evaluation.per_image import read_per_image
from cliptex.report.bootstrap import draws
from cliptex.report.compare import compare_runs

pytestmark = pytest.mark.xdist_group("report")
BETTER = {
    key: tuple(1.1 * v if m == "cliptex" else v for m, v in zip(MODELS, means, strict=True))
    for key, means in MAIN.items()
}
"""CLIPTeX's values are a tenth higher, which is worse for errors."""


def make_run(root: Path, main=MAIN, seeds=(0, 1, 2), **config) -> Path:
    made = make_config(root, list(seeds), **config)
    make_runs(made, root)
    make_probes(made, root, main)
    shown = yaml.safe_dump(made.plain(), sort_keys=False)
    (root / "results/report.html").write_text(f"<pre>snakemake all</pre>\n<pre>{html.escape(shown)}</pre>")
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return make_run(root / "a"), make_run(root / "b", BETTER, train={"batch_size": 48})


def changed(runs, tmp_path) -> tuple[Path, Path]:
    """The runs, of which the second may be changed."""
    return runs[0], Path(shutil.copytree(runs[1], tmp_path / "b"))


def compared(a, b, tmp_path) -> tuple[str, Page, str]:
    text = compare_runs(a, b, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    return text, Page(page), page


def row(page, table, group, model="CLIPTeX") -> list[str]:
    """A row of a model below the group whose title starts so."""
    rows = page.table(table)
    start = next(number for number, cells in enumerate(rows) if cells[0].startswith(group))
    return next(cells for cells in rows[start:] if cells[0].startswith(model))


def test_changes_are_tested_and_what_changed_them_is_shown(runs, tmp_path):
    text, page, source = compared(*runs, tmp_path)
    assert row(page, "models", "Pascal VOC semantic segmentation, linear")[3].endswith("▲ better")
    assert row(page, "models", "NYUv2 depth")[3].endswith("▼ worse")
    assert "within noise" in row(page, "models", "COCO object detection")[3]
    assert row(page, "models", "Pascal VOC semantic segmentation, linear", "CLIP-FT")[3].endswith("the same")
    assert "in 24 results of trained models: better in 3; worse in 2; within noise in 2; the same in 17" in page.text
    assert "Corrected for 7 comparisons by Holm’s method at 5 %" in page.text
    assert "baselines, which no training changes, have the same results in both runs" in page.text
    # gains of 17.8 and 29.6 % over CLIP-FT
    gain = row(page, "gains", "Pascal VOC semantic segmentation, linear", "Pascal")
    assert gain[1].startswith("+17.8 %") and gain[2].startswith("+29.6 %") and gain[3].startswith("+11.8")
    assert page.table("differing")[1:] == [["Configuration"], ["train.batch_size", "128", "48"]]
    assert "The same in both: code, environment, benchmarks, weights." in page.text
    assert "▲ better" in text and "the same in 17" in text and "What differs: 1 in configuration." in text
    assert "default-src 'none'" in source and "http" not in source.partition("</style>")[2]


def test_an_interval_is_that_of_a_paired_bootstrap(runs, tmp_path):
    *_, page = compared(*runs, tmp_path)
    path = "results/probes/imagenet/cliptex/seed{}/linear.per_image.npz"
    hits = [
        np.stack([read_per_image(run / path.format(seed)).tasks["classification"]["top1"] for seed in (0, 1, 2)])
        for run in runs
    ]
    images, seeds = draws(hits[0].shape[1], 1000, zlib.crc32(b"imagenet")), draws(3, 1000, 3)
    change = 100 * np.einsum("dn,sn,ds->d", images, hits[1] - hits[0], seeds) / (3 * hits[0].shape[1])
    low, high = np.percentile(change, [2.5, 97.5])
    cells = row(Page(page), "models", "ImageNet classification, linear")
    assert f"{low:+.1f} to {high:+.1f}" in cells[3]


@pytest.mark.parametrize("what", ["ids", "truth", "rendered", "older"])
def test_other_images_are_not_paired_and_it_is_said(runs, tmp_path, what):
    a, b = changed(runs, tmp_path)
    for path in b.glob(f"results/probes/voc/*/seed*/{'*' if what == 'ids' else 'linear'}.per_image.npz"):
        arrays = dict(np.load(path))
        if what == "ids":
            arrays["ids"] = np.array([f"other {number}" for number in range(len(arrays["ids"]))])
        if what == "truth":
            arrays["semantic_segmentation.truth"] = arrays["semantic_segmentation.truth"] + 1
        path.unlink()
        if what != "older":  # without per-image parts
            np.savez(path, **arrays)
    if what == "rendered":
        page = b / "results/report.html"
        page.write_text(page.read_text().replace("pairs: 12", "pairs: 24"))
    _, page, _ = compared(a, b, tmp_path)
    assert row(page, "models", "Pascal VOC semantic segmentation, linear")[3] == "+1.2 not tested"
    reasons = {
        "ids": "the evaluation images are others",
        "truth": "the ground truth of the images differs",
        "rendered": "the images were rendered with other settings (`miniature`)",
        "older": "linear.per_image.npz",
    }
    assert "Pascal VOC, probes: no intervals and no test, because" in page.text and reasons[what] in page.text
    assert ("not tested" in row(page, "models", "NYUv2 depth")[3]) == (what == "rendered")


def test_one_seed_is_no_proof(tmp_path):
    text, page, source = compared(
        make_run(tmp_path / "a", seeds=[0]), make_run(tmp_path / "b", BETTER, seeds=[0, 1]), tmp_path
    )
    assert row(page, "models", "Pascal VOC semantic segmentation, linear")[3].endswith("△ better, one seed")
    assert "tone-" not in source.partition("</style>")[2]
    assert "A has no results of: seed 1." in text and "A lacks" not in text


def test_of_half_finished_runs_what_both_have_is_compared(runs, tmp_path):
    a, b = changed(runs, tmp_path)
    (b / "results/probes/nyuv2.json").unlink()
    (b / "results/report.html").unlink()
    path = b / "results/models/cliptex/seed0/train.json"
    write_json(path, json.loads(path.read_text()) | {"steps": 61, "model_sha256": "f" * 64})
    text, page, _ = compared(a, b / "results", tmp_path)
    assert "B has no results yet of: NYUv2 (probes)." in text and "B has no results yet of: NYUv2" in page.text
    assert not any("NYUv2" in cells[0] for cells in page.table("differing"))
    assert "The configuration of B is not known" in page.text
    assert ["cliptex, seed 0.steps", "60", "61"] in page.table("differing")
    assert [
        "cliptex, seed 0",
        json.loads((a / path.relative_to(b)).read_text())["model_sha256"][:12],
        "f" * 12,
    ] in page.table("differing")


def test_changed_baselines_are_named_as_a_change_of_the_evaluation(runs, tmp_path):
    b = make_run(tmp_path / "b", {key: tuple(1.01 * value for value in means) for key, means in MAIN.items()})
    text, *_ = compared(runs[0], b, tmp_path)
    assert "differ in 14 of 15 results: the evaluation is not the same in both runs" in text


def test_a_folder_that_cannot_be_compared_is_one_error(runs, tmp_path):
    a, b = changed(runs, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun/results/shards").mkdir(parents=True)
    table = b / "results/probes/voc.json"
    write_json(table, json.loads(table.read_text()) | {"schema_version": 2})
    for folder, message in {
        tmp_path / "nowhere": "nowhere: no such folder; give the folder of a run, or its results folder",
        tmp_path / "empty": "empty: no run, since neither it nor results/ in it has any of probes, ",
        tmp_path
        / "begun": "no result of the same benchmark, head, model and seed is in both; B has no results yet of: ",
        b: "voc.json: schema_version is wrong (Input should be 1); it may be of another version of cliptex",
    }.items():
        with pytest.raises(CliptexError) as error:
            compare_runs(a, folder, tmp_path / "compare.html")
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "compare.html").exists()


@pytest.mark.browser
@SIZES
@SCHEMES
def test_the_page_can_be_read_by_everyone(runs, tmp_path, visits, size, scheme):
    named = shutil.copytree(runs[1], tmp_path / ("a_name_without_spaces_" * 8))
    report = named / "results/report.html"
    report.write_text(report.read_text().replace("Did it", "Did" + "it" * 60))
    compare_runs(runs[0], named, tmp_path / "compare.html")
    page = visits.open((tmp_path / "compare.html").as_uri(), size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == size["viewport"]["width"]
    assert scrolling(page) == []
    assert violations(page) == []

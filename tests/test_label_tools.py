"""Export, contact sheet, statistics, plan and the commands; label stores in other people's programs."""

import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Brightness, drawn_pair
from PIL import Image, ImageDraw
from typer.testing import CliRunner
from web_server import WebServer

from cliptex.cli import app
from cliptex.cluster.plan import make_plan
from cliptex.cluster.plan_text import shown
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.core.plugins import find
from cliptex.data.images import decode_image, has_orientation
from cliptex.data.shard_index import read_index, read_indexed
from cliptex.data.shards import write_shard
from cliptex.labels.export import _members, export_labels, upright_file
from cliptex.labels.inspect import _spread, contact_sheet, statistics
from cliptex.labels.store import LabelFile
from cliptex.models.inference import read_image
from cliptex.tasks.contact_sheet import draw_sheet, fitted, message

TASKS = ("segmentation", "depth", "normals")
FAILED = "000010003"  # conftest's experts fail on it


def decoded(store):
    """Key -> label, or None, of all shards."""
    labels = {}
    for path in sorted(paths.labels(store).glob("[0-9]*.parquet")):
        file = LabelFile(path, find("tasks", store)())
        labels |= {key: file.label(row) for row, key in enumerate(file.keys)}
    return labels


def export(config, out, stores=TASKS, **options):
    return export_labels(config, list(stores), paths.SHARD_INDEX, paths.LABELS, out, **options)


def samples(out):
    """What plain webdataset makes of the tars; its own decoder of images would make RGB of every PNG."""
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, out.glob("*.tar")))
    png = webdataset.handle_extension("png", lambda data: np.asarray(Image.open(io.BytesIO(data))))
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode(png, "pil"))


# ---- export


def test_plain_webdataset_reads_the_export_back_in_order_with_images_and_captions(tiny, tmp_path):
    record = export(tiny, tmp_path / "out")
    pairs = [pair for entry in read_index(paths.SHARD_INDEX)["shards"] for pair in read_indexed(entry)]
    found = samples(tmp_path / "out")
    assert [one["__key__"] for one in found] == [pair.key for pair in pairs]
    for one, pair in zip(found, pairs, strict=True):
        assert one["txt"] == pair.caption
        np.testing.assert_array_equal(np.asarray(one["jpg"]), np.asarray(Image.open(io.BytesIO(pair.image))))
    assert [file["sha256"] for file in record["files"]] == [
        sha256_file(tmp_path / "out" / file["file"]) for file in record["files"]
    ]


def test_png_members_hold_what_labels_json_says(tiny, tmp_path):
    record = export(tiny, tmp_path / "out")
    labels = {store: decoded(store) for store in TASKS}
    assert "depth = low + (value - 1) / 65534 * (high - low)" in record["stores"]["depth"]["format"]
    for one in samples(tmp_path / "out"):
        about = one["json"]["labels"]
        if one["__key__"] == FAILED:
            assert not [name for name in one if name.endswith(".png")]
            assert about["depth"] == {"error": "expert failed: ValueError: fails on purpose"}
            continue
        truth = {store: labels[store][one["__key__"]] for store in TASKS}
        np.testing.assert_array_equal(one["segmentation.png"], truth["segmentation"])
        low, high = about["depth"]["low"], about["depth"]["high"]
        depth = low + (one["depth.png"].astype(float) - 1) / 65534 * (high - low)
        np.testing.assert_allclose(depth, truth["depth"], atol=(high - low) / 65534)
        codes = one["normals.png"].astype(float)
        np.testing.assert_allclose(codes[..., :3] / 127.5 - 1, truth["normals"][..., :3], atol=1 / 255 + 1e-6)
        kappa = 0.01 * 1e6 ** ((codes[..., 3] - 1) / 254)
        np.testing.assert_allclose(kappa, truth["normals"][..., 3], rtol=0.03)


def test_invalid_pixels_are_zero_in_the_pngs(tiny):
    from cliptex.labels.export import depth_png, normals_png

    depth = np.array([[np.nan, 1, 3]], np.float32)
    data, about = depth_png(depth)
    assert about == {"low": 1.0, "high": 3.0}
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [[0, 1, 65535]]
    flat, _ = depth_png(np.full((1, 2), 7, np.float32))
    assert np.asarray(Image.open(io.BytesIO(flat))).tolist() == [[1, 1]]
    normals = np.array([[[np.nan] * 4, [0, 0, 1, 10]]], np.float32)
    assert np.asarray(Image.open(io.BytesIO(normals_png(normals)[0])))[0, 0].tolist() == [0, 0, 0, 0]


def test_npy_members_are_exactly_what_the_store_decodes(tiny, tmp_path):
    export(tiny, tmp_path / "out", form="npy", stores=["depth", "normals"])
    labels = {store: decoded(store) for store in ("depth", "normals")}
    for one in samples(tmp_path / "out"):
        assert "segmentation.npy" not in one
        if one["__key__"] != FAILED:
            for store, truth in labels.items():
                np.testing.assert_array_equal(one[f"{store}.npy"], truth[one["__key__"]])


def test_an_export_without_images_has_neither_images_nor_captions(tiny, tmp_path):
    record = export(tiny, tmp_path / "out", images=False, shards=range(1, 2))
    assert [file["file"] for file in record["files"]] == ["00001.tar"]
    assert record["stores"]["depth"]["licence"] == "Apache-2.0"
    for one in samples(tmp_path / "out"):
        assert not {"jpg", "txt"} & set(one)
        assert set(one["json"]) == {"labels"}


def test_the_same_stores_export_to_the_same_bytes(tiny, tmp_path):
    assert export(tiny, tmp_path / "a") == export(tiny, tmp_path / "b")


def test_an_export_of_what_is_not_there_is_refused_by_name(tiny, tmp_path):
    with pytest.raises(CliptexError, match="none of the requested shards"):
        export(tiny, tmp_path / "out", shards=range(7, 9))


ORIENTED = np.dstack([*np.meshgrid(np.arange(80) * 3, np.arange(48) * 5), np.full((48, 80), 90)]).astype(np.uint8)
ORIENTED[:12, :12] = 255  # a mark in the upper left corner
TURNED = {  # how a camera stores an image with this EXIF orientation
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


def photograph(kind, orientation):
    """`ORIENTED` as a file whose pixels are stored turned. kind: a format; PNG-late has the EXIF after the pixels."""
    exif, out, image = Image.Exif(), io.BytesIO(), Image.fromarray(ORIENTED)
    exif[0x0112] = orientation
    for turn in TURNED[orientation]:
        image = image.transpose(turn)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image.save(out, kind.partition("-")[0], exif=exif.tobytes(), **options)
    data = out.getvalue()
    if kind == "PNG-late":
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG-late", "WEBP"])
def test_photographs_are_upright_wherever_they_leave(kind, orientation):
    """For readers that apply the EXIF orientation and for those that do not."""
    data = photograph(kind, orientation)
    suffix, file = upright_file(data)
    plain = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    for pixels in (plain, decode_image(file), decode_image(data), read_image(Image.open(io.BytesIO(data)))):
        assert pixels.shape == ORIENTED.shape
        assert np.abs(pixels.astype(int) - ORIENTED).mean() < 3
    if orientation == 1:
        assert file == data
    else:
        assert suffix == ("jpg" if kind == "JPEG" else "png")
        assert not has_orientation(Image.open(io.BytesIO(file)))


def test_exported_photographs_and_labels_lie_alike(tiny, tmp_path):
    photographs = [photograph("JPEG", orientation) for orientation in TURNED]
    pairs = [replace(drawn_pair(f"{n}", n), image=data) for n, data in enumerate(photographs)]
    write_shard(paths.shard(0), pairs)
    for line in (
        "build-shards --batch 0",
        "index-shards",
        "label --store depth --batch 0",
        "index-labels --store depth",
    ):
        assert run(tiny, *line.split()).exit_code == 0
    export(tiny, tmp_path / "out", stores=["depth"], form="npy", shards=range(1))
    for one in samples(tmp_path / "out"):
        assert np.abs(np.asarray(one["jpg"]).mean(axis=-1) - one["depth.npy"]).mean() < 3, one["__key__"]
        assert one["depth.npy"][:10, :10].min() > 245


def test_no_key_leaves_the_folder_of_an_export():
    for key in ("../outside", "/outside", "a/../../b"):
        with pytest.raises(CliptexError, match=r"shard\.tar: key .* leaves the folder"):
            list(_members("shard.tar", [drawn_pair(key, 0)], {}, {}, True))


# ---- contact sheet


@pytest.mark.parametrize("text", ["a\nb\r\n\tc", "x" * 8000, "word " * 2000, "e\u0301" * 4000, "\ud83d\0\x1b[31m"])
def test_any_caption_takes_one_line_and_no_time(text, tmp_path, monkeypatch):
    measured = []
    usual = ImageDraw.ImageDraw.textlength
    monkeypatch.setattr(ImageDraw.ImageDraw, "textlength", lambda *a, **b: measured.append(a[1]) or usual(*a, **b))
    cell = fitted(ORIENTED, Image.Resampling.NEAREST)
    draw_sheet(["image"], [(text, [cell])], [], tmp_path / "sheet.png")
    assert message(text).size == Image.open(tmp_path / "sheet.png").crop((0, 0, 224, 224)).size
    assert sum(map(len, measured)) < 20_000


def test_the_contact_sheet_shows_each_label_in_its_tasks_colours(tiny, tmp_path):
    contact_sheet(tiny, list(TASKS), paths.SHARD_INDEX, paths.LABELS, tmp_path / "sheet.png", images=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    picture = find("tasks", "depth")().picture(next(iter(decoded("depth").values())))
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert colours <= {tuple(colour) for colour in sheet.reshape(-1, 3)}


def test_the_pictures_of_a_sheet_are_spread_evenly_over_shards():
    assert _spread([10, 10, 10], 4) == {0: [0], 1: [0, 9], 2: [9]}
    assert _spread([2, 1], 9) == {0: [0, 1], 1: [0]}


def test_statistics_name_origin_coverage_failures_and_classes(tiny):
    text = statistics(tiny, "segmentation", paths.LABELS)
    index = read_json(paths.labels("segmentation") / "index.json")
    assert "15 of 16 images labelled (93.8%)" in text
    assert "no label: expert failed: 1" in text
    share = index["statistics"]["classes"]["person"]["share"]
    assert f"person: {share:.2%} of the pixels" in text


# ---- commands


def run(tiny, *arguments):
    write_json("config.json", tiny.plain())
    return CliRunner().invoke(app, [*arguments, "--config", "config.json"], catch_exceptions=True)


def test_the_commands_work_on_a_finished_run(tiny):
    found = run(tiny, "labels", "inspect", "--images", "2", "--out", "sheet.png")
    assert "contact sheet: sheet.png" in found.output
    assert Image.open("sheet.png").width > 900
    assert "2 tars, 16 samples" in run(tiny, "labels", "export", "--out", "exported").output
    found = run(tiny, "labels", "publish", "--store", "depth", "--out", "set", "--shards", "0").output
    assert "set: 8 labels of 8 images, licence Apache-2.0" in found
    assert isinstance(run(tiny, "fetch-labels", "--store", "depth").exception, CliptexError)
    found = run(tiny, "labels", "audit", "--samples", "16", "--stores", "depth")
    assert found.exit_code == 0
    assert "depth: 16 of 16 images agree, 16 are byte-identical" in found.output
    assert isinstance(run(tiny, "labels", "audit", "--stores", "edges").exception, CliptexError)


HOSTILE = (
    "-rf",
    "$(touch pwned)`touch pwned`;|&",
    "<script>alert('x')<script>",
    "\x1b[2J\x1b]0;title\x07\r",
    "\\\\host\\out",
    "\u202etuo",
    "quotes'\" {shard} %s",
    "CON",
    "long" * 40,
    "folder/name",
)
"""Parts of keys that mean something to a shell, a page, a terminal, a file system or a template."""


def test_hostile_keys_and_captions_of_good_images_do_no_harm(tiny, tmp_path, monkeypatch):
    pairs = [drawn_pair(f"{number:04d}{part}", number) for number, part in enumerate(HOSTILE)]
    keys = [pair.key for pair in pairs]
    write_shard(paths.shard(0), [replace(pair, caption=f"{pair.key}/../x.y") for pair in pairs])
    plain = tiny.plain()
    for expert in plain["experts"].values():
        expert["network"]["fail"] = [keys[0]]
    config = Config.load(plain)
    before = {path.parent for path in tmp_path.rglob("*")}
    said = ""
    for line in (
        "build-shards --batch 0",
        "index-shards",
        *(f"{command} --store {store}" for store in TASKS for command in ("label --batch 0", "index-labels")),
        "labels inspect --images 16 --out sheet.png",
        "labels audit --samples 16",
        "labels export --out exported",
    ):
        found = run(config, *line.split())
        assert found.exit_code == 0, (line, found.exception)
        said += found.output
    usual = Brightness.label
    monkeypatch.setattr(Brightness, "label", lambda self, image, key: usual(self, 255 - image, key))
    said += run(config, "labels", "audit", "--samples", "18").output
    assert "key 0003\\x1b[2J" in said and "key 0005\\u202etuo: " in said
    assert not re.search("[\x1b\x07\r\u202e]", said)
    assert decoded("depth")[keys[1]] is not None and decoded("depth")[keys[0]] is None
    with tarfile.open("exported/00000.tar") as tar:
        # as unpackers do that trust a tar; older Pythons have no others
        tar.extractall("unpacked", **({"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = [path.relative_to("unpacked").as_posix() for path in Path("unpacked").rglob("*") if path.is_file()]
    assert {name.partition(".")[0] for name in unpacked} == set(keys)
    after = {path.parent for path in tmp_path.rglob("*")}
    assert after - before == {tmp_path / name for name in ("exported", "unpacked", "unpacked/0009folder")}
    assert not list(tmp_path.rglob("pwned"))


def test_the_audit_command_fails_where_labels_cannot_be_made_again(tiny, monkeypatch):
    usual = Brightness.label
    monkeypatch.setattr(Brightness, "label", lambda self, image, key: usual(self, 255 - image, key))
    found = run(tiny, "labels", "audit", "--samples", "4", "--stores", "depth,normals")
    assert found.exit_code == 1
    assert "DIFFER shard" in found.output
    said = str(found.exception)
    assert "results/labels/depth: 3 of 4 labels cannot be reproduced; results/labels/normals: 3 of 4" in said
    assert "compare the images" in said and "rm " not in said


# ---- plan


def planned(tmp_path, monkeypatch, measure=True, **sections):
    monkeypatch.chdir(tmp_path)
    config = {
        "dataset": {"source": "webdataset", "shards": [f"data/{number:05d}.tar" for number in range(25)]},
        "experts": {"bright": {"plugin": "conftest:Brightness", "network": {"task": "depth"}}},
        "label_stores": {"depth": {"task": "depth", "expert": "bright"}},
    }
    return make_plan(Config.load(config | sections), measure)


def test_a_plan_before_anything_is_there_says_what_cannot_be_known(tmp_path, monkeypatch):
    plan = planned(tmp_path, monkeypatch)
    assert (plan["images"]["shards"], plan["images"]["number"], plan["images"]["bytes"]) == (25, None, None)
    depth = plan["stores"]["depth"]
    assert depth["jobs"] == 3
    assert depth["images_a_second"] > 0
    assert "now" in depth["seconds_from"]
    assert depth["seconds"] is None
    assert "? hours" in shown(plan)


def test_a_plan_extrapolates_from_the_shards_that_are_there(tmp_path, monkeypatch):
    write_shard(tmp_path / "data/00007.tar", [drawn_pair(f"{number:09d}", number) for number in range(8)])
    plan = planned(tmp_path, monkeypatch)
    images, size = plan["images"], (tmp_path / "data/00007.tar").stat().st_size
    assert (images["number"], images["number_from"]) == (200, "25 shards with as many images as data/00007.tar")
    assert (images["bytes"], images["bytes_from"]) == (25 * size, "1 existing shards of 25")
    assert plan["stores"]["depth"]["seconds"] > 0
    assert "4 images of 40 x 56" in plan["stores"]["depth"]["seconds_from"]


def test_a_plan_looks_at_the_beginning_of_a_few_tars_on_the_web(tmp_path, monkeypatch):
    monkeypatch.setattr("cliptex.cluster.plan.START_BYTES", 100_000)
    write_shard(tmp_path / "40.tar", [drawn_pair(f"{number:09d}", number, 400, 400) for number in range(40)])
    tar = (tmp_path / "40.tar").read_bytes()
    assert len(tar) > 250_000
    with WebServer() as server:
        server.files = {f"/{number:05d}.tar": tar for number in range(25)}
        source = {"source": "webdataset", "shards": [server.url + "/{00000..00024}.tar"]}
        images = planned(tmp_path, monkeypatch, measure=False, dataset=source)["images"]
        assert (images["number"], images["bytes"], images["bytes_from"]) == (
            None,
            None,
            "remote tars, not measured",
        )
        assert not server.requests

        found = planned(tmp_path, monkeypatch, dataset=source)
        images = found["images"]
        assert server.requests == {"/00000.tar": 1, "/00009.tar": 1, "/00018.tar": 1}
        assert (images["bytes"], images["bytes_from"]) == (25 * len(tar), "3 of 25 shards, by their servers now")
        assert images["number"] == pytest.approx(25 * 40, rel=0.1)
        assert re.fullmatch(r"[\d.]+ kB per sample at the beginning of these shards", images["number_from"])
        assert found["stores"]["depth"]["seconds"] > 0 and not re.search(r"\?", shown(found))

        del server.files["/00009.tar"]
        images = planned(tmp_path, monkeypatch, dataset=source)["images"]
        assert images["bytes"] is None
        assert images["bytes_from"].startswith(f"unknown: dataset.shards: {server.url}/00009.tar cannot be read (HTTP")


def test_what_is_no_tar_has_a_size_but_no_number(tmp_path, monkeypatch):
    with WebServer() as server:
        server.files = {"/a.tar": b"\x1f\x8b no plain tar"}
        source = {"source": "webdataset", "shards": [f"{server.url}/a.tar"]}
        images = planned(tmp_path, monkeypatch, dataset=source)["images"]
    assert (images["bytes"], images["number"]) == (15, None)


def test_a_plan_of_a_list_of_urls_knows_all_before_any_job(tmp_path, monkeypatch):
    urls = {"files": ["cc3m.tsv"], "rows": 3318333, "size_px": 256}
    plan = planned(tmp_path, monkeypatch, dataset={"source": "urls", "urls": urls})
    assert (plan["images"]["shards"], plan["images"]["number"]) == (332, 3318333)
    assert plan["images"]["bytes"] == pytest.approx(3318333 * 256 * 341 * 0.28, rel=1e-6)
    assert plan["stores"]["depth"]["bytes"] == pytest.approx(3318333 * 256 * 192 * 9849 / 224**2, rel=1e-3)
    assert not re.search(r"\?", shown(plan))


def test_a_plan_of_rendered_pairs_multiplies_out(tmp_path, monkeypatch):
    sections = {"dataset": {"source": "miniature"}, "miniature": {"pairs": 3000, "image_size_px": 112}}
    plan = planned(tmp_path, monkeypatch, **sections)
    depth = plan["stores"]["depth"]
    assert plan["images"]["number"] == 3000
    assert depth["seconds"] == pytest.approx(3000 / depth["images_a_second"])
    assert depth["bytes"] == pytest.approx(3000 * 9849 / 4, rel=0.01)


def test_a_plan_prefers_what_finished_jobs_took(tiny):
    depth = make_plan(tiny, measure=False)["stores"]["depth"]
    record = read_json(paths.labels("depth") / "batch-000.json")
    assert depth["images_a_second"] == pytest.approx(record["images_per_second"])
    assert depth["bytes"] == pytest.approx(record["bytes_per_image"] * 16, rel=0.01)
    assert depth["seconds_from"] == depth["bytes_from"] == "1 finished jobs"


def test_a_plan_measures_the_expert_itself_where_it_is_there(tiny):
    for path in paths.labels("depth").glob("batch-*.json"):
        path.unlink()
    assert make_plan(tiny)["stores"]["depth"]["seconds_from"].startswith("expert, 4 images of 40 x 56")


def test_an_expert_that_cannot_be_run_untrained_has_no_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(Brightness, "load", lambda self, weights: 1 / 0)
    depth = planned(tmp_path, monkeypatch)["stores"]["depth"]
    assert depth["images_a_second"] is None
    assert depth["seconds_from"].startswith("cannot be measured without weights (ZeroDivisionError")


# ---- other people's programs


def test_duckdb_reads_a_store_and_its_payloads_decode(tiny):
    duckdb = pytest.importorskip("duckdb")
    files = f"{paths.labels('depth')}/[0-9]*.parquet"
    rows = duckdb.sql(f"SELECT key, height, width, payload, error FROM '{files}' ORDER BY key").fetchall()
    labels = decoded("depth")
    assert [row[0] for row in rows] == list(labels)
    for key, height, width, payload, error in rows:
        if key == FAILED:
            assert (payload, error) == (None, "expert failed: ValueError: fails on purpose")
        else:
            np.testing.assert_array_equal(find("tasks", "depth")().decode(payload, height, width), labels[key])
    metadata = duckdb.sql(
        f"SELECT DISTINCT decode(value) FROM parquet_kv_metadata('{files}') WHERE decode(key) = 'cliptex'"
    ).fetchall()
    assert {json.loads(value)["task"] for (value,) in metadata} == {"depth"}


def test_polars_reads_a_store_and_its_payloads_decode(tiny):
    polars = pytest.importorskip("polars")
    frame = polars.scan_parquet(f"{paths.labels('normals')}/[0-9]*.parquet").collect()
    labels = decoded("normals")
    assert frame["key"].to_list() == list(labels)
    good = frame.filter(polars.col("error").is_null())
    assert good.height == 15
    row = good.row(3, named=True)
    decode = find("tasks", "normals")().decode
    np.testing.assert_array_equal(decode(row["payload"], row["height"], row["width"]), labels[row["key"]])


def test_pandas_reads_a_store_and_its_payloads_decode(tiny):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(paths.labels("segmentation") / "00001.parquet").set_index("key")
    row = frame.loc["000010001"]
    label = find("tasks", "segmentation")().decode(row.payload, int(row.height), int(row.width))
    np.testing.assert_array_equal(label, decoded("segmentation")["000010001"])


def test_datasets_reads_a_store_and_its_payloads_decode(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, paths.labels("depth").glob("[0-9]*.parquet")))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    labels = decoded("depth")
    assert rows["key"][:] == list(labels)
    row = rows[5]
    label = find("tasks", "depth")().decode(row["payload"], row["height"], row["width"])
    np.testing.assert_array_equal(label, labels[row["key"]])


def test_the_recipes_in_the_documentation_run(tiny):
    """Each Python block of docs/labels.md that reads a store, as it stands there."""
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs/labels.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 4
    for block in blocks:
        for library in ("duckdb", "polars", "pandas", "datasets", "webdataset"):
            if f"import {library}" in block:
                pytest.importorskip(library)
        if "exported/" in block:
            run(tiny, "labels", "export", "--out", "exported")
        exec(compile(block, "docs/labels.md", "exec"), {})

"""Unusual image files of the web, from the shard to the label: labelled correctly, or counted as dropped."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SMALL
from PIL import Image
from test_images import BLUE, GOOD, GREEN, RED, TURNS, WHITE, encoded, png, quarters
from tiny import WeightlessExpert

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.plugins import find
from cliptex.data.download import build_shards, built_shards
from cliptex.data.images import encode_jpeg, encode_png
from cliptex.data.shard_index import write_index
from cliptex.experts.training import train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.labels.store import LabelFile

pytestmark = pytest.mark.xdist_group("web_images")

SHADES = (25, 90, 160, 225)
COLOURS = np.array([RED, GREEN, BLUE, WHITE, *((shade,) * 3 for shade in SHADES)], float)
COLOURED, GREYS, THROUGH_GREEN = (1, 2, 3, 4), (5, 6, 7, 8), (1, 4, 3, 4)
"""Classes of the quarters: top left, top right, bottom left, bottom right. Transparent pixels are white."""


class Colours(WeightlessExpert):
    """A pixel's class is the nearest of eight colours."""

    task = "segmentation"

    def predict(self, images, keys):
        return [(np.square(image[..., None, :] - COLOURS).sum(-1).argmin(-1) + 1).astype(np.uint8) for image in images]


def grey_quarters(bits: int = 8) -> np.ndarray:
    rows = np.kron(np.reshape(SHADES, (2, 2)), np.ones((16, 24)))
    return (rows * 257).astype(np.uint16) if bits == 16 else rows.astype(np.uint8)


def turned(kind: str, orientation: int) -> bytes:
    image = quarters()
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image.transpose(TURNS[orientation]), kind, exif=exif, quality=95, subsampling=0)


def palette_with_transparency() -> bytes:
    image = quarters().quantize(4)
    return encoded(image, "PNG", transparency=image.getpixel((40, 4)))


def animation(kind: str, **options) -> bytes:
    others = [Image.new("RGB", (48, 32), "black")] * 2
    return encoded(quarters(), kind, save_all=True, append_images=others, duration=50, **options)


def deep_colour() -> bytes:
    rows = (np.asarray(quarters()).astype(np.uint16) * 257).astype(">u2")
    return png(48, 32, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


JPEG = encode_jpeg(np.asarray(quarters()))
FILES: dict[str, tuple[bytes, tuple[int, ...] | str]] = {
    "plain.png": (encoded(quarters(), "PNG"), COLOURED),
    "truncated.jpg": (GOOD[: len(GOOD) // 2], "truncated or corrupt"),
    "a PNG called.jpg": (encoded(quarters(), "PNG"), COLOURED),
    "a JPEG called.png": (JPEG, COLOURED),
    "a WebP called.gif": (encoded(quarters(), "WEBP", lossless=True), COLOURED),
    "cmyk.jpg": (encoded(quarters().convert("CMYK"), "JPEG", quality=95), COLOURED),
    "palette with transparency.png": (palette_with_transparency(), THROUGH_GREEN),
    "16-bit grey.png": (encode_png(grey_quarters(16)), GREYS),
    "16-bit colour.png": (deep_colour(), COLOURED),
    "grey.jpg": (encoded(Image.fromarray(grey_quarters()), "JPEG", quality=95), GREYS),
    **{f"turned {number}.jpg": (turned("JPEG", number), COLOURED) for number in (3, 6, 8)},
    "turned 6.png": (turned("PNG", 6), COLOURED),
    "animated.gif": (animation("GIF"), COLOURED),
    "animated.webp": (animation("WEBP", lossless=True), COLOURED),
    "one pixel.gif": (encoded(Image.new("RGB", (1, 1)), "GIF"), "too small"),
    "a strip.png": (encoded(quarters(12000, 100), "PNG"), COLOURED),
    "nothing.jpg": (b"", "no bytes"),
}
KEYS = {f"{number:09d}": name for number, name in enumerate(FILES)}
SAME_PIXELS = ("a PNG called.jpg", "a WebP called.gif", "16-bit colour.png", "turned 6.png", "animated.gif")
"""Bit-identical to plain.png."""


def config(source: str, expert: dict) -> Config:
    """From existing tars, or from a downloaded URL list."""
    urls = {"files": ["list.tsv"], "rows": len(FILES), "rows_per_shard": len(FILES), "min_side_px": 16, "size_px": 64}
    of_source = {"webdataset": {"shards": ["odd.tar"]}, "urls": {"urls": urls}}[source]
    return Config.load(
        {
            "dataset": {"source": source, "min_yield": 0.5, "max_repeats": 20, **of_source},
            "experts": {"odd": expert},
            "label_stores": {"s": {"task": find("experts", expert["plugin"]).task, "expert": "odd"}},
        }
    )


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar() -> None:
    with tarfile.open("odd.tar", "w") as tar:
        for key, name in KEYS.items():
            add(tar, key + Path(name).suffix, FILES[name][0])
            add(tar, f"{key}.txt", name.encode())


def write_downloads() -> None:
    """In img2dataset's format, all named .jpg."""
    folder, rows = Path("resources/pairs/batch-000/raw"), []
    folder.mkdir(parents=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, (key, name) in enumerate(KEYS.items()):
            add(tar, f"{key}.jpg", FILES[name][0])
            row = {"row": number, "key": key, "caption": name, "url": f"http://a/{number}", "status": "success"}
            rows.append(row | {"error_message": None, "sha256": hashlib.sha256(FILES[name][0]).hexdigest()})
    types = {name: pa.int64() if name == "row" else pa.string() for name in rows[0]}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), folder / "00000.parquet")
    item = {"shard": "00000", "rows": len(rows), "fingerprint": "f", "part": 0}
    Path("resources/pairs/batch-000.json").write_text(json.dumps({"folder": str(folder), "shards": [item]}))


def labels_of(settings: Config) -> tuple[dict, dict[str, np.ndarray]]:
    """The shard index, and the label of each key."""
    {"webdataset": write_tar, "urls": write_downloads}[settings.dataset.source]()
    build_shards(settings, 0)
    index = write_index(built_shards(1), paths.SHARD_INDEX, settings.dataset.min_yield, settings.dataset.max_repeats)
    folder, out = paths.expert("odd"), paths.labels("s")
    train_expert(settings, "odd", paths.EXPERT_RENDERS, folder, 0)
    label_batch(settings, "s", 0, paths.SHARD_INDEX, folder, out)
    assert index_labels(settings, "s", paths.SHARD_INDEX, out)["failures"] == {}
    file = LabelFile(out / "00000.parquet", find("tasks", settings.label_stores["s"].task)())
    return index, {key: file.label(row) for row, key in enumerate(file.keys)}


@pytest.mark.parametrize("source", ["webdataset", "urls"])
def test_odd_files_are_labelled_rightly_or_counted_under_a_reason(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index, labels = labels_of(config(source, {"plugin": "test_web_images:Colours", "batch_size": 4}))
    expected = {key: FILES[name][1] for key, name in KEYS.items()}
    if source == "urls":  # a strip is not kept from the web
        expected |= {key: "too elongated" for key, name in KEYS.items() if name == "a strip.png"}
    assert dict(index["shards"][0]["dropped"]) == {key: why for key, why in expected.items() if isinstance(why, str)}
    assert set(labels) == {key for key, why in expected.items() if not isinstance(why, str)}
    for key, label in labels.items():
        height, width = (2, 256) if KEYS[key] == "a strip.png" else (32, 48)
        assert label.shape == (height, width), KEYS[key]
        rows, columns = (np.array_split(np.arange(side), 2) for side in (height, width))
        # JPEG mixes colours at the edges of the quarters
        inside = [np.ix_(row[4:-4] if height > 2 else row, column[4:-4]) for row in rows for column in columns]
        found = [np.unique(label[part]).tolist() for part in inside]
        assert found == [[number] for number in expected[key]], KEYS[key]


@pytest.mark.parametrize("name", SMALL)
def test_networks_label_odd_files_as_they_label_plain_ones(name, tmp_path, monkeypatch):
    """Files with the same pixels have bit-identical labels."""
    monkeypatch.chdir(tmp_path)
    network = SMALL[name]
    if name == "mask_rcnn":  # untrained, it is sure of nothing; the long side is that of the published
        network = network | {"score_threshold": 0.012, "max_side_px": 1333}
    _, labels = labels_of(config("webdataset", {"plugin": name, "weights": "random", "network": network}))
    assert set(labels) == {key for key, name in KEYS.items() if not isinstance(FILES[name][1], str)}
    plain = labels["000000000"]
    assert len(np.unique(plain)) > 1
    by_name = {KEYS[key]: label for key, label in labels.items()}
    for same in SAME_PIXELS:
        np.testing.assert_array_equal(by_name[same], plain, err_msg=same)
    assert by_name["a strip.png"].shape[:2] == (2, 256)
    assert by_name["grey.jpg"].shape == plain.shape

"""The readers of external files. Each function writes valid files into a folder and returns a `Reader` of them."""

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import more_layouts
import numpy as np
import official_layouts as layouts

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json

ROOT = Path(__file__).parents[2]


class Reader(NamedTuple):
    """files: those that are damaged, one at a time. read: reads them all; may raise `CliptexError`."""

    files: list[Path]
    read: Callable[[], object]
    also: tuple[type[BaseException], ...] = ()
    """Errors that are part of the interface of `read`, besides `CliptexError`."""


READERS: dict[str, Callable[[Path], Reader]] = {}


def reader(function: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
    READERS[function.__name__] = function
    return function


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- configuration


@reader
def configuration(folder: Path) -> Reader:
    (folder / "a.yaml").write_text((ROOT / "config" / "test.yaml").read_text())
    (folder / "b.json").write_text(json.dumps({"seeds": [0, 1], "models": {"clip": {"steps": 3}}, "report": {}}))

    def read():
        Config.from_files([folder / "a.yaml", folder / "b.json"], default=ROOT / "config" / "config.yaml")
        Config.load(folder / "a.yaml")

    return Reader(files_in(folder), read)


@reader
def protocol(folder: Path) -> Reader:
    from cliptex.evaluation.protocols.resolve import resolve

    shutil.copyfile(ROOT / "config/protocols/probe3d.yaml", folder / "mine.yaml")
    shutil.copyfile(ROOT / "config/protocols/paper.yaml", folder / "other.yaml")

    def read():
        for benchmark in ("voc", "nyuv2", "coco", "imagenet"):
            for name in ("mine", "other"):
                with contextlib.suppress(CliptexError):
                    resolve(benchmark, {"protocol": name}, [folder])

    return Reader(files_in(folder), read)


@reader
def profile_of_the_cluster(folder: Path) -> Reader:
    from cliptex.cluster.doctor import Submission

    (folder / "config.yaml").write_text("executor: slurm\ndefault-resources:\n  slurm_account: lab\n  runtime: 30\n")
    return Reader(files_in(folder), lambda: Submission.of_profile(folder))


@reader
def records_of_the_doctor(folder: Path) -> Reader:
    from cliptex.cluster.doctor import RECORD, table
    from cliptex.core.files import read_checked

    checks = [{"name": "python", "status": "ok", "found": "3.11", "remedy": ""}]
    write_json(folder / "gpu.json", {"kind": "gpu", "host": "a", "ok": True, "checks": checks})
    return Reader(files_in(folder), lambda: table([read_checked(folder / "gpu.json", RECORD)]))


@reader
def table_of_archives(folder: Path) -> Reader:
    from cliptex.data.official.archives import archives

    text = (ROOT / "cliptex/benchmarks/archives.tsv").read_text().splitlines()
    (folder / "mine.tsv").write_text("\n".join(text[:6]) + "\n")
    return Reader(files_in(folder), lambda: archives("voc", "train", str(folder / "mine.tsv")))


# ---- pairs


def pictures() -> dict[str, bytes]:
    from PIL import Image

    from cliptex.data.images import decodable

    decodable()
    rng = np.random.default_rng(1)
    colours = Image.fromarray(np.kron(rng.integers(0, 255, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)))
    depth = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    exif = Image.Exif()
    exif[0x112], exif[0x9286] = 6, "words"
    kinds = {
        "plain.jpg": (colours, {"format": "JPEG", "exif": exif}),
        "scans.jpg": (colours, {"format": "JPEG", "progressive": True}),
        "cmyk.jpg": (colours.convert("CMYK"), {"format": "JPEG"}),
        "plain.png": (colours, {"format": "PNG", "exif": exif}),
        "palette.png": (colours.convert("P"), {"format": "PNG", "transparency": 3}),
        "deep.png": (depth, {"format": "PNG"}),
        "lossy.webp": (colours, {"format": "WEBP", "exif": exif}),
        "moving.webp": (colours, {"format": "WEBP", "save_all": True, "append_images": [colours.rotate(9)]}),
        "moving.gif": (colours, {"format": "GIF", "save_all": True, "append_images": [colours.rotate(9)]}),
        "plain.bmp": (colours, {"format": "BMP"}),
        "plain.tif": (colours, {"format": "TIFF", "compression": "tiff_lzw"}),
        "jpeg.tif": (colours, {"format": "TIFF", "compression": "jpeg"}),
        "plain.ppm": (colours, {"format": "PPM"}),
        "plain.jp2": (colours, {"format": "JPEG2000"}),
        "plain.avif": (colours, {"format": "AVIF"}),
        "plain.heic": (colours, {"format": "HEIF"}),
        "plain.jxl": (colours, {"format": "JXL"}),
    }
    out = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        with contextlib.suppress(KeyError, OSError, ValueError):  # a format that this Pillow cannot write
            image.save(file, **options)
            out[name] = file.getvalue()
    return out


@reader
def images(folder: Path) -> Reader:
    from cliptex.data.images import BadImage, open_image

    for name, data in pictures().items():
        (folder / name).write_bytes(data)
    paths = files_in(folder)

    def read():
        for path in paths:
            if path.is_file() and path.read_bytes() != whole[path]:
                open_image(path.read_bytes())

    whole = {path: path.read_bytes() for path in paths}
    return Reader(paths, read, (BadImage,))


def pairs() -> list:
    from conftest import drawn_pair

    return [drawn_pair(f"{number:09d}", number, 8, 8) for number in range(3)]


def foreign_tar(path: Path, mode: str = "w") -> None:
    """A tar as other programs write it: folders, captions in JSON, other formats, hidden files."""
    members = {"./": None, "a/.hidden": b"", "a/1.txt": "café".encode(), "a/1.cls": b"3"}
    for number, (name, data) in enumerate(list(pictures().items())[:6]):
        members[f"a/{number}.{name.partition('.')[2]}"] = data
        members[f"a/{number}.json"] = json.dumps({"caption": f"number {number}", "width": 32, "url": None}).encode()
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if members[name] is None else tarfile.REGTYPE
            info.size = len(members[name] or b"")
            info.pax_headers = {"comment": "x"}
            tar.addfile(info, io.BytesIO(members[name] or b""))


def read_tar(path: Path) -> None:
    from cliptex.data.sample_reader import ShardOffsets
    from cliptex.data.shard_index import describe_shard, read_indexed, verify_shard
    from cliptex.data.shards import read_shard

    read_shard(path)
    rows = verify_shard(path)
    found = list(zip(*(rows[name].to_pylist() for name in ("key", "status")), strict=True))
    keys = [key for key, status in found if status == "ok"]
    if keys:
        entry = {
            **describe_shard(0, path),
            "keys": keys,
            "dropped": {k: status for k, status in found if status != "ok"},
        }
        assert ShardOffsets(entry).at(0).read().image
        read_indexed(entry)


@reader
def shard(folder: Path) -> Reader:
    from cliptex.data.shards import write_shard

    write_shard(folder / "00000.tar", pairs())
    return Reader(files_in(folder), lambda: read_tar(folder / "00000.tar"))


@reader
def foreign_shard(folder: Path) -> Reader:
    foreign_tar(folder / "a.tar")
    return Reader(files_in(folder), lambda: read_tar(folder / "a.tar"))


@reader
def compressed_shard(folder: Path) -> Reader:
    from cliptex.data.foreign import decompress

    for kind in ("gz", "bz2", "xz"):
        foreign_tar(folder / f"a.tar.{kind}", f"w:{kind}")
    paths = files_in(folder)
    whole = {path: path.read_bytes() for path in paths}

    def read():
        for path in paths:
            if path.is_file() and path.read_bytes() != whole[path]:
                decompress(path, folder / "out" / "a.tar")
                read_tar(folder / "out" / "a.tar")

    return Reader(paths, read)


@reader
def shard_index(folder: Path) -> Reader:
    from cliptex.data import shard_index as module
    from cliptex.data.sample_reader import ShardOffsets
    from cliptex.data.shards import write_shard

    shards = [folder / "00000.tar"]
    write_shard(shards[0], pairs())
    module.index_shards(shards, folder / "index.json", min_yield=0.5)
    files = [path for path in files_in(folder) if path.suffix != ".tar"]

    def read():
        entries = module.read_index(folder / "index.json")["shards"]
        for entry in entries:
            module.read_indexed(entry)
            ShardOffsets(entry).at(0).read()
        for path in folder.glob("*.parquet"):
            module.read_shard_table(path)

    return Reader(files, read)


@reader
def captions(folder: Path) -> Reader:
    from cliptex.evaluation.captioned_images import open_captioned_images

    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, pair in enumerate(pairs()):
            for suffix, data in (("jpg", pair.image), ("txt", f"a {number}\r\nb\u2028c\n".encode())):
                info = tarfile.TarInfo(f"{pair.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    config = Config.load({"zeroshot": {"retrieval": {"mine": {"shards": [str(folder / "a.tar")]}}}})
    return Reader(files_in(folder), lambda: list(open_captioned_images(config, "mine").items))


@reader
def url_lists(folder: Path) -> Reader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cliptex.data import img2dataset_job as job

    rows = [(f"http://a.example/{number}.jpg", f'a "caption" {number}') for number in range(6)]
    (folder / "a.tsv").write_text("".join(f"{caption}\t{url}\n" for url, caption in rows))
    (folder / "b.csv").write_text(
        "url,caption\n" + "".join(f'{url},"{number}, x"\n' for number, (url, _) in enumerate(rows))
    )
    with gzip.open(folder / "d.csv.gz", "wt") as file:
        file.write((folder / "b.csv").read_text())
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [c for _, c in rows]}), folder / "c.parquet")

    def read():
        for name in ("a.tsv", "b.csv", "c.parquet", "d.csv.gz"):
            columns = ["caption", "url"] if name == "a.tsv" else []
            urls = {
                "files": [str(folder / name)], "columns": columns, "url_column": "url", "caption_column": "caption",
                "sha256_column": None,
            }  # fmt: skip
            with said():
                job.read_rows(urls, 1, 4)

    return Reader(files_in(folder), read)


@contextlib.contextmanager
def said():
    """The job of img2dataset, which runs alone, ends with one line."""
    try:
        yield
    except SystemExit as error:
        assert str(error.code).count("\n") == 0, error.code
        raise CliptexError(str(error.code)) from error


@reader
def output_of_img2dataset(folder: Path) -> Reader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cliptex.data import download, img2dataset_job

    rows = []
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, pair in enumerate(pairs()):
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = len(pair.image)
            tar.addfile(info, io.BytesIO(pair.image))
            row = {"row": number, "key": f"{number:09d}", "status": "success", "error_message": None, "sha256": "0"}
            rows.append(row | {"url": f"http://a/{number}", "caption": pair.caption})
    rows.append(rows[-1] | {"row": 3, "key": "000000003", "status": "failed_to_download", "error_message": "HTTP 404"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 3, "status_dict": {"success": 3}}))
    write_json(folder / "batch.json", {"folder": str(folder), "shards": [{"shard": "00000", "part": 0, "rows": 4}]})
    urls = Config.load({"dataset": {"urls": {"files": ["a.tsv"], "rows": 4}}}).dataset.urls

    def read():
        img2dataset_job.is_complete(folder, 0, 4)
        item = {"shard": "00000", "part": 0, "rows": 4, "folder": folder}
        list(download._pairs(urls, item, [], 1))

    return Reader([path for path in files_in(folder) if path.name != "batch.json"], read)


@reader
def answers_of_servers(folder: Path) -> Reader:
    from web_server import RawServer

    from cliptex.data import web

    body = b"x" * 300
    answers = {
        "whole": b'HTTP/1.1 200 OK\r\nContent-Length: 300\r\nETag: "a"\r\nContent-Type: image/jpeg\r\n\r\n' + body,
        "part": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-299/300\r\nContent-Length: 300\r\n\r\n" + body,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12c\r\n" + body + b"\r\n0\r\n\r\n",
        "moved": b"HTTP/1.1 302 Found\r\nLocation: {url}/b\r\nContent-Length: 0\r\n\r\n",
        "later": b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\nno",
    }
    for name, answer in answers.items():
        (folder / name).write_bytes(answer)
    paths = files_in(folder)
    web.PAUSES_S, web.TIMEOUT_S, web.PEEK_TIMEOUT_S = (0,), 0.4, 0.4

    def read():
        for path in paths:
            answer = path.read_bytes() if path.is_file() else b""
            if answer == answers[path.name]:
                continue
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            with RawServer(answer) as server:
                with contextlib.suppress(CliptexError):
                    web.fetch_file(f"{server.url}/a", out / "a", "key", "sha256:" + 64 * "0")
                web.start_of_file(f"{server.url}/a", "key", 200)

    return Reader(paths, read)


# ---- official data


def read_benchmark(kind, root: Path, variants: tuple[str | None, ...] = (None,)) -> Callable[[], None]:
    def read():
        for variant in variants:
            data = kind(root, None if variant is None else {"source": "miniature", "variant": variant})
            problems = []
            for step in (lambda d=data: d.class_names, data.prepare):
                try:
                    step()
                except CliptexError as error:
                    problems.append(error)
            for part in data.parts:
                try:
                    samples = data.samples(part)
                    data.names(part)
                except CliptexError as error:
                    problems.append(error)
                    continue
                for number in range(min(len(samples), 8)):
                    try:
                        samples[number]
                    except CliptexError as error:
                        problems.append(error)
            if problems:
                raise problems[0]

    return read


@reader
def voc(folder: Path) -> Reader:
    from cliptex.benchmarks.voc import Voc

    root = layouts.write_voc(folder, 2, 2, sbd=2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Voc, root, ("train", "trainaug")))


@reader
def voc_matlab(folder: Path) -> Reader:
    from cliptex.benchmarks.voc import read_sbd_mask

    root = layouts.write_voc(folder, 2, 2, sbd=2, height=16, width=20)
    paths = sorted((root / "benchmark_RELEASE" / "dataset" / "cls").glob("*.mat"))
    return Reader(paths, lambda: [read_sbd_mask(path) for path in paths])


@reader
def ade20k(folder: Path) -> Reader:
    from cliptex.benchmarks.ade20k import Ade20k

    root = layouts.write_ade20k(folder, 2, 2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Ade20k, root))


@reader
def coco(folder: Path) -> Reader:
    from cliptex.benchmarks.coco import Coco

    root = layouts.write_coco(folder, 2, 4, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Coco, root))


@reader
def coco_annotations(folder: Path) -> Reader:
    from cliptex.benchmarks.coco import Coco

    root = layouts.write_coco(folder, 1, 4, height=16, width=20)
    data = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    for number, row in enumerate(data["annotations"]):
        row["caption"] = f"caption {number}\n"
    present = {row["image_id"] for row in data["annotations"]}
    data["images"] = [image for image in data["images"] if image["id"] in present]
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(data))
    read_all = read_benchmark(Coco, root)

    def read():
        with contextlib.suppress(CliptexError):
            read_all()
        Coco(root).captions("eval")

    return Reader(sorted((root / "annotations").glob("*.json")), read)


@reader
def coco_panoptic(folder: Path) -> Reader:
    from cliptex.benchmarks.coco import Coco

    root = layouts.write_coco(folder, 1, 3, height=12, width=16)
    images = Coco(root).annotations("eval")["images"]
    layouts.write_panoptic(root, {image["id"]: (image["height"], image["width"]) for image in images})

    def read():
        with contextlib.suppress(CliptexError):
            Coco(root).prepare_part("panoptic")
        regions = Coco(root).stuff("eval")
        every([partial(regions.of, str(image["id"]), (image["height"], image["width"])) for image in images])

    return Reader([path for path in files_in(root) if "panoptic" in str(path.relative_to(root))], read)


@reader
def nyuv2(folder: Path) -> Reader:
    from cliptex.benchmarks.nyuv2 import Nyuv2

    root = layouts.write_nyuv2(folder, 3, 2, 12, 16, rooms=True)
    return Reader(files_in(root), read_benchmark(Nyuv2, root, ("bae",)))


@reader
def nyuv2_hdf5(folder: Path) -> Reader:
    from cliptex.benchmarks.nyuv2 import Nyuv2

    root = layouts.write_nyuv2(folder, 3, 2, 12, 16)
    return Reader([root / "nyu_depth_v2_labeled.mat", root / "splits.mat"], read_benchmark(Nyuv2, root, ("bae",)))


@reader
def nyuv2_pickle(folder: Path) -> Reader:
    from cliptex.benchmarks.nyuv2_normals import store_ladicky

    root = layouts.write_nyuv2(folder, 2, 1, 8, 8, variant="ladicky")
    source = root / "surfacenormal_metadata" / "all_normals.pklz"
    return Reader([source], lambda: store_ladicky(source, folder / "out" / "normals.h5"))


@reader
def imagenet(folder: Path) -> Reader:
    from cliptex.benchmarks.imagenet import Imagenet

    root = layouts.write_imagenet(folder, 3, 3, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Imagenet, root))


@reader
def imagenet_devkit(folder: Path) -> Reader:
    from cliptex.benchmarks.imagenet import Imagenet

    root = layouts.write_imagenet(folder, 3, 3, height=16, width=20)
    return Reader(files_in(root / "ILSVRC2012_devkit_t12"), lambda: Imagenet(root).samples("eval")[0])


@reader
def places365(folder: Path) -> Reader:
    from cliptex.benchmarks.places365 import Places365

    root = layouts.write_places365(folder, 3, 3, "small", height=16, width=20)
    return Reader(files_in(root), read_benchmark(Places365, root, ("small",)))


@reader
def cityscapes(folder: Path) -> Reader:
    from cliptex.benchmarks.cityscapes import Cityscapes

    root = more_layouts.write_cityscapes(folder, 2, 2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Cityscapes, root))


@reader
def pascal_context(folder: Path) -> Reader:
    from cliptex.benchmarks.pascal_context import PascalContext

    root = more_layouts.write_pascal_context(folder, 2, 2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(PascalContext, root, ("context59", "context60")))


@reader
def coco_stuff(folder: Path) -> Reader:
    from cliptex.benchmarks.coco_stuff import CocoStuff

    root = more_layouts.write_coco_stuff(folder, 2, 2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(CocoStuff, root))


@reader
def kitti(folder: Path) -> Reader:
    from cliptex.benchmarks.kitti import Kitti

    root = more_layouts.write_kitti(folder, 2, 2, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Kitti, root))


@reader
def objectnet(folder: Path) -> Reader:
    from cliptex.benchmarks.objectnet import Objectnet

    root = more_layouts.write_objectnet(folder, 1)
    return Reader(files_in(root), read_benchmark(Objectnet, root))


@reader
def spair71k(folder: Path) -> Reader:
    from cliptex.benchmarks.spair71k import Spair71k

    root = layouts.write_spair71k(folder, 2, 3, height=16, width=20)
    return Reader(files_in(root), read_benchmark(Spair71k, root))


@reader
def scannet1500(folder: Path) -> Reader:
    from cliptex.benchmarks.scannet1500 import Scannet1500

    root = layouts.write_scannet1500(folder, 2, height=15, width=20)
    return Reader(files_in(root), read_benchmark(Scannet1500, root))


@reader
def davis2017(folder: Path) -> Reader:
    from cliptex.benchmarks.davis2017 import Davis2017

    root = layouts.write_davis2017(folder, 1, 2, frames=3, height=18, width=24)
    read_all = read_benchmark(Davis2017, root)

    def read():
        read_all()
        for sample in Davis2017(root).samples("eval"):
            list(sample["frames"]), list(sample["masks"])

    return Reader(files_in(root), read)


@reader
def archives(folder: Path) -> Reader:
    from cliptex.data.official.unpack import Limits, unpack

    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        foreign_tar(folder / name, mode)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (("a/", b""), ("a/b.txt", b"b" * 900), ("a/é.json", b"{}"), ("c", b"")):
            file.writestr(name, data)
    with tarfile.open(folder / "tars", "w") as tar:
        for name in ("n01.tar", "n02.tar"):
            data = (folder / "a.tar").read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(folder / "zips", "w") as file:
        file.writestr("a/b.json", "{}")
        file.writestr("a/c.zip", (folder / "a.zip").read_bytes(), zipfile.ZIP_DEFLATED)
        file.writestr("d.zip", (folder / "a.zip").read_bytes())
    paths = files_in(folder)
    whole = {path: path.read_bytes() for path in paths}
    kinds = {"a.tar": "tar", "a.tgz": "tar", "a.zip": "zip", "tars": "tars", "zips": "zips"}

    def read():
        for path in paths:
            if path.is_file() and path.read_bytes() == whole[path]:
                continue
            into = folder / "out"
            shutil.rmtree(into, ignore_errors=True)
            limits = Limits(members=60, always_allowed=200_000)
            try:
                unpack(path, kinds[path.name], into, (), ("reserved",), limits)
            finally:
                inside = list(into.rglob("*"))
                assert all((x.is_file() or x.is_dir()) and not x.is_symlink() for x in inside), "a link came out"
                here = {path.name for path in paths} | {"out"}
                assert {x.name for x in folder.iterdir()} <= here, "something came out beside"

    return Reader(paths, read)


# ---- labels, experts


@reader
def label_file(folder: Path) -> Reader:
    from cliptex.labels.files import open_label_writer
    from cliptex.labels.store import SCHEMA_VERSION, LabelFile
    from cliptex.tasks.depth import Depth

    path, task = folder / "00000.parquet", Depth()
    metadata = {"schema_version": SCHEMA_VERSION, "task": task.name, "codec": task.codec(), "extra_columns": []}
    label = np.linspace(1, 2, 48, dtype=np.float32).reshape(6, 8)
    rows = [
        {"key": f"{row:09d}", "height": 6, "width": 8, "payload": task.encode(label * (row + 1)), "error": None}
        for row in range(4)
    ]
    with open_label_writer(path, list(task.scalars(task.missing(1))), {}, metadata) as write:
        write(rows)

    def read():
        file = LabelFile(path, task)
        for row in range(len(file)):
            file.get(row), file.label(row)
        for name in file.scalars:
            file.column(name)

    return Reader([path], read)


def labelled() -> Config:
    """Two shards, an expert without weights, and its label store, in the working directory."""
    import conftest

    from cliptex.core import paths
    from cliptex.data.shard_index import index_shards
    from cliptex.data.shards import write_shard
    from cliptex.experts.training import train_expert
    from cliptex.labels.index import index_labels
    from cliptex.labels.label import label_batch

    write_shard(paths.shard(0), pairs())
    write_shard(paths.shard(1), [conftest.drawn_pair(f"{9 + number:09d}", number, 8, 8) for number in range(3)])
    index_shards([paths.shard(0), paths.shard(1)], paths.SHARD_INDEX, min_yield=0.5)
    bright = {"plugin": "conftest:Brightness", "network": {"task": "depth"}}
    config = Config.load({
        "dataset": {"source": "webdataset", "shards": [str(paths.shard(0)), str(paths.shard(1))]},
        "experts": {"bright": bright}, "label_stores": {"depth": {"task": "depth", "expert": "bright"}},
    })  # fmt: skip
    train_expert(config, "bright", paths.EXPERT_RENDERS, paths.expert("bright"), 0)
    label_batch(config, "depth", 0, paths.SHARD_INDEX, paths.expert("bright"), paths.labels("depth"))
    index_labels(config, "depth", paths.SHARD_INDEX, paths.labels("depth"))
    return config


@reader
def label_store(folder: Path) -> Reader:
    from cliptex.cluster.plan import make_plan
    from cliptex.core import paths
    from cliptex.core.plugins import find
    from cliptex.data.shard_index import read_index
    from cliptex.experts.training import load_expert
    from cliptex.labels.audit import audit_labels
    from cliptex.labels.index import index_labels
    from cliptex.labels.lost import batches_to_redo
    from cliptex.labels.payloads import StoredPayloads
    from cliptex.labels.store import open_store, read_label_index
    from cliptex.report.gather import _store, read_expert

    config = labelled()
    labels, expert = folder / paths.labels("depth"), folder / paths.expert("bright")
    index = (labels / "index.json").read_bytes()
    whole = load_expert("bright", config.experts["bright"], expert)

    def read():
        payloads = StoredPayloads(
            labels / "index.json", read_index(paths.SHARD_INDEX)["shards"], find("tasks", "depth")(), 2
        )

        def steps():
            yield lambda: load_expert("bright", config.experts["bright"], expert)
            yield lambda: read_expert(expert)
            yield lambda: make_plan(config, measure=False)
            yield lambda: batches_to_redo([labels])
            yield lambda: read_label_index(config, "depth", labels / "index.json")
            yield lambda: _store(config, "depth", labels / "index.json")
            for entry in read_index(paths.SHARD_INDEX)["shards"]:
                yield lambda entry=entry: open_store(labels / "index.json", entry)
                yield lambda entry=entry: payloads.get(int(entry["shard"]), 0)
            yield lambda: audit_labels(config, "depth", paths.SHARD_INDEX, whole, labels, samples=2)
            if (labels / "index.json").is_file() and (labels / "index.json").read_bytes() == index:
                yield lambda: index_labels(config, "depth", paths.SHARD_INDEX, labels)

        every(steps())

    return Reader([*files_in(labels), *files_in(expert)], read)


def small_file(path: Path) -> bytes:
    """Raises OSError for what is not a file: a pipe would wait."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


@reader
def published_labels(folder: Path) -> Reader:
    """The set as it was published, and what was made of it here; once without the digests, which would end it."""
    from cliptex.core import paths
    from cliptex.labels.publish import publish_labels
    from cliptex.labels.published import fetch_labels
    from cliptex.labels.take import take_batch

    publish_labels(labelled(), "depth", paths.SHARD_INDEX, paths.LABELS, folder / "set")
    files = [path for path in files_in(folder) if path.suffix in (".json", ".parquet")]
    record = folder / "set" / "labels.json"

    def read():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, OSError):
            stated = json.loads(small_file(record))
            for item in stated["files"]:
                data = small_file(folder / "set" / item["file"])
                item |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            write_json(folder / "restated.json", stated)
            shutil.copytree(folder / "set", folder / "copy")
            shutil.move(folder / "restated.json", folder / "copy/labels.json")
        source = folder / "copy" if (folder / "copy").exists() else folder / "set"
        config = Config.load({"label_stores": {"depth": {"task": "depth", "from": str(source)}}})
        try:
            fetch_labels(config, "depth", folder / "again")
            take_batch(config, "depth", 0, paths.SHARD_INDEX, folder / "again", folder / "labels")
        finally:
            for made in (folder / "copy", folder / "again", folder / "labels"):
                shutil.rmtree(made, ignore_errors=True)

    return Reader(files, read)


@reader
def principal_components(folder: Path) -> Reader:
    from cliptex.experts import pca

    fitted, _ = pca.fit([np.random.default_rng(0).random((40, 6), np.float32)], 3)
    record = {"weights_sha256": "w", "sha256": pca.save(fitted, folder), "dims": 3, "width": 6}
    write_json(folder / pca.RECORD, record | {"variance_kept": fitted.variance_kept, "teacher": "a"})

    def read():
        with contextlib.suppress(ValueError, TypeError, RecursionError, OSError):
            stated = json.loads(small_file(folder / pca.RECORD))
            digest = hashlib.sha256(small_file(folder / pca.FILE)).hexdigest()
            write_json(folder / "restated.json", {**stated, "sha256": digest})
            shutil.move(folder / "restated.json", folder / pca.RECORD)
        found, stated = pca.load(folder, "w", 3)
        assert found.labels(np.ones((2, stated["width"]), np.float32)).shape == (2, 3)

    return Reader(files_in(folder), read)


def every(steps) -> None:
    """Take all steps; raise the first `CliptexError`."""
    problems = []
    for step in steps:
        try:
            step()
        except CliptexError as error:
            problems.append(error)
    if problems:
        raise problems[0]


@reader
def tensors(folder: Path) -> Reader:
    import torch
    from safetensors.torch import save_file

    from cliptex.experts.tensors import read_tensors

    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3, dtype=torch.float16)}
    save_file(state, folder / "a.safetensors", {"format": "pt"})
    torch.save(state, folder / "b.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "c.pt", _use_new_zipfile_serialization=False)
    files = files_in(folder)
    return Reader(files, lambda: every((lambda path=path: read_tensors(path)) for path in files))


@reader
def folder_of_a_dpt(folder: Path) -> Reader:
    from tiny import DPT
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    from cliptex.experts.dpt import _load_folder

    small = DPT | {
        "image_size": 32,
        "neck_hidden_sizes": [8] * 4,
        "fusion_hidden_size": 8,
        "backbone_out_indices": [0, 1, 2, 3],
    }
    DPTForDepthEstimation(DPTConfig(**small)).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return Reader(files_in(folder), lambda: _load_folder(folder))


@reader
def folder_of_a_segformer(folder: Path) -> Reader:
    from tiny_teachers import save_teacher

    from cliptex.experts.transformers import TransformersExpert

    save_teacher("segformer", folder)

    def read():
        expert = TransformersExpert({"network": {}, "batch_size": 6, "precision": "fp32"})
        expert.load(folder)
        expert.check(folder)

    return Reader(files_in(folder), read)


@reader
def renders_of_experts(folder: Path) -> Reader:
    import h5py

    from cliptex.experts.fitting import read_renders

    with h5py.File(folder / "train.h5", "w") as file:
        file["image"], file["depth"] = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8), np.float32)
    return Reader(files_in(folder), lambda: read_renders(folder / "train.h5", ("image", "depth")))


# ---- models


def exported(folder: Path):
    """A small model in open_clip's layout, with its train.json."""
    from cliptex.config import Student
    from cliptex.models import clip

    text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    student = Student(architecture={"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    model = clip.build(student, 0)
    write_json(folder / "train.json", {"model_sha256": clip.export(model, student, folder), "steps": 3})
    return model, student


@reader
def folder_of_a_model(folder: Path) -> Reader:
    import torch

    from cliptex.config import Student
    from cliptex.models import clip

    model, student = exported(folder)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "weights.pt")

    def read():
        def steps():
            yield lambda: clip.load(folder)
            yield lambda: clip.exported_tokenizer(folder)
            yield lambda: clip.build(student.model_copy(update={"pretrained": str(folder / "weights.pt")}), 0)
            yield lambda: clip.build(Student(pretrained=str(folder)), 0)

        every(steps())

    return Reader(files_in(folder), read)


@reader
def weights_of_a_model(folder: Path) -> Reader:
    """Without train.json, so that a digest does not end it at once."""
    from cliptex.models import clip

    exported(folder)
    (folder / "train.json").unlink()
    return Reader(files_in(folder), lambda: clip.load(folder))


@reader
def tokenizer(folder: Path) -> Reader:
    from test_student import with_own_tokenizer

    from cliptex.models import loading

    text = with_own_tokenizer.__wrapped__(folder)["text_cfg"]

    def read():
        words = loading.make_tokenizer(text, str(folder / "words"))(["a cat", "", "é " * 30])
        assert words.shape == (3, 8)

    return Reader(files_in(folder / "words"), read)


@reader
def heads(folder: Path) -> Reader:
    from cliptex.models.heads import DenseHeads, load_heads, save_heads

    for name, kind in (("a", "none"), ("b", "ppm"), ("c", "aspp")):
        made = DenseHeads(8, {"depth": 1, "normals": 4}, kind, 8, prior_cells=2)
        losses = {"depth": {}, "normals": {}}
        save_heads(made, folder / f"{name}.safetensors", {"depth": "depth", "normals": "normals"}, losses)
    files = files_in(folder)
    return Reader(files, lambda: every((lambda path=path: load_heads(path)) for path in files))


@reader
def checkpoints(folder: Path) -> Reader:
    import torch

    from cliptex.training.checkpoints import Checkpoints

    kept = Checkpoints(folder, {"seed": 0, "train": {"batch_size": 4}})
    for step in (2, 4):
        kept.save({"step": step, "model": {"a": torch.ones(3)}, "rng": {"python": [1, [2, 3], None]}})

    def read():
        state = kept.latest()
        assert state is None or state["step"] in (2, 4)
        kept.load(4)

    return Reader(files_in(folder), read)


# ---- results


# ---- results


def run_folder(folder: Path) -> Config:
    """A run of two models with results of probes and zero-shot, without images."""
    from test_integrity import CONFIG, valid

    class Factory:
        @staticmethod
        def mktemp(name: str) -> Path:
            return folder

    valid.__wrapped__(Factory)
    return CONFIG


@reader
def results(folder: Path) -> Reader:
    from test_integrity import FOLDER, TABLE

    import cliptex.models.clip  # noqa: F401 (the libraries must be there before memory is limited)
    from cliptex.evaluation.results import ProbeResult, read_result, tabulate
    from cliptex.report.gather import gather
    from cliptex.report.integrity import check

    config = run_folder(folder)
    single = sorted((folder / FOLDER).rglob("*.json"))[:2]
    for path in single:
        table = json.loads(path.read_text())
        write_json(path, table | {"settings": {"protocol": {"depth": {}}}})

    def read():
        def steps():
            yield lambda: read_result(folder / TABLE)
            for path in single:
                yield lambda path=path: read_result(path, ProbeResult)
            yield lambda: tabulate("nyuv2", single, folder / "out" / "table.json")
            yield lambda: check(gather(config, folder))

        every(steps())

    return Reader([path for path in files_in(folder) if path.suffix in (".json", ".jsonl", ".tsv")], read)


@reader
def per_image_parts(folder: Path) -> Reader:
    from test_per_image import depth, normals, retrieval, segmentation

    from cliptex.evaluation.per_image import mismatch, num_images, read_per_image, write_per_image

    made = {}
    for number, make in enumerate((depth, normals, segmentation, retrieval)):
        task, arrays, *_ = make()
        path = folder / f"{number}.per_image.npz"
        made[path] = task
        write_per_image(path, [str(image) for image in range(num_images(arrays))], {task: arrays})

    def read():
        def steps():
            for path, task in made.items():

                def step(path=path, task=task):
                    file = read_per_image(path)
                    if task in file.tasks:
                        mismatch(task, file.tasks[task], {})

                yield step

        every(steps())

    return Reader(files_in(folder), read)


@reader
def report(folder: Path) -> Reader:
    """The per-image parts of a run, by way of the report's tables."""
    from cliptex.report.gather import gather
    from cliptex.report.page import make_parts

    config = run_folder(folder)
    return Reader(
        [path for path in files_in(folder) if path.suffix == ".npz"], lambda: make_parts(gather(config, folder))
    )


@reader
def thumbnails(folder: Path) -> Reader:
    from cliptex.core.files import reading
    from cliptex.evaluation import thumbnails as module
    from cliptex.evaluation.per_image import read_per_image, write_per_image
    from cliptex.evaluation.probes.tasks import probe_task

    rng = np.random.default_rng(0)
    sizes = [(8, 9), (12, 8)]
    boxes = {"boxes": np.ones((2, 4), np.float32), "labels": np.zeros(2, np.int64), "scores": np.ones(2, np.float32)}
    tasks = {
        "semantic_segmentation": module.mask_thumbnails([rng.integers(0, 9, size, np.uint8) for size in sizes]),
        "depth": module.depth_thumbnails([rng.uniform(1, 9, size) for size in sizes]),
        "normals": module.normals_thumbnails([rng.normal(size=(*size, 3)) for size in sizes]),
        "detection": module.box_thumbnails([boxes, boxes]),
    }
    path = folder / "linear.thumbnails.npz"
    write_per_image(path, ["a", "b"], tasks)

    def read():
        file = read_per_image(path)
        for task in tasks:
            if task in file.tasks:
                for index in range(len(file.ids)):
                    with reading(path, "thumbnails"):  # as the gallery does
                        probe_task(task).thumbnail(file.tasks[task], index)

    return Reader([path], read)


@reader
def cache_of_features(folder: Path) -> Reader:
    import torch

    from cliptex.evaluation.probes.feature_cache import ABOUT, FeatureCache

    cache = FeatureCache(folder / "cache", 1e9)
    keys = {precision: cache.key({"precision": precision}) for precision in ("fp16", "int8")}
    for precision, key in keys.items():
        with cache.new(key, precision, 1e4, {}) as writer:
            writer.append(torch.arange(24.0).reshape(2, 3, 4))
    assert all((folder / "cache" / key / ABOUT).exists() for key in keys.values())
    files = files_in(folder / "cache")

    def read():
        for key in keys.values():
            found = cache.find(key)
            if found is not None:
                assert found.read(np.arange(found.shape[0])).isfinite().all()
        cache.release(keys.values())

    return Reader(files, read)


@reader
def training_records(folder: Path) -> Reader:
    from cliptex.report import gather
    from cliptex.report.timings import read_jobs

    run_folder(folder)
    run = folder / "results" / "models" / "clip_ft" / "seed0"
    timings = folder / "benchmarks"
    (timings / "train" / "clip").mkdir(parents=True)
    (timings / "train" / "clip" / "0.tsv").write_text("s\th:m:s\tcpu_time\n1.5\t0:00:01\t2.0\n")

    def read():
        every([lambda: gather._run(run), lambda: read_jobs(timings)])

    return Reader([*files_in(run), *files_in(timings)], read)


@reader
def studies(folder: Path) -> Reader:
    from cliptex.report.found_studies import found_studies

    study = {
        "study": "losses", "title": "T", "question": "Q", "seen": "S", "not_proved": "N", "command": "C",
        "table": {"caption": "c", "columns": ["a", "b"], "rows": [[["x", "", ""], ["1", "n", "good"]]], "notes": ["n"]},
        "plot": {"caption": "c", "alt": "a"},
        "provenance": {"model_sha256": {"clip": "0"}, "cliptex": "0.1", "versions": {}},
    }  # fmt: skip
    from cliptex.core import paths

    place = folder / paths.study("losses")
    place.mkdir(parents=True)
    (place / "study.json").write_text(json.dumps(study))
    (place / "plot.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" viewBox="0 0 9 9"><g id="a"/></svg>'
    )
    return Reader(files_in(folder), lambda: found_studies(folder, {"clip": "0"}))


@reader
def table_of_clip_benchmark(folder: Path) -> Reader:
    from cliptex.evaluation.clip_benchmark import write_table

    row = {
        "dataset": "d",
        "task": "t",
        "split": "test",
        "seed": 0,
        "metrics": {"top1": 50.0},
        "clip_benchmark": "1.6.1",
    }
    paths = [folder / "d" / model / "seed0.json" for model in ("clip", "cliptex")]
    for path in paths:
        write_json(path, row | {"model": path.parent.name, "provenance": {"model_sha256": {}}})
    return Reader(paths, lambda: write_table(paths, folder / "out" / "table.json"))


@reader
def table_of_published_scores(folder: Path) -> Reader:
    from cliptex.evaluation.suites import PUBLISHED, evaluation_sets, published_scores

    (folder / "results.csv").write_text("".join(PUBLISHED.read_text().splitlines(keepends=True)[:6]))
    sets = evaluation_sets("datacomp")[:4]
    return Reader(
        files_in(folder), lambda: published_scores(folder / "results.csv", "ViT-H-14-quickgelu", "dfn5b", sets)
    )


@reader
def split_for_few_shot_probes(folder: Path) -> Reader:
    from cliptex.data.shards import write_tar
    from cliptex.evaluation.few_shot import samples_of

    (folder / "train").mkdir()
    write_tar(folder / "train/0.tar", [("a.jpg", b"1234"), ("a.cls", b"1"), ("b.png", b"12"), ("b.cls", b"0")])
    (folder / "train/nshards.txt").write_text("1\n")
    return Reader(files_in(folder), lambda: list(samples_of(str(folder), "train")))


@reader
def board_of_visbench(folder: Path) -> Reader:
    from cliptex.report.visbench import import_records

    shutil.copyfile(ROOT / "tests/visbench_0.27.0/published_records.jsonl", folder / "board.jsonl")
    return Reader(files_in(folder), lambda: import_records(folder / "board.jsonl", folder / "out" / "rows.json"))

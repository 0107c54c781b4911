"""Pairs from the web: img2dataset, its guarded opener, shards from remote tars; all with a local server."""

import hashlib
import importlib.util
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import drawn_pair
from forked_jobs import forked
from PIL import Image, features
from web_server import WebServer, picture

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_error
from cliptex.data import download, img2dataset_job
from cliptex.data import web as downloader
from cliptex.data.download import build_shards, built_shards, fetch_tar
from cliptex.data.images import decode_image
from cliptex.data.img2dataset_job import Refused, guarded_opener, public_addresses, reason_of
from cliptex.data.shard_index import (
    index_shards,
    read_index,
    read_indexed,
    verify_shard,
    write_index,
    write_shard_table,
)
from cliptex.data.shard_paths import num_downloads, shard_paths, shard_sources
from cliptex.data.shards import Pair, read_shard, write_shard

needs_img2dataset = pytest.mark.skipif(
    importlib.util.find_spec("img2dataset") is None, reason="img2dataset cannot be imported"
)
JOB = Path(img2dataset_job.__file__)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def server():
    with WebServer() as running:
        yield running


# The guard, without img2dataset


def get(url: str, timeout: float = 5, **limits) -> bytes:
    options = {"max_bytes": 1_000_000, "max_seconds": 5.0, "allow_private": ["127.0.0.1"]} | limits
    request = urllib.request.Request(url, headers={"User-Agent": "test"})
    with guarded_opener(**options).open(request, timeout=timeout) as response:
        return response.read()


def test_an_image_comes_through_the_guard(server):
    assert get(f"{server.url}/ok/3.jpg") == picture(3)
    assert get(f"{server.url}/moved.jpg") == picture(77)


def test_a_private_address_is_refused(server):
    with pytest.raises(urllib.error.URLError, match="private address"):
        get(f"{server.url}/ok/1.jpg", allow_private=[])
    assert not server.requests


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0x7f.2", "2130706434", "0177.0.0.2"],
)
def test_a_redirect_to_a_private_address_is_refused(server, host):
    server.private = f"http://{host}:{server.port}/ok/1.jpg"
    with pytest.raises(urllib.error.URLError, match=r"private address|not known|No address|resolution"):
        get(f"{server.url}/inside.jpg")
    assert server.requests == {"/inside.jpg": 1}


SPECIAL = {
    # the IANA registry of IPv4 special-purpose addresses
    "this network": "0.0.0.0 0.1.2.3",
    "private use": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.3.4",
    "shared address space": "100.64.0.1 100.127.255.255",
    "loopback": "127.0.0.1 127.255.255.254",
    "link local": "169.254.169.254",
    "protocol assignments": "192.0.0.1 192.0.0.8 192.0.0.170",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1",
    "6to4 relays": "192.88.99.1",
    "benchmarking": "198.18.0.1 198.19.255.255",
    "multicast, reserved, broadcast": "224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255",
    # that of IPv6, and what is deprecated
    "unspecified, loopback": ":: ::1",
    "mapped": "::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:100.64.0.1",
    "compatible": "::127.0.0.1 ::8.8.8.8",
    "translated": "64:ff9b::a9fe:a9fe 64:ff9b::7f00:1 64:ff9b:1::1 64:ff9b:1:a00:0:100:: ::ffff:0:127.0.0.1",
    "discard only, dummy": "100::1 100:0:0:1::1",
    "Teredo": "2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "other protocols": "2001:1::1 2001:2::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1",
    "documentation in IPv6": "2001:db8::1 3fff::1 3fff:fff::1",
    "6to4": "2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe::1",
    "ISATAP": "2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:7f00:1 fe80::5efe:8.8.8.8",
    "segment routing": "5f00::1",
    "unique local": "fc00::1 fdff::1",
    "link local, also of an interface": "fe80::1 fe80::1%eth0 febf::1",
    "site local": "fec0::1 feff::1",
    "multicast in IPv6": "ff02::1 ff0e::1",
    "not assigned": "4000::1 e000::1 200::1",
}
PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 172.15.0.1 172.32.0.1"
    " 192.0.1.1 192.31.196.1 192.52.193.1 192.167.0.1 192.175.48.1 198.17.0.1 198.20.0.1 223.255.255.255"
    " 2001:200::1 2001:4860:4860::8888 2606:4700::1111 2620:4f:8000::1 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8"
    " 2002:808:808::1 2606:4700::200:5efe:808:808 3ffe:ffff::1"
)


def resolved(monkeypatch, address: str) -> list[str]:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("1.1.1.1", 80)), (0, 0, 0, "", (address, 80))]
    )
    return public_addresses("harmless.example", 80)


@pytest.mark.parametrize("addresses", SPECIAL.values(), ids=list(SPECIAL))
def test_addresses_that_are_not_public(monkeypatch, addresses):
    """Also if a host name resolves to them."""
    for address in addresses.split():
        with pytest.raises(Refused):
            pytest.fail(f"{address} passes") if resolved(monkeypatch, address) else None


def test_public_addresses_pass(monkeypatch):
    for address in PUBLIC.split():
        assert resolved(monkeypatch, address) == ["1.1.1.1", address]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.jpg", "data:image/png;base64,AAAA"])
def test_other_schemes_are_refused(url):
    with pytest.raises(urllib.error.URLError) as caught:
        get(url)
    assert reason_of(str(caught.value)) == "not http(s)"


def test_a_redirect_to_a_file_is_refused(server):
    server.private = "file:///etc/hostname"
    with pytest.raises(urllib.error.HTTPError, match="not allowed"):
        get(f"{server.url}/inside.jpg")


@pytest.mark.parametrize("name", ["endless", "huge"])
def test_a_body_without_an_end_is_refused(server, name):
    with pytest.raises(Refused) as caught:
        get(f"{server.url}/{name}.jpg")
    assert reason_of(str(caught.value)) == "too many bytes"


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("stall", {"timeout": 0.5}, "timed out"),
        ("drip", {"max_seconds": 1.0}, "timed out"),
        ("head", {"max_seconds": 1.0}, "timed out"),
        ("cut", {}, "body cut off"),
        ("404", {}, "HTTP 404"),
    ],
)
def test_slow_and_broken_answers_end_with_a_reason(server, name, limits, reason):
    start = time.monotonic()
    with pytest.raises(Exception) as caught:  # img2dataset catches all of them by their text
        get(f"{server.url}/{name}.jpg", **limits)
    assert reason_of(str(caught.value)) == reason
    assert time.monotonic() - start < 4


def test_reasons_of_messages():
    messages = {
        "<urlopen error [Errno -2] Name or service not known>": "name not resolved",
        "<urlopen error [Errno -3] Temporary failure in name resolution>": "name not resolved",
        "<urlopen error [Errno 111] Connection refused>": "connection failed",
        "Remote end closed connection without response": "connection failed",
        "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>": "TLS failed",
        "Use of image disallowed by X-Robots-Tag directive": "refused by X-Robots-Tag",
        "hash mismatch": "sha256 differs",
        "HTTP Error 503: Service Unavailable": "HTTP 503",
        "unknown url type: 'nonsense'": "not http(s)",
        "URL can't contain control characters. '/a b' (found at least ' ')": "bad URL",
        "'ascii' codec can't encode character '\\xe9' in position 5": "bad URL",
        "something new": "download failed",
    }
    assert {message: reason_of(message) for message in messages} == messages
    assert reason_of(None) is None


# The list


def rows_of(tmp_path, name, text, first=0, count=2, **settings):
    (tmp_path / name).write_text(text, encoding="utf-8")
    urls = Config.load({"dataset": {"urls": {"files": [str(tmp_path / name)], "rows": count, **settings}}}).dataset.urls
    return img2dataset_job.read_rows(urls.model_dump(), first, count).to_pylist()


def test_the_official_list_has_no_header_and_quotes_nothing(tmp_path):
    text = '"quoted at first\thttp://a/1.jpg\nan "inner" quote\thttp://a/2.jpg\nnull\thttp://a/3.jpg\n'
    rows = rows_of(tmp_path, "cc3m.tsv", text, first=0, count=3, columns=["caption", "url"])
    assert [row["caption"] for row in rows] == ['"quoted at first', 'an "inner" quote', "null"]
    assert [row["url"] for row in rows] == [f"http://a/{number}.jpg" for number in (1, 2, 3)]


def test_other_lists(tmp_path):
    text = 'n,link,"text",sha\n1,http://a/1.jpg,"two, and ""three""\nlines",aa\n2,http://a/2.jpg,,bb\n'
    columns = {"url_column": "link", "caption_column": "text", "sha256_column": "sha"}
    rows = rows_of(tmp_path, "list.csv", text, **columns)
    assert rows[0] == {"row": 0, "url": "http://a/1.jpg", "caption": 'two, and "three"\nlines', "sha256": "aa"}
    assert rows[1]["caption"] == ""
    table = pa.table({"url": ["http://a/1.jpg", None, "http://a/3.jpg"], "caption": ["a", "b", None]})
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    for file in files:
        pq.write_table(table, file, row_group_size=1)
    urls = Config.load({"dataset": {"urls": {"files": files, "rows": 6}}}).dataset.urls
    rows = img2dataset_job.read_rows(urls.model_dump(), 2, 2).to_pylist()
    assert rows == [
        {"row": 2, "url": "http://a/3.jpg", "caption": ""},
        {"row": 3, "url": "http://a/1.jpg", "caption": "a"},
    ]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("list.tsv", {"count": 5}, "has only 2 rows"),
        ("list.tsv", {"url_column": "link"}, "no column 'link'"),
        ("list.txt", {}, "not a URL list"),
    ],
)
def test_a_wrong_list_is_an_error_that_says_so(tmp_path, name, settings, message):
    with pytest.raises(SystemExit, match=message):
        rows_of(tmp_path, name, "caption\turl\na\thttp://a/1.jpg\nb\thttp://a/2.jpg\n", **settings)


def test_a_broken_row_is_an_error_that_names_the_list(tmp_path):
    with pytest.raises(SystemExit, match=r"list\.tsv: CSV parse error: .*Expected 2 columns, got 3.*; correct"):
        rows_of(tmp_path, "list.tsv", "caption\turl\na\thttp://a/1.jpg\nb\tc\thttp://a/2.jpg\n")


# img2dataset


def settings_for(server, tmp_path, listed, **changes) -> Config:
    """A configuration for a list of (caption, URL or path on the server, optionally a digest)."""
    lines = ["\t".join([caption, url if "://" in url else server.url + url, *more]) for caption, url, *more in listed]
    (tmp_path / "list.tsv").write_text("\n".join(lines) + "\n")
    urls = {
        "files": [str(tmp_path / "list.tsv")],
        "columns": ["caption", "url", "sha256"][: len(listed[0])],
        "rows": len(listed),
        "rows_per_shard": 10,
        "allow_private": ["127.0.0.1"],
        "max_bytes": 3_000_000,
        "size_px": 100,
        **changes.pop("urls", {}),
    }
    dataset = {"source": "urls", "urls": urls, "min_yield": 0.3, "max_repeats": 2} | changes.pop("dataset", {})
    how = {"python": sys.executable, "threads": 4, "timeout_s": 2, "max_seconds": 4} | changes
    return Config.load({"dataset": dataset, "download": how})


def job(config: Config, batch: int = 0, **options) -> subprocess.Popen:
    command = [sys.executable, "-P", JOB, "--batch", batch]
    command += ["--config", config.subset("dataset.urls"), "--how", config.subset("download")]
    return subprocess.Popen(
        list(map(str, [*command, "--processes", 1, "--log", f"logs/{batch}.log"])),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "*"},
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a job; returns its stderr."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def index_of(config: Config) -> dict:
    for batch in range(num_downloads(config)):
        build_shards(config, batch, threads=2)
    dataset = config.dataset
    return write_index(built_shards(num_downloads(config)), paths.SHARD_INDEX, dataset.min_yield, dataset.max_repeats)


WEB = [
    ("a wide picture", "/wide.png"),
    ("a portrait", "/turned.jpg"),
    ("not there", "/404.jpg"),
    ("busy at first", "/busy/12.jpg"),
    ("down for longer", "/down/13.jpg"),
    ("stalls", "/stall.jpg"),
    ("a byte now and then", "/drip.jpg"),
    ("cut", "/cut.jpg"),
    ("endless", "/endless.jpg"),
    ("huge", "/huge.jpg"),
    *((f"gone {number}", f"/gone/{number}.jpg") for number in range(3)),
    ("a page", "/page.jpg"),
    ("a bomb", "/bomb.png"),
    ("inside", "/inside.jpg"),
    ("moved", "/moved.jpg"),
    ("left alone", "/robots.jpg"),
    ("one pixel", "/tiny.gif"),
    ("a strip", "/strip.jpg"),
    ("nothing", "/empty.jpg"),
    ("", "/ok/50.jpg"),
    ("another scheme", "ftp://127.0.0.1/a.jpg"),
    ("no such name", "http://name.invalid/a.jpg"),
    *((f"good {number}", f"/ok/{number}.jpg") for number in range(8)),
    ("other bytes than listed", "/ok/60.jpg"),
]
REASONS = {
    "ok": 13,
    "HTTP 404": 1,
    "timed out": 2,
    "body cut off": 1,
    "too many bytes": 2,
    "repeated image": 3,
    "not an image": 1,
    "too large": 1,
    "private address": 1,
    "refused by X-Robots-Tag": 1,
    "too small": 1,
    "too elongated": 1,
    "no bytes": 1,
    "no caption": 1,
    "not http(s)": 1,
    "name not resolved": 1,
    "sha256 differs": 1,
}


@needs_img2dataset
def test_every_row_of_a_hostile_web_is_a_pair_or_has_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with WebServer() as server:
        server.private = f"http://127.0.0.2:{server.port}/ok/1.jpg"
        digests = [hashlib.sha256(server.body(path) or b"").hexdigest() for _, path in WEB[:-1]] + ["0" * 64]
        listed = [(*row, digest) for row, digest in zip(WEB, digests, strict=True)]
        config = settings_for(server, tmp_path, listed, urls={"sha256_column": "sha256"})
        assert finish(job(config)) == ""
        assert not [name for name in server.requests if name.startswith("127.0.0.2")]
        assert server.requests["/404.jpg"] == 2  # one immediate try again
        assert server.requests["/down/13.jpg"] == 4  # and the later one, which finds it
    index = index_of(config)

    assert Counter({**index["dropped"], "ok": index["num_samples"]}) == Counter(REASONS)
    assert sum(REASONS.values()) == len(WEB)
    rows = [row for number in range(4) for row in pq.read_table(f"results/shards/{number:05d}.parquet").to_pylist()]
    assert [row["key"] for row in rows] == [f"{n // 10:05d}{n % 10:04d}" for n in range(len(WEB))]
    assert [row["url"].rpartition("/")[2] for row in rows] == [url.rpartition("/")[2] for _, url in WEB]
    dropped = {key: why for entry in index["shards"] for key, why in entry["dropped"].items()}
    repeated = {key for key, why in dropped.items() if why == "repeated image"}
    assert repeated == {f"0000{n // 10}{n % 10:04d}" for n in range(10, 13)}
    assert dropped[rows[-1]["key"]] == "sha256 differs"
    # the wide image keeps its aspect, the portrait is upright, a small JPEG is byte for byte what was sent
    pairs = {pair.caption: pair for entry in index["shards"] for pair in read_indexed(entry)}
    wide = decode_image(pairs["a wide picture"].image)
    assert wide.shape == (100, 200, 3)
    assert max(wide[0].max(), wide[-1].max(), wide[:, 0].max(), wide[:, -1].max()) < 240  # no white border
    truth = Image.open(io.BytesIO(picture(1, 400, 200, "PNG"))).resize((200, 100), Image.Resampling.BOX)
    assert np.abs(wide.astype(int) - np.asarray(truth)).mean() < 3
    portrait = decode_image(pairs["a portrait"].image)
    assert portrait.shape == (300, 90, 3)
    assert portrait[20, 45, 0] > 150 > portrait[20, 45, 2]
    assert portrait[280, 45, 2] > 150 > portrait[280, 45, 0]
    assert pairs["good 3"].image == picture(3)
    assert pairs["good 3"].metadata["source_sha256"] == hashlib.sha256(picture(3)).hexdigest()
    for entry in index["shards"]:
        assert hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
    # what img2dataset wrote is gone once the shards are built
    files = [path for path in Path("resources").rglob("0*") if path.is_file()]  # a folder is named by a digest
    assert not [path for path in files if path.parent.name not in ("lists", "again")]


@needs_img2dataset
def test_a_killed_download_goes_on_to_the_same_shards(tmp_path, monkeypatch):
    with WebServer(delay=0.05) as server:
        config = settings_for(
            server, tmp_path, [(f"p {number}", f"/ok/{number}.jpg") for number in range(40)], threads=2
        )
        for name in ("undisturbed", "killed"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / "undisturbed")
        finish(job(config))
        index = index_of(config)
        want = [path.read_bytes() for path in shard_paths(config)]
        assert [pair.key for path in shard_paths(config) for pair in read_shard(path)] == [
            f"{number // 10:05d}{number % 10:04d}" for number in range(40)
        ]

        monkeypatch.chdir(tmp_path / "killed")
        server.requests.clear()
        process = job(config)
        while process.poll() is None and not list(Path("resources").rglob("00001_stats.json")):
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        time.sleep(1)  # its workers must be gone by then
        before = server.requests.copy()
        time.sleep(0.5)
        assert server.requests == before
        assert not Path("resources/pairs/batch-000.json").exists()
        finish(job(config))
        again = server.requests - before
        assert not [number for number in range(20) if again[f"/ok/{number}.jpg"]], "finished shards were fetched again"
        assert all(server.requests[f"/ok/{number}.jpg"] for number in range(40))
        assert index_of(config) == index
        assert [path.read_bytes() for path in shard_paths(config)] == want

        paths.shard(1).unlink()  # the workflow is tested with its remedy below
        with pytest.raises(CliptexError, match=r"00001\.tar: missing or changed since"):
            index_of_again(config)
        with pytest.raises(
            CliptexError, match=r"its download was deleted; restore it, or run: rm -f resources/pairs/batch-\*"
        ):
            build_shards(config, 0)


def test_what_is_built_is_not_downloaded_again_until_it_would_be_another(tmp_path, monkeypatch):
    config, shard = built(tmp_path, monkeypatch, [picture(1)])
    plain = config.plain()

    def fingerprint(settings: dict, caption: str = "x") -> str:
        urls = Config.load(settings).dataset.urls.model_dump()
        rows = pa.table({"row": [0], "url": ["http://a/1.jpg"], "caption": [caption]})
        return img2dataset_job.fingerprint(urls, rows)

    def is_built(*made_of) -> bool:
        return img2dataset_job.is_built({"shard": "00000", "fingerprint": fingerprint(*made_of)})

    rows = verify_shard(paths.shard(0))
    write_shard_table(
        Path("results/shards/00000.parquet"), rows, {**shard["shards"][0], "fingerprint": fingerprint(plain)}
    )

    def changed(section: str, key: str, value) -> dict:
        other = json.loads(json.dumps(plain))
        (other["download"] if section == "download" else other["dataset"]["urls"])[key] = value
        return other

    assert is_built(plain)
    assert is_built(changed("download", "threads", 9))
    assert is_built(changed("urls", "rows", 77))
    assert is_built(changed("urls", "files", ["elsewhere.tsv"]))
    assert not is_built(changed("urls", "size_px", 50))
    assert not is_built(changed("urls", "refused_directives", []))
    assert not is_built(plain, "y")
    paths.shard(0).write_bytes(b"short")
    assert not is_built(plain)


def index_of_again(config: Config) -> dict:
    return write_index(built_shards(num_downloads(config)), paths.SHARD_INDEX, 0.1)


@needs_img2dataset
def test_a_full_disk_is_no_fault_of_the_web(tmp_path, monkeypatch):
    """img2dataset itself exits with 0, without the rows that it could not write: in one shard those after the first ten
    or so, in the other all that are not small."""
    monkeypatch.chdir(tmp_path)

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with WebServer() as server:
        listed = [(f"p {number}", f"/ok/{number}.jpg" if number < 40 else "/wide.png") for number in range(60)]
        config = settings_for(server, tmp_path, listed, urls={"rows_per_shard": 40})
        process = job(config, preexec_fn=little_room)
        _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "img2dataset did not finish 2 of 2 shards, because of a local error" in said
    assert not Path("resources/pairs/batch-000.json").exists()
    assert not list(Path("resources").rglob("*_stats.json"))


@needs_img2dataset
def test_a_killed_worker_ends_the_job(tmp_path, monkeypatch):
    """img2dataset itself waits forever for the shard of a worker that was killed."""
    monkeypatch.chdir(tmp_path)
    with WebServer(delay=0.5) as server:
        process = job(settings_for(server, tmp_path, [(f"p {n}", f"/ok/{n}.jpg") for n in range(30)]))
        while process.poll() is None and not server.requests:
            time.sleep(0.02)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker of img2dataset ended with code -9" in said


def test_without_img2dataset_the_job_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "img2dataset.py").write_text("raise ImportError('No module named imghdr')")
    with WebServer() as server:
        config = settings_for(server, tmp_path, WEB)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, JOB, "--batch", "0"]
    command += ["--config", config.subset("dataset.urls"), "--how", config.subset("download")]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "cannot import img2dataset (No module named imghdr)" in result.stderr
    assert "download.python" in result.stderr
    assert "Traceback" not in result.stderr
    missing = Config.load({**config.plain(), "download": {"python": "no-such-python"}})
    with pytest.raises(CliptexError, match=r"download\.python: 'no-such-python' is not a program"):
        download.run_img2dataset(missing, 0, 1)


# Building, without img2dataset: raw shards in its layout


def raw_shard(config: Config, bodies: list[bytes | str], query: str = "") -> None:
    """A shard in img2dataset's format, samples in order of arrival; a string is a failure message."""
    folder = Path("resources/pairs/batch-000/raw")
    folder.mkdir(parents=True)
    rows = []
    order = np.random.default_rng(0).permutation(len(bodies)).tolist()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in order:
            body, key = bodies[number], f"{number:09d}"
            failed = isinstance(body, str)
            row = {"row": number, "caption": f"caption {number}", "url": f"http://a/{number}.jpg{query}", "key": key}
            row |= {"status": "failed_to_download" if failed else "success", "error_message": body if failed else None}
            rows.append(row | {"sha256": None if failed else hashlib.sha256(body).hexdigest()})
            if not failed:
                for suffix, data in (("jpg", body), ("txt", b"x"), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    item = {"shard": "00000", "rows": len(bodies), "fingerprint": "f", "part": 0}
    Path("resources/pairs/batch-000.json").write_text(json.dumps({"folder": str(folder), "shards": [item]}))


def built(tmp_path, monkeypatch, bodies, **changes) -> tuple[Config, dict]:
    monkeypatch.chdir(tmp_path)
    with WebServer() as server:
        config = settings_for(server, tmp_path, [("x", "/ok/1.jpg")] * len(bodies), **changes)
    raw_shard(config, bodies)
    return config, build_shards(config, 0)


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    bodies = [picture(number, 300, 200) for number in range(12)]
    (tmp_path / "a").mkdir()
    built(tmp_path / "a", monkeypatch, bodies, urls={"rows_per_shard": 100})
    want = paths.shard(0).read_bytes(), Path("results/shards/00000.parquet").read_bytes()
    (tmp_path / "b").mkdir()
    calls = iter(range(100))
    convert = download._converted

    def dies(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(download, "_converted", dies)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "b", monkeypatch, bodies, urls={"rows_per_shard": 100})
    assert not list(Path("results").rglob("*.tar"))
    monkeypatch.setattr(download, "_converted", convert)
    with WebServer() as server:
        config = settings_for(server, tmp_path / "b", [("x", "/ok/1.jpg")] * 12, urls={"rows_per_shard": 100})
    build_shards(config, 0, threads=3)
    assert (paths.shard(0).read_bytes(), Path("results/shards/00000.parquet").read_bytes()) == want
    # a second time there is nothing left but to check
    stamp = paths.shard(0).stat().st_mtime_ns
    build_shards(config, 0)
    assert paths.shard(0).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("source", ["urls", "webdataset"])
def test_no_result_has_the_signature_of_an_address(source, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    if source == "urls":
        config = settings_for(server, tmp_path, [("x", "/ok/1.jpg")] * 3)
        message = "URL can't contain control characters. '/a b.jpg?sig=secret' (found at least ' ')"
        raw_shard(config, [picture(1), message, picture(2)], query="?X-Amz-Credential=AK-secret&X-Amz-Signature=secret")
    else:
        server.files = {"/a.tar": tar_bytes(tmp_path, 0)}
        config = tars_config([f"{server.url}/a.tar?token=secret"])
    index_of_again(config) if build_shards(config, 0) else None
    files = [path for path in Path("results").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        assert b"secret" not in path.read_bytes(), path
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            assert "secret" not in str(table.to_pylist()) + str(table.schema.metadata), path
    if source == "webdataset":  # signed anew, it is not downloaded again
        before = server.requests.copy()
        assert build_shards(tars_config([f"{server.url}/a.tar?token=another"]), 0) and server.requests == before


def test_a_yield_that_is_too_low_stops_the_job_early_and_says_why(tmp_path, monkeypatch):
    small = picture(1, 70, 70)
    bodies = ["HTTP Error 404: Not Found"] * 700 + ["<urlopen error timed out>"] * 250 + [small] * 50
    with pytest.raises(CliptexError) as caught:
        built(tmp_path, monkeypatch, bodies, urls={"rows_per_shard": 1000})
    assert "shards 0 to 0: only 50 of 1000 samples are usable, below dataset.min_yield = 0.3" in str(caught.value)
    assert "HTTP 404: 700, timed out: 250" in str(caught.value)
    assert not Path("results/shards/batch-000.json").exists()
    # what was built is kept: with a lower limit nothing is done twice
    with WebServer() as server:
        config = settings_for(
            server, tmp_path, [("x", "/")] * 1000, urls={"rows_per_shard": 1000}, dataset={"min_yield": 0.01}
        )
    assert build_shards(config, 0)["shards"][0]["shard"] == "00000"


def test_no_space_left_is_no_bug_and_no_fault_of_the_web(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "results/shards/00000.tar")

    monkeypatch.setattr(download, "write_shard", full)
    with pytest.raises(OSError) as caught:
        built(tmp_path, monkeypatch, [picture(1)])
    assert str(write_error(caught.value)).startswith("results/shards/00000.tar: No space left on device; make room")
    assert list(Path("resources").rglob("00000.tar"))


def test_a_missing_codec_is_no_fault_of_the_web(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(CliptexError, match="Pillow cannot decode WebP"):
        built(tmp_path, monkeypatch, [picture(1)])
    assert not Path("results").exists()


def test_an_empty_shard_is_a_shard(tmp_path, monkeypatch):
    config, _ = built(tmp_path, monkeypatch, ["hash mismatch"] * 3, dataset={"min_yield": 0.0})
    index = write_index(built_shards(1), paths.SHARD_INDEX, 0.0)
    assert index["dropped"] == {"sha256 differs": 3}
    assert read_indexed(index["shards"][0]) == []
    with pytest.raises(CliptexError, match="only 0 of 3"):
        write_index(built_shards(1), paths.SHARD_INDEX, 0.1)
    assert config.dataset.source == "urls"


def test_only_what_must_change_is_encoded_anew(tmp_path, monkeypatch):
    grey = io.BytesIO()
    Image.open(io.BytesIO(picture(4))).convert("L").save(grey, "JPEG")
    same = [picture(1), picture(2, 100, 3000 // 10), grey.getvalue()]
    anew = [picture(3, 101, 140), picture(5, kind="PNG"), picture(6, kind="WEBP")]
    config, _ = built(tmp_path, monkeypatch, [*same, *anew])
    images = [pair.image for pair in read_shard(shard_paths(config)[0])]
    assert images[:3] == same
    assert [decode_image(image).shape for image in images[3:]] == [(139, 100, 3), (90, 120, 3), (90, 120, 3)]
    assert all(image.startswith(b"\xff\xd8\xff") for image in images)
    assert np.abs(decode_image(images[4]).astype(int) - decode_image(anew[1])).mean() < 2


# Source `webdataset`


def tars_config(sources, **dataset) -> Config:
    return Config.load({"dataset": {"source": "webdataset", "shards": sources, "min_yield": 0.5, **dataset}})


def tar_bytes(tmp_path, shard: int, count: int = 6) -> bytes:
    path = tmp_path / f"made-{shard}.tar"
    write_shard(path, [drawn_pair(f"{shard:05d}{number:04d}", 10 * shard + number) for number in range(count)])
    return path.read_bytes()


def test_brace_patterns_are_written_out():
    config = tars_config(["a/{00000..00002}.tar", "http://b/{x,y}.tar", "hf://datasets/pixparse/cc3m-wds/z.tar"])
    assert shard_sources(config)[:4] == ["a/00000.tar", "a/00001.tar", "a/00002.tar", "http://b/x.tar"]
    assert [str(path) for path in shard_paths(config)] == [
        *(f"a/0000{number}.tar" for number in range(3)),
        *(f"results/shards/0000{number}.tar" for number in range(3, 6)),
    ]
    mirror = tars_config(["hf://datasets/pixparse/cc3m-wds/cc3m-train-{0000..0575}.tar"])
    assert len(shard_paths(mirror)) == 576
    with pytest.raises(CliptexError, match="braces do not match"):
        shard_paths(tars_config(["a/{00000..00002.tar"]))


def test_own_tars_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for shard in range(3):
        tar_bytes(tmp_path, shard)
    config = tars_config(["made-{0..2}.tar"])
    config = Config.load({**config.plain(), "download": {"shards_per_job": 2}})
    index = index_of(config)
    assert [entry["path"] for entry in index["shards"]] == ["made-0.tar", "made-1.tar", "made-2.tar"]
    assert index["num_samples"] == 18
    assert not list(Path("results").rglob("*.tar"))
    # a tar that was replaced is read again
    write_shard(tmp_path / "made-1.tar", [drawn_pair("000010000", 1)])
    with pytest.raises(CliptexError, match=r"made-1\.tar: missing or changed"):
        index_of_again(config)
    assert index_of(config)["num_samples"] == 13


def test_tars_come_from_the_web_and_go_on_after_a_cut(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloader, "PAUSES_S", (0,) * 4)
    data = [tar_bytes(tmp_path, shard) for shard in range(2)]
    server.files = {f"/cc/{shard:05d}.tar": data[shard] for shard in range(2)}
    server.cut_after = len(data[0]) // 3
    pattern = server.url + "/cc/{00000..00001}.tar"
    config = tars_config([pattern], sha256={f"{server.url}/cc/00000.tar": hashlib.sha256(data[0]).hexdigest()})
    index = index_of(config)
    assert [paths.shard(number).read_bytes() for number in range(2)] == data
    assert index["num_samples"] == 12
    assert server.requests["/cc/00000.tar"] == 3  # in three pieces, none of them twice
    before = server.requests.copy()
    assert index_of(config) == index
    assert server.requests == before
    assert sorted(path.name for path in Path("results/shards").glob("[!.]*")) == [
        *("00000.parquet", "00000.tar", "00001.parquet", "00001.tar", "batch-000.json", "index.json", "samples.arrow")
    ]


def test_a_tar_that_changed_on_the_server_is_begun_anew(tmp_path, monkeypatch, server):
    monkeypatch.setattr(downloader, "PAUSES_S", ())
    server.files["/a.tar"], server.cut_after = tar_bytes(tmp_path, 0), 5000
    with pytest.raises(CliptexError, match="ended early"):
        fetch_tar(f"{server.url}/a.tar", tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    server.files["/a.tar"], server.cut_after = tar_bytes(tmp_path, 1), None
    fetch_tar(f"{server.url}/a.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == server.files["/a.tar"]


def test_a_tar_that_is_not_what_it_should_be_is_an_error(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    server.files["/a.tar"] = tar_bytes(tmp_path, 0)
    with pytest.raises(CliptexError, match=r"a\.tar is not the expected file: its SHA-256 is [0-9a-f]+, not 1234"):
        fetch_tar(f"{server.url}/a.tar", paths.shard(0), "1234")
    assert not paths.shard(0).exists()
    with pytest.raises(CliptexError, match=r"b\.tar responds with 404"):
        fetch_tar(f"{server.url}/b.tar", paths.shard(0))
    server.files["/a.tar"] = server.files["/a.tar"][:4000]
    with pytest.raises(CliptexError, match=r"results/shards/00000\.tar: shard is truncated.*rm -f"):
        build_shards(tars_config([f"{server.url}/a.tar"]), 0)


def test_tars_come_from_the_hub(tmp_path, server):
    """With its protocol, at HF_ENDPOINT: interrupted, resumed, and verified with the hub's SHA-256."""
    data = [tar_bytes(tmp_path, shard) for shard in range(2)]
    name = "/datasets/pixparse/cc3m-wds/resolve/main/cc3m-train-{}.tar"
    server.hub = {name.format(f"{shard:04d}"): data[shard] for shard in range(2)} | {name.format("bad"): b"promised"}
    server.files[f"/cdn/{hashlib.sha256(b'promised').hexdigest()}"] = b"replaced"
    server.cut_after = len(data[0]) * 2 // 3
    wanted = ["cc3m-train-{0000..0001}", "nothing", "cc3m-train-bad"]
    configs = [tars_config([f"hf://datasets/pixparse/cc3m-wds/{tar}.tar"]) for tar in wanted]
    code = "import sys; from cliptex.data import download; from cliptex.config import Config\n"
    code += "download.time.sleep = print\n"
    code += "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000  # of ten million\n"
    code += "print(download.start_of_tar('hf://datasets/pixparse/cc3m-wds/cc3m-train-bad.tar', 3))\n"
    code += "for given in sys.argv[1:]:\n"
    code += "    try: print('built', len(download.build_shards(Config.load(given), 0)['shards']))\n"
    code += "    except download.CliptexError as error: print(error)\n"
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "*"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, *(given.subset("dataset", "download") for given in configs)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    looked_at, *said = [line for line in result.stdout.splitlines() if not line.isdigit()]
    assert looked_at == "(b'rep', 8)"
    assert said[0] == "built 2", result.stderr[-3000:]
    assert re.match(r"hf://datasets/pixparse/cc3m-wds/nothing\.tar: cannot be downloaded from the hub \(.*404", said[1])
    assert "cc3m-train-bad.tar is not the expected file: its SHA-256" in said[2]
    assert len(said) == 3
    for shard in range(2):
        assert (tmp_path / f"results/shards/{shard:05d}.tar").read_bytes() == data[shard]
    assert server.requests[f"/cdn/{hashlib.sha256(data[0]).hexdigest()}"] == 2  # the second time for the rest alone
    assert not list(tmp_path.glob("resources/pairs/hub/*.tar"))
    index = json.loads((tmp_path / "results/shards/batch-000.json").read_text())
    assert [shard["sha256"] for shard in index["shards"]] == [hashlib.sha256(one).hexdigest() for one in data]


@needs_img2dataset
def test_shards_made_by_img2dataset_itself_are_taken_as_they_are(tmp_path, monkeypatch, server):
    """As img2dataset's users create them: resized, its own keys, no failed samples, some empty captions."""
    monkeypatch.chdir(tmp_path)
    captions = ["" if number % 5 == 0 else f"picture {number}" for number in range(20)]
    urls = [f"{server.url}/{'404' if number == 7 else f'ok/{number}'}.jpg" for number in range(20)]
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), "list.parquet")
    code = (
        "import sys; sys.modules['torch'] = None  # which would be loaded thrice\n"
        "from img2dataset import download\n"
        "if __name__ == '__main__':\n"
        "    download(url_list='list.parquet', input_format='parquet', url_col='URL', caption_col='TEXT',"
        " output_format='webdataset', output_folder='theirs', image_size=64, resize_mode='keep_ratio',"
        " number_sample_per_shard=10, thread_count=8, processes_count=1)\n"
    )
    (tmp_path / "run.py").write_text(code)
    result = subprocess.run([sys.executable, "run.py"], capture_output=True, text=True, timeout=300)
    assert sorted(path.name for path in Path("theirs").glob("*.tar")) == ["00000.tar", "00001.tar"], result.stderr
    before = [path.read_bytes() for path in sorted(Path("theirs").glob("*.tar"))]
    index = index_of(tars_config(["theirs/{00000..00001}.tar"]))
    assert index["num_samples"] == 15
    assert index["dropped"] == {"no caption": 4}
    assert index["shards"][0]["keys"] == ["000001", "000002", "000003", "000004", "000006", "000008", "000009"]
    pairs = [pair for entry in index["shards"] for pair in read_indexed(entry)]
    assert pairs[0].caption == "picture 1"
    assert pairs[0].metadata["url"] == urls[1]
    assert decode_image(pairs[0].image).shape == (64, 85, 3)
    assert [path.read_bytes() for path in sorted(Path("theirs").glob("*.tar"))] == before


def test_all_sources_end_in_the_same_index(tmp_path, monkeypatch):
    """The same pairs as rendered shards and as external tars have the same entries."""
    monkeypatch.chdir(tmp_path)
    bad = Pair("000000009", b"<html>", "a page", {})
    write_shard(paths.shard(0), [*(drawn_pair(f"00000000{number}", number) for number in range(8)), bad])
    rendered = index_shards([paths.shard(0)], paths.SHARD_INDEX, 0.5)
    assert index_of(tars_config(["results/shards/00000.tar"])) == rendered
    assert read_index(paths.SHARD_INDEX) == rendered


@needs_img2dataset
def test_the_workflow_downloads_builds_and_indexes(tmp_path):
    def run(min_yield: float = 0.5, **how) -> str:
        urls = {"files": ["list.tsv"], "columns": ["caption", "url"], "rows": 20, "rows_per_shard": 10}
        urls["allow_private"] = ["127.0.0.1"]
        dataset = {"source": "urls", "min_yield": min_yield, "urls": urls}
        download = {"shards_per_job": 1, "python": sys.executable, **how}
        (tmp_path / "data.json").write_text(
            json.dumps({"dataset": dataset, "download": download, "train": {"batch_size": 8, "held_out": 0}})
        )
        command = [Path(sys.executable).parent / "snakemake", "results/shards/index.json", "--cores", "2"]
        command += ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--configfile", tmp_path / "data.json"]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment)
        return f"{result.stdout}{result.stderr} exit code {result.returncode}"

    with WebServer() as server:
        lines = [f"p {number}\t{server.url}/{'404' if number == 7 else f'ok/{number}'}.jpg" for number in range(20)]
        (tmp_path / "list.tsv").write_text("\n".join(lines) + "\n")
        assert "only 19 of 20 samples are usable, below dataset.min_yield = 0.99 (HTTP 404: 1)" in run(min_yield=0.99)
        server.requests.clear()
        said = run()
        assert said.endswith("exit code 0"), said
        assert not server.requests
        index = json.loads((tmp_path / "results/shards/index.json").read_text())
        assert index["dropped"] == {"HTTP 404": 1}
        assert not list((tmp_path / "resources").rglob("*.tar"))
        assert "Nothing to be done" in run(threads=7, timeout_s=3, retries=0)

        paths_to_go = [tmp_path / "results/shards/00001.tar", tmp_path / "results/shards/index.json"]
        for path in [*paths_to_go, *(tmp_path / "results/shards").glob("batch-*.json")]:  # the remedy of the errors
            path.unlink()
        assert run().endswith("exit code 0")
        assert set(server.requests) == {f"/ok/{number}.jpg" for number in range(10, 20)}
        assert json.loads((tmp_path / "results/shards/index.json").read_text()) == index


def test_a_dry_run_of_cc3m_from_each_source(tmp_path):
    """The shards are known before the list or a tar exists; brace patterns are not wildcards of the workflow."""
    sources = {
        "urls": {"urls": {"files": ["cc3m.tsv"], "columns": ["caption", "url"], "rows": 3318333}},
        "webdataset": {"shards": ["hf://datasets/pixparse/cc3m-wds/cc3m-train-{0000..0575}.tar"]},
    }
    (tmp_path / "cc3m.tsv").touch()
    want = {
        "urls": {"download_pairs": 34, "build_shards": 34, "index_shards": 1, "total": 69},
        "webdataset": {"build_shards": 58, "index_shards": 1, "total": 59},
    }
    for source, dataset in sources.items():
        (tmp_path / "data.json").write_text(json.dumps({"dataset": {"source": source, **dataset}}))
        command = [forked("snakemake"), "--dry-run", "results/shards/index.json", "--cores", "2"]
        command += ["--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--configfile", tmp_path / "data.json"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr[-2000:]
        table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?total +\d+)", result.stderr + result.stdout, re.S)[1]
        assert {line.split()[0]: int(line.split()[1]) for line in table.splitlines()} == want[source]

import bz2
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import drawn_pair
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.data.download import build_shards, built_shards
from cliptex.data.index_writer import FirstPass
from cliptex.data.packed import Keys, Reasons
from cliptex.data.sample_reader import ShardOffsets
from cliptex.data.samples_file import LOCATION, StoredKeys
from cliptex.data.shard_index import (
    TABLE_SCHEMA,
    index_shards,
    read_index,
    read_indexed,
    verify_shard,
    write_index,
)
from cliptex.data.shard_paths import shard_sources
from cliptex.data.shards import MAX_TEXT_BYTES, Pair, iterate_shard, open_tar, read_shard, samples, write_shard


def test_pairs_survive_a_round_trip_and_the_bytes_are_stable(tmp_path):
    pairs = [drawn_pair(f"{i:09d}", i) for i in range(3)]
    write_shard(tmp_path / "a.tar", pairs)
    write_shard(tmp_path / "b.tar", pairs)
    assert read_shard(tmp_path / "a.tar") == pairs
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_webdataset_reads_our_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pairs = [drawn_pair(f"{i:09d}", i) for i in range(3)]
    write_shard(tmp_path / "a.tar", pairs)
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(s["__key__"], s["jpg"], s["txt"].decode()) for s in samples] == [
        (p.key, p.image, p.caption) for p in pairs
    ]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_shard_is_named(shard_paths, share):
    data = shard_paths[0].read_bytes()
    shard_paths[0].write_bytes(data[: int(len(data.rstrip(b"\0")) * share)])
    with pytest.raises(CliptexError, match=r"00000\.tar.*truncated"):
        read_shard(shard_paths[0])


def test_a_cut_between_two_members_is_seen(shard_paths):
    data = shard_paths[0].read_bytes()
    with tarfile.open(shard_paths[0]) as tar:
        third = tar.getmembers()[3].offset
    shard_paths[0].write_bytes(data[:third])
    with pytest.raises(CliptexError, match="truncated"):
        read_shard(shard_paths[0])


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(CliptexError, match=r"nothing\.tar: shard is missing"):
        read_shard(tmp_path / "nothing.tar")


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_samples_whose_members_are_apart_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg", "1.txt"):
            add(tar, name, b"x")
    with pytest.raises(CliptexError, match="not adjacent"):
        read_shard(tmp_path / "a.tar")


def test_a_key_with_a_line_break_is_refused(tmp_path):
    """Keys are stored as lines."""
    write_shard(tmp_path / "a.tar", [drawn_pair("one\ntwo", 0)])
    with pytest.raises(CliptexError, match=r"a\.tar: the key 'one\\ntwo' has a line break"):
        index_shards([tmp_path / "a.tar"], tmp_path / "index.json", 0.5)


def test_bad_samples_are_counted_by_reason_and_left_out(tmp_path):
    good = [drawn_pair(f"{i:09d}", i) for i in range(6)]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for pair in good:
            add(tar, f"{pair.key}.jpg", pair.image)
            add(tar, f"{pair.key}.txt", pair.caption.encode())
        add(tar, "000000006.jpg", good[0].image[: len(good[0].image) // 2])
        add(tar, "000000006.txt", b"cut off")
        add(tar, "000000007.jpg", good[0].image)
        add(tar, "000000008.txt", b"no picture")
        add(tar, "000000009.jpg", b"<html>")
        add(tar, "000000009.txt", b"a page")
    index = index_shards([tmp_path / "00000.tar"], tmp_path / "index.json", min_yield=0.5)
    assert index["num_samples"] == 6
    assert index["dropped"] == {"truncated or corrupt": 1, "no caption": 1, "no image": 1, "not an image": 1}
    assert index["shards"][0]["dropped"]["000000009"] == "not an image"
    assert [pair.key for pair in read_indexed(index["shards"][0])] == [pair.key for pair in good]
    with pytest.raises(CliptexError, match=r"only 6 of 10 .*min_yield"):
        index_shards([tmp_path / "00000.tar"], tmp_path / "index2.json", min_yield=0.9)
    assert not (tmp_path / "index2.json").exists()


def test_a_key_in_two_shards_is_refused(tmp_path, shard_paths):
    write_shard(tmp_path / "again.tar", [drawn_pair("000000003", 1)])
    with pytest.raises(CliptexError, match=r"'000000003' is also in"):
        index_shards([*shard_paths, tmp_path / "again.tar"], tmp_path / "i.json", 0.5)


def test_samples_in_any_order_are_read_in_the_order_of_keys(tmp_path):
    """img2dataset writes samples in order of arrival."""
    numbers = (3, 1, 2, 0)
    write_shard(tmp_path / "a.tar", [drawn_pair(str(number), number) for number in numbers])
    index = index_shards([tmp_path / "a.tar"], tmp_path / "i.json", 0.5)
    assert index["shards"][0]["keys"] == ["0", "1", "2", "3"]
    pairs = read_indexed(index["shards"][0])
    assert pairs == [drawn_pair(str(number), number) for number in range(4)]
    assert [pair.key for pair in iterate_shard(tmp_path / "a.tar")] == ["3", "1", "2", "0"]


def test_an_image_that_comes_too_often_is_a_placeholder(tmp_path):
    """Servers replace missing images with a placeholder; a few equal images are allowed."""
    gone, twice = drawn_pair("x", 100).image, drawn_pair("x", 101).image
    images = [gone, twice, None, gone, twice, gone, gone, None]
    for shard in range(2):
        pairs = [drawn_pair(f"{shard}{number}", 10 * shard + number) for number in range(8)]
        pairs = [
            Pair(pair.key, images[number] or pair.image, pair.caption) if shard == 0 or number < 1 else pair
            for number, pair in enumerate(pairs)
        ]
        write_shard(tmp_path / f"{shard}.tar", pairs)
    tars = [tmp_path / "0.tar", tmp_path / "1.tar"]
    index = index_shards(tars, tmp_path / "i.json", 0.5, max_repeats=3)
    assert index["dropped"] == {"repeated image": 5}
    assert index["repeated"] == {hashlib.sha256(gone).hexdigest(): 5}
    assert index["shards"][0]["keys"] == ["01", "02", "04", "07"]
    assert index["shards"][1]["dropped"] == {"10": "repeated image"}
    assert index["num_samples"] == 11
    assert index_shards(tars, tmp_path / "i.json", 0.5, max_repeats=5)["dropped"] == {}
    with pytest.raises(CliptexError, match=r"only 11 of 16 .*repeated image: 5"):
        index_shards(tars, tmp_path / "i.json", 0.9, max_repeats=3)


def test_a_caption_may_stand_in_the_metadata_alone(tmp_path):
    pair = drawn_pair("1", 1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.jpg", pair.image)
        add(tar, "1.json", b'{"caption": "from json"}')
        add(tar, "2.jpg", pair.image)
        add(tar, "2.json", b'["no", "object"]')
    assert [pair.caption for pair in read_shard(tmp_path / "a.tar")] == ["from json", None]


def test_one_sample_at_a_time_is_in_memory(tmp_path):
    """A shard of 60 MB is read with much less memory."""
    noise = np.random.default_rng(0).bytes(3_000_000)
    write_shard(tmp_path / "a.tar", (Pair(f"{number:03d}", noise, "noise", {}) for number in range(20)))
    tracemalloc.start()
    count = sum(1 for _ in iterate_shard(tmp_path / "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20
    assert peak < 12_000_000


def test_the_rows_of_a_shard_say_why_a_sample_is_dropped(tmp_path):
    good = drawn_pair("1", 1)
    pairs = [good, Pair("0", b"<html>", "a page", {"url": "http://a/0.jpg"}), Pair("2", good.image, "")]
    write_shard(tmp_path / "a.tar", pairs)
    rows = verify_shard(tmp_path / "a.tar").to_pylist()
    assert [(row["key"], row["status"]) for row in rows] == [("0", "not an image"), ("1", "ok"), ("2", "no caption")]
    assert rows[0]["url"] == "http://a/0.jpg"
    assert (rows[1]["width"], rows[1]["height"]) == (56, 40)
    assert rows[1]["sha256"] == hashlib.sha256(good.image).hexdigest()


def test_a_shard_that_changed_after_indexing_is_named(shard_index, shard_paths):
    entry = read_index(shard_index)["shards"][1]
    write_shard(shard_paths[1], [drawn_pair(f"00001{i:04d}", i) for i in range(7)])
    with pytest.raises(CliptexError, match=r"00001\.tar: (size|keys) differ"):
        read_indexed(entry)


def test_samples_are_found_where_they_lie(tmp_path):
    """In any order, in folders, with long names, captions in the metadata, and dropped samples."""
    first, second, third = (drawn_pair(str(number), number) for number in range(3))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "there/9.txt", " spaced é\n".encode())
        add(tar, "there/9.jpg", first.image)
        add(tar, "1.json", b'{"caption": "from json"}')
        add(tar, "1.cls", b"7")
        add(tar, "1.JPG", second.image)
        add(tar, "5.jpg", b"no image")
        add(tar, "5.txt", b"left out")
        add(tar, f"{'x' * 150}.jpg", third.image)
        add(tar, f"{'x' * 150}.json", b'{"caption": "less"}')
        add(tar, f"{'x' * 150}.txt", b"more")
    index_shards([tmp_path / "a.tar"], tmp_path / "i.json", 0.5)
    (entry,) = read_index(tmp_path / "i.json")["shards"]
    offsets = ShardOffsets(entry)
    assert len(offsets) == 3
    found = [offsets.at(row).read() for row in range(3)]
    assert [(pair.key, pair.image, pair.caption) for pair in found] == [
        (pair.key, pair.image, pair.caption) for pair in read_indexed(entry)
    ]
    assert [pair.caption for pair in found] == ["from json", "spaced é", "more"]


def of_earlier_version(entry):
    """Which had keys and reasons in index.json."""
    return {**entry, "keys": list(entry["keys"]), "dropped": dict(entry["dropped"])}


def test_a_shard_that_changed_is_named_also_when_one_sample_is_read(shard_index, shard_paths):
    entry = read_index(shard_index)["shards"][0]
    location = ShardOffsets(entry).at(7)
    whole = shard_paths[0].read_bytes()
    shard_paths[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CliptexError, match=r"00000\.tar: shard is truncated"):
        location.read()
    with pytest.raises(CliptexError, match=r"00000\.tar: size differs"):
        ShardOffsets(entry)
    shard_paths[0].write_bytes(whole)
    first, *pairs = read_indexed(entry)
    last = pairs[-1]
    swapped = [replace(first, caption=pairs[0].caption), replace(pairs[0], caption=first.caption), *pairs[1:]]
    write_shard(shard_paths[0], swapped)  # captions of equal size
    with pytest.raises(CliptexError, match=r"00000\.tar: '000000001' differs from the sample indexed; run: rm -f"):
        ShardOffsets(entry).at(1).read()
    write_shard(shard_paths[0], [first, *pairs[:-1], replace(last, key="00000000a")])
    with pytest.raises(CliptexError, match=r"has no key '000000007', which is in the index"):
        ShardOffsets(of_earlier_version(entry))
    shard_paths[0].unlink()
    with pytest.raises(CliptexError, match=r"00000\.tar: shard is missing"):
        ShardOffsets(entry)


def test_the_index_is_the_same_each_time(shard_paths, tmp_path):
    index_shards(shard_paths, tmp_path / "a.json", 0.5)
    index_shards(shard_paths, tmp_path / "b.json", 0.5)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_pair_without_metadata_is_fine(tmp_path):
    pair = drawn_pair("1", 1)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.jpg", pair.image)
        add(tar, "1.txt", b" spaced \n")
    assert read_shard(tmp_path / "a.tar") == [Pair("1", pair.image, "spaced", {})]


@pytest.mark.parametrize("names", [[], ["a"], ["é", "a b", ""], [f"{number:09d}" for number in range(100)]])
def test_packed_keys_and_reasons_are_what_lists_and_dictionaries_are(names):
    keys, given = Keys(names), {name: f"reason {number % 3}" for number, name in enumerate(names)}
    assert keys == names
    assert names == keys
    assert keys != [*names, "more"]
    assert Keys([*names, "more"]) != keys
    assert (len(keys), list(keys), keys[:2], set(keys)) == (len(names), names, names[:2], set(names))
    reasons = Reasons(given)
    assert reasons == given
    assert (len(reasons), list(reasons), reasons.values()) == (len(given), list(given), list(given.values()))
    assert all(reasons[name] == given[name] for name in names)


def test_the_index_of_many_pairs_takes_little_memory(tmp_path):
    """Python strings would take 66 bytes per key, and a dictionary more than twice as much."""
    names = [f"{number:09d}" for number in range(20_000)]
    entry = {"shard": "00000", "path": "0.tar", "sha256": "", "bytes": 1}
    entry |= {"keys": names, "dropped": {f"x{name}": "HTTP 404" for name in names}}
    write_json(tmp_path / "index.json", {"shards": [entry] * 5})
    tracemalloc.start()
    try:
        index = read_index(tmp_path / "index.json")
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index["shards"][4] == entry
    assert now < 200_000 * 16
    assert most < 200_000 * 100


ODD_KEYS = st.text(st.characters(codec="utf-8", exclude_characters="./\0\n"), min_size=1, max_size=6) | st.sampled_from(
    ["a/b/1", "é/ü", "x" * 300, "folder/" + "y" * 120, "猫", " "]
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ODD_KEYS, min_size=1, max_size=8, unique=True), st.sets(st.integers(0, 7)))
@example(["a/b/1", "x" * 300, "猫", "folder/" + "y" * 120], {1})
def test_an_index_has_what_was_given_and_finds_each_sample(tmp_path_factory, keys, dropped):
    folder = tmp_path_factory.mktemp("index")
    keys = [key for key in keys if not (key.startswith(("._", "__")) or key.lower() == "thumbs")]
    pairs = [drawn_pair(key, number) for number, key in enumerate(keys)]
    pairs = [replace(pair, caption="") if number in dropped else pair for number, pair in enumerate(pairs)]
    usable = sorted((pair for pair in pairs if pair.caption), key=lambda pair: pair.key)
    if not usable:
        return
    shards = [folder / "a.tar", folder / "b.tar"]
    write_shard(shards[0], pairs)
    write_shard(shards[1], [drawn_pair("in b", 9)])
    index_shards(shards, folder / "index.json", 0.1)
    entry, other = read_index(folder / "index.json")["shards"]
    assert entry["keys"] == [pair.key for pair in usable]
    assert dict(entry["dropped"]) == {pair.key: "no caption" for pair in pairs if not pair.caption}
    assert (len(entry["keys"]), len(entry["dropped"])) == (len(usable), len(pairs) - len(usable))
    assert (list(other["keys"]), read_index(folder / "index.json")["num_samples"]) == (["in b"], len(usable) + 1)
    offsets, walked = ShardOffsets(entry), ShardOffsets(of_earlier_version(entry))
    for row, pair in enumerate(usable):
        assert replace(offsets.at(row), crc32=None) == walked.at(row)
        read = offsets.at(row).read()
        assert (read.key, read.image, read.caption) == (pair.key, pair.image, pair.caption)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "byte", "footer", "of another index", "no Arrow file"])
def test_a_samples_file_that_is_not_the_index_s_is_named_with_the_remedy(shard_index, shard_paths, tmp_path, damage):
    path = shard_index.with_name("samples.arrow")
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "of another index":  # with rows of the same sizes
        write_shard(shard_paths[0], [drawn_pair(f"0{number}", number) for number in range(8)])
        index_shards(shard_paths, tmp_path / "other" / "index.json", 0.5)
        path.write_bytes((tmp_path / "other" / "samples.arrow").read_bytes())
    else:
        place = whole.index(b"000000003") if damage == "byte" else len(whole) - 60
        changed = bytearray(whole)
        changed[place] ^= 1
        data = {"cut": whole[:-100], "empty": b"", "no Arrow file": bytes(len(whole))}
        path.write_bytes(data.get(damage, bytes(changed)))
    said = "is missing" if damage == "missing" else "is damaged, or not of this index"
    entry = read_index(shard_index)["shards"][0]
    assert len(entry["keys"]) == 8
    for read in (lambda: list(entry["keys"]), lambda: ShardOffsets(entry)):
        with pytest.raises(
            CliptexError, match=rf"samples\.arrow: the samples' file {said}.*run: rm -f \S*index\.json "
        ):
            read()


def test_keys_are_not_in_memory(shard_index):
    read = read_index(shard_index)
    assert "000000003" not in shard_index.read_text(encoding="utf-8")
    assert all(isinstance(entry["keys"], StoredKeys) for entry in read["shards"])
    shard_index.with_name("samples.arrow").unlink()
    assert [len(entry["keys"]) for entry in read["shards"]] == [8, 8]
    assert read["num_samples"] == 16


@pytest.mark.parametrize("where", ["another shard", "the same shard"])
def test_a_key_that_is_there_twice_is_named_with_its_shards(tmp_path, where):
    def table(keys, status="ok"):
        none = pa.nulls(len(keys), pa.string())
        size = pa.array([9] * len(keys), pa.int32())
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
        columns = [pa.array(keys), pa.array([status] * len(keys)), none, none, digests, size, size]
        rows = pa.table(columns, schema=TABLE_SCHEMA)
        for name in LOCATION:
            rows = rows.append_column(name, pa.array([0] * len(keys)))
        return rows

    again = ["a", "b", "b"] if where == "the same shard" else ["a", "b"]
    shards = [({"shard": "00000", "path": "0.tar", "sha256": "", "bytes": 1}, table(again))]
    shards += [({"shard": "00001", "path": "1.tar", "sha256": "", "bytes": 1}, table(["c", "b"], "HTTP 404"))]
    other = "0" if where == "the same shard" else "1"
    with pytest.raises(CliptexError, match=rf"{other}\.tar: key 'b' is also in 0\.tar"):
        write_index(iter(shards), tmp_path / "index.json", 0.1)


# What a sample is


def tar_of(path, members, **options):
    """A tar of (name, bytes), or of names with a prepared TarInfo."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            if isinstance(data, bytes):
                add(tar, name, data)
            else:
                data.name = name
                tar.addfile(data)
    return path


def link() -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
    return info


def folder() -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type = tarfile.DIRTYPE
    return info


FOLDERS = st.sampled_from(["", "./", "a/", "a.b/", "é/", "a/b c/", "__x__/", ".h/", "x" * 120 + "/"])
NAMES = st.sampled_from(["1", "2", "x.y", "HMD_8.3_5G", "__m__", ".DS_Store", "._1", "README", "Thumbs", "caf\udce9"])
SUFFIXES = st.sampled_from([".jpg", ".JPG", ".txt", ".json", ".png", ".seg.png", ".cls", ".db", ".", ""])
CONTENTS = st.binary(max_size=20) | st.builds(link) | st.builds(folder)
MEMBERS = st.lists(st.tuples(st.builds("".join, st.tuples(FOLDERS, NAMES, SUFFIXES)), CONTENTS), max_size=12)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(MEMBERS, FORMATS, st.booleans())
@example([("a/1.jpg", b"x"), ("a/1.txt", b"y"), ("b/1.jpg", b"z")], tarfile.PAX_FORMAT, False)
@example([("HMD_8.3_5G.jpg", b"x"), ("HMD_8.4_5G.jpg", b"y")], tarfile.PAX_FORMAT, False)
def test_a_sample_is_what_webdataset_says_it_is(tmp_path_factory, members, kind, in_order):
    tariterators = pytest.importorskip("webdataset.tariterators")
    members = sorted(members, key=lambda member: member[0]) if in_order else members
    path = tar_of(tmp_path_factory.getbasetemp() / "any.tar", members, format=kind)

    def wanted(name):  # litter, of which webdataset makes samples with keys such as "folder/"
        base = name.rpartition("/")[2]
        return not base.startswith(".") and base.lower() != "thumbs.db"

    theirs = list(tariterators.tarfile_samples([{"url": str(path)}], lambda error: True, wanted))
    keys = [sample["__key__"] for sample in theirs]
    ignored = Counter()
    try:
        with open_tar(path) as file:
            ours = list(samples(file, ignored))
    except CliptexError as error:
        assert "not adjacent" in str(error)
        assert len(set(keys)) < len(keys)
        return
    assert [sample.key.replace("caf\\xe9", "caf\udce9") for sample in ours] == keys
    data = path.read_bytes()
    for one, other in zip(ours, theirs, strict=True):
        content = {suffix: data[start : start + size] for suffix, (start, size) in one.members.items()}
        assert content == {suffix: value for suffix, value in other.items() if not suffix.startswith("__")}
        assert ("caf" in one.key) == (one.problem == "name not UTF-8") or one.problem == "member twice"
    files = [data for _, data in members if isinstance(data, bytes) or data.issym()]
    assert len(files) == sum(len(sample.members) for sample in ours) + ignored.total()
    rows = verify_shard(path)
    assert rows["key"].to_pylist() == sorted(sample.key for sample in ours)
    assert "ok" not in rows["status"].to_pylist()


def statuses(path) -> dict[str, str]:
    rows = verify_shard(path).to_pylist()
    assert sorted(row["key"] for row in rows) == [row["key"] for row in rows]
    return {row["key"]: row["status"] for row in rows}


JPEG = drawn_pair("x", 0).image


def test_folders_are_part_of_the_key(tmp_path):
    names = [
        f"{folder}{name}" for folder in ("cats/000000", "dogs/000000", "item00/image") for name in (".jpg", ".txt")
    ]
    path = tar_of(tmp_path / "a.tar", [(name, JPEG if name.endswith("jpg") else b"it") for name in names])
    index = index_shards([path], tmp_path / "i.json", 0.5)
    assert index["shards"][0]["keys"] == ["cats/000000", "dogs/000000", "item00/image"]
    (entry,) = read_index(tmp_path / "i.json")["shards"]
    assert [ShardOffsets(entry).at(row).read() for row in range(3)] == read_indexed(entry)


def test_each_tar_may_have_a_readme(tmp_path):
    names = ["README.md", "{}.jpg", "{}.txt"]
    for tar in "01":
        members = [(name.format(tar), JPEG if "jpg" in name else b"x") for name in names]
        tar_of(tmp_path / f"{tar}.tar", members)
    index = index_shards([tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path / "i.json", 0.5)
    assert [entry["keys"] for entry in index["shards"]] == [["0"], ["1"]]
    assert index["dropped"] == {"no image": 2}


def test_what_belongs_to_no_sample_is_counted(tmp_path):
    names = ["._1.jpg", "1.jpg", "1.txt", "sub/.DS_Store", "Thumbs.db", "__about__/x.txt", "LICENSE"]
    path = tar_of(
        tmp_path / "a.tar", [*((name, JPEG if name == "1.jpg" else b"x") for name in names), ("2.jpg", link())]
    )
    (entry,) = index_shards([path], tmp_path / "i.json", 0.5)["shards"]
    assert (entry["keys"], dict(entry["dropped"])) == (["1"], {})
    assert entry["ignored"] == {"hidden file": 3, "link or device": 1, "metadata (__name__)": 1, "no suffix": 1}


def sparse(size: int) -> tarfile.TarInfo:
    """A member of GNU tar's option -S that claims so many bytes, and has none."""
    info = tarfile.TarInfo()
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "s.jpg"}
    info.pax_headers |= {"GNU.sparse.size": str(size), "GNU.sparse.map": f"{size},0"}
    return info


UNUSABLE = {
    "two images": ([(".jpg", JPEG), (".png", JPEG), (".txt", b"a")], "several images"),
    "a member twice": ([(".jpg", JPEG), (".jpg", JPEG), (".txt", b"a")], "member twice"),
    "dots": ([(".3_5G.jpg", JPEG), (".3_5G.txt", b"a")], "dots in image name"),
    "a sparse member": ([(".txt", b"a"), (".jpg", sparse(6 << 30))], "sparse member"),
    "Windows-1252": ([(".jpg", JPEG), (".txt", "café".encode("cp1252"))], "caption not text"),
    "UTF-16 without a mark": ([(".jpg", JPEG), (".txt", "cat".encode("utf-16-le"))], "caption not text"),
    "a list": ([(".jpg", JPEG), (".json", b'{"caption": ["one", "two"]}')], "caption not text"),
    "NaN": ([(".jpg", JPEG), (".json", b'{"caption": NaN}')], "caption not text"),
    "half an emoji": ([(".jpg", JPEG), (".json", b'{"caption": "\\ud83d"}')], "caption not text"),
    "nested": ([(".jpg", JPEG), (".json", b"[" * 200_000)], "metadata not JSON"),
    "not JSON": ([(".jpg", JPEG), (".json", b"{caption")], "metadata not JSON"),
    "a long caption": ([(".jpg", JPEG), (".txt", b"a" * (MAX_TEXT_BYTES + 1))], "too many bytes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_sample_that_cannot_be_used_is_counted_under_a_true_reason(tmp_path, name):
    members, reason = UNUSABLE[name]
    path = tar_of(tmp_path / "a.tar", [(f"s{suffix}", data) for suffix, data in members], format=tarfile.PAX_FORMAT)
    assert statuses(path) == {"s": reason}


CAPTIONS = {
    "with a mark": ("é\n two".encode("utf-8-sig"), "é\n two"),
    "UTF-16": ("\ufeffzwölf".encode("utf-16-le"), "zwölf"),
    "UTF-16, the other order": ("\ufeffzwölf".encode("utf-16-be"), "zwölf"),
    "spaces": (b" \n", None),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_of_other_encodings_are_read(tmp_path, name):
    data, caption = CAPTIONS[name]
    metadata = b'{"url": "\\ud83d", "caption": "ignored"}'
    path = tar_of(tmp_path / "a.tar", [("s.jfif", JPEG), ("s.txt", data), ("s.json", metadata)])
    assert [pair.caption for pair in read_shard(path)] == [caption]
    assert statuses(path) == {"s": "ok" if caption else "no caption"}
    assert verify_shard(path)["url"].to_pylist() == ["?"]


def test_long_keys_are_written_and_read(tmp_path):
    pairs = [drawn_pair(key, 1) for key in ("a" * 300, "b" * 99 + "/é", "c" * 100)]
    write_shard(tmp_path / "a.tar", pairs)
    assert read_shard(tmp_path / "a.tar") == pairs


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_what_is_not_one_tar_is_an_error(tmp_path):
    write_shard(tmp_path / "a.tar", [drawn_pair("1", 1)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    files = {"two": whole + whole, "long": header(b"L", 6 << 30) + whole, "pax": header(b"x", 6 << 30) + whole}
    files |= {"digits": header(b"x", 1 << 19) + b"1" * (1 << 19) + whole}  # would take an hour
    files |= {"back": header(b"0", -512) + whole, "chain": header(b"x", 0) * 3000 + whole, "gz": gzip.compress(whole)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    wrong = {"folder": "is a folder", "pipe": "is a device or pipe", "two": "data after the end of the tar"}
    wrong |= dict.fromkeys(("long", "pax", "digits", "back", "chain"), "truncated or not a tar") | {
        "gz": "compressed with gzip"
    }
    for name, message in wrong.items():
        with pytest.raises(CliptexError, match=rf"{name}: .*{message}"):
            read_shard(tmp_path / name)
        entry = {"path": str(tmp_path / name), "keys": ["1"], "dropped": {}, "bytes": (tmp_path / name).stat().st_size}
        with pytest.raises(CliptexError, match=rf"{name}: "):
            ShardOffsets(entry)


def test_an_index_that_loses_a_sample_is_an_internal_error(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", [drawn_pair("1", 1), drawn_pair("2", 2)])
    whole = FirstPass.batches
    monkeypatch.setattr(FirstPass, "batches", lambda self: (batch.slice(1) for batch in whole(self)))
    monkeypatch.setattr(FirstPass, "image_digests", lambda self: iter([np.zeros((1, 32), np.uint8)]))
    with pytest.raises(RuntimeError, match="1 of 2 samples"):
        index_shards([tmp_path / "a.tar"], tmp_path / "i.json", 0.1)


BOMBS = """
import io, resource, struct, sys, tarfile, time, zlib
from pathlib import Path
from PIL import Image
from cliptex.core.errors import CliptexError
from cliptex.data import shard_index
from cliptex.data.foreign import decompress
from cliptex.data.shards import read_shard
from test_images import png

def directory(entries, size):  # each tag claims the rest of the file
    rows = b"".join(struct.pack("<HHII", tag, 1, size // 2, 8) for tag in range(1, entries))
    return (b"II*\\0\\x08\\0\\0\\0" + struct.pack("<H", entries - 1) + rows).ljust(size, b"x")

tags = directory(40_000, 2_000_000)
webp = io.BytesIO()
Image.new("RGB", (9, 9)).save(webp, "WEBP", lossless=True, exif=tags)
gif, jp2, avif = io.BytesIO(), io.BytesIO(), io.BytesIO()
Image.new("L", (64, 64)).save(gif, "GIF")
Image.new("L", (64, 64)).save(jp2, "JPEG2000")
blank = b"MM\\0*\\0\\0\\0\\x08".ljust(len(tags), b"\\0")
Image.new("RGB", (64, 64)).save(avif, "AVIF", exif=blank)
gif, jp2 = bytearray(gif.getvalue()), jp2.getvalue()
gif[6:10] = b"\\xff" * 4
image = struct.pack(">II", 64, 64)
files = {
    "fine": png(9, 9, 8, 0, bytes(90)),
    "tiff": tags,
    "exif png": png(9, 9, 8, 0, bytes(90), (b"eXIf", tags)),
    "exif webp": webp.getvalue(),
    "exif avif": avif.getvalue().replace(blank, tags),
    "profiles": png(9, 9, 8, 0, bytes(90), *[(b"zTXt", b"a\\0\\0" + zlib.compress(bytes(900_000)))] * 2000),
    "unpacked png": png(9, 9, 8, 0, bytes(1 << 27)),
    "large png": png(60_000, 60_000, 8, 2, b""),
    "large gif": bytes(gif),
    "large jp2": jp2.replace(image, struct.pack(">II", 60_000, 60_000)),
    "nested": b"[" * 5_000_000,
}
with tarfile.open("bombs.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    for name, data in files.items():
        members = {"jpg": data, "txt": b"a"}
        if name == "nested":
            members = {"json": data, "jpg": files["fine"]}
        for suffix, content in members.items():
            info = tarfile.TarInfo(f"{name}.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
zeros = zlib.compressobj(wbits=31)
with open("zeros.gz", "wb") as file:
    for _ in range(100):
        file.write(zeros.compress(bytes(1 << 20)))
    file.write(zeros.flush())
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for row in shard_index.verify_shard(Path("bombs.tar")).to_pylist():
    print(row["key"], row["status"], sep=": ")
try:
    decompress(Path("zeros.gz"), Path("zeros.tar"))
except CliptexError as error:
    print(error)
"""


def test_bombs_take_little_memory_and_time(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", BOMBS]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    *found, packed = ended.stdout.splitlines()
    assert dict(line.split(": ") for line in found) == {
        **dict.fromkeys(("exif avif", "exif png", "exif webp", "tiff"), "truncated or corrupt"),
        **dict.fromkeys(("large gif", "large jp2", "large png"), "too large"),
        **dict.fromkeys(("fine", "profiles", "unpacked png"), "ok"),
        "nested": "metadata not JSON",
    }
    assert "zeros.gz: unpacks to more than 100 times its size" in packed


def source_config(*shards: str) -> Config:
    return Config.load({"dataset": {"source": "webdataset", "shards": shards, "min_yield": 0.5}})


def test_paths_of_tars_are_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POOL", str(tmp_path))
    monkeypatch.delenv("USE_AIS_FOR", raising=False)
    for name in ("b.tar", "a.tar", "[x].tar", "sub/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = ("*.tar", "~/a.tar", "$POOL/b.tar", "file:///x/y%20z.tar", "[x].tar", "**/c.tar", "pipe:cat {a,b}.tar")
    assert shard_sources(source_config(*given)) == [
        *("[x].tar", "a.tar", "b.tar", f"{tmp_path}/a.tar", f"{tmp_path}/b.tar", "/x/y z.tar", "[x].tar", "sub/c.tar"),
        *("pipe:cat a.tar", "pipe:cat b.tar"),
    ]
    wrong = {"sub": r"sub is a folder; .* sub/\*\.tar", "no*.tar": r"no file matches no\*\.tar"}
    wrong |= {"s3://bucket/{0..3}.tar": "s3: is not supported; .*pipe:aws s3 cp s3://bucket/0.tar -"}
    wrong |= {
        "{00000..99999999}.tar": "stands for more than 1,000,000",
        "{a{0..999}{0..9999},b}.tar": "stands for more",
    }
    wrong |= {
        "{a,b}" * 40: "stands for more",
        "{0..%s}" % ("9" * 5000): "braces do not match",
        "{0..3.tar": "do not match",
    }
    for source, message in wrong.items():
        with pytest.raises(CliptexError, match=f"^dataset.shards: .*{message}"):
            shard_sources(source_config(source))
    assert len(shard_sources(source_config("{x-{000..999},y-{00..09..3}}/{b,c}.tar"))) == 2008


def test_packed_and_piped_tars_are_brought_here_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("plain.tar", "piped.tar", "packed.tar.gz", "gzipped.tar", "packed.tar.bz2")):
        write_shard(Path("one.tar"), [drawn_pair(f"{number}{row}", 10 * number + row) for row in range(2)])
        data = Path("one.tar").read_bytes()
        pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
        Path(name).write_bytes(gzip.compress(data) if name == "gzipped.tar" else pack(data))
    piped = "pipe:echo x >> ran; gzip -c piped.tar"
    config = source_config("plain.tar", piped, "packed.tar.gz", "gzipped.tar", "packed.tar.bz2")
    built = build_shards(config, 0)
    index = write_index(built_shards(1), Path("index.json"), 1.0)
    assert [entry["path"] for entry in index["shards"]] == [
        "plain.tar", *(f"results/shards/0000{number}.tar" for number in range(1, 5))
    ]  # fmt: skip
    assert [key for entry in index["shards"] for key in entry["keys"]] == [
        f"{n}{row}" for n in range(5) for row in "01"
    ]
    assert build_shards(config, 0) == built
    assert Path("ran").read_text() == "x\n"
    with pytest.raises(CliptexError, match=r"pipe:exit 3 cannot be read \(.*exit 3"):
        build_shards(source_config("pipe:exit 3"), 0)
    Path("packed.tar.gz").write_bytes(Path("packed.tar.gz").read_bytes()[:-20])
    with pytest.raises(CliptexError, match=r"packed\.tar\.gz: cannot be decompressed"):
        build_shards(config, 0)

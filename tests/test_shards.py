import hashlib
import io
import json
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import drawn_pair

from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.data.packed import Keys, Reasons, plain
from cliptex.data.shard_index import (
    TABLE_SCHEMA,
    ShardOffsets,
    index_shards,
    read_index,
    read_indexed,
    verify_shard,
    write_index,
)
from cliptex.data.shards import Pair, iterate_shard, read_shard, write_shard


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
    offsets, keys = ShardOffsets(entry), list(entry["keys"])
    assert len(offsets) == 3
    found = [offsets.at(row, key).read() for row, key in enumerate(keys)]
    assert [(pair.key, pair.image, pair.caption) for pair in found] == [
        (pair.key, pair.image, pair.caption) for pair in read_indexed(entry)
    ]
    assert [pair.caption for pair in found] == ["from json", "spaced é", "more"]


def test_a_shard_that_changed_is_named_also_when_one_sample_is_read(shard_index, shard_paths):
    entry = read_index(shard_index)["shards"][0]
    location = ShardOffsets(entry).at(7, entry["keys"][7])
    whole = shard_paths[0].read_bytes()
    shard_paths[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CliptexError, match=r"00000\.tar: shard is truncated"):
        location.read()
    with pytest.raises(CliptexError, match=r"00000\.tar: size differs"):
        ShardOffsets(entry)
    shard_paths[0].write_bytes(whole)
    *pairs, last = read_indexed(entry)
    write_shard(shard_paths[0], [*pairs, replace(last, key="00000000a")])
    with pytest.raises(CliptexError, match=r"has no key '000000007', which is in the index"):
        ShardOffsets(entry)
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
    assert json.loads(json.dumps([keys, reasons], default=plain)) == [names, given]
    with pytest.raises(TypeError):
        json.dumps({1}, default=plain)


def test_the_index_of_many_pairs_takes_little_memory(tmp_path):
    """Python strings would take 66 bytes per key, and a dictionary more than twice as much."""
    names = [f"{number:09d}" for number in range(20_000)]
    entry = {"keys": names, "dropped": {f"x{name}": "HTTP 404" for name in names}}
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


@pytest.mark.parametrize("where", ["another shard", "the same shard"])
def test_a_key_that_is_there_twice_is_named_with_its_shards(tmp_path, where):
    def table(keys, status="ok"):
        none = pa.nulls(len(keys), pa.string())
        size = pa.array([9] * len(keys), pa.int32())
        digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
        return pa.table(
            [pa.array(keys), pa.array([status] * len(keys)), none, none, digests, size, size], schema=TABLE_SCHEMA
        )

    again = ["a", "b", "b"] if where == "the same shard" else ["a", "b"]
    shards = [({"shard": "00000", "path": "0.tar", "sha256": "", "bytes": 1}, table(again))]
    shards += [({"shard": "00001", "path": "1.tar", "sha256": "", "bytes": 1}, table(["c", "b"], "HTTP 404"))]
    other = "0" if where == "the same shard" else "1"
    with pytest.raises(CliptexError, match=rf"{other}\.tar: key 'b' is also in 0\.tar"):
        write_index(iter(shards), tmp_path / "index.json", 0.1)

"""Readers of external files, given arbitrary input: they read it or raise a clear error, and write nothing else."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import drawn_pair
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cliptex.config import Config
from cliptex.core.errors import CliptexError
from cliptex.data.official.unpack import Limits, unpack
from cliptex.data.sample_reader import ShardOffsets
from cliptex.data.shard_index import describe_shard, verify_shard
from cliptex.data.shards import Pair, read_shard, write_shard
from cliptex.labels.store import LabelFile
from cliptex.tasks.depth import Depth

bounded = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
HOSTILE_NAMES = [
    "../out", "/etc/out", "a/../../out", "C:out", "\\\\host\\out", "a\\..\\out", ".", "", "a\0b", "x" * 300, "$(out)",
    "`out`", "\x1b[2Jout", "<script>", "a/b/c", "a", "\u202eout", "con", "-rf", "a\nb", "é",
]  # fmt: skip


def changes(data: bytes):
    """Damaged files: truncated, bytes replaced, bytes inserted."""
    place = st.integers(0, len(data) - 1)

    def changed(cut, spots, more, at):
        out = bytearray(data)
        for spot, value in spots:
            out[spot] = value
        out[at:at] = more
        return bytes(out[: len(out) - cut])

    cuts = st.just(0) | st.integers(0, len(data))
    spots = st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)
    return st.builds(changed, cuts, spots, st.binary(max_size=8), place)


def sections():
    """Existing sections and keys, with arbitrary values."""
    plain = Config.load({}).plain()
    known = [(section, key) for section, value in plain.items() if isinstance(value, dict) for key in value]
    return st.lists(st.tuples(st.sampled_from(known), ANYTHING), max_size=4).map(
        lambda found: {section: {key: value} for (section, key), value in found}
    )


@bounded
@given(ANYTHING | sections())
def test_any_values_as_a_configuration(value):
    if isinstance(value, dict):
        ends_well(Config.load, value)
    ends_well(Config.load, "{" + json.dumps(value, default=str)[1:])


@bounded
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"- a\n- b\n")
@example(b"3")
@example(b"a: 2001-99-99")
@example(b"? [a]\n: 1")
@example(b"\xff\xfe")
@example(b"a: &a [*a]")
@example(b"[" * 3000)
@example(b"models: !!python/object/apply:os.system ['touch pwned']")
@example(b"seeds: " + b"9" * 5000)
@example(b"1: 2")
def test_any_file_as_a_configuration(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    ends_well(Config.load, path)
    assert not Path("pwned").exists()


def ends_well(function, *arguments):
    """The result, or None after an error with a one-line message."""
    try:
        return function(*arguments)
    except CliptexError as error:
        assert 0 < len(str(error)) < 20_000
        return None


def shard_bytes(folder: Path) -> bytes:
    path = folder / "whole.tar"
    write_shard(path, [drawn_pair(f"{i:09d}", i, 8, 8) for i in range(3)])
    return path.read_bytes()


SHARD = pytest.StashKey[bytes]()


@bounded
@given(data=st.data())
def test_any_bytes_as_a_shard(tmp_path_factory, request, data):
    stash = request.config.stash
    if SHARD not in stash:
        stash[SHARD] = shard_bytes(tmp_path_factory.getbasetemp())
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(data.draw(changes(stash[SHARD]) | st.binary(max_size=2000)))
    pairs = ends_well(read_shard, path)
    assert pairs is None or all(isinstance(pair, Pair) for pair in pairs)
    rows = ends_well(verify_shard, path)
    if rows is not None and rows.num_rows:
        found = list(zip(*(rows[name].to_pylist() for name in ("key", "status")), strict=True))
        keys = [key for key, status in found if status == "ok"]
        if keys:
            dropped = {key: status for key, status in found if status != "ok"}
            places = ends_well(ShardOffsets, {**describe_shard(0, path), "keys": keys, "dropped": dropped})
            assert places is not None and ends_well(places.at(0).read).image


@settings(bounded, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(HOSTILE_NAMES) | st.text(max_size=12), st.binary(max_size=40)), max_size=6))
def test_any_members_of_a_shard(tmp_path_factory, members):
    """Names, captions and metadata that are invalid in shards."""
    path = tmp_path_factory.getbasetemp() / "members.tar"
    with tarfile.open(path, "w") as tar:
        for name, body in members:
            for suffix in (".jpg", ".txt", ".json"):
                info = tarfile.TarInfo((name + suffix).replace("\0", "0"))
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    rows = ends_well(verify_shard, path)
    assert rows is None or "ok" not in rows["status"].to_pylist()  # none of these is an image


@bounded
@given(data=st.data())
def test_any_bytes_as_a_label_file(tiny_labels, tmp_path_factory, data):
    """Page checksums detect every change of a label; labels are read as written."""
    whole, keys, payloads = tiny_labels
    path = tmp_path_factory.getbasetemp() / "fuzz.parquet"
    path.write_bytes(data.draw(changes(whole) | st.binary(max_size=300)))

    def read():
        file = LabelFile(path, Depth())
        return list(file.keys), [file.get(row) for row in range(len(file))]

    found = ends_well(read)
    assert found is None or found[0] != keys or found[1] == payloads


@pytest.fixture(scope="module")
def tiny_labels(tmp_path_factory):
    """The bytes of a label file, its keys, and its stored labels."""
    import numpy as np

    from cliptex.labels.files import open_label_writer
    from cliptex.labels.store import SCHEMA_VERSION

    path, task = tmp_path_factory.mktemp("labels") / "00000.parquet", Depth()
    metadata = {"schema_version": SCHEMA_VERSION, "task": task.name, "codec": task.codec(), "extra_columns": []}
    label = np.linspace(1, 2, 48, dtype=np.float32).reshape(6, 8)
    rows = [
        {"key": f"{row:09d}", "height": 6, "width": 8, "payload": task.encode(label * (row + 1)), "error": None}
        for row in range(4)
    ]
    scalars = list(task.scalars(task.missing(1)))
    with open_label_writer(path, scalars, {}, metadata) as write:
        write(rows)
    file = LabelFile(path, task)
    return path.read_bytes(), list(file.keys), [file.get(row) for row in range(len(file))]


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(HOSTILE_NAMES) | st.text(max_size=10),
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
        ),
        st.binary(max_size=600),
    ),
    max_size=6,
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@bounded
@given(members=MEMBERS, damage=st.none() | st.tuples(st.integers(0, 4000), st.integers(0, 255)), data=st.data())
def test_any_archive_stays_in_its_folder(tmp_path_factory, members, damage, data):
    root = tmp_path_factory.mktemp("unpack")
    (root / "out").write_text("the user's own")
    kind = data.draw(st.sampled_from(["tar", "tar.gz", "zip", "tars"]))
    archive = root / "archive"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, _, body in members:
                file.writestr(zipfile.ZipInfo(name or "empty"), body)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, type_, body in members:
                info = tarfile.TarInfo(name.replace("\0", "0").encode("utf-8", "replace").decode())
                info.type, info.linkname = type_, "../out"
                info.size = len(body) if type_ == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(body))
    if damage:
        content = bytearray(archive.read_bytes())
        content[damage[0] % len(content)] = damage[1]
        archive.write_bytes(content)
    into = root / "deep" / "into"
    limits = Limits(members=5, always_allowed=2000)
    ends_well(unpack, archive, kind.removesuffix(".gz"), into, (), ("reserved",), limits)
    assert (root / "out").read_text() == "the user's own"
    assert sorted(path.name for path in root.iterdir()) == ["archive", "deep", "out"]
    assert [path.name for path in (root / "deep").iterdir()] == ["into"]
    inside = list(into.rglob("*"))
    assert not any(path.is_symlink() for path in inside) and all(path.is_file() or path.is_dir() for path in inside)
    assert sum(path.stat().st_size for path in inside if path.is_file()) <= 100 * archive.stat().st_size + 2000

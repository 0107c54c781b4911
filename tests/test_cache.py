import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cliptex.cli import data
from cliptex.core.cache import cached


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder, made, settings="s", inputs=()):
    def make():
        made.append(folder)
        (folder / "in").mkdir(parents=True, exist_ok=True)
        (folder / "one.txt").write_text("a")
        (folder / "in/two.txt").write_text("a")

    cached([settings], folder, make, inputs)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.txt")}


def link(entry):
    (entry / "files/one.txt").replace(entry / "a")
    (entry / "files/one.txt").symlink_to("../a")


DAMAGE = {
    "changed": lambda entry: (entry / "files/one.txt").write_text("b"),
    "missing": lambda entry: (entry / "files/one.txt").unlink(),
    "more": lambda entry: (entry / "files/in/three.txt").write_text("c"),
    "link": link,
    "no JSON": lambda entry: (entry / "digests.json").write_text("{"),
    "other JSON": lambda entry: (entry / "digests.json").write_text('{"one.txt": 1}'),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_made_anew_with_a_warning(tmp_path, cache, caplog, how):
    made = []
    first = fill(tmp_path / "a", made)
    (tmp_path / "b").mkdir()  # as by Snakemake
    assert fill(tmp_path / "b", made) == first and len(made) == 1
    DAMAGE[how](next(cache.iterdir()))
    with caplog.at_level(logging.WARNING, "cliptex"):
        assert fill(tmp_path / "c", made) == first
    assert len(made) == 2 and "CLIPTEX_CACHE: " in caplog.text and "created again" in caplog.text
    assert fill(tmp_path / "d", made) == first and len(made) == 2


def test_the_key_holds_what_determines_the_files(tmp_path, cache, monkeypatch):
    made, source = [], tmp_path / "input"
    source.write_text("1")
    fill(tmp_path / "a", made, "s", [source])
    fill(tmp_path / "b", made, "t", [source])
    source.write_text("2")
    fill(tmp_path / "c", made, "s", [source])
    monkeypatch.setenv("OMP_NUM_THREADS", "63")
    fill(tmp_path / "d", made, "s", [source])
    assert len(made) == len(list(cache.iterdir())) == 4
    fill(tmp_path / "a", made, "s", [source])  # files exist: the command decides
    assert len(made) == 5


@pytest.mark.parametrize("place", ["cache", "file", ""])
def test_jobs_at_the_same_time_and_caches_that_are_none_lose_no_result(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPTEX_CACHE", str(tmp_path / place) if place else "")
    with ThreadPoolExecutor(8) as pool:
        filled = list(pool.map(lambda number: fill(tmp_path / str(number), []), range(8)))
    assert all(each == {"one.txt": "a", "in/two.txt": "a"} for each in filled)
    assert len(list((tmp_path / "cache").glob("*"))) == (place == "cache")


def test_renders_from_the_cache_are_those_rendered(tmp_path, cache, monkeypatch):
    counts = {"train": 2, "val": 1}
    miniature = {"pairs": 2, "pairs_per_shard": 2, "image_size_px": 32, "expert_val": 2, "benchmarks": {"voc": counts}}
    config = [json.dumps({"miniature": miniature, "zeroshot": {"retrieval": {"captions": {"rendered": 2}}}})]
    runs = []
    for folder in ("a", "b"):
        (tmp_path / folder / "results/shards").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        Path("results/shards/other").touch()
        data.render_pairs(0, config)
        data.render_experts("val", config)
        data.render_benchmark("voc", config)
        data.render_captions("captions", config)
        runs.append({str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()})
        monkeypatch.setattr("cliptex.data.miniature.sets.render", None)
        monkeypatch.setattr("cliptex.data.miniature.layouts.render", None)
    assert runs[0] == runs[1] and len(runs[0]) > 10 and len(list(cache.iterdir())) == 4

"""The suite of clip_benchmark: its table, and what goes wrong. test_confirmed.py runs the command itself."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from tiny import TINY

from cliptex.config import ClipBenchmark, Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.evaluation import clip_benchmark as suite
from cliptex.evaluation.clip_benchmark import clip_benchmark_files, run_clip_benchmark, write_table
from cliptex.evaluation.clip_benchmark_job import UNPICKLED, disable_unpickling, float_of_array
from cliptex.models import clip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with the weight file of a model, and one data set."""
    monkeypatch.chdir(tmp_path)
    paths.model("clip", 0).mkdir(parents=True)
    clip.export(clip.build(TINY, 0), TINY, paths.model("clip", 0))
    (tmp_path / "data/vtab-pets/test").mkdir(parents=True)
    (tmp_path / "data/vtab-pets/test/nshards.txt").write_text("1\n")
    return tmp_path


def command(monkeypatch, code):
    """In place of clip_benchmark, a Python that gets the same arguments."""
    monkeypatch.setattr(suite, "JOB", (sys.executable, "-c", "import sys, json\nargs = sys.argv\n" + code))


def run(dataset="wds/vtab/pets", task="auto", model="clip", root="data/{dataset_cleaned}"):
    out = paths.clip_benchmark("one", model, 0)
    run_clip_benchmark(ClipBenchmark(root=root), dataset, task, model, 0, paths.model(model, 0), out)
    return read_json(out)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_tar_is_not_executed(tmp_path, monkeypatch):
    from webdataset import autodecode

    monkeypatch.setattr(autodecode, "decoders", dict(autodecode.decoders))
    data, ran = pickle.dumps(Touch(tmp_path / "ran")), tmp_path / "ran"
    autodecode.basichandlers("a.pyd", data)
    assert ran.exists(), "the planted pickle works"
    ran.unlink()
    disable_unpickling()
    decode = autodecode.Decoder([autodecode.basichandlers])
    for suffix in UNPICKLED:
        assert decode({"__key__": "a", f"a.{suffix}": data})[f"a.{suffix}"] == data
    assert not ran.exists()


def test_the_command_gets_the_folder_the_model_and_no_half_precision(place, monkeypatch):
    command(
        monkeypatch,
        "out = args[args.index('--output') + 1].format()\n"
        "metrics = {'acc1': 0.25, 'acc5': float('nan'), 'args': len(args)}\n"
        "json.dump({'task': ' '.join(args[1:]), 'metrics': metrics}, open(out, 'w'))",
    )
    found = run(task="zeroshot_classification")
    assert found["metrics"]["top1"] == 25 and found["metrics"]["top5"] is None
    assert found["task"].startswith("eval --dataset wds/vtab/pets --dataset_root data/vtab-pets --split test")
    assert f"--model local-dir:{place / paths.model('clip', 0)} --pretrained" in found["task"]
    assert "--task zeroshot_classification" in found["task"] and "--no_amp" in found["task"]
    assert found["root"] == "data/vtab-pets" and found["provenance"]["model_sha256"].keys() == {"clip/seed0"}


def test_what_is_not_there_and_what_goes_wrong_is_one_line(place, monkeypatch):
    with pytest.raises(CliptexError, match=r"data/vtab-dogs/test/nshards\.txt: no such file"):
        run("wds/vtab/dogs")
    with pytest.raises(CliptexError, match=r"models/none/seed0/open_clip_model\.safetensors: no such file"):
        run(model="none")
    command(monkeypatch, "print('much', file=sys.stderr); print('AssertionError: no classes'); sys.exit(3)")
    with pytest.raises(CliptexError, match="failed on wds/vtab/pets with clip, seed 0: AssertionError: no classes"):
        run()
    command(monkeypatch, "pass")  # ends well and writes nothing
    with pytest.raises(CliptexError, match="failed on cifar10 with clip, seed 0: no output"):
        run("cifar10")
    assert not list(Path().rglob("seed0.json")) and not list(Path().rglob(".clip_benchmark-*"))
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    with pytest.raises(CliptexError, match=r"pip install 'cliptex\[clip-benchmark\]'"):
        run()


def test_the_table_has_every_number_and_the_mean_over_data_sets(place):
    config = Config.load(
        {
            "models": {"clip": {}, "cliptex": {}},
            "seeds": [0, 1],
            "clip_benchmark": {"datasets": {"wds/vtab/pets": "auto", "wds/pairs": "zeroshot_retrieval"}},
        }
    )
    files = clip_benchmark_files(config)
    assert files[0] == Path("results/clip_benchmark/wds-vtab-pets/clip/seed0.json") and len(files) == 8
    for number, path in enumerate(files):
        metrics = {"top1": float(number), "top5": None}
        if "pairs" in str(path):
            metrics = {f"image_to_text R@{k}": float(10 * number + k) for k in (1, 5)}
        model, seed = path.parts[-2], int(path.stem.removeprefix("seed"))
        about = {"dataset": path.parts[-3], "task": "t", "split": "test", "model": model, "seed": seed}
        record = {"model_sha256": {f"{model}/seed{seed}": "0"}}
        write_json(path, about | {"metrics": metrics, "clip_benchmark": "1.6.1", "provenance": record})
    write_table(files, Path("results/clip_benchmark/table.json"))
    table = read_json(Path("results/clip_benchmark/table.json"))
    assert [mean["mean"] for mean in table["means"]] == [(0 + 41) / 2, (1 + 51) / 2, (2 + 61) / 2, (3 + 71) / 2]
    assert len(table["results"]) == 8 and len(table["provenance"]["model_sha256"]) == 4
    assert Path("results/clip_benchmark/table.csv").read_text().splitlines() == [
        "dataset,metric,clip/seed0,clip/seed1,cliptex/seed0,cliptex/seed1",
        "wds-vtab-pets,top1,0.0000,1.0000,2.0000,3.0000",
        "wds-vtab-pets,top5,,,,",
        "wds-pairs,image_to_text R@1,41.0000,51.0000,61.0000,71.0000",
        "wds-pairs,image_to_text R@5,45.0000,55.0000,65.0000,75.0000",
    ]
    files[3].write_text(json.dumps(read_json(files[3]) | {"clip_benchmark": "1.7"}))
    with pytest.raises(CliptexError, match=r"cliptex/seed1\.json: another version of clip_benchmark"):
        write_table(files, Path("results/clip_benchmark/table.json"))
    with pytest.raises(CliptexError, match="there are none, so there is no table"):
        write_table([], Path("table.json"))


def test_data_sets_that_would_write_the_same_files_are_refused():
    with pytest.raises(CliptexError, match="'wds/a b' and 'wds/a-b' would write the same files"):
        Config.load({"clip_benchmark": {"datasets": {"wds/a-b": "auto", "wds/a b": "auto"}}})
    with pytest.raises(CliptexError, match=r"clip_benchmark\.datasets: '\.\.' is not the name of a data set"):
        Config.load({"clip_benchmark": {"datasets": {"..": "auto"}}})


def test_float_takes_arrays_of_one_element():
    import numpy as np

    assert float_of_array(np.array([3.0])) == 3 and np.isnan(float_of_array("nan"))
    with pytest.raises(ValueError):
        float_of_array(np.array([1.0, 2.0]))

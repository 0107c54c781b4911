"""The report takes no file for what it is not: mixed, edited and broken results are refused or marked on the page."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_report import EVALUATED, MAIN, digest, make_probes, make_runs

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import write_json
from cliptex.evaluation.per_image import read_per_image, write_per_image
from cliptex.report.gather import gather
from cliptex.report.integrity import check
from cliptex.report.page import Parts, make_parts

TABLE, SHOTS = Path("results/probes/nyuv2.json"), Path("results/zeroshot/imagenet.json")
FOLDER = TABLE.with_suffix("")


def small_config() -> Config:
    return Config.load(
        {
            "models": {"clip_ft": {"steps": 4}, "cliptex": {"steps": 4}},
            "seeds": [0, 1],
            "probes": {"benchmarks": {"nyuv2": {}}},
            "zeroshot": {"benchmarks": ["imagenet"]},
            "report": {"resamples": 100},
        }
    )


CONFIG = small_config()


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A run of two models and two seeds with results of two probe tasks and zero-shot."""
    root = tmp_path_factory.mktemp("valid")
    make_runs(CONFIG, root)
    make_probes(CONFIG, root, {key: means for key, means in MAIN.items() if key[0] == "nyuv2"})
    for path in (root / TABLE, root / SHOTS):
        table = json.loads(path.read_text())
        wanted = {"clip_ft", "cliptex", "random"} | ({"position"} if path == root / TABLE else set())
        write_json(path, table | {"results": [row for row in table["results"] if row["model"] in wanted]})
    table = json.loads((root / TABLE).read_text())
    for row in table["results"]:
        path = root / FOLDER / row["model"] / f"seed{row['seed']}" / f"{row['head']}.json"
        own = [r for r in table["results"] if (r["model"], r["seed"]) == (row["model"], row["seed"])]
        write_json(path, table | {"results": own})
    write_json(root / paths.SHARD_INDEX, {"schema_version": 1, "num_samples": 12, "dropped": {}, "shards": []})
    return root


@pytest.fixture
def run(valid, tmp_path) -> Path:
    shutil.copytree(valid, tmp_path, dirs_exist_ok=True)
    return tmp_path


def parts_of(root: Path) -> Parts:
    return make_parts(gather(CONFIG, root))


def edit(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_run_that_belongs_together_has_no_notes(valid):
    assert check(gather(CONFIG, valid)) == []


def set_row(path: Path, number: int, **keys) -> None:
    rows = json.loads(path.read_text())["results"]
    rows[number] |= keys
    edit(path, results=rows)


def add_points(root: Path) -> None:
    for path in (root / TABLE, root / FOLDER / "random/seed0/linear.json"):
        rows = json.loads(path.read_text())["results"]
        rows[0]["metrics"]["rmse"] += 20
        edit(path, results=rows)


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def seed_copied(root: Path) -> None:
    """All of seed 0's results of CLIPTeX, under the name of seed 1; the weights are those of two trainings."""
    source, target = (root / FOLDER / "cliptex" / f"seed{seed}" for seed in (0, 1))
    for name in ("linear.per_image.npz", "linear.json"):
        shutil.copy(source / name, target / name)
    rows = json.loads((root / TABLE).read_text())["results"]
    of_seed = {row["task"]: row["metrics"] for row in rows if (row["model"], row["seed"]) == ("cliptex", 0)}
    for row in rows:
        row["metrics"] = of_seed[row["task"]] if row["model"] == "cliptex" else row["metrics"]
    edit(root / TABLE, results=rows)
    own = [row for row in rows if (row["model"], row["seed"]) == ("cliptex", 1)]
    edit(target / "linear.json", results=own)


def with_digest(root: Path, path: Path, name: str, sha256: str) -> None:
    provenance = json.loads((root / path).read_text())["provenance"]
    provenance["model_sha256"][name] = sha256
    edit(root / path, provenance=provenance)


def without_row(root: Path) -> None:
    rows = json.loads((root / TABLE).read_text())["results"]
    gone = next(row for row in rows if (row["model"], row["seed"], row["task"]) == ("cliptex", 1, "normals"))
    edit(root / TABLE, results=[row for row in rows if row is not gone])


def parts_from(root: Path, change) -> None:
    path = root / FOLDER / "cliptex/seed0/linear.per_image.npz"
    file = read_per_image(path)
    path.unlink()
    write_per_image(path, file.ids, change({task: dict(arrays) for task, arrays in file.tasks.items()}))


TRAIN = "results/models/{}/train.json"
REFUSED = {
    "twenty points more": (add_points, r"nyuv2\.json: depth of random, seed 0, linear: rmse is 20\.\d+, but 0\.8\d+"),
    "an edited table": (
        lambda root: set_row(root / TABLE, 0, metrics={"rmse": 0.83, "other": 99.0}),
        r"nyuv2\.json: depth of random.* but \[\{.*linear\.json; tabulate it again",
    ),
    "an edited zero-shot table": (
        lambda root: set_row(root / SHOTS, -1, metrics={"top1": 90.0}),
        r"imagenet\.json: zero_shot_classification of cliptex, seed 1, zero_shot: top1 is 90\.0, but 3",
    ),
    "no main metric": (
        lambda root: set_row(root / SHOTS, 0, metrics={"top5": 1.0}),
        r"imagenet\.json: .* top1 is None, but",
    ),
    "parts of another model": (
        lambda root: swap(*(root / FOLDER / f"{m}/seed0/linear.per_image.npz" for m in ("clip_ft", "cliptex"))),
        r"nyuv2\.json: .* rmse is .*, but .* from its per-image parts in .*per_image\.npz; put the file of that run",
    ),
    "parts of another seed": (
        lambda root: swap(*(root / FOLDER / f"cliptex/seed{s}/linear.per_image.npz" for s in (0, 1))),
        r"of cliptex, seed 0, linear: rmse is .*, but .* from its per-image parts",
    ),
    "parts of another benchmark": (
        lambda root: shutil.copy(
            root / "results/zeroshot/imagenet.per_image.npz", root / FOLDER / "cliptex/seed0/linear.per_image.npz"
        ),
        r"cliptex/seed0/linear\.per_image\.npz: has nothing of depth, cliptex/seed0",
    ),
    "results of another head or seed": (
        lambda root: shutil.copy(
            root / FOLDER / "cliptex/seed0/linear.json", root / FOLDER / "cliptex/seed1/linear.json"
        ),
        r"depth of cliptex, seed 1, linear is .*, but \[\] in .*seed1/linear\.json",
    ),
    "a table of another benchmark": (
        lambda root: shutil.copy(root / TABLE, root / SHOTS),
        r"zeroshot/imagenet\.json: is of the benchmark 'nyuv2'",
    ),
    "train.json of another model": (
        lambda root: swap(*(root / TRAIN.format(f"{m}/seed0") for m in ("clip_ft", "cliptex"))),
        r"clip_ft/seed0/train\.json: is of 'cliptex', seed 0; put the file of that run back, or train clip_ft",
    ),
    "train.json of another seed": (
        lambda root: shutil.copy(root / TRAIN.format("cliptex/seed0"), root / TRAIN.format("cliptex/seed1")),
        r"cliptex/seed1/train\.json: is of 'cliptex', seed 0",
    ),
    "train.json of another training": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256="f" * 64),
        r"nyuv2\.json: cliptex/seed1 was evaluated with the weights [0-9a-f]{12}, but .*train\.json is of f{12} ",
    ),
    "a table of other weights": (
        lambda root: with_digest(root, SHOTS, "clip_ft/seed0", "e" * 64),
        r"imagenet\.json: clip_ft/seed0 was evaluated with the weights e{12}",
    ),
    "two seeds with the same weights": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256=digest("cliptex", 0)),
        r"cliptex/seed1/train\.json: its weights \(SHA-256 [0-9a-f]+\) are also those of seed 0",
    ),
    "a row twice": (
        lambda root: edit(root / TABLE, results=json.loads((root / TABLE).read_text())["results"] * 2),
        r"nyuv2\.json: 2 rows of depth, linear, random, seed 0",
    ),
    "a seed fewer": (without_row, r"nyuv2\.json: no row of normals, linear, cliptex, seed 1"),
    "parts without a task": (
        lambda root: parts_from(root, lambda tasks: {"depth": tasks["depth"]}),
        r"cliptex/seed0/linear\.per_image\.npz: has nothing of normals",
    ),
    "parts without an array": (
        lambda root: parts_from(root, lambda tasks: tasks | {"normals": {"pixels": tasks["normals"]["pixels"]}}),
        r"cliptex/seed0/linear\.per_image\.npz: normals: not parts of this task",
    ),
    "parts of another shape": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": tasks["depth"]["rmse"][:7]}}),
        r"nyuv2\.json: depth|linear\.per_image\.npz: depth",
    ),
    "parts that are text": (
        lambda root: parts_from(root, lambda tasks: tasks | {"depth": {"rmse": np.array(["a"] * EVALUATED)}}),
        r"linear\.per_image\.npz: depth: not parts of this task",
    ),
    "NaN": (
        lambda root: set_row(root / TABLE, 0, metrics={"rmse": math.nan}),
        r"nyuv2\.json: damaged, or not valid JSON \(NaN",
    ),
    "NaN in a metric that is not the main one": (
        lambda root: set_row(root / SHOTS, 0, metrics={"top1": 6.3, "top5": math.inf}),
        r"imagenet\.json: damaged, or not valid JSON \(Infinity",
    ),
}
MARKED = {
    "no digests": (
        lambda root: edit(root / TABLE, provenance={}),
        "nyuv2.json does not record the weights of clip_ft/seed0, clip_ft/seed1, cliptex/seed0, cliptex/seed1.",
    ),
    "train.json without a digest": (
        lambda root: edit(root / TRAIN.format("cliptex/seed1"), model_sha256=None),
        "imagenet.json does not record the weights of cliptex/seed1.",
    ),
    "results of seeds that are not asked for": (
        lambda root: edit(
            root / TABLE,
            results=(rows := json.loads((root / TABLE).read_text())["results"]) + [rows[0] | {"seed": 7}],
        ),
        "nyuv2.json also has random/seed7, left out since",
    ),
    "another configuration": (
        lambda root: edit(root / TRAIN.format("cliptex/seed0"), learning_rate=0.5),
        "CLIPTeX, seed 0, was trained with models.cliptex.learning_rate = 0.5, now 0.001.",
    ),
    "a seed copied from another": (
        seed_copied,
        "cliptex/seed1/linear.per_image.npz is the same as ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name, run):
    change, message = REFUSED[name]
    change(run)
    with pytest.raises(CliptexError, match=message) as caught:
        parts_of(run)
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


@pytest.mark.parametrize("name", MARKED)
def test_what_is_only_missing_is_said_on_the_page(name, run):
    change, sentence = MARKED[name]
    change(run)
    parts = parts_of(run)
    assert any(sentence in note for note in parts.notes), parts.notes
    if name == "a seed copied from another":
        assert parts.verdict.counts["real"] == 0


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("name", ["cliptex/seed0/linear", "../zeroshot/imagenet"])
def test_cut_parts_are_named(run, name, kept):
    """Whether the file is cut short or has other bytes in the middle."""
    path = (
        run / FOLDER / f"../{name}.per_image.npz" if name.startswith("..") else run / FOLDER / f"{name}.per_image.npz"
    )
    whole = path.read_bytes()
    cut = int(kept * len(whole)) if isinstance(kept, float) else kept
    for content in (whole[:cut], whole[:cut] + b"\xff" * 9 + whole[cut + 9 :]):
        path.write_bytes(content)
        with pytest.raises(CliptexError, match=r"\.per_image\.npz: |\.json: .* from its per-image parts") as caught:
            parts_of(run)
        assert "\n" not in str(caught.value)


def paths_in(value, prefix: tuple = ()):
    """The keys of a JSON value and of all values in it; of a list those of the first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*prefix, key)
        yield from paths_in(item, (*prefix, key))


def altered(value, keys: tuple, change):
    """The value with `change` applied to the dictionary or list that holds the last of `keys`."""
    value = json.loads(json.dumps(value))
    holder = value
    for key in keys[:-1]:
        holder = holder[key]
    change(holder, keys[-1])
    return value


CHANGES = {
    "deleted": lambda holder, key: holder.pop(key),
    **{repr(bad): lambda holder, key, bad=bad: holder.__setitem__(key, bad) for bad in (None, "x", [], {}, -1, 1e308)},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", [TABLE, SHOTS, Path(TRAIN.format("cliptex/seed0")), paths.SHARD_INDEX], ids=str)
def test_no_key_that_is_missing_or_wrong_is_more_than_an_error_of_one_line(file, change, run):
    """Each is refused, with the file's name, or is of no consequence, or is shown as missing."""
    whole = json.loads((run / file).read_text())
    for keys in paths_in(whole):
        (run / file).write_text(json.dumps(altered(whole, keys, CHANGES[change])))
        try:
            parts = parts_of(run)
        except CliptexError as error:
            assert file.name in str(error) and "\n" not in str(error), keys
        else:
            for table in filter(None, (*parts.tables.values(), *parts.metrics)):
                assert "nan" not in table.csv().lower() + table.markdown().lower()
            assert keys[:1] != ("results",) or "metrics" not in keys or keys[-1] in ("other <metric>", "top5"), keys

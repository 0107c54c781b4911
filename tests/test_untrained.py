"""Models without training steps, and lengths of training in epochs."""

import json

import pytest
from tiny import TINY

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, ConfigError
from cliptex.core.files import read_json, sha256_file
from cliptex.evaluation import zeroshot
from cliptex.evaluation.job import Job
from cliptex.models import clip as student
from cliptex.report.integrity import config_differences
from cliptex.training.run import train
from cliptex.training.start import copy_untrained

WEIGHTS = "open_clip_model.safetensors"


def with_model(config, name, **values):
    plain = config.plain()
    plain["models"][name] |= values
    return Config.load(plain)


def test_epochs_are_steps_on_the_pairs_that_there_are(tiny):
    """16 pairs, of which one is held out: three full batches of four are an epoch."""
    tiny = tiny.model_copy(update={"train": tiny.train.model_copy(update={"held_out": 1})})
    train(tiny, "clip", 0)
    pairs = read_json(paths.SHARD_INDEX)["num_samples"]
    config = with_model(tiny, "clip_ft", steps=None, epochs=1.5)
    config = with_model(config, "cliptex", steps=None, epochs=1.5)
    steps = round(1.5 * ((pairs - 1) // 4))
    assert steps > 3
    for name in ("clip_ft", "cliptex"):
        train(config, name, 0)
        record = read_json(paths.model(name, 0) / "train.json")
        lines = (paths.model(name, 0) / "metrics.jsonl").read_text().splitlines()
        assert (record["steps"], record["epochs_configured"], json.loads(lines[-1])["step"]) == (steps, 1.5, steps)
        assert json.loads(lines[-1])["learning_rate"] < 1e-9 + json.loads(lines[-2])["learning_rate"]
    by_epochs = sha256_file(paths.model("cliptex", 0) / WEIGHTS)
    assert config_differences(config, "cliptex", record) == []
    assert config_differences(with_model(config, "cliptex", epochs=2), "cliptex", record) == [
        "models.cliptex.epochs = 1.5, now 2.0"
    ]
    train(with_model(tiny, "cliptex", steps=steps), "cliptex", 0)
    record = read_json(paths.model("cliptex", 0) / "train.json")
    assert record["model_sha256"] == by_epochs and "epochs_configured" not in record


def test_a_length_is_given_once_and_alone_recorded():
    by_steps, by_epochs = ({"steps": 5}, {"steps": None, "epochs": 2})
    config = Config.load({"models": {"a": by_steps, "b": by_epochs, "c": {}}})
    assert {name: model.is_trained for name, model in config.models.items()} == {"a": True, "b": True, "c": False}
    recorded = json.loads(config.subset("models"))["models"]
    assert [recorded[name].get("steps") for name in "abc"] == [5, None, 0]
    assert [recorded[name].get("epochs") for name in "abc"] == [None, 2.0, None]
    assert Config.load(config.subset("models")).models == config.models
    assert [config.models["b"].num_steps(pairs, 64) for pairs in (64, 1000, 100_000)] == [2, 30, 3124]
    with pytest.raises(ConfigError, match=r"models\.a\.epochs: not allowed together with `steps`; .*`steps: null`"):
        Config.load({"models": {"a": {"steps": 0, "epochs": 1}}})


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder with nothing but a released model, which two models of the configuration start from."""
    monkeypatch.chdir(tmp_path)
    student.export(student.build(TINY, 7), TINY, tmp_path / "released")
    section = {"architecture": TINY.architecture, "pretrained": "released"}
    return Config.load({"student": section, "models": {"clip": {}, "later": {"init": "clip"}}, "seeds": [0, 1]})


def test_a_model_without_steps_needs_no_pairs_and_is_the_same_for_every_seed(released):
    assert released.is_seedless("clip") and released.is_seedless("later")
    train(released, "clip", 0)
    train(released, "later", 0)
    for seed in (1, 2):
        copy_untrained(released, "clip", seed, 0)
        record = read_json(paths.model("clip", seed) / "train.json")
        assert (record["seed"], record["steps"], record["init"]) == (seed, 0, "released")
        first = read_json(paths.model("clip", 0) / "train.json")
        assert record == first | {"seed": seed}
    folders = [paths.model("clip", 0), paths.model("clip", 1), paths.model("later", 0)]
    assert len({sha256_file(folder / WEIGHTS) for folder in folders}) == 1
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    assert not paths.SHARD_INDEX.parent.exists()
    # with random weights, or heads, a seed matters
    others = Config.load({"student": {"architecture": TINY.architecture}, "models": {"clip": {}}})
    with pytest.raises(CliptexError, match=r"models\.clip: depends on the seed; leave out --same-as-seed"):
        copy_untrained(others, "clip", 1, 0)


def test_the_same_weights_are_evaluated_once(released, tmp_path, monkeypatch):
    from official_layouts import write_imagenet

    write_imagenet(tmp_path / "imagenet", 3, 6, classes=3)
    for seed in (0, 1):
        student.export(student.load(tmp_path / "released"), TINY, paths.model("clip", seed))
    student.export(student.build(TINY, 1), TINY, paths.model("later", 0))
    student.export(student.build(TINY, 2), TINY, paths.model("later", 1))
    encoded, encode = [], zeroshot.encode_images

    def counted(models, *arguments):
        encoded.append([(model.name, model.seed) for model in models])
        return encode(models, *arguments)

    monkeypatch.setattr(zeroshot, "encode_images", counted)
    config = released.model_copy(update={"probes": released.probes.model_copy(update={"baselines": []})})
    zeroshot.run(config, Job(name="imagenet", benchmark_dir=tmp_path / "imagenet", out=tmp_path / "out.json"))
    assert encoded == [[("clip", 0), ("later", 0), ("later", 1)]]
    rows = read_json(tmp_path / "out.json")["results"]
    assert [(row["model"], row["seed"]) for row in rows] == [("clip", 0), ("clip", 1), ("later", 0), ("later", 1)]
    assert rows[0]["metrics"] == rows[1]["metrics"]

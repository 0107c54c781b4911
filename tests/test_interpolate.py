import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cliptex.cli import app
from cliptex.config import Config, Student
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file, write_json
from cliptex.models import clip as student
from cliptex.models.interpolate import between, interpolate
from cliptex.report.gather import _run
from cliptex.report.tables.training import start

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}


def make(name, seed, architecture=TINY):
    """An exported model of random weights in the place of a trained one."""
    settings = Student(architecture=architecture)
    folder = paths.model(name, 0)
    sha256 = student.export(student.build(settings, seed), settings, folder)
    parameters = {"encoder": 1, "text": 2, "heads": 3}
    write_json(folder / "train.json", {"model_sha256": sha256, "parameters": parameters, "init": "clip"})


def configured(alpha=0.5, **further):
    models = {"clip": {"steps": 3}, "cliptex": {"init": "clip", "steps": 3}}
    mixed = {"interpolate": {"of": "cliptex", "with": "clip", "alpha": alpha}, **further}
    return Config.load({"models": {**models, "wise": mixed}, "student": {"architecture": TINY}})


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("clip", 1)
    make("cliptex", 2)


def weights(name):
    return load_file(paths.model(name, 0) / student.WEIGHTS_FILE)


@pytest.mark.parametrize(("alpha", "same_as"), [(0.0, "clip"), (1.0, "cliptex")])
def test_the_ends_are_the_models_themselves_bit_for_bit(two, alpha, same_as):
    interpolate(configured(alpha), "wise", 0)
    found, wanted = weights("wise"), weights(same_as)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_between_the_ends_every_weight_is_the_weighted_mean(two):
    interpolate(configured(0.25), "wise", 0)
    found, start, end = weights("wise"), weights("clip"), weights("cliptex")
    assert not torch.equal(start["visual.conv1.weight"], end["visual.conv1.weight"])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * end[name])
    model = student.load(paths.model("wise", 0))
    assert torch.equal(model.visual.conv1.weight, found["visual.conv1.weight"])


def test_the_record_says_what_it_is_made_of_and_the_report_reads_it(two):
    interpolate(configured(0.3), "wise", 0)
    folder = paths.model("wise", 0)
    record = read_json(folder / "train.json")
    assert record["interpolate"] == {
        "of": "cliptex",
        "with": "clip",
        "alpha": 0.3,
        "of_sha256": sha256_file(paths.model("cliptex", 0) / student.WEIGHTS_FILE),
        "with_sha256": sha256_file(paths.model("clip", 0) / student.WEIGHTS_FILE),
    }
    assert record["model_sha256"] == sha256_file(folder / student.WEIGHTS_FILE)
    assert (record["steps"], record["tasks"], record["parameters"]["heads"]) == (0, {}, 0)
    run = _run(folder)
    assert run.history == []
    assert start(run.record) == "0.3 × CLIPTeX + 0.7 × CLIP"
    assert sorted(path.name for path in folder.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "train.json",
    ]


def test_models_of_other_architectures_are_refused(two):
    other = copy.deepcopy(TINY)
    other["vision_cfg"]["width"] = 48
    make("cliptex", 2, other)
    with pytest.raises(CliptexError, match=r"cliptex and clip differ in model_cfg \(vision_cfg\.width: 48 and 32\)"):
        interpolate(configured(), "wise", 0)
    make("cliptex", 2)
    path = paths.model("cliptex", 0) / student.CONFIG_FILE
    described = read_json(path)
    described["preprocess_cfg"]["resize_mode"] = "squash"
    write_json(path, described)
    with pytest.raises(CliptexError, match=r"differ in preprocess_cfg \(resize_mode: squash and shortest\)"):
        interpolate(configured(), "wise", 0)
    assert not paths.model("wise", 0).exists()


def test_weights_that_do_not_pair_are_refused(two):
    path = paths.model("cliptex", 0) / student.WEIGHTS_FILE
    state = weights("cliptex")
    save_file(state | {"further": torch.zeros(1)}, path)
    with pytest.raises(CliptexError, match=r"open_clip_model\.safetensors: not the weights that train\.json records"):
        interpolate(configured(), "wise", 0)
    path.unlink()
    with pytest.raises(CliptexError, match=r"no such file; train that model first"):
        interpolate(configured(), "wise", 0)
    with pytest.raises(CliptexError, match=r"here: only one of the two models has 'b'"):
        between({"a": torch.zeros(3)}, {"a": torch.zeros(3), "b": torch.zeros(3)}, 0.5, "here")
    with pytest.raises(CliptexError, match=r"here: 'a' is \[2\] in one and \[3\] in the other"):
        between({"a": torch.zeros(3)}, {"a": torch.zeros(2)}, 0.5, "here")


def test_whole_numbers_are_not_mixed():
    found = between({"a": torch.tensor(3)}, {"a": torch.tensor(8)}, 0.5, "here")
    assert found["a"].item() == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 4}, r"models\.wise\.steps: not allowed together"),
        ({"init": "clip"}, r"models\.wise\.init: not allowed together"),
        ({"tasks": {"depth": 1.0}}, r"models\.wise\.tasks: not allowed together"),
        ({"interpolate": {"of": "cliptx", "with": "clip"}}, r"models\.wise\.interpolate\.of: 'cliptx' is not one of"),
        ({"interpolate": {"of": "clip", "with": "klip"}}, r"models\.wise\.interpolate\.with: 'klip' is not one of"),
        ({"interpolate": {"of": "clip", "with": "cliptex", "alpha": 1.5}}, r"models\.wise\.interpolate\.alpha"),
        ({"interpolate": {"of": "clip"}}, r"models\.wise\.interpolate\.with: is missing"),
        ({"interpolate": {"of": "wise", "with": "clip"}}, r"models\.wise\.interpolate: .*wise -> wise is a cycle"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(CliptexError, match=message):
        configured(**given)


def test_a_chain_through_an_interpolation_is_no_circle_unless_it_closes():
    models = {
        "clip": {"steps": 3},
        "wise": {"interpolate": {"of": "cliptex", "with": "clip"}},
        "cliptex": {"init": "clip", "steps": 3},
        "after": {"init": "wise", "steps": 3},
    }
    assert Config.load({"models": models}).models["after"].sources() == ["wise"]
    models["cliptex"]["init"] = "after"
    with pytest.raises(CliptexError, match="is a cycle"):
        Config.load({"models": models})


def test_the_configuration_survives_the_way_to_a_job(two):
    """The workflow hands a job the keys it uses, with defaults filled in and names as the user writes them."""
    config = configured(0.25)
    text = config.subset("dataset.source", "models.wise", "models.clip", "models.cliptex")
    assert json.loads(text)["models"]["wise"]["interpolate"] == {"of": "cliptex", "with": "clip", "alpha": 0.25}
    result = CliRunner().invoke(app, ["interpolate", "--model", "wise", "--config", text])
    assert result.exit_code == 0, result.output
    assert read_json(paths.model("wise", 0) / "train.json")["interpolate"]["alpha"] == 0.25


def test_training_it_or_interpolating_another_is_refused(two):
    text = configured().subset("models")
    for arguments, message in (
        (["train", "--model", "wise"], "is interpolated, not trained; run: cliptex interpolate"),
        (["interpolate", "--model", "clip"], r"models\.clip: has no `interpolate`"),
        (["interpolate", "--model", "nobody"], r"models\.nobody: has no `interpolate`"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--config", text])
        with pytest.raises(CliptexError, match=message):
            raise result.exception

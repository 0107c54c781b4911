import json
import signal
import subprocess
import sys
import time

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from cliptex import paths
from cliptex import train as training
from cliptex.errors import CliptexError
from cliptex.files import read_json, sha256_file
from cliptex.train import train


def weights(name, seed=0):
    return load_file(paths.model(name, seed) / "open_clip_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def clip(tiny):
    train(tiny, "clip", 0)
    return tiny


def test_every_model_is_exported_with_its_record(clip):
    for name in ("clip_ft", "cliptex"):
        train(clip, name, 0)
        folder = paths.model(name, 0)
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
        assert model.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 16)
        record = read_json(folder / "train.json")
        assert record["init"] == "clip"
        assert record["model_sha256"] == sha256_file(folder / "open_clip_model.safetensors")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        stores = {"segmentation", "depth", "normals"} if name == "cliptex" else set()
        assert stores == set(lines[0]) & {"segmentation", "depth", "normals"}
        assert not (folder / "checkpoints").exists()
        assert (record["parameters"]["heads"] > 0) == bool(stores)
    assert not same(weights("clip_ft"), weights("cliptex"))


def test_the_exported_model_has_no_trace_of_the_heads(clip):
    train(clip, "cliptex", 0)
    assert weights("cliptex").keys() == weights("clip").keys()
    assert any(key.startswith("multi_scale") for key in load_file(paths.model("cliptex", 0) / "heads.safetensors"))


def test_training_lowers_the_losses(clip):
    longer = clip.models["cliptex"].model_copy(update={"steps": 24, "learning_rate": 3e-3})
    train(clip.model_copy(update={"models": {**clip.models, "cliptex": longer}}), "cliptex", 0)
    lines = [json.loads(line) for line in (paths.model("cliptex", 0) / "metrics.jsonl").read_text().splitlines()]
    for loss in ("contrastive", "segmentation", "depth", "normals"):
        assert sum(line[loss] for line in lines[-5:]) < sum(line[loss] for line in lines[:5]), loss


def test_same_seed_same_weights_and_another_seed_others(clip):
    train(clip, "cliptex", 0)
    first = weights("cliptex")
    train(clip, "cliptex", 0)
    assert same(first, weights("cliptex"))
    train(clip, "clip", 1)
    assert not same(weights("clip", 0), weights("clip", 1))


class Killed(BaseException):
    pass


def train_until(config, name, step, monkeypatch):
    """Train, and die when `step` begins."""
    original = training._Run.step

    def deadly(self, batch, number):
        if number == step:
            raise Killed
        return original(self, batch, number)

    monkeypatch.setattr(training._Run, "step", deadly)
    with pytest.raises(Killed):
        train(config, name, 0)
    monkeypatch.setattr(training._Run, "step", original)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("name", ["clip_ft", "cliptex"])
def test_a_killed_run_goes_on_to_the_same_weights(clip, monkeypatch, name, step):
    train(clip, name, 0)
    whole, lines = weights(name), (paths.model(name, 0) / "metrics.jsonl").read_text()
    for path in paths.model(name, 0).iterdir():
        path.unlink()
    train_until(clip, name, step, monkeypatch)
    assert not (paths.model(name, 0) / "train.json").exists()
    train(clip, name, 0)
    assert same(whole, weights(name))
    assert lines == (paths.model(name, 0) / "metrics.jsonl").read_text()


def test_a_truncated_checkpoint_is_left_out_and_the_one_before_is_used(clip, monkeypatch, caplog):
    train_until(clip, "cliptex", 6, monkeypatch)
    checkpoints = sorted((paths.model("cliptex", 0) / "checkpoints").glob("*.pt"))
    assert [path.name for path in checkpoints] == ["step-00000002.pt", "step-00000004.pt"]
    checkpoints[1].write_bytes(checkpoints[1].read_bytes()[:1000])
    with caplog.at_level("INFO", "cliptex"):
        train(clip, "cliptex", 0)
    assert "step-00000004.pt: unreadable checkpoint left out" in caplog.text
    assert "going on from step 2" in caplog.text


def test_a_checkpoint_of_another_configuration_is_not_continued(clip, monkeypatch, caplog):
    train_until(clip, "cliptex", 6, monkeypatch)
    other = clip.model_copy(update={"train": clip.train.model_copy(update={"weight_decay": 0.5})})
    train(other, "cliptex", 0)
    assert "another configuration" in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run(clip, monkeypatch):
    monkeypatch.setattr(training._Run, "step", lambda self, batch, step: {"loss": float("nan")})
    with pytest.raises(CliptexError, match=r"models\.cliptex: the loss at step 1 is nan.*learning_rate"):
        train(clip, "cliptex", 0)
    assert not (paths.model("cliptex", 0) / "open_clip_model.safetensors").exists()


def test_unknown_models_and_missing_starts_are_named(tiny):
    with pytest.raises(CliptexError, match="no model 'klip'"):
        train(tiny, "klip", 0)
    with pytest.raises(CliptexError, match=r"clip/seed0.*train that model first"):
        train(tiny, "clip_ft", 0)


def test_decay_spares_norms_biases_embeddings_and_the_logit_scale(tiny):
    model = training.student.build(tiny.student, 0)
    heads = training.DenseHeads(32, {"depth": 1}, "ppm", 16, prior_cells=4)
    run = training._Run(model, heads, {}, tiny.models["clip"], tiny.train, tiny.student, "fp32")
    spared = {id(p) for group in run.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert {"logit_scale", "token_embedding.weight", "positional_embedding", "visual.ln_post.weight"} <= names
    assert "visual.conv1.weight" not in names
    assert "text_projection" not in names
    assert id(heads.priors["depth"]) in spared
    everything = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(everything) == len([*model.parameters(), *heads.parameters()])


def test_sigkill_loses_at_most_one_interval(clip, tmp_path):
    """A real process, really killed."""
    steps = clip.models["clip_ft"].model_copy(update={"steps": 80})
    config = clip.model_copy(update={"models": {**clip.models, "clip_ft": steps}})
    command = [sys.executable, "-m", "cliptex", "--threads", "1", "train", "--model", "clip_ft"]
    command += ["--config", config.subset("dataset", "student", "train", "models", "label_stores")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    folder = paths.model("clip_ft", 0) / "checkpoints"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("step-*.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (paths.model("clip_ft", 0) / "train.json").exists()
    newest = max(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    assert newest >= 4
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert f"going on from step {newest}" in ended.stderr

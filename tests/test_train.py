import functools
import io
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from commands import PATIENCE_S, PROCESSES, begin, command_line
from official_layouts import write_imagenet
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, subject
from cliptex.core.files import read_json, sha256_file
from cliptex.evaluation import zeroshot
from cliptex.evaluation.job import Job
from cliptex.models import clip as student
from cliptex.models.heads import DenseHeads
from cliptex.training import cost, distributed, validator
from cliptex.training.checkpoints import EXIT_STOPPED, Checkpoints, Stopped, StopRequest
from cliptex.training.run import train
from cliptex.training.trainer import Trainer
from cliptex.training.validator import EvenlySpaced, KeptImages, Validator, own_blocks


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
        assert record["heads_sha256"] == sha256_file(folder / "heads.safetensors")
        assert record["init_sha256"] == read_json(paths.model("clip", 0) / "train.json")["model_sha256"]
        assert 1e-310 * 1.0 > 0, "flushing of denormals is switched off again"
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


def changed(config, name=None, *, train=None, **model):
    """The configuration with changed values of `train` and of model `name`."""
    plain = config.plain()
    plain["train"] |= train or {}
    if name:
        plain["models"][name] |= model
    return Config.load(plain)


class Killed(BaseException):
    pass


def train_until(config, name, step, monkeypatch):
    """Train, and raise Killed at the beginning of `step`."""
    original = Trainer.step

    def deadly(self, batch, number):
        if number == step:
            raise Killed
        return original(self, batch, number)

    monkeypatch.setattr(Trainer, "step", deadly)
    with pytest.raises(Killed):
        train(config, name, 0)
    monkeypatch.setattr(Trainer, "step", original)


@pytest.mark.parametrize(("name", "step"), [("clip_ft", 1), ("cliptex", 3), ("cliptex", 5)])
def test_a_killed_run_goes_on_to_the_same_weights(clip, monkeypatch, name, step):
    train(clip, name, 0)
    whole, lines = weights(name), (paths.model(name, 0) / "metrics.jsonl").read_text()
    shutil.rmtree(paths.model(name, 0))
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
    assert "step-00000004.pt: unreadable checkpoint skipped" in caplog.text
    assert "resuming from step 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cliptex", {"ema": 0.9, "accumulate": 2, "crop_sizes_px": [24, 32]}),
        ("cliptex", {"ema": 0.9, "precision": "fp16"}),
        ("clip_ft", {"precision": "fp32"}),
    ],
)
def test_eight_steps_are_four_and_a_restart_and_four(clip, monkeypatch, name, options):
    """Weights, moments, averages, loss scale, random state, learning rates and the next keys, bit for bit."""
    config = changed(clip, name, steps=8, train={**options, "checkpoint_every": 4})
    if not config.models[name].tasks:
        config = changed(config, name, patch_dropout=0.5)
    seen = []
    original = Trainer.step

    def noting(self, batch, step):
        values = original(self, batch, step)
        seen.append((step, batch.keys, repr(values), self))  # as text, since fp16 may overflow, and NaN != NaN
        return values

    monkeypatch.setattr(Trainer, "step", noting)
    train(config, name, 0)
    whole, state = [row[:3] for row in seen], seen[-1][3].state_dict()
    assert [step for step, _, _ in whole] == list(range(1, 9))
    assert bool(state["scaler"]) == (options.get("precision") == "fp16")
    shutil.rmtree(paths.model(name, 0))
    seen.clear()
    train_until(config, name, 5, monkeypatch)
    torch.manual_seed(123)
    train(config, name, 0)
    assert [row[:3] for row in seen] == whole
    assert equal(seen[-1][3].state_dict(), state)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_checkpoint_of_another_configuration_is_refused_with_both_values(clip, monkeypatch):
    train_until(clip, "cliptex", 6, monkeypatch)
    message = r"train\.weight_decay = 0\.1, now 0\.5\. .*mv results/models/cliptex/seed0/checkpoints"
    with pytest.raises(CliptexError, match=message):
        train(changed(clip, train={"weight_decay": 0.5}), "cliptex", 0)
    with pytest.raises(CliptexError, match=r"models\.cliptex\.learning_rate = 0\.001, now 0\.002"):
        train(changed(clip, "cliptex", learning_rate=2e-3), "cliptex", 0)
    # the intervals of writing do not change the result
    train(changed(clip, train={"checkpoint_every": 3, "log_every": 2}), "cliptex", 0)


def test_a_checkpoint_from_other_data_is_refused(clip, monkeypatch):
    train_until(clip, "cliptex", 6, monkeypatch)
    index = read_json(paths.labels("depth") / "index.json")
    (paths.labels("depth") / "index.json").write_text(json.dumps(index | {"statistics": "others"}))
    with pytest.raises(CliptexError, match=r"label_stores\.depth\.index_sha256 = .*, now "):
        train(clip, "cliptex", 0)


def test_a_checkpoint_that_would_run_code_is_left_out(clip, monkeypatch, caplog):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    folder = paths.model("clip_ft", 0) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"step": 4, "engine": Malicious()}, folder / "step-00000004.pt")
    with caplog.at_level("INFO", "cliptex"):
        train(clip, "clip_ft", 0)
    assert "step-00000004.pt: unreadable checkpoint skipped" in caplog.text
    assert not os.path.exists("executed")  # noqa: PTH110


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_two_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    for step in (1, 2, 3):
        checkpoints.save({"step": step})
    original = torch.save

    def dying(state, path):
        original(state, path)
        raise Killed

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(Killed):
        checkpoints.save({"step": 4})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002.pt", "step-00000003.pt"]
    assert checkpoints.latest() == {"step": 3, "settings": {"a": 1}}


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_the_one_before_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"a": 1})
    checkpoints.save({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # like a full disk
    try:
        with pytest.raises(CliptexError, match=r"step-00000002\.pt: cannot be written .*; make room"):
            checkpoints.save({"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(clip, monkeypatch, name):
    train(clip, "cliptex", 0)
    whole = weights("cliptex")
    shutil.rmtree(paths.model("cliptex", 0))
    original = Trainer.step

    def stopped(self, batch, step):
        if step == 3:
            signal.raise_signal(getattr(signal, name))
        return original(self, batch, step)

    monkeypatch.setattr(Trainer, "step", stopped)
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(Stopped) as caught:
        train(clip, "cliptex", 0)
    assert caught.value.code == EXIT_STOPPED == 75
    assert signal.getsignal(getattr(signal, name)) is before
    folder = paths.model("cliptex", 0)
    assert sorted(path.name for path in folder.iterdir() if path.name != "tensorboard") == ["checkpoints"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "metrics.jsonl",
        "step-00000002.pt",
        "step-00000003.pt",
    ]
    monkeypatch.setattr(Trainer, "step", original)
    train(clip, "cliptex", 0)
    assert same(whole, weights("cliptex"))


def test_a_thread_that_trains_leaves_the_signals_alone():
    before, heard = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest() as stop:
            heard.append((signal.getsignal(signal.SIGTERM), stop.signal_name))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [(before, None)]


def test_a_loss_that_is_not_finite_stops_the_run(clip, monkeypatch):
    keys = []

    def broken(self, batch, step):
        keys.extend(batch.keys)
        return {"loss": float("nan")}

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(CliptexError, match=r"models\.cliptex: the loss at step 1 is nan.*learning_rate") as caught:
        train(clip, "cliptex", 0)
    (path,) = (paths.model("cliptex", 0) / "checkpoints").glob("not-finite-step-00000001-rank-0.json")
    assert str(path) in str(caught.value)
    assert read_json(path)["keys"] == keys
    assert (path.parent / "metrics.jsonl").exists()
    assert not (paths.model("cliptex", 0) / "open_clip_model.safetensors").exists()


def poisoned(monkeypatch, step, poison):
    """Call `poison(trainer)` before a step; returns a list that gets the keys of its batch."""
    keys, original = [], Trainer.step

    def deadly(self, batch, number):
        if number == step:
            keys.extend(batch.keys)
            poison(self)
        return original(self, batch, number)

    monkeypatch.setattr(Trainer, "step", deadly)
    return keys


def test_weights_that_overflow_stop_the_run(clip, monkeypatch):
    def poison(trainer):
        trainer.model.visual.conv1.weight.data[0, 0, 0, 0] = float("inf")

    keys = poisoned(monkeypatch, 3, poison)
    with pytest.raises(CliptexError, match=r"models\.cliptex: the loss at step 3 is nan"):
        train(clip, "cliptex", 0)
    lines = (paths.model("cliptex", 0) / "checkpoints" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] >= 1
    assert read_json(paths.model("cliptex", 0) / "checkpoints" / "not-finite-step-00000003-rank-0.json")["keys"] == keys


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_weights_are_saved(clip, monkeypatch):
    """This step's loss is still finite; that of the next step would not be."""

    def poison(trainer):
        trainer.model.text_projection.register_hook(lambda gradient: gradient * float("nan"))

    keys = poisoned(monkeypatch, 4, poison)
    with pytest.raises(CliptexError, match=r"models\.cliptex: the grad_norm at step 4 is nan"):
        train(clip, "cliptex", 0)
    folder = paths.model("cliptex", 0) / "checkpoints"
    assert read_json(folder / "not-finite-step-00000004-rank-0.json")["keys"] == keys
    assert [path.name for path in folder.glob("*.pt")] == ["step-00000002.pt"]


def test_a_gradient_that_fp16_cannot_hold_is_no_end_and_no_infinity_in_the_log(clip, monkeypatch):
    def scale(power):
        return lambda trainer: trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**power})

    poisoned(monkeypatch, 1, scale(8))
    poisoned(monkeypatch, 2, scale(30))
    train(changed(clip, train={"precision": "fp16"}), "cliptex", 0)
    lines = outcome("cliptex")[1]
    assert ["grad_norm" in line for line in lines[:2]] == [True, False]
    assert lines[1]["loss_scale"] == 2.0**29


def test_unknown_models_and_missing_starts_are_named(tiny):
    with pytest.raises(CliptexError, match="no model 'klip'"):
        train(tiny, "klip", 0)
    with pytest.raises(CliptexError, match=r"clip/seed0.*train that model first"):
        train(tiny, "clip_ft", 0)


def trainer(config, name, model, heads, precision="fp32"):
    world = distributed.World(0, 1, torch.device("cpu"))
    return Trainer(model, heads, {}, config.models[name], config.train, precision, world)


def test_decay_spares_norms_biases_embeddings_and_the_logit_scale(tiny):
    model = student.build(tiny.student, 0)
    heads = DenseHeads(32, {"depth": 1}, "ppm", 16, prior_cells=4)
    run = trainer(tiny, "clip", model, heads)
    spared = {id(p) for group in run.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert {"logit_scale", "token_embedding.weight", "positional_embedding", "visual.ln_post.weight"} <= names
    assert "visual.conv1.weight" not in names
    assert "text_projection" not in names
    assert id(heads.priors["depth"]) in spared
    everything = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(everything) == len([*model.parameters(), *heads.parameters()])


def arguments_of(config, name):
    text = config.subset("dataset", "student", "train", "models", "label_stores")
    return ["--threads", "1", "train", "--model", name, "--config", text]


def killed_in_the_third_save(*command):
    """A command of which half a checkpoint is written when it dies."""
    whole, saves = torch.save, []

    def half(state, path):
        data = io.BytesIO()
        whole(state, data)
        saves.append(path)
        with open(path, "wb") as file:  # noqa: PTH123, as torch.save does
            file.write(data.getvalue() if len(saves) < 3 else data.getvalue()[: data.tell() // 2])
        if len(saves) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    command_line(*command)


def test_sigkill_in_a_save_loses_one_interval_and_sigterm_nothing(clip, tmp_path):
    """A real process, killed when half a checkpoint is written, then stopped, then run to its end."""
    config = changed(clip, "clip_ft", steps=200)
    folder = paths.model("clip_ft", 0) / "checkpoints"
    arguments, (_, tell) = arguments_of(config, "clip_ft"), PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=killed_in_the_third_save, args=(tmp_path, arguments, 0, {}, tell))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert not (paths.model("clip_ft", 0) / "train.json").exists()
    (left,) = folder.glob(".step-00000006.*.pt")
    assert left.stat().st_size > 1000
    newest = max(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    assert newest == 4

    process, _ = begin(tmp_path, arguments, said=tmp_path / "said.txt")
    begun = max(folder.glob("step-*.pt"))
    while process.is_alive() and begun.exists():  # until newer checkpoints have replaced it
        time.sleep(0.02)
    process.terminate()
    process.join(120)
    log_text = (tmp_path / "said.txt").read_text()
    assert process.exitcode == EXIT_STOPPED, log_text
    assert f"resuming from step {newest}" in log_text
    assert "SIGTERM after step" in log_text
    assert not (paths.model("clip_ft", 0) / "train.json").exists()
    newest = max(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    assert f"after step {newest};" in log_text
    assert not left.exists()
    train(changed(config, train={"checkpoint_every": 100}), "clip_ft", 0)
    assert read_json(paths.model("clip_ft", 0) / "train.json")["images_seen"] == 800


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7"}
MICRO = {"accumulate": 2, "crop_sizes_px": [24, 32], "ema": 0.5, "held_out": 5}


def exact(config):
    """For comparisons: fp32, patch dropout in `clip`, a learning rate at which Adam does not amplify rounding."""
    models = config.plain()["models"]
    for name, options in {"clip": {"patch_dropout": 0.5}, "cliptex": {}}.items():
        models[name] |= {"learning_rate": 1e-4, "steps": 4, **options}
    return Config.load(config.plain() | {"models": models, "train": config.plain()["train"] | {"precision": "fp32"}})


def outcome(name):
    folder = paths.model(name, 0)
    tensors = load_file(folder / "open_clip_model.safetensors") | load_file(folder / "heads.safetensors")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return tensors, [json.loads(line, parse_constant=pytest.fail) for line in lines]


def assert_close(one, other):
    (weights, lines), (others, other_lines) = one, other
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        if name.endswith("in_proj_bias"):
            # the gradient of the key bias is only rounding error (softmax ignores it), which Adam amplifies
            query, _, value = tensor.chunk(3)
            other_query, _, other_value = others[name].chunk(3)
            tensor, others[name] = torch.cat([query, value]), torch.cat([other_query, other_value])
        torch.testing.assert_close(tensor, others[name], rtol=1e-5, atol=1e-5, msg=name)
    assert [line.keys() for line in lines] == [line.keys() for line in other_lines]
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line == pytest.approx(other_line, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["clip", "cliptex"])
def test_micro_batches_equal_one_big_batch(tiny, name):
    """The same negatives, valid pixels, batch norm statistics and dropped patches."""
    config = exact(tiny)
    train(config, "clip", 0)
    train(config, name, 0)
    whole = outcome(name)
    train(changed(config, train={"accumulate": 4}), name, 0)
    assert_close(outcome(name), whole)


def small_validation_batches(assign):
    """Several of each kind, so that every process has some."""
    assign(validator, "HELD_OUT_ROWS", 2)
    assign(validator, "CLASSES", 1)
    assign(zeroshot, "BATCH_SIZE", 2)


def rank_of_two(*given):
    """What each of two processes does: train models, given as configuration, name, configuration, ..."""
    signalled, original = [], Trainer.step

    def step(self, batch, number):
        if number == 2 and self.world.rank == 1 and self.tasks and not signalled:
            signalled.append(number)
            signal.raise_signal(signal.SIGUSR1)
        return original(self, batch, number)

    small_validation_batches(setattr)
    Trainer.step = step
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # without minutes of compilation
    for text, name in zip(given[::2], given[1::2], strict=True):
        if name == "cliptex":
            cost.peak_memory_mb = lambda: 1000.0 + int(os.environ["RANK"])
        try:
            train(Config.load(text), name, 0)
        except Stopped as stopped:
            assert stopped.step == 2
            train(Config.load(text), name, 0)


def two_ranks(folder, given):
    """What torchrun does, but that its processes are forks."""
    os.chdir(folder)
    os.environ.update(SLURM)
    printed = os.open("said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    standalone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    options = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **standalone)
    elastic_launch(options, rank_of_two)(*given)


def test_two_processes_equal_one(tiny, tmp_path, monkeypatch):
    """Started by torchrun with the environment of a SLURM job of another size; with crops, flips, held-out pairs and
    zero-shot validation, which for the same weights gives the same metrics, bit for bit. One of the processes is
    signalled to stop: both save and resume. A third model is compiled."""
    config = exact(tiny)
    small_validation_batches(monkeypatch.setattr)
    write_imagenet(paths.benchmark("imagenet"), 6, 6)
    micro = watched(changed(config, train=MICRO))
    eager = changed(config, "shuffled", train=MICRO, steps=3, learning_rate=1e-4)
    compiled = changed(eager, train={"compile": True})
    given = [json.dumps(config.plain()), "clip", json.dumps(micro.plain()), "cliptex"]
    given += [json.dumps(compiled.plain()), "shuffled"]
    process = PROCESSES.Process(target=two_ranks, args=(tmp_path, given))
    process.start()
    process.join(1200)
    assert process.exitcode == 0, (tmp_path / "said.txt").read_text()
    shared = {name: outcome(name) for name in ("clip", "cliptex", "shuffled")}
    record = read_json(paths.model("cliptex", 0) / "train.json")
    assert (record["processes"], record["peak_memory_mb"]) == (2, 1001.0), "the maximum of both"
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    train(micro, "cliptex", 0)  # starts from the clip of the two processes
    train(config, "clip", 0)
    train(eager, "shuffled", 0)
    assert read_json(paths.model("cliptex", 0) / "train.json")["processes"] == 1
    for name, found in shared.items():
        assert_close(found, outcome(name))
    before, end = (shared["cliptex"][1][number] for number in (0, -1))
    assert before == outcome("cliptex")[1][0]
    for line in (before, end):
        assert {"zero_shot_top1", "held_out/segmentation/mIoU", "held_out/normals/mean"} <= line.keys()


def test_half_of_torchruns_variables_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CliptexError, match=r"WORLD_SIZE: set without RANK, LOCAL_RANK, MASTER_ADDR.*torchrun"):
        distributed.init_distributed().__enter__()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "one"}, "RANK='one': must be a whole number"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK='-1': must be"),
        ({"MASTER_PORT": "²"}, "MASTER_PORT='²': must be"),
        ({"WORLD_SIZE": "0"}, "RANK=0, WORLD_SIZE=0, LOCAL_RANK=0: not those of a process that torchrun starts"),
        ({"RANK": "2"}, "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0: not those"),
    ],
)
def test_variables_of_torchrun_that_make_no_sense_are_one_line(monkeypatch, given, message):
    sensible = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (sensible | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CliptexError, match=message), distributed.init_distributed():
        pass


def watched(config, **watch):
    return changed(config, train={"watch": {"zero_shot": "imagenet", **watch}})


def test_zero_shot_before_step_1_is_the_start_models_and_looking_changes_nothing(clip):
    write_imagenet(paths.benchmark("imagenet"), 6, 6)
    evaluated = Config.load(clip.plain() | {"models": {"clip": {}}, "probes": {"baselines": []}})
    zeroshot.run(evaluated, Job(name="imagenet", out=Path("zeroshot.json")))
    base = read_json(Path("zeroshot.json"))["results"][0]["metrics"]
    train(clip, "cliptex", 0)
    plain = weights("cliptex")
    train(watched(clip), "cliptex", 0)
    assert same(plain, weights("cliptex"))
    lines = {line["step"]: line for line in outcome("cliptex")[1]}
    assert lines[0]["zero_shot_top1"] == pytest.approx(base["top1"], abs=1e-3)
    assert [step for step, line in lines.items() if "zero_shot_top1" in line] == [0, 4, 6]  # 4 steps per epoch


def test_some_images_of_a_benchmark_sorted_by_class_are_of_all_classes():
    assert list(EvenlySpaced(range(0, 100, 10), 4)) == [0, 20, 50, 70]
    assert list(EvenlySpaced(range(3), 1000)) == [0, 1, 2]


@pytest.mark.parametrize(("count", "processes"), [(0, 3), (1, 3), (130, 2), (640, 3), (5000, 8)])
def test_the_batches_of_all_processes_in_validation_are_those_of_one(count, processes):
    parts = [own_blocks(count, 64, rank, processes) for rank in range(processes)]
    assert list(itertools.chain(*parts)) == list(range(count))
    assert all(part.start % 64 == 0 for part in parts if part)


def test_kept_images_are_read_once_up_to_a_limit_and_give_the_same_input(monkeypatch):
    size, seen = 24, []
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 31, 3), np.uint8)

    class Samples:
        def __getitem__(self, index):
            seen.append(index)
            return {"id": str(index), "label": index, "image": pixels[index]}

    transform = image_transform_v2(PreprocessCfg(size=(size, size)), is_train=False)
    monkeypatch.setattr(validator, "KEPT_BYTES", 2 * size * size * 3)
    kept = KeptImages(Samples(), range(2, 5), transform)
    for _ in range(2):
        for index in range(3):
            whole = transform(Image.fromarray(pixels[index + 2]))
            assert torch.equal(transform(Image.fromarray(kept[index]["image"])), whole)
    assert seen == [2, 3, 4, 4]


def test_a_fall_in_zero_shot_is_an_alarm_or_the_end(clip, monkeypatch, caplog):
    found = iter([50.0, 49.0, 30.0] * 2)
    monkeypatch.setattr(Validator, "measure", lambda self: {"zero_shot_top1": next(found)})
    with caplog.at_level("WARNING", "cliptex"):
        train(watched(clip, max_drop=2), "clip_ft", 0)
    (alarm,) = read_json(paths.model("clip_ft", 0) / "train.json")["alarms"]
    assert "fell from 50.00 to 30.00 at step 6" in alarm
    assert alarm in caplog.text
    with pytest.raises(CliptexError, match=r"models\.clip_ft: zero-shot accuracy on imagenet fell .*max_drop = 2"):
        train(watched(clip, max_drop=2, on_drop="stop"), "clip_ft", 0)
    lines = (paths.model("clip_ft", 0) / "checkpoints" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["zero_shot_top1"] == 30


def test_a_fall_is_an_alarm_where_no_limit_is_set(clip, monkeypatch):
    found = iter([50.0, 46.0, 44.0])
    monkeypatch.setattr(Validator, "measure", lambda self: {"zero_shot_top1": next(found)})
    train(watched(clip), "clip_ft", 0)
    (alarm,) = read_json(paths.model("clip_ft", 0) / "train.json")["alarms"]
    assert "fell from 50.00 to 44.00 at step 6, by more than train.watch.max_drop = 5 points" in alarm


def test_looking_does_not_count_as_training(clip, monkeypatch):
    monkeypatch.setattr(Validator, "measure", lambda self: time.sleep(0.5) or {"zero_shot_top1": 50.0})
    original = Trainer.step

    def slow(self, batch, step):
        time.sleep(0.02)
        return original(self, batch, step)

    monkeypatch.setattr(Trainer, "step", slow)
    begun = time.monotonic()
    train_until(watched(clip), "clip_ft", 5, monkeypatch)  # validated after step 4 and at the end
    train(watched(clip), "clip_ft", 0)
    whole = time.monotonic() - begun
    record = read_json(paths.model("clip_ft", 0) / "train.json")
    assert 6 * 0.02 < record["seconds"] < whole - 3 * 0.5
    assert record["images_per_s"] == pytest.approx(24 / record["seconds"], rel=0.1)


def test_heads_are_compared_with_labels_held_out(clip):
    train(changed(clip, train={"held_out": 5}), "cliptex", 0)
    last = outcome("cliptex")[1][-1]
    expected = {"held_out/depth/loss", "held_out/segmentation/mIoU", "held_out/normals/mean"}
    assert expected <= last.keys()
    assert 0 < last["valid/depth"] <= 1


def test_the_moving_average_is_what_is_exported(clip, monkeypatch):
    train(clip, "cliptex", 0)
    plain = weights("cliptex")
    states = []
    original = Trainer.step

    def noting(self, batch, step):
        values = original(self, batch, step)
        states.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return values

    monkeypatch.setattr(Trainer, "step", noting)
    train(changed(clip, train={"ema": 0.75}), "cliptex", 0)
    assert same(states[-1], plain)  # the average does not change the trained weights
    average = states[0]
    for state in states[1:]:
        average = {name: 0.75 * average[name] + 0.25 * state[name] for name in state}
    for name, tensor in weights("cliptex").items():
        torch.testing.assert_close(tensor, average[name], msg=name)


def test_activations_computed_again_change_nothing(clip, monkeypatch):
    original, blocks = open_clip.transformer.checkpoint, []

    def noting(block, *arguments, **options):
        blocks.append(block)
        return original(block, *arguments, **options)

    monkeypatch.setattr(open_clip.transformer, "checkpoint", noting)
    train(changed(clip, train={"precision": "fp32"}), "cliptex", 0)
    plain = weights("cliptex")
    assert not blocks
    train(changed(clip, train={"precision": "fp32", "checkpoint_activations": True}), "cliptex", 0)
    assert same(plain, weights("cliptex"))
    assert len(set(blocks)) == 3, "two of the image tower, one of the text tower"


def test_what_a_run_costs_is_written_down(clip):
    train(clip, "clip_ft", 0)
    train(clip, "cliptex", 0)
    plain, dense = (read_json(paths.model(name, 0) / "train.json") for name in ("clip_ft", "cliptex"))
    assert (dense["images_seen"], dense["unique_images"]) == (24, 16)
    assert plain["flops_over_contrastive"] == 1 < dense["flops_over_contrastive"]
    assert plain["flops"]["encoder"] == dense["flops"]["encoder"]
    # a patch embedding and two blocks of width 32 on 17 tokens, two operations per multiply-add
    blocks = 2 * 2 * (17 * 32 * (4 * 32 + 8 * 32) + 2 * 17 * 17 * 32)
    assert dense["flops"]["encoder"] == blocks + 2 * 16 * 32 * 3 * 64 + 2 * 32 * 16
    heads = load_file(paths.model("cliptex", 0) / "heads.safetensors")
    stored = sum(t.numel() for name, t in heads.items() if "running_" not in name and "num_batches" not in name)
    assert stored == dense["parameters"]["multi_scale"] + dense["parameters"]["heads"]


def test_tensorboard_gets_the_lines_and_goes_on_after_a_restart(clip, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_until(clip, "clip_ft", 4, monkeypatch)
    train(clip, "clip_ft", 0)
    events = EventAccumulator(str(paths.model("clip_ft", 0) / "tensorboard")).Reload().Scalars("contrastive")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]


def test_weights_and_biases_offline_gets_the_lines_and_sends_nothing(clip, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # any request would fail
    train_until(changed(clip, train={"trackers": ["wandb_offline"]}), "clip_ft", 4, monkeypatch)
    train(changed(clip, train={"trackers": ["wandb_offline"]}), "clip_ft", 0)
    first, second = sorted((paths.model("clip_ft", 0) / "wandb").glob("offline-run-*-clip_ft-seed0/*.wandb"))
    lines = outcome("clip_ft")[1]
    for line in lines:
        value = json.dumps(line["contrastive"]).encode()
        assert (value in first.read_bytes(), value in second.read_bytes()) == (line["step"] <= 3, line["step"] > 2)
    assert not (paths.model("clip_ft", 0) / "tensorboard").exists()


def test_wandb_that_is_not_installed_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        CliptexError, match=r"train\.trackers: wandb is not installed; run: pip install 'cliptex\[wandb\]'"
    ):
        train(changed(clip, train={"trackers": ["wandb"]}), "clip_ft", 0)


def test_crop_sizes_are_whole_patches(clip):
    with pytest.raises(CliptexError, match=r"crop_sizes_px: 20 is not a multiple of the patch size 8"):
        train(changed(clip, train={"crop_sizes_px": [20]}), "cliptex", 0)


def test_an_unforeseen_error_names_the_step(tiny, monkeypatch):
    def fails(self, batch, step):
        raise KeyError("surprise")

    monkeypatch.setattr(Trainer, "step", fails)
    with pytest.raises(KeyError) as caught:
        train(tiny, "clip", 0)
    assert subject(caught.value) == "clip/seed0: step 1"

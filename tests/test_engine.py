"""Single training steps of small networks on random batches."""

import itertools
import json
import math

import numpy as np
import open_clip
import pytest
import torch
from conftest import STUDENT
from open_clip.model import resize_pos_embed

from cliptex.config import Model, Student, Train
from cliptex.core.plugins import find
from cliptex.models import clip as student
from cliptex.models.dense_features import resized_positions, width
from cliptex.models.heads import DenseHeads
from cliptex.training.batch import Batch
from cliptex.training.distributed import World
from cliptex.training.trainer import Trainer

NAMES = ("segmentation", "depth", "normals")
SIZE_PX, GRID = 32, 8


def drawn(rows=4, names=NAMES, seed=0, size=SIZE_PX):
    """A batch of noise; one label is partly invalid, one constant, one missing."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(rows, GRID, GRID, 4)).astype(np.float32)
    normals[..., :3] /= np.linalg.norm(normals[..., :3], axis=-1, keepdims=True)
    normals[..., 3] = 5
    targets = {
        "segmentation": rng.integers(0, 81, (rows, GRID, GRID)).astype(np.uint8),
        "depth": rng.random((rows, GRID, GRID)).astype(np.float32),
        "normals": normals,
    }
    for name, target in targets.items():
        missing = find("tasks", name)().missing(GRID)
        target[0, :3] = missing[:3]
        target[1] = target[1, 0, 0]
        target[2] = missing
    captions = [f"picture {row}" for row in range(rows)]
    tokens = open_clip.SimpleTokenizer(context_length=12)(captions)
    images = torch.from_numpy(rng.integers(0, 256, (rows, size, size, 3), np.uint8))
    return Batch(captions, images, captions, {name: torch.from_numpy(targets[name]) for name in names}, tokens)


def trainer(
    weights=None,
    *,
    architecture=STUDENT,
    model=None,
    precision="fp32",
    steps=10,
    rate=1e-3,
    patch_dropout=0.0,
    prior_cells=0,
    **train,
):
    """A trainer with the tasks in `weights`, and further options of `train`."""
    weights, options = weights or {}, Train.model_validate({"warmup_steps": 2, "target_size_px": GRID, **train})
    network = student.build(Student(architecture=architecture), 0) if model is None else model
    tasks = {name: find("tasks", name)() for name in weights}
    torch.manual_seed(0)
    heads = DenseHeads(
        width(network.visual),
        {name: task.channels for name, task in tasks.items()},
        options.multi_scale if tasks else "none",
        16,
        options.heads,
        (1, 2),
        prior_cells,
    )
    settings = Model(
        steps=steps, learning_rate=rate, tasks=weights, contrastive_weight=0.5, patch_dropout=patch_dropout
    )
    return Trainer(network, heads, tasks, settings, options, precision, World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("heads", ["light", "heavy"])
@pytest.mark.parametrize("multi_scale", ["ppm", "aspp", "none"])
def test_any_subset_of_tasks_is_learned_by_its_weights(multi_scale, heads):
    for count in range(len(NAMES) + 1):
        for names in itertools.combinations(NAMES, count):
            weights = {name: 0.5 + number for number, name in enumerate(names)}
            run = trainer(weights, multi_scale=multi_scale, heads=heads)
            found = run.step(drawn(names=names), 1)
            assert {"contrastive", *names} == {"contrastive", *NAMES} & found.keys()
            total = 0.5 * found["contrastive"] + sum(weight * found[name] for name, weight in weights.items())
            assert found["loss"] == pytest.approx(total, rel=1e-5)
            assert all(map(math.isfinite, found.values())), found
            learned = [*run.model.named_parameters(), *run.heads.named_parameters()]
            assert [name for name, one in learned if one.grad is None or not one.grad.isfinite().all()] == []
            assert set(run.heads.heads) == set(names)


def test_the_rate_warms_up_linearly_and_falls_by_a_cosine_to_zero():
    run = trainer(steps=110, rate=2e-3, warmup_steps=10)
    assert [run.learning_rate(step) for step in (1, 5, 10)] == pytest.approx([2e-4, 1e-3, 2e-3])
    cosine = [1e-3 + 1e-3 * math.cos(math.pi / 4), 1e-3, 0]
    assert [run.learning_rate(step) for step in (35, 60, 110)] == pytest.approx(cosine)
    short = trainer(steps=10, rate=1e-3, warmup_steps=50)  # at most half of the steps
    assert [short.learning_rate(step) for step in (1, 5, 10)] == pytest.approx([2e-4, 1e-3, 0])
    weights = {"depth": 1.0}
    used = trainer(weights, steps=110, rate=2e-3, warmup_steps=10, head_rate_factor=4.0)
    used.step(drawn(names=("depth",)), 5)
    rates = {id(p): group["lr"] for group in used.optimizer.param_groups for p in group["params"]}
    assert rates[id(used.model.logit_scale)] == pytest.approx(1e-3)
    assert rates[id(used.heads.heads["depth"].weight)] == pytest.approx(4e-3)


@pytest.mark.parametrize("size", [16, 40])
def test_positions_at_another_size_are_those_that_open_clip_makes_when_it_loads(size):
    given = student.build(Student(architecture=STUDENT), 0)
    assert resized_positions(given.visual, (SIZE_PX, SIZE_PX)) is None
    other = dict(STUDENT, vision_cfg={**STUDENT["vision_cfg"], "image_size": size})
    state = given.state_dict()
    resize_pos_embed(state, student.build(Student(architecture=other), 1))
    torch.testing.assert_close(resized_positions(given.visual, (size, size)), state["visual.positional_embedding"])


TIMM = {
    "embed_dim": 192,
    "init_logit_bias": -10.0,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": STUDENT["text_cfg"],
}


def test_a_timm_tower_with_siglips_bias_learns_and_decays_only_matrices():
    run = trainer({"depth": 1.0}, architecture=TIMM)
    found = run.step(drawn(names=("depth",), size=224), 1)
    assert math.isfinite(found["loss"])
    assert run.model.logit_bias.item() == -10
    assert not run.model.logit_bias.requires_grad  # several processes would wait for its gradient
    decayed = {id(p) for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in run.model.visual.named_parameters() if id(parameter) in decayed}
    assert {"trunk.patch_embed.proj.weight", "trunk.blocks.0.mlp.fc1.weight", "trunk.attn_pool.q.weight"} <= names
    assert not {name for name in names if name.endswith(("pos_embed", "latent", "bias", "norm.weight", "cls_token"))}


def states(run):
    return {**run.model.state_dict(), **run.heads.state_dict()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_full_precision_does(precision):
    weights = dict.fromkeys(NAMES, 1.0)
    runs = [trainer(weights, precision=one, steps=30) for one in ("fp32", precision)]
    for step in range(1, 11):
        full, half = (run.step(drawn(seed=step % 2), step) for run in runs)
        assert half["loss"] == pytest.approx(full["loss"], rel=0.05), step
    assert ("loss_scale" in half) == (precision == "fp16")
    assert all(tensor.dtype == torch.float32 for name, tensor in states(runs[1]).items() if "num_batches" not in name)


def test_a_gradient_that_fp16_cannot_hold_is_left_out_and_the_scale_lowered():
    run = trainer(dict.fromkeys(NAMES, 1.0), precision="fp16", ema=0.9)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    found = run.step(drawn(), 1)
    assert math.isfinite(found["loss"])
    assert not math.isfinite(found["grad_norm"])
    assert found["loss_scale"] == 2.0**29
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_step_clips_the_gradient_and_the_logit_scale_and_decays_no_prior():
    run = trainer({"depth": 1.0}, grad_clip=1e-3, prior_cells=2)
    run.model.logit_scale.data.fill_(math.log(100) + 1)
    assert run.step(drawn(names=("depth",)), 1)["grad_norm"] > 1e-3
    gradients = [parameter.grad for parameter in (*run.model.parameters(), *run.heads.parameters())]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-2)
    assert run.model.logit_scale.exp().item() == pytest.approx(100)
    assert {group["betas"] for group in run.optimizer.param_groups} == {(0.9, run.train_config.beta2)}
    prior = run.heads.priors["depth"]
    (group,) = (group for group in run.optimizer.param_groups if any(one is prior for one in group["params"]))
    assert group["weight_decay"] == 0


def test_norms_of_the_parts_add_up_to_that_of_the_whole():
    found = trainer(dict.fromkeys(NAMES, 1.0)).step(drawn(), 1)
    parts = [found[f"grad_norm/{part}"] for part in ("encoder", "text", "heads")]
    assert min(parts) > 0
    assert found["grad_norm"] == pytest.approx(math.hypot(*parts), rel=1e-5)
    plain = trainer().step(drawn(names=()), 1)
    assert [key for key in plain if key.startswith("grad_norm/")] == ["grad_norm/encoder", "grad_norm/text"]


FASTVIT = TIMM | {"vision_cfg": {"image_size": SIZE_PX, "timm_model_name": "fastvit_t8"}}
"""MobileCLIP's kind of tower, which has batch normalisation."""


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"architecture": FASTVIT}])
def test_measuring_what_tasks_cost_changes_nothing(options):
    runs = [trainer(dict.fromkeys(NAMES, 1.0), ema=0.5, **options) for _ in range(2)]
    for step in (1, 2):
        found = [run.step(drawn(seed=step), step) for run in runs]
        assert found[0] == found[1]
        if step == 1:
            assert runs[0].overhead(drawn()) > 0
            assert all(torch.equal(one, other) for one, other in zip(*map(tensors, runs), strict=True))


def tensors(run):
    """All tensors of a trainer's state, in order."""

    def walk(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            for one in value.values() if isinstance(value, dict) else value:
                yield from walk(one)

    return list(walk(run.state_dict()))


def shallow():
    """A student with one layer per tower, which compiles fast."""
    found = json.loads(json.dumps(STUDENT))
    found["vision_cfg"]["layers"] = found["text_cfg"]["layers"] = 1
    return found


@pytest.fixture
def nothing_compiled():
    """Reset the compiler before each test: beyond a limit of recompilations, modules silently run uncompiled."""
    torch.compiler.reset()


@pytest.mark.usefixtures("nothing_compiled")
def test_compiled_towers_give_the_same_losses():
    """With the real backend, which uses the C++ compiler."""
    weights = dict.fromkeys(NAMES, 1.0)
    plain, compiled = (trainer(weights, architecture=shallow(), compile=one) for one in (False, True))
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()
    for step in (1, 2):
        found, wanted = (run.step(drawn(seed=step), step) for run in (compiled, plain))
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    for name, tensor in states(compiled).items():
        torch.testing.assert_close(tensor, states(plain)[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("options", "sizes"), [({}, (32, 24)), ({"accumulate": 2, "checkpoint_activations": True}, (24,))]
)
def test_towers_are_captured_with_other_crop_sizes_and_micro_batches(monkeypatch, options, sizes):
    """The same graph capture as for compiling, without the minutes of compilation."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend="aot_eager"))
    weights = dict.fromkeys(NAMES, 1.0)
    options = {"crop_sizes_px": (24, 32), "architecture": shallow(), **options}
    plain, captured = (trainer(weights, compile=one, **options) for one in (False, True))
    for step, size in enumerate(sizes, start=1):
        found, wanted = (run.step(drawn(seed=step, size=size), step) for run in (captured, plain))
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("nothing_compiled")
def test_micro_batches_with_dropped_patches_are_captured_no_more_often_than_one(monkeypatch):
    """One graph without and one with gradients, for any number of micro-batches; the average follows the weights."""
    compiler, captured = torch.compile, []

    def note(graph, inputs):
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=note))
    options = {"architecture": shallow(), "patch_dropout": 0.5, "accumulate": 4, "ema": 0.5}
    plain, compiled = (trainer(compile=one, **options) for one in (False, True))
    for step in (1, 2):
        batch, found = drawn(rows=8, names=(), seed=step), []
        for run in (compiled, plain):
            torch.manual_seed(step)  # for the patch dropout
            found.append(run.step(batch, step))
        assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)
    assert len(captured) == 2
    for name, tensor in compiled.averaged()[0].state_dict().items():
        torch.testing.assert_close(tensor, plain.averaged()[0].state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)

"""Fine-tuning: the encoder learns, the start is the frozen probe, and nothing is mixed with frozen results."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from official_layouts import write_coco, write_imagenet, write_nyuv2, write_voc
from tiny import TINY

from cliptex.config import Config, FineTuning
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.core.plugins import find
from cliptex.evaluation import finetune, probe
from cliptex.evaluation.finetune import train_jointly
from cliptex.evaluation.job import Job
from cliptex.evaluation.probes import finished_heads, tuning
from cliptex.evaluation.probes.parts import Reader
from cliptex.evaluation.probes.training import candidates
from cliptex.evaluation.probes.tuning import Recipe, Tuned
from cliptex.evaluation.protocols.base import Training
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.evaluation.results import tabulate
from cliptex.evaluation.targets import finetune_files, tuned_heads
from cliptex.models import clip as student
from cliptex.models.encoders import load_encoder

LINEAR = {"steps": 30, "batch_size": 8, "learning_rates": [0.05]}
VOC = {"semantic_segmentation": {"mask_size_px": 48, "heads": {"linear": LINEAR, "deeplabv3": None, "pspnet": None}}}
DETECTOR = {"steps": 40, "batch_size": 8, "learning_rates": [1e-2]}
SSD = {
    "kind": "ssd",
    "optimizer": "sgd",
    "learning_rates": [2e-3],
    "weight_decays": [0.0],
    "steps": 10,
    "batch_size": 8,
}
SSD |= {"channels": 16, "strides": [8, 16, 32], "aspect_ratios": [2], "scales": [0.1, 1.0], "iou": 0.5, "negatives": 3}
SSD |= {"suppression": 0.45, "detections": 15, "score_threshold": 0.01}
COCO = {"detection": {"heads": {"mask_rcnn": {**DETECTOR, "channels": 16}, "ssd": SSD}}}
WRITERS = {
    "voc": (write_voc, VOC),
    "coco": (write_coco, COCO),
    "nyuv2": (write_nyuv2, {}),
    "imagenet": (lambda root, train, val: write_imagenet(root, train, val, classes=7), {}),
}
TASKS = {"voc": ["semantic_segmentation"], "coco": ["detection", "instance_segmentation"]}
TASKS |= {"nyuv2": ["depth", "normals"], "imagenet": ["classification"]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student.export(student.build(TINY, 0), TINY, paths.model("clip", 0))
    return tmp_path


def configured(name, **options):
    given = {"steps": 30, "batch_size": 8, "encoder_rates": [1e-3], **options}
    return Config.load(
        {
            "models": {"clip": {}},
            "probes": {"benchmarks": {name: WRITERS[name][1]}, "save_predictions": 2, "holdout": 0.25},
            "finetune": {"benchmarks": {name: given}},
        }
    )


HEADS = {"coco": ["mask_rcnn", "ssd"]}


def rows(folder, head):
    return {row["task"]: row for row in read_json(folder / f"seed0/{head}.json")["results"]}


def run(config, name, model="clip"):
    """Task -> row, of the benchmark's first head."""
    out = paths.RESULTS / "finetuned" / name
    finetune.run(config, Job(name=name, models=(model,), seeds=(0,), out=out))
    return rows(out / model, HEADS.get(name, ["linear"])[0])


def prepared(name, train=24, val=12):
    WRITERS[name][0](paths.benchmark(name), train, val)


@pytest.mark.parametrize("name", list(WRITERS))
def test_rows_say_that_the_encoder_was_not_frozen_and_lie_apart(place, name):
    prepared(name)
    config = configured(name)
    for model in ("random", "clip"):
        assert list(run(config, name, model)) == TASKS[name]
    files = finetune_files(config, name)
    assert [str(path) for path in files] == [
        f"results/finetuned/{name}/{model}/seed0/{head}.json"
        for model in ("random", "clip")
        for head in HEADS.get(name, ["linear"])
    ]
    tabulate(name, files, paths.RESULTS / "finetuned" / f"{name}.json")
    table = read_json(paths.RESULTS / "finetuned" / f"{name}.json")
    assert table["frozen"] is False and all(row["frozen"] is False for row in table["results"])
    assert all("fine-tuned end to end" in row["protocol"] for row in table["results"])
    assert table["fine_tuning"]["encoder_rates"] == [1e-3] and table["num_eval"] == 12
    assert not (paths.RESULTS / "probes").exists()
    with np.load(files[1].with_suffix(".npz")) as kept:
        assert len(kept["ids"]) == 2
    assert files[1].with_suffix(".per_image.npz").exists()
    other = read_json(files[-1])
    other["settings"]["fine_tuning"]["steps"] = 7
    files[-1].write_text(json.dumps(other))
    with pytest.raises(CliptexError, match=r"clip/seed0/\w+\.json: its options of fine-tuning differ"):
        tabulate(name, files, paths.RESULTS / "finetuned" / f"{name}.json")


@pytest.mark.parametrize("name", list(WRITERS))
def test_without_a_rate_it_is_the_frozen_probe(place, name):
    """Heads in closed form stay at their solution; trained ones see the same batches from the same first weights."""
    prepared(name)
    config = configured(name, encoder_rates=[1e-30], head_rate=1e-30, weight_decay=0)
    probe.run(config, Job(name=name, models=("clip",), seeds=(0,)))
    run(config, name)
    for head in HEADS.get(name, ["linear"]):
        frozen, tuned = (rows(paths.RESULTS / kind / name / "clip", head) for kind in ("probes", "finetuned"))
        assert list(frozen) == list(tuned)
        for task, row in frozen.items():
            found = {metric: value for metric, value in row["metrics"].items() if value is not None}
            # average precision of few boxes jumps where rounding turns the order of two
            close = pytest.approx(found, abs=3) if name == "coco" else pytest.approx(found, rel=2e-3, abs=0.2)
            assert {metric: tuned[task]["metrics"][metric] for metric in found} == close


def test_the_encoder_learns_what_its_frozen_features_cannot_tell(place):
    """Random targets: a head with the encoder fits them better than the best head on the frozen one."""
    prepared("nyuv2", 16, 2)
    data, section = find("benchmarks", "nyuv2")(paths.benchmark("nyuv2")), protocol_of("nyuv2", {}).depth
    encoder = load_encoder(paths.model("clip", 0))
    readers = tuple(
        Reader(data, part, range(count), section, encoder, {}) for part, count in (("train", 16), ("eval", 2))
    )
    tuned = Tuned(encoder, readers, tuple(reader.read({})[0] for reader in readers))
    before = tuned.network.conv1.weight.detach().clone()
    with torch.no_grad():
        start = tuned.train[:]
    torch.testing.assert_close(start.mean((0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(start.var((0, 2, 3), correction=0), torch.ones(32), atol=1e-3, rtol=0)
    target = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    head = torch.nn.Conv2d(32, 1, 1)
    losses = []

    def loss(head, features, batch, generator):
        value = (head(features) - target[batch]).square().mean()
        losses.append(value.item())
        return value

    training = Training(steps=80, batch_size=8, learning_rates=[1e-2], weight_decays=[0.0])
    recipe = Recipe(training, *candidates(training))
    train_jointly(tuned, head, loss, np.arange(16), recipe, 3e-3, FineTuning(), 0)
    cells = torch.cat([start.permute(0, 2, 3, 1).reshape(-1, 32), torch.ones(256, 1)], 1)
    best = torch.linalg.lstsq(cells, target.reshape(-1, 1)).solution
    frozen_best = float((cells @ best - target.reshape(-1, 1)).square().mean())
    assert sum(losses[-4:]) / 4 < 0.8 * frozen_best
    assert not torch.equal(tuned.network.conv1.weight, before)


def test_features_are_read_in_parts_unless_gradients_need_one_batch(place, monkeypatch):
    prepared("nyuv2", 16, 2)
    data, section = find("benchmarks", "nyuv2")(paths.benchmark("nyuv2")), protocol_of("nyuv2", {}).depth
    encoder = load_encoder(paths.model("clip", 0))
    counts = (("train", 16), ("eval", 2))
    readers = tuple(Reader(data, part, range(count), section, encoder, {}) for part, count in counts)
    tuned = Tuned(encoder, readers, tuple(reader.read({})[0] for reader in readers))
    with torch.no_grad():
        whole = tuned.train[:]
    whole_tokens, sizes = tuning.TrainableFeatures._tokens, []
    monkeypatch.setattr(tuning, "BATCH_SIZE", 5)
    monkeypatch.setattr(
        tuning.TrainableFeatures, "_tokens", lambda self, index: sizes.append(len(index)) or whole_tokens(self, index)
    )
    with torch.no_grad():
        torch.testing.assert_close(tuned.train[:], whole)
    assert sizes == [5, 5, 5, 1]
    assert tuned.train[:].requires_grad and sizes[4:] == [16]


def test_a_score_is_a_mean_over_images_whatever_the_batches(monkeypatch):
    class Value(tuning.Tuner):
        task, prepare, start, outcomes = "depth", None, None, None

        def __init__(self):
            """Without a run."""

        def loss(self, head, features, batch, generator):
            return features.mean()

    monkeypatch.setattr(tuning, "BATCH_SIZE", 4)
    tuned = SimpleNamespace(train=torch.arange(10.0), encoder=SimpleNamespace(device="cpu"))
    assert Value().score(None, tuned, np.array([0, 2, 3, 5, 9])) == pytest.approx(-19 / 5)


def test_a_solved_head_is_trained_further_by_the_options_of_fine_tuning():
    options = FineTuning(steps=7, batch_size=3, warmup=0.2, head_rate=0.5, encoder_rates=[0.1], weight_decay=0.3)
    training = tuning.training_of_solved_head(options)
    assert (training.steps, training.batch_size, training.warmup) == (7, 3, 0.2)
    assert (list(training.learning_rates), list(training.weight_decays)) == ([0.5], [0.0])


def test_a_frozen_encoder_has_no_gradients(place):
    encoder = load_encoder(paths.model("clip", 0))
    images = encoder.normalised(np.zeros((1, 48, 48, 3), np.uint8))
    assert not encoder.tokens(images, "last", True, False).requires_grad and not encoder.pooled(images).requires_grad
    encoder.unfrozen()
    assert encoder.tokens(images, "last", True, False).requires_grad and encoder.pooled(images).requires_grad
    with torch.no_grad():
        assert not encoder.pooled(images).requires_grad


def test_the_same_seed_gives_the_same_result(place):
    prepared("voc")
    config = configured("voc")
    first = run(config, "voc")["semantic_segmentation"]["metrics"]
    assert run(config, "voc")["semantic_segmentation"]["metrics"] == first


@pytest.mark.parametrize("name", ["voc", "imagenet"])
def test_a_job_that_starts_again_does_not_repeat_what_it_finished(place, name, monkeypatch):
    prepared(name)
    config = configured(name, encoder_rates=[1e-4, 1e-3], steps=4)
    monkeypatch.setattr(finished_heads, "remove", lambda folder: None)
    first = run(config, name)
    monkeypatch.setattr(finetune, "train_jointly", lambda *args: pytest.fail("trained again"))
    again = run(config, name)
    for row in (*first.values(), *again.values()):
        row.pop("seconds")
    assert again == first


def test_of_several_rates_the_one_best_on_the_holdout_is_taken(place):
    prepared("imagenet", 42, 7)
    config = configured("imagenet", encoder_rates=[1e30, 1e-4, 3.0], steps=12)
    found = run(config, "imagenet")["classification"]["hyperparameters"]
    scores = found["holdout_score"]
    diverged, best, other = (f"encoder {rate}, head 0.001, decay 0" for rate in ("1e+30", "0.0001", "3"))
    assert found["encoder_rate"] == 1e-4 and scores[best] > scores[other] and scores[diverged] is None


def test_what_cannot_be_tuned_is_refused_by_name(place):
    write_nyuv2(paths.benchmark("nyuv2"), 2, 2)
    decoders = {"benchmarks": {"nyuv2": {"protocol": "probe3d"}}}
    tuned = {"benchmarks": {"nyuv2": {}, "voc": {"heads": ["dpt"]}}}
    config = Config.load({"models": {"clip": {}}, "probes": decoders, "finetune": tuned})
    with pytest.raises(CliptexError, match=r"finetune\.benchmarks\.nyuv2: protocol 'probe3d' has no head"):
        finetune.run(config, Job(name="nyuv2", models=("clip",), seeds=(0,), out=place / "out"))
    with pytest.raises(CliptexError, match=r"finetune\.benchmarks\.voc\.heads: 'dpt' is not a head of protocol 'mini"):
        tuned_heads("voc", protocol_of("voc", {}), config.finetune.benchmarks["voc"])
    with pytest.raises(CliptexError, match=r"'coco' is not one of \['nyuv2', 'voc'\]"):
        finetune.run(config, Job(name="coco", models=("clip",), seeds=(0,), out=place / "out"))
    with pytest.raises(CliptexError, match=r"finetune\.benchmarks\.voc\.frozen"):
        Config.load({"finetune": {"benchmarks": {"voc": {"frozen": True}}}})

"""Few-shot linear probes on tars in clip_benchmark's layout: k training images of each class.

Reads   results/models/{model}/seed{seed}/, and the splits `train` and `test` (`clip_benchmark.split`) of a data set.
Writes  results/few_shot/{dataset}/{model}/seed{seed}.json: top-1 (percent) by number of shots.
Holds   models of one seed see the same images; the k images of a class are among its images for more shots; the
        penalty is chosen on other training images.

Logistic regression with an L2 penalty, fitted by L-BFGS to the unit embeddings of the frozen image tower, as in CLIP
(Radford et al., 2021, appendix A.3) but with its embeddings. The penalty is chosen by the log loss on min(k, 4) further
images of each class, as many as CoOp (Zhou et al., 2022) takes. clip_benchmark's own linear probe needs a GPU.
"""

import logging
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cliptex.config import ClipBenchmark
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import require_file, write_json
from cliptex.core.provenance import provenance
from cliptex.core.seeds import seed_of
from cliptex.data.images import BadImage, open_image
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.classification import Logistic
from cliptex.evaluation.probes.heads.classification import LOGISTIC, fit_logistic, linear_outcome, solve_logistic
from cliptex.evaluation.probes.training import default_device
from cliptex.evaluation.suites import dataset_root
from cliptex.evaluation.zeroshot import ZeroShotModel, encode_images, load_zero_shot_model, transforms_of

log = logging.getLogger("cliptex")
HEAD = Logistic(kind="logistic", penalties=tuple(10.0**power for power in range(0, -8, -1)), iterations=1000)
"""For unit embeddings. The grid is as wide as CLIP's sweep where it matters, in steps of ten."""
VALIDATION = 4
"""Most images of a class on which the penalty is chosen."""
IMAGES = ("jpg", "jpeg", "png", "webp")
"""Members that clip_benchmark takes for the image."""
BATCH_SIZE = 64


def run_few_shot(options: ClipBenchmark, dataset: str, model: str, seed: int, folder: Path, out: Path) -> None:
    """Train and evaluate the probes of every number in `clip_benchmark.shots` on one data set. folder: the model's.

    Raises CliptexError for a data set that is missing, or has a class without a training image."""
    roots = {split: dataset_root(options, dataset, train=split == "train") for split in ("train", options.split)}
    labels = np.array([label for label, _ in samples_of(roots["train"], "train")], np.int64)
    classes = np.unique(labels)
    if (empty := next((label for label, found in enumerate(classes) if label != found), None)) is not None:
        raise CliptexError(
            f"{roots['train']}/train: class {empty} has no image; restore the data set, or remove {dataset} from "
            "clip_benchmark.datasets"
        )
    shots = sorted(options.shots)
    chosen, held = draw(labels, shots[-1], seed_of("few-shot", dataset, seed))
    if not any(map(len, held)):
        raise CliptexError(
            f"{roots['train']}/train: no class has two images, so the penalty cannot be chosen; remove it"
        )
    wanted = np.unique(np.concatenate([*chosen, *held]))
    place = {int(index): number for number, index in enumerate(wanted)}
    encoder = load_zero_shot_model(model, seed, folder)
    encoder.model.to(default_device())
    train = (image for number, (_, image) in enumerate(samples_of(roots["train"], "train")) if number in place)
    train_NC, _ = _embeddings(encoder, ((labels[index], image) for index, image in zip(wanted, train, strict=True)))
    eval_NC, eval_labels = _embeddings(encoder, samples_of(roots[options.split], options.split))
    if eval_labels.max() >= len(classes):
        raise CliptexError(
            f"{roots[options.split]}: class {eval_labels.max()} is not in the training split; restore it"
        )
    results = []
    for count in shots:
        # the first `count` of a class, and the first few of its other images
        fit = [place[int(index)] for indices in chosen for index in indices[:count]]
        validation = [place[int(index)] for indices in held for index in indices[: min(count, VALIDATION)]]
        outcome = _probe(train_NC, labels[wanted], fit, validation, eval_NC, eval_labels)
        log.info("%s %s seed %d, %d shots: %s", dataset, model, seed, count, outcome.metrics)
        row = {"shots": count, "num_train": len(fit), "metrics": outcome.metrics}
        results.append(row | {"hyperparameters": outcome.hyperparameters})
    arguments = {"dataset": dataset, "roots": roots, "shots": shots, "head": HEAD.model_dump(mode="json")}
    result = {
        "schema_version": 1,
        "dataset": dataset,
        "model": model,
        "seed": seed,
        "split": options.split,
        "num_classes": len(classes),
        "num_eval": len(eval_labels),
        "protocol": LOGISTIC,
        "results": results,
        "provenance": provenance(arguments) | {"model_sha256": {f"{model}/seed{seed}": encoder.sha256}},
    }
    write_json(out, result)


def draw(labels: np.ndarray, most: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Indices of at most `most` images for training and of at most `VALIDATION` others, of each class, at random.

    A class with too few images for both keeps one in five of them, and one of two, for validation."""
    generator, chosen, held = np.random.default_rng(seed), [], []
    for label in range(labels.max() + 1):
        order = generator.permutation(np.flatnonzero(labels == label))
        spare = min(VALIDATION, max(len(order) - most, len(order) // 5, min(1, len(order) - 1)))
        held.append(order[len(order) - spare :])
        chosen.append(order[: min(most, len(order) - spare)])
    return chosen, held


def _probe(
    train_NC: torch.Tensor,
    labels: np.ndarray,
    fit: Sequence[int],
    validation: Sequence[int],
    eval_NC: torch.Tensor,
    eval_labels: np.ndarray,
) -> Outcome:
    """The outcome of a probe fitted to the images `fit`; the penalty is chosen on `validation`."""
    order = [*fit, *validation]
    x, y = train_NC[order], torch.from_numpy(labels[order])
    classes = int(labels.max()) + 1
    parts = np.arange(len(fit)), np.arange(len(fit), len(order))
    # not its weights, which are fitted to the validation images, too
    _, hyperparameters = solve_logistic(x, y, classes, HEAD, parts)
    y_fit = y[: len(fit)].to(default_device())
    weights = fit_logistic(x[: len(fit)], y_fit, classes, hyperparameters["penalty"], HEAD.iterations)
    return linear_outcome(weights, eval_NC, slice(None), eval_labels.tolist(), hyperparameters, LOGISTIC, 0)


@torch.no_grad()
def _embeddings(model: ZeroShotModel, samples: Iterator[tuple[int, bytes]]) -> tuple[torch.Tensor, np.ndarray]:
    """Unit embeddings [N, C] on the CPU and labels [N]."""
    (transform,) = transforms_of([model]).values()
    chunks, labels, done = [], [], 0
    while batch := list(islice(samples, BATCH_SIZE)):
        views = []
        for label, data in batch:
            with working_on(f"image {len(labels)}"):
                try:
                    views.append({str(model.preprocess): transform(open_image(data))})
                except BadImage as error:
                    raise CliptexError(f"the image cannot be used: {error}; restore the data set") from error
            labels.append(int(label))
        names = [str(number) for number in range(done, len(labels))]
        chunks += [embedding.cpu() for embedding in encode_images([model], views, names)]
        done = len(labels)
    return torch.cat(chunks), np.array(labels)


def samples_of(root: str, split: str) -> Iterator[tuple[int, bytes]]:
    """Label and encoded image of each sample of a split, in order. Nothing is decoded or unpickled.

    root: a folder, or an address as clip_benchmark takes it. Raises CliptexError for a split that is missing, and for a
    sample without an image or a class."""
    import webdataset

    # as clip_benchmark: the hub serves texts and large files at different addresses
    texts, tars = root, root
    if root.startswith("https://huggingface.co/datasets"):
        texts, tars = root.replace("/tree/", "/raw/", 1), root.replace("/tree/", "/resolve/", 1)
    place = f"{texts.rstrip('/')}/{split}/nshards.txt"
    try:
        if "://" not in place and Path(place).exists():
            require_file(Path(place))
        with webdataset.gopen(place) as file:
            count = int(file.read(20))
    except (OSError, ValueError) as error:
        raise CliptexError(
            f"{place}: not a number of tars, so there is no split {split!r} ({error}); see clip_benchmark.root in "
            "config/README.md, or remove the data set"
        ) from error
    if count < 1:
        raise CliptexError(f"{place}: the split has no tars; restore the data set, or remove it")
    for number in range(count):
        address = f"{tars.rstrip('/')}/{split}/{number}.tar"
        try:
            if "://" not in address:
                require_file(Path(address), "restore the data set")
            with webdataset.gopen(address) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                yield from _classified(address, tar)
        except (OSError, ValueError, tarfile.TarError) as error:
            raise CliptexError(f"{address}: cannot be read ({error}); restore the data set") from error


def _classified(address: str, tar: tarfile.TarFile) -> Iterator[tuple[int, bytes]]:
    from webdataset.tariterators import group_by_keys

    # a sparse member of a few bytes could have any size
    members = (member for member in tar if member.isreg() and not member.issparse())
    files = ({"fname": one.name, "data": tar.extractfile(one).read(), "__url__": address} for one in members)
    for sample in group_by_keys(files):
        image = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
        text = sample.get("cls", b"").strip()
        if image is None or not text.isdigit() or len(text) > 9:
            raise CliptexError(
                f"{address}: sample {sample['__key__']} has no image or no class (.cls, a number); few-shot probes "
                "need classification sets"
            )
        yield int(text), image

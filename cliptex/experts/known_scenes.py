"""Check a loaded expert on rendered scenes with known truth, before it labels: near must be near, up must be up.

Only what is clearly the wrong way round is an error, since a good network may be lost in a rendered image.
"""

import logging
from functools import cache
from itertools import permutations

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.data.miniature.kinds import KINDS
from cliptex.data.miniature.scenes import Scene, SceneOptions, render
from cliptex.experts.base import Expert
from cliptex.experts.class_list import coco_name

log = logging.getLogger("cliptex")
SEED, STREAM, SCENES = 20, 97, 6
SIZE = (192, 256)
"""Height and width of a scene."""
CLEAR = 0.3
"""Smallest correlation, of either sign, that is not due to chance."""
WRONG_DEPTH = -0.5
"""Below it, near is far. Networks with random weights, which tell high from low in the image, reach -0.4."""
MIN_PIXELS, MIN_SHARE, MIN_CLASSES = 300, 0.5, 3
"""Of a true class: pixels in all scenes, and the share of them with one predicted class. Of a wrong order: classes."""


@cache
def scenes() -> tuple[Scene, ...]:
    """The scenes: rooms and streets with several objects."""
    options = SceneOptions(categories=("corridor", "living_room", "bedroom", "street"), things=(4, 7))
    return tuple(render(SEED, "pairs", STREAM, index, *SIZE, options) for index in range(SCENES))


def check_on_scenes(expert: Expert, where: str, remedy: str, class_names: list[str] | None = None) -> None:
    """Label the scenes with a loaded expert. Raises CliptexError, naming the file `where`, the measured value and the
    `remedy`, for labels that are the wrong way round; warns if nothing can be said. class_names: of the task's
    segmentation labels; None for background and COCO's 80."""
    if expert.task not in ("depth", "normals", "segmentation"):
        return
    try:
        labels = expert.predict([scene.image for scene in scenes()], [str(index) for index in range(SCENES)])
    except CliptexError:
        raise
    except Exception as error:  # whatever a network raises for an input that it cannot take
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CliptexError(f"{where}: the network fails on images ({reason}); use other weights") from error
    if expert.task == "depth":
        _check_depth(labels, where, remedy)
    elif expert.task == "normals":
        _check_normals(labels, where, remedy, has_signs=hasattr(getattr(expert, "network", None), "signs"))
    else:
        _check_classes(labels, where, remedy, class_names)


def _check_depth(labels: list[np.ndarray], where: str, remedy: str) -> None:
    values = [
        _rank_correlation(label.ravel(), np.nan_to_num(1 / scene.depth, nan=0.0).ravel())
        for label, scene in zip(labels, scenes(), strict=True)
    ]
    value = float(np.median(values))
    if value < WRONG_DEPTH:
        raise CliptexError(
            f"{where}: near is far: on rendered scenes, the rank correlation of its labels with the true inverse depth"
            f" is {value:.2f}; {remedy}"
        )
    if value < CLEAR:
        log.warning("%s: rendered scenes do not tell near from far (rank correlation %.2f)", where, value)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 for a constant."""
    valid = np.isfinite(a)
    ranks = [_ranks(part[valid]) for part in (a, b)]
    if not valid.any() or any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value; equal values have the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _check_normals(labels: list[np.ndarray], where: str, remedy: str, has_signs: bool) -> None:
    predicted = np.concatenate([label[..., :3].reshape(-1, 3) for label in labels])
    true = np.concatenate([scene.normals.reshape(-1, 3) for scene in scenes()])
    valid = np.isfinite(predicted).all(axis=1) & np.isfinite(true).all(axis=1)
    predicted, true = predicted[valid], true[valid]
    if not len(true):
        log.warning("%s: no valid normals on rendered scenes", where)
        return
    # row a, column b: correlation of the predicted axis a with the true axis b; a constant map has none
    predicted, true = (_standardised(part) for part in (predicted, true))
    correlation = predicted.T @ true / len(true)
    own, others = np.diag(correlation), np.abs(correlation)
    orders = {order: sum(others[axis, of] for axis, of in enumerate(order)) for order in permutations(range(3))}
    best = max(orders, key=orders.__getitem__)
    measured = f"on rendered scenes, its x, y and z have correlations of {', '.join(f'{value:.2f}' for value in own)}"
    if orders[best] > orders[0, 1, 2] + 2 * CLEAR:
        raise CliptexError(
            f"{where}: its axes are in another order: {measured} with the true ones, and of"
            f" {', '.join(f'{correlation[axis, of]:.2f}' for axis, of in enumerate(best))} with the true"
            f" {', '.join('xyz'[of] for of in best)}; {'network.signs cannot correct that, so ' if has_signs else ''}"
            "use other weights"
        )
    names = {0: "right is left", 1: "up is down", 2: "surfaces face away"}
    if wrong := [axis for axis in range(3) if own[axis] < -CLEAR]:
        signs = [-1 if axis in wrong else 1 for axis in range(3)]
        correction = f"multiply network.signs by {signs}" if has_signs else remedy
        raise CliptexError(
            f"{where}: {' and '.join(names[axis] for axis in wrong)}: {measured} with the true ones; {correction}"
        )
    if (own < CLEAR).any():
        log.warning("%s: rendered scenes do not confirm all axes (%s)", where, np.round(own, 2).tolist())


def _standardised(values: np.ndarray) -> np.ndarray:
    """[N, 3] with mean 0 and variance 1 of each column; 0 for a constant one."""
    centred, deviation = values - values.mean(axis=0), values.std(axis=0)
    return centred / np.where(deviation > 1e-6, deviation, np.inf)


def _check_classes(labels: list[np.ndarray], where: str, remedy: str, class_names: list[str] | None) -> None:
    if class_names is None:
        from cliptex.tasks.segmentation import Segmentation

        class_names = Segmentation().class_names
    number = {coco_name(name): index for index, name in reversed(list(enumerate(class_names))) if name != "background"}
    own = [number.get(coco_name(kind.coco), number.get(coco_name(kind.ade20k))) for kind in KINDS]
    predicted = np.concatenate([label.ravel() for label in labels]).astype(np.int64)
    true = np.concatenate([scene.kinds.ravel() for scene in scenes()])
    found: dict[int, int] = {}
    for kind, code in enumerate(own):
        here = predicted[true == kind]
        here = here[(here < len(class_names)) & (here != (0 if class_names[0] == "background" else -1))]
        if code is None or (true == kind).sum() < MIN_PIXELS:
            continue
        counts = np.bincount(here, minlength=1)
        if counts.max() > MIN_SHARE * (true == kind).sum():
            found[code] = int(counts.argmax())
    right = sum(code == best for code, best in found.items())
    if not right and len(set(found.values())) >= MIN_CLASSES:
        listed = ", ".join(f"{class_names[code]} as {class_names[best]}" for code, best in list(found.items())[:3])
        raise CliptexError(
            f"{where}: its classes are in another order: on rendered scenes, it labels {listed}; {remedy}"
        )
    if not right:
        log.warning("%s: none of its classes was found in rendered scenes", where)

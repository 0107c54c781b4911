"""Semantic segmentation from the labels of the nearest training patches, without training.

"Hummingbird", Balazevic et al. 2023, "Towards In-context Scene Understanding" (arXiv 2306.01667). Patches are chosen as
its reproduction open-hummingbird-eval does, but ignored pixels have no label here, and neighbours are exact.

Shapes: V views, C feature width, h x w feature map, P = h * w patches, K classes, M patches of the memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from cliptex.core.errors import CliptexError
from cliptex.evaluation.metrics.segmentation import IGNORE
from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.features import Features, batches_on, chunks
from cliptex.evaluation.probes.heads.neighbours import KEYS, nearest
from cliptex.evaluation.probes.heads.segmentation import SegmentationData, segmentation_outcome
from cliptex.evaluation.probes.segmentation import InContext
from cliptex.evaluation.probes.training import default_device

PROTOCOL = (
    "not trained: class shares of the {neighbours} nearest of {memory:,} training patches by cosine similarity, each "
    "weighted by the softmax of similarity / {temperature:g}; shares resized (bilinear) to the original resolution; "
    "confusion matrix over the whole split"
)


class NearestPatches(torch.nn.Module):
    """From a map of features [B, C, h, w] to the classes' shares in the nearest patches of a memory, [B, K, h, w].
    It has no parameters."""

    def __init__(self, keys_MC: torch.Tensor, shares_MK: torch.Tensor, neighbours: int, temperature: float):
        """keys_MC: features, of length one. shares_MK: of each class in a patch; their sum is 1."""
        super().__init__()
        self.register_buffer("keys", keys_MC)
        self.register_buffer("shares", shares_MK)
        self.neighbours, self.temperature = neighbours, temperature

    def forward(self, features_BChw: torch.Tensor) -> torch.Tensor:
        batch, _, *grid = features_BChw.shape
        queries_QC = F.normalize(features_BChw.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
        similarity_Qk, index_Qk = nearest(queries_QC, self.keys.split(KEYS), self.neighbours)
        weights_Qk = torch.softmax(similarity_Qk / self.temperature, 1)
        shares_QK = F.embedding_bag(index_Qk, self.shares, per_sample_weights=weights_Qk, mode="sum")
        return shares_QK.unflatten(0, (batch, -1)).transpose(1, 2).unflatten(2, grid)


def class_shares(mask: np.ndarray, grid: tuple[int, int], num_classes: int) -> np.ndarray:
    """Share of each class among the labelled pixels of each patch, float64 [P, K]; zero for a patch without any.
    mask: uint8 [R, R], 255 = ignored. A pixel belongs to the patch in which its centre is."""
    rows, columns = (
        np.floor((np.arange(size) + 0.5) * cells / size).astype(np.int64)
        for size, cells in zip(mask.shape, grid, strict=True)
    )
    labelled, num_patches = mask != IGNORE, grid[0] * grid[1]
    patches = (rows[:, None] * grid[1] + columns)[labelled]
    counts = np.bincount(patches * num_classes + mask[labelled], minlength=num_patches * num_classes)
    counts_PK = counts.reshape(num_patches, num_classes)
    return counts_PK / np.maximum(counts_PK.sum(1, keepdims=True), 1)


def chosen_patches(shares_PK: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of at most `count` patches of a view that have a label, without replacement.

    Those with the lowest products of a uniform random number and the numbers of patches in which the patch's classes
    occur, summed over these classes; so classes that cover little of the view are preferred.
    """
    present_PK = shares_PK > 0
    score_P = (present_PK @ present_PK.sum(0)) * rng.random(len(shares_PK))
    known = np.flatnonzero(present_PK.any(1))
    return known[np.argsort(score_P[known], kind="stable")[:count]]


def memory_of(
    train_VChw: Features,
    masks: Sequence[np.ndarray],
    num_classes: int,
    most: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of the training views: features of length one float32 [M, C], and class shares float32 [M, K].

    At most `most` patches, equally many of each view; views with fewer labelled patches give what they have. The same
    seed gives the same patches for every encoder with this grid, in random order.
    """
    rng, (views, channels, *grid) = np.random.default_rng(seed), train_VChw.shape
    each, more = divmod(most, views)
    counts = each + (rng.permutation(views) < more)
    chosen, shares = [], []
    for mask, count in zip(masks, counts.tolist(), strict=True):
        shares_PK = class_shares(mask, tuple(grid), num_classes)
        chosen.append(chosen_patches(shares_PK, count, rng))
        shares.append(shares_PK[chosen[-1]].astype(np.float32))
    shares_MK, stops = np.concatenate(shares), np.cumsum([0, *map(len, chosen)])
    if not len(shares_MK):
        raise CliptexError("in_context: no training pixel has a label; look for masks that are ignored everywhere")
    device, order = default_device(), torch.from_numpy(rng.permutation(len(shares_MK)))
    keys_MC = torch.empty(len(shares_MK), channels, device=device)
    parts = list(chunks(train_VChw.shape))
    for part, features in zip(parts, batches_on(train_VChw, parts, device), strict=True):
        owner = np.repeat(np.arange(part.stop - part.start), [len(patches) for patches in chosen[part]])
        patches = np.concatenate(chosen[part])
        keys = features.flatten(2)[torch.from_numpy(owner), :, torch.from_numpy(patches)]
        keys_MC[order[stops[part.start] : stops[part.stop]]] = F.normalize(keys, dim=1)
    shuffled_MK = torch.empty(shares_MK.shape)
    shuffled_MK[order] = torch.from_numpy(shares_MK)
    return keys_MC, shuffled_MK.to(device)


def probe_in_context(
    train_VChw: Features, eval_VChw: Features, data: SegmentationData, options: InContext, seed: int, keep: int
) -> Outcome:
    """Fill the memory and evaluate it, on features that are not standardised; see `PROTOCOL`."""
    memory = memory_of(train_VChw, data.train_masks, data.num_classes, options.memory, seed)
    head = NearestPatches(*memory, options.neighbours, options.temperature)
    values = {"neighbours": options.neighbours, "memory": len(memory[0]), "temperature": options.temperature}
    return segmentation_outcome(head, eval_VChw, data, {}, PROTOCOL.format(**values), keep)

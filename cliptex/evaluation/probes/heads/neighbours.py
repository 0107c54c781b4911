"""Exact nearest neighbours by cosine similarity, and k-NN classification by them.

Shapes: Q queries, M keys, C feature width, k neighbours, K classes. All keys are compared with all queries, by matrix
products of blocks, so memory is bounded whatever the number of keys; an index would only approximate the neighbours.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F

from cliptex.evaluation.probes.base import Outcome
from cliptex.evaluation.probes.classification import ClassificationProtocol
from cliptex.evaluation.probes.features import Features, TensorSubset, batches_on, ranges
from cliptex.evaluation.probes.heads.classification import ranking_outcome
from cliptex.evaluation.probes.training import default_device, finite
from cliptex.evaluation.protocols.base import Neighbours

KEYS = 16384
"""Keys that are compared at a time."""
SIMILARITIES = {"cpu": 2**20, "cuda": 2**28}
"""Similarities that are held at a time: on a CPU as many as stay in its cache, on a GPU 1 GB."""
Vectors = Features | TensorSubset | torch.Tensor


def nearest(queries_QC: torch.Tensor, keys: Iterable[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarities [Q, k] of the `count` nearest keys of each query, highest first, and their indices, int64.

    queries_QC, keys: of length one, float32 on one device; keys are [m, C] in turn, and are counted through. k is the
    number of keys if there are fewer than `count`.
    """
    similarity_Qk = queries_QC.new_empty(len(queries_QC), 0)
    index_Qk = torch.empty(len(queries_QC), 0, dtype=torch.long, device=queries_QC.device)
    start = 0
    for keys_MC in keys:
        rows = max(1, SIMILARITIES[queries_QC.device.type] // len(keys_MC))
        found = [(queries @ keys_MC.T).topk(min(count, len(keys_MC)), dim=1) for queries in queries_QC.split(rows)]
        similarity_Qk = torch.cat([similarity_Qk, torch.cat([best.values for best in found])], 1)
        index_Qk = torch.cat([index_Qk, torch.cat([best.indices for best in found]) + start], 1)
        similarity_Qk, order = similarity_Qk.topk(min(count, similarity_Qk.shape[1]), dim=1)
        index_Qk = index_Qk.gather(1, order)
        start += len(keys_MC)
    return similarity_Qk, index_Qk


def class_votes(
    queries: Vectors,
    keys: Vectors,
    labels_M: torch.Tensor,
    num_classes: int,
    options: Neighbours,
    columns: slice = slice(None),
) -> torch.Tensor:
    """Votes per class, float32 [Q, K]: exp(cosine similarity / temperature), summed over the nearest keys with that
    label, and divided by the nearest key's vote so that no temperature overflows.

    As in Wu et al. 2018 (arXiv 1805.01978) and DINO (Caron et al. 2021, arXiv 2104.14294). queries, keys: [Q, C] and
    [M, C], read batch by batch; labels_M: int64 on the CPU. columns: of the features, which are used.
    """
    device = default_device()

    def directions(features: Vectors) -> Iterator[torch.Tensor]:
        parts = batches_on(features, ranges(len(features), KEYS), device)
        return (F.normalize(values[:, columns], dim=1) for values in parts)

    queries_QC = torch.cat(list(directions(queries)))
    similarity_Qk, index_Qk = nearest(queries_QC, directions(keys), options.neighbours)
    finite(similarity_Qk, "similarities of features", "look for weights of the encoder that are not finite")
    weights_Qk = torch.exp((similarity_Qk - similarity_Qk[:, :1]) / options.temperature)
    votes_QK = queries_QC.new_zeros(len(queries_QC), num_classes)
    return votes_QK.scatter_add_(1, labels_M.to(device)[index_Qk], weights_Qk).cpu()


def probe_knn(
    train_VC: Features,
    eval_NC: Features,
    train_labels: Sequence[int],
    eval_labels: Sequence[int],
    num_classes: int,
    section: ClassificationProtocol,
    head: str,
    keep: int,
) -> Outcome:
    """Evaluate the head of that name, of kind `knn`, on features that are not standardised.
    Of classes with equal votes, as those without any, the first is ranked first."""
    options, columns = section.heads[head], slice(None)
    if section.features.point == "tokens":  # class tokens of the blocks, then the mean patch token
        width = train_VC.shape[1] // (section.features.blocks + 1)
        columns = slice((section.features.blocks - 1) * width, section.features.blocks * width)
    labels = torch.as_tensor(train_labels, dtype=torch.long)
    votes_NK = class_votes(eval_NC, train_VC, labels, num_classes, options, columns)
    ranking = votes_NK.sort(dim=1, descending=True, stable=True).indices[:, :5].numpy()
    protocol = (
        f"not trained: votes of the {options.neighbours} nearest training features by cosine similarity, each weighted "
        f"by exp(similarity / {options.temperature:g})"
    )
    return ranking_outcome(ranking, eval_labels, 0, {}, protocol, keep)

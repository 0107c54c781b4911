"""What tasks that compare patch tokens with texts share: the texts of the classes, and views encoded in batches.

Shapes: D width of the joint embedding, T texts, h x w the patch grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_json
from cliptex.core.finite import require_finite
from cliptex.core.progress import track
from cliptex.evaluation.training_free.base import FrozenModel, TrainingFreeRun
from cliptex.evaluation.zeroshot import BROKEN, TEMPLATES, prompts, text_classifier
from cliptex.experts.precision import frozen_precision, mixed_precision
from cliptex.models.encoders import batch_size, in_order


@dataclass(frozen=True)
class Texts:
    """Texts, each of which stands for a class. class_of: number of its class, int64 [T]."""

    texts: tuple[str, ...]
    class_of: np.ndarray

    def embedded(self, model: FrozenModel, templates: str, precision: str) -> torch.Tensor:
        """Unit float32 [D, T]: the mean of the unit embeddings of each text's prompts."""
        return text_classifier(model.zero_shot, self.texts, TEMPLATES[templates], precision)

    def sha256(self, templates: str) -> str:
        """Digest of all prompts and their classes."""
        return sha256_json([prompts(self.texts, TEMPLATES[templates]), self.class_of.tolist()])


def texts_of(classes: Sequence[tuple[int, str]], names: Mapping[str, Sequence[str]], key: str) -> Texts:
    """The texts of classes. classes: (number, name). names: class -> texts in place of its name. key: of `names` in the
    configuration. Raises CliptexError for a class that there is not, and for an empty text."""
    known = [name for _, name in classes]
    if unknown := [name for name in names if name not in known]:
        raise CliptexError(f"{key}: {unknown[0]!r} is not one of the {len(known)} classes; correct it")
    pairs = [(text, number) for number, name in classes for text in names.get(name, (name,))]
    if empty := [number for text, number in pairs if not text.strip()]:
        raise CliptexError(f"{key}: class {empty[0]} has an empty name, which no prompt can be made of; correct it")
    return Texts(tuple(text for text, _ in pairs), np.array([number for _, number in pairs], np.int64))


def samples_in_order(run: TrainingFreeRun, label: str) -> Iterator[dict[str, Any]]:
    """The evaluation samples, read ahead. label: of the progress."""
    samples = run.samples

    def read(index: int) -> dict[str, Any]:
        with working_on(f"{run.benchmark.name}, eval sample {index}"):
            return samples[index]

    return iter(track(in_order(range(len(samples)), read), label, len(samples)))


def encoded_views(
    model: FrozenModel, views_VHWC: np.ndarray, kinds: Sequence[str], precision: str, subject: str
) -> dict[str, torch.Tensor]:
    """Unit patch tokens float32 [V, D, h, w] of views uint8 [V, H, W, 3], by kind (`Encoder.projected`).
    subject: the images, for messages. Raises CliptexError for tokens that are not finite."""
    encoder, size = model.encoder, views_VHWC.shape[1:3]
    rows = batch_size(size, encoder.device)
    chunks: dict[str, list[torch.Tensor]] = {kind: [] for kind in kinds}
    for start in range(0, len(views_VHWC), rows):
        images = encoder.normalised(np.ascontiguousarray(views_VHWC[start : start + rows]))
        with mixed_precision(frozen_precision(precision, size)):
            found = encoder.projected(images, kinds)
        for kind, tokens in found.items():
            require_finite(tokens, f"{model.row}: its patch tokens of {subject}", BROKEN)
            chunks[kind].append(tokens)
    return {kind: torch.cat(parts) for kind, parts in chunks.items()}

"""Dense features of a frozen teacher (DINOv2, DINOv3, C-RADIO, SigLIP, another CLIP) as labels: their principal
components, fitted to a sample of the shards (`cliptex.labels.fit_pca`), on a grid over the whole image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cliptex.core.errors import CliptexError
from cliptex.experts.network import NetworkExpert, finite, start_from, to_host
from cliptex.experts.options import FeaturesOptions
from cliptex.experts.pca import PCA, load
from cliptex.experts.teachers import Teacher, load_teacher
from cliptex.tasks.features import LIMIT, SIGMAS


class FeaturesExpert(NetworkExpert):
    """Every image is squashed to the size of the teacher's input; its map is resampled to `network.grid`."""

    task = "features"
    fitted_to_shards = True
    Network = FeaturesOptions
    network: FeaturesOptions

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.folder: Path | None = None
        self.weights_sha256 = ""
        self.teacher: Teacher | None = None
        self._pca: tuple[PCA, dict[str, Any]] | None = None

    def build(self) -> nn.Module:
        return load_teacher(self.network, None).network

    def load(self, weights: Path | None) -> None:
        self.teacher = load_teacher(self.network, weights)
        self.module = self.teacher.network.to(self.device, memory_format=torch.channels_last)
        self._pca = None

    def _lacks(self, weights: str, has_backbone: bool) -> list[str]:
        return []

    def state(self) -> dict[str, torch.Tensor]:
        return self.teacher.state()

    def fit(self, renders: Path, seed: int) -> dict[str, Any]:
        """Takes the backbone as it is."""
        if self.network.library != "backbone" or "backbone" not in self.settings:
            raise CliptexError(
                "experts.*.weights: a teacher of features is not trained here, but for library 'backbone' with the"
                " section `backbone`; use hub, url or local"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.load(None)
        start_from({"body": self.module}, Path(self.settings["backbone"]))
        return {}

    def _fitted(self) -> tuple[PCA, dict[str, Any]]:
        if self._pca is None:
            if self.folder is None:
                raise CliptexError("experts.*: the principal components are not fitted yet; run cliptex fit-pca first")
            self._pca = load(self.folder, self.weights_sha256, self.network.dims)
        return self._pca

    def task_parameters(self) -> dict[str, Any]:
        pca, record = self._fitted()
        return {
            "dims": len(pca.components),
            "grid": list(self.network.cells),
            "scales": pca.scales(SIGMAS, LIMIT),
            "teacher": {
                "name": record["teacher"],
                "width": record["width"],
                "variance_kept": record["variance_kept"],
                "pca_sha256": record["sha256"],
            },
        }

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.teacher.size  # independent of the image's size

    def features(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """The teacher's features, float32 [*cells, C], of images uint8 RGB [H, W, 3]."""
        return self._by_input_size(images, self._features)

    def _features(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        return to_host(list(finite(self.teacher.features(images, self.network.cells))))

    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        pca, _ = self._fitted()
        return [pca.labels(features) for features in self._features(images)]


PLUGIN = FeaturesExpert

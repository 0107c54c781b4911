"""Principal components of a teacher's dense features: fitted to a sample, kept in the expert's folder.

Reads, writes  results/experts/{expert}/pca.safetensors, and pca.json last.
Holds          the same features give the same components: signs are fixed, sums are in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_checked, replacing, sha256_file

FILE, RECORD = "pca.safetensors", "pca.json"
KEPT_EACH = 16
"""Of the cells, one in so many is kept to count how many values the codes clip."""
LEAST_SHARE = 1e-6
"""Of a channel's standard deviation, relative to the first's, for its codes; dead channels have none."""


@dataclass(frozen=True)
class PCA:
    """Maps features [N, C] to labels [N, D]: `(features - mean) @ components.T / unit`."""

    mean: np.ndarray
    """float32 [C]."""
    components: np.ndarray
    """float32 [D, C], rows of unit length, by falling variance; the largest entry of each is positive."""
    variances: np.ndarray
    """float64 [D]."""
    total: float
    """Variance of all C channels."""

    @property
    def unit(self) -> float:
        """Root of the mean variance of the D channels: one number, so that angles stay."""
        return float(np.sqrt(self.variances.mean())) or 1.0

    @property
    def variance_kept(self) -> float:
        """Share of the total variance in the D channels."""
        return float(min(1.0, self.variances.sum() / self.total)) if self.total > 0 else 1.0

    def scales(self, sigmas: float, limit: int) -> list[float]:
        """Step of the codes of each channel, in units of labels, if `limit` steps are `sigmas` standard deviations."""
        deviations = np.sqrt(self.variances)
        deviations = np.maximum(deviations, max(LEAST_SHARE * deviations[0], 1e-12))
        return [float(step) for step in (deviations * sigmas / limit / self.unit).astype(np.float32)]

    def labels(self, features: np.ndarray) -> np.ndarray:
        """float32 [..., D] of features float32 [..., C]."""
        return (features - self.mean) @ (self.components / np.float32(self.unit)).T


def fit(batches: Iterable[np.ndarray], dims: int | None) -> tuple[PCA, np.ndarray]:
    """The principal components of features, float32 [N, C] in batches, and some of the features, [M, C].

    dims: number of components; None: all. Takes memory for C x C sums and a sixteenth of the features. Raises
    ValueError without features, and for more components than channels.
    """
    count, shift, total, products, kept = 0, None, 0.0, 0.0, []
    for batch in batches:
        values = batch.astype(np.float64)
        shift = values.mean(axis=0) if shift is None else shift  # sums of squares of a large mean lose digits
        values -= shift
        count, total, products = count + len(values), total + values.sum(axis=0), products + values.T @ values
        kept.append(batch[::KEPT_EACH].copy())
    if count < 2:
        raise ValueError("there are no features")
    offset = total / count
    covariance = products / count - np.outer(offset, offset)
    width = len(offset)
    if (dims := dims or width) > width:
        raise ValueError(f"{dims} components of {width} channels")
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1].T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    pca = PCA(
        (shift + offset).astype(np.float32),
        np.ascontiguousarray(vectors[:dims], np.float32),
        variances[:dims].copy(),
        float(variances.sum()),
    )
    return pca, np.concatenate(kept)


def save(pca: PCA, folder: Path) -> str:
    """Write the tensors; returns their SHA-256."""
    tensors = {"mean": pca.mean, "components": pca.components, "variances": pca.variances}
    with replacing(folder / FILE) as scratch:
        save_file(tensors | {"total": np.array([pca.total])}, scratch)
    return sha256_file(folder / FILE)


def load(folder: Path, weights_sha256: str, dims: int | None) -> tuple[PCA, dict[str, Any]]:
    """The components in an expert's folder, and their record. Raises CliptexError if they are missing, damaged, or of
    other weights or another number of dimensions."""
    record, path = folder / RECORD, folder / FILE
    redo = f"run: rm -f {record}   and then the same command again"
    if not record.is_file():
        raise CliptexError(
            f"{record}: the principal components are not fitted; run: cliptex fit-pca --name {folder.name}"
        )
    form = {"weights_sha256": str, "sha256": str, "dims": int, "width": int, "variance_kept": float, "teacher": str}
    found = read_checked(record, form, remedy=redo)
    if found["weights_sha256"] != weights_sha256 or found["dims"] != (dims or found["width"]):
        raise CliptexError(f"{record}: fitted to other weights or `dims` of the expert; {redo}")
    try:
        if sha256_file(path) != found["sha256"]:
            raise CliptexError(f"{path}: not the file that {record.name} records; {redo}")
        tensors = load_file(path)
        pca = PCA(tensors["mean"], tensors["components"], tensors["variances"], float(tensors["total"][0]))
    except (OSError, SafetensorError, LookupError, TypeError) as error:
        raise CliptexError(f"{path}: cannot be read ({type(error).__name__}); {redo}") from error
    dims, width = found["dims"], found["width"]
    shapes = pca.mean.shape, pca.components.shape, pca.variances.shape
    if shapes != ((width,), (dims, width), (dims,)):
        raise CliptexError(f"{path}: is not of {dims} of {width} channels, as {record.name} records; {redo}")
    return pca, found

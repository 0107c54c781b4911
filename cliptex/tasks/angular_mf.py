"""The angular von Mises-Fisher density (AngMF) of surface normals: Bae, Budvytis, Cipolla, ICCV 2021.

    p(n) = (kappa^2 + 1) exp(-kappa theta) / (2 pi (1 + exp(-kappa pi))),   theta = arccos(mean . n)

Loss of the expert `nll_angmf`, and an option for the student (`cliptex.tasks.normals`).
"""

import math

import torch
from torch.nn import functional

MIN_KAPPA = 0.01


def norm_normalize(raw: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """Raw network output (4 channels along `axis`) to a unit normal and kappa = elu + 1 + 0.01 > 0.01."""
    normal, kappa = raw.float().split((3, 1), dim=axis)
    length = normal.square().sum(axis, keepdim=True).clamp(min=1e-20).sqrt()
    return torch.cat([normal / length, functional.elu(kappa) + 1 + MIN_KAPPA], dim=axis)


def angular_mf_loss(prediction: torch.Tensor, normal: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """`negative_log_likelihood` of unit vectors `normal` (3 channels along `axis`) under `prediction` (4 channels)."""
    mean, kappa = prediction.split((3, 1), dim=axis)
    kappa = kappa.squeeze(axis)
    # interpolated means do not have unit length
    length = mean.square().sum(axis).clamp(min=1e-12).sqrt()
    return negative_log_likelihood((mean * normal).sum(axis) / length, kappa)


def negative_log_likelihood(cosine: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
    """-log(kappa^2 + 1) + kappa theta + log(1 + exp(-kappa pi)), for kappa and the cosine of theta. Equation 10 of the
    paper without the constant log(2 pi). The cosine is clamped away from +-1, where the derivative of arccos is
    infinite."""
    cosine = cosine.clamp(-1 + 1e-5, 1 - 1e-5)
    return -torch.log1p(kappa.square()) + kappa * torch.arccos(cosine) + torch.log1p(torch.exp(-kappa * math.pi))

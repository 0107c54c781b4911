"""Floating-point precision of networks: autocast, and the fastest format of this machine.

TF32, of NVIDIA GPUs since Ampere, is as in torch, and nothing here changes it: matrix products in fp32 are in fp32,
convolutions in fp32 (a vision transformer has one, the patch embedding) may use TF32. bf16 and fp16 are not affected.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def mixed_precision(precision: str) -> Iterator[None]:
    """Autocast for "bf16" and "fp16", nothing for "fp32". On CPUs at CLIP's short sequences, PyTorch's fused attention
    in bf16 is several times slower than plain matrix products, so the plain implementation is used there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "fp32":
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.autocast(device, dtype=torch.float16 if precision == "fp16" else torch.bfloat16):
        if device == "cpu":
            with sdpa_kernel(SDPBackend.MATH), _fast_projections():
                yield
        else:
            yield


@contextmanager
def _fast_projections() -> Iterator[None]:
    """Without gradients, the input of `nn.MultiheadAttention` with `batch_first` is laid out in memory as it is used.

    It transposes its input. If that is not contiguous then, `F.linear` without gradients becomes a batched product with
    a repeated weight, which in bf16 took 80 times longer (PyTorch 2.15, two images, ViT-B-16).
    """

    def reordered(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if torch.is_grad_enabled() or not isinstance(module, torch.nn.MultiheadAttention) or not module.batch_first:
            return None
        by_id = {id(each): each.transpose(0, 1).contiguous().transpose(0, 1) for each in inputs[:3] if each.ndim == 3}
        return (*(by_id.get(id(each), each) for each in inputs[:3]), *inputs[3:])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(reordered)
    try:
        yield
    finally:
        handle.remove()


def safe_precision(precision: str, size: tuple[int, int]) -> str:
    """`precision`; "fp32" on a CPU for images (height, width) with a side below 64 pixels.

    There, the last maps of a convolutional network (1/32) are one pixel high, and the 1x1 convolutions of oneDNN in
    bf16 read beyond such maps, of 5 pixels in a row for instance: NaN, or values that differ from run to run.
    """
    return precision if torch.cuda.is_available() or min(size) >= 64 else "fp32"


def frozen_precision(precision: str, size: tuple[int, int]) -> str:
    """The precision in which a frozen encoder of images (height, width) runs: "auto" is the fastest that is safe."""
    return safe_precision(native_precision(), size) if precision == "auto" else precision


def native_precision() -> str:
    """The default of experts and frozen encoders: "bf16" if the GPU supports it natively or the CPU has AMX, its matrix
    units for it, else "fp32"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has("_is_amx_tile_supported") else "fp32"


def training_precision() -> str:
    """The default of training: as `native_precision`, and "bf16" if the CPU has AVX-512's instructions for it."""
    # with these alone, matrix products take 0.4 of fp32's time (EPYC, PyTorch 2.15; benchmarks/precision.py); experts
    # and encoders do not use them, so that labels and features are those of other processors without AMX
    return "bf16" if _cpu_has("_is_avx512_bf16_supported") and not torch.cuda.is_available() else native_precision()


def _cpu_has(name: str) -> bool:
    return getattr(torch.cpu, name, lambda: False)()

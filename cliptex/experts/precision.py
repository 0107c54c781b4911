"""Floating-point precision of networks: autocast, and the fastest format of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def mixed_precision(precision: str) -> Iterator[None]:
    """Autocast for "bf16" and "fp16", nothing for "fp32". On CPUs at CLIP's short sequences, PyTorch's fused attention
    in bf16 is several times slower than plain matrix products, so the plain implementation is used there."""
    if precision == "fp32":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, dtype=torch.float16 if precision == "fp16" else torch.bfloat16):
        if device == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def native_precision() -> str:
    """The fastest: "bf16" if the GPU supports it natively or the CPU has matrix units for it (AMX), else "fp32"."""
    # with AVX-512's bf16 instructions alone, PyTorch's matrix products run at half the speed of fp32
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_matrix_units else "fp32"

"""Number formats that networks compute in."""

from contextlib import contextmanager

import torch


@contextmanager
def mixed_precision(precision: str):
    """Autocast for "bf16" and "fp16", nothing for "fp32".

    On CPUs PyTorch's fused attention is several times slower in bf16 than plain matrix products at CLIP's short
    sequences, so the plain form is chosen there.
    """
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
    """ "bf16" where the GPU computes it natively, or the processor has matrix units for it (AMX), else "fp32".

    AVX-512's bf16 instructions alone do not pay: PyTorch's matrix products run at half the speed of fp32's with them.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_matrix_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_matrix_units else "fp32"

"""What a model costs: parameters, floating-point operations, memory."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cliptex.models.clip import parameters
from cliptex.models.dense_features import features_and_embedding
from cliptex.models.heads import DenseHeads


def parameters_of(model: nn.Module, heads: DenseHeads) -> dict[str, int]:
    """Parameters of the image `encoder`, of the `text` tower and the rest, of the `multi_scale` module, of `heads`."""
    encoder = parameters(model.visual)
    return {
        "encoder": encoder,
        "text": parameters(model) - encoder,
        "multi_scale": parameters(heads.multi_scale),
        "heads": parameters(heads) - parameters(heads.multi_scale),
    }


def forward_flops(model: nn.Module, heads: DenseHeads, tokens_BL: torch.Tensor) -> dict[str, int]:
    """Floating-point operations of a forward pass of one image and caption, by the parts of `parameters_of`.

    Counted by torch: matrix products, convolutions and attention, two operations a multiply-add. Heads are counted on
    the patch grid, as they run. Dropped patches are counted too.
    """
    device = next(model.parameters()).device
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.zeros(1, 3, height, width, device=device)
    flops = {}
    with evaluating(model, heads), torch.no_grad():
        dense, flops["encoder"] = _counted(lambda: features_and_embedding(model.visual, image)[0])
        _, flops["text"] = _counted(lambda: model.encode_text(tokens_BL[:1].to(device)))
        if len(heads.heads):
            shared, flops["multi_scale"] = _counted(lambda: heads.multi_scale(dense))
            _, flops["heads"] = _counted(lambda: [head(shared) for head in heads.heads.values()])
    return {part: flops.get(part, 0) for part in ("encoder", "text", "multi_scale", "heads")}


def _counted(run: Any) -> tuple[Any, int]:
    # fused kernels for attention and for a whole layer are not counted on every device
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return out, counter.get_total_flops()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode; afterwards each is in the mode that it was in."""
    was = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, was, strict=True):
            module.train(training)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, megabytes (GPU memory where there is one)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**10 if sys.platform != "darwin" else kilobytes / 2**20

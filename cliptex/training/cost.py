"""Cost of a model: parameters, FLOPs, peak memory."""

import resource
import sys
from collections.abc import Callable, Iterator
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
    """Number of parameters of the image `encoder`, `text` tower with logit scale, `multi_scale` module and `heads`."""
    encoder = parameters(model.visual)
    return {
        "encoder": encoder,
        "text": parameters(model) - encoder,
        "multi_scale": parameters(heads.multi_scale),
        "heads": parameters(heads) - parameters(heads.multi_scale),
    }


def forward_flops(model: nn.Module, heads: DenseHeads, tokens_BL: torch.Tensor) -> dict[str, int]:
    """FLOPs of a forward pass of one image and caption, for the parts of `parameters_of`.

    Counted by torch: matrix products, convolutions and attention; a multiply-add counts as two. Heads are counted on
    the patch grid, on which they run. Patch dropout is ignored.
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


def _counted(run: Callable[[], Any]) -> tuple[Any, int]:
    # the counter misses fused kernels for attention and transformer layers on some devices
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return output, counter.get_total_flops()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode, and back in their previous mode at the end."""
    previous = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, previous, strict=True):
            module.train(training)


def peak_memory_mb() -> float:
    """Peak GPU memory of this process so far, or without a GPU its peak resident memory; MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**10 if sys.platform != "darwin" else kilobytes / 2**20

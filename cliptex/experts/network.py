"""What experts that are neural networks share: safe weights, same-size batches, seeded training.

Shape suffixes: B batch, C channels, H height, W width.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from cliptex.config import Section
from cliptex.core.errors import CliptexError
from cliptex.experts import small_resnet  # noqa: F401 (registers it with timm)
from cliptex.experts.base import Expert
from cliptex.experts.fitting import Training, fit
from cliptex.experts.options import parse_options
from cliptex.experts.precision import mixed_precision, native_precision
from cliptex.experts.weights import read_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a weight file into `module`, strictly: the same names and shapes, nothing more or less.

    Raises CliptexError for a file that is missing, holds anything but tensors (nothing is ever run) or does not fit.
    """
    path = Path(path)
    tensors = read_tensors(path)
    wanted = module.state_dict()
    problems = [f"misses {name}" for name in wanted if name not in tensors]
    problems += [f"has the unknown {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CliptexError(
            f"{path}: the weights do not fit the expert's `network` settings: {', '.join(problems[:3])}{more};"
            " use the settings they were trained with, or train again"
        )
    module.load_state_dict(tensors)


def start_from(parts: dict[str, nn.Module], weights: Path) -> None:
    """Load what an expert shares with the backbone: name of the part there ("body", "fpn") -> the expert's own.

    The expert's part may lack the last stages. Raises CliptexError when a tensor is missing or of another shape.
    """
    tensors = load_file(weights)
    for part, module in parts.items():
        wanted = {name: f"{part}.{name}" for name in module.state_dict()}
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        wrong = [name for name, there in wanted.items() if there not in tensors or tensors[there].shape != shapes[name]]
        if wrong:
            raise CliptexError(
                f"{weights}: does not fit the expert's network ({part}.{wrong[0]} and {len(wrong) - 1} more);"
                " give the expert the encoder of `backbone`, or leave `backbone` out"
            )
        module.load_state_dict({name: tensors[there] for name, there in wanted.items()})


def resize(images_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images to `size` (height, width), bilinear, antialiased when they shrink; untouched where they have it."""
    if images_BCHW.shape[-2:] == size:
        return images_BCHW
    return functional.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False)


def seen_together(images: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """uint8 images [C, H, W] of any sizes as one float32 batch [B, C, *size] in 0..1, channels last in memory."""
    resized = [resize(image_CHW[None] / 255, size) for image_CHW in images]
    return torch.cat(resized).contiguous(memory_format=torch.channels_last)


def normalise(images_BCHW: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Images in 0..1 to zero mean and unit deviation under the given channel statistics."""
    return (images_BCHW - images_BCHW.new_tensor(mean)[:, None, None]) / images_BCHW.new_tensor(std)[:, None, None]


def to_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on `device`. To a GPU it goes through page-locked memory, from where the copy is faster and
    does not hold up this thread: what is computed on it is queued behind it. PyTorch keeps the memory until then."""
    tensor = torch.tensor(pixels)  # a copy: what Pillow decoded must not be written to
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Tensors of one device as arrays; from a GPU through page-locked memory, with one wait for all that is queued."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu().numpy() for tensor in tensors]
    hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for host, tensor in zip(hosts, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [host.numpy() for host in hosts]


class NetworkExpert(Expert):
    """An expert that is one torch module, built from `settings["network"]`.

    A subclass says how the module is built, at which size it sees an image, how images that it sees at one size are
    labelled, and what is to be minimised on a batch of labelled renders. Images are grouped by the size that the
    network sees: none is padded to another's, and images of all shapes share a pass where they are squashed to one.
    """

    Network: ClassVar[type[Section]]
    """Options in `settings["network"]`."""
    size_options: ClassVar[tuple[str, ...]] = ()
    """Options of `Network` that must be given where the network is made here: their defaults are the published sizes,
    for which a small machine has neither the memory nor the time."""
    targets: ClassVar[tuple[str, ...]]
    """HDF5 datasets of the renders that `loss` needs, beside `image`."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.network = parse_options(self.Network, settings.get("network", {}), "network")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = settings.get("precision", "auto")
        self.precision = native_precision() if precision == "auto" else precision
        self.module: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained module."""

    @abstractmethod
    def label(self, images: list[torch.Tensor]) -> list[np.ndarray]:
        """Labels of images of one `input_size` (uint8 RGB [C, H, W]), each in its image's frame."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the network sees an image of this size; its own where that does not matter."""
        return height, width

    @abstractmethod
    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Scalar loss of a batch: `image` (float32 BCHW in 0..1) and `targets`, as in the renders' HDF5 file, with the
        same crop and flip."""

    def train_size(self) -> tuple[int, int] | None:
        """Height and width of the batches that `loss` gets; None for the renders' own."""
        return None

    @abstractmethod
    def shared(self) -> dict[str, nn.Module]:
        """What may start from the backbone: `body`, a timm network in `features_only` form, and maybe `fpn`."""

    def load(self, weights: Path | None) -> None:
        self.module = self.build().to(self.device, memory_format=torch.channels_last)
        if weights is not None:
            load_weights(self.module, weights)
        self.module.eval()

    def randomise(self, seed: int) -> None:
        self._check_sizes()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.load(None)

    def _check_sizes(self) -> None:
        for name in self.size_options:
            if name not in self.network.model_fields_set:
                raise CliptexError(
                    f"experts.*.network.{name}: name the size of a network that is trained here (config/config.yaml has"
                    " a small one of each), or take published weights with `weights: url`, `hub` or `local`"
                )

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        return self._by_input_size(images, self.label)

    @contextmanager
    def session(self) -> Iterator[None]:
        # autocast keeps its bf16 copies of the weights until the outermost one ends: made once, not for every batch
        with mixed_precision(self.precision):
            yield

    def _by_input_size(self, images: list[np.ndarray], label: Callable[[list[torch.Tensor]], list[Any]]) -> list[Any]:
        """What `label` makes of each image; it gets images of one `input_size`, `batch_size` at most."""
        labels: list[Any] = [None] * len(images)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.input_size(*image.shape[:2]), []).append(index)
        batch_size = self.settings.get("batch_size", 32)
        self.module.eval()
        with torch.inference_mode(), mixed_precision(self.precision):
            for indices in groups.values():
                for start in range(0, len(indices), batch_size):
                    part = indices[start : start + batch_size]
                    found = label([to_device(images[index], self.device).permute(2, 0, 1) for index in part])
                    for index, one in zip(part, found, strict=True):
                        labels[index] = one
        return labels

    def fit(self, renders: Path, seed: int) -> dict[str, Any]:
        """Build the module anew and train it; the same seed gives the same weights on one machine."""
        training = parse_options(Training, self.settings.get("training", {}), "training")
        self._check_sizes()
        # forked, since building and torchvision's samplers draw from the global generator
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.load(None)
            if "backbone" in self.settings:
                start_from(self.shared(), Path(self.settings["backbone"]))
            log = fit(
                self.module,
                self._mixed_loss,
                Path(renders),
                self.targets,
                self.train_size(),
                training,
                seed,
                self.device,
            )
        self.module.eval()
        return log

    def _mixed_loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        # entered for each step anew, since autocast keeps its copies of the weights until it ends
        with mixed_precision(self.precision):
            return self.loss(batch, generator)

"""Base class of experts that are PyTorch modules: strict loading of weights, batches of one size, seeded training.

Shape suffixes: B batch, C channels, H height, W width.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cliptex.config import Section
from cliptex.core.errors import CliptexError
from cliptex.experts import encoder  # noqa: F401 (registers `cliptex_resnet` with timm)
from cliptex.experts.base import Expert
from cliptex.experts.fitting import fit
from cliptex.experts.options import UNSET, TrainingOptions, parse_options
from cliptex.experts.precision import mixed_precision, native_precision, safe_precision
from cliptex.experts.tensors import load_strictly, read_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a weight file into `module` strictly: names and shapes must be the same. Raises CliptexError as
    `read_tensors` does, and if they do not match."""
    load_strictly(
        module,
        read_tensors(path),
        f"{path}: the weights do not match the expert's `network` options",
        "use the options they were trained with",
    )


def start_from(parts: dict[str, nn.Module], weights: Path) -> None:
    """Initialise modules from the weights of the backbone. parts: name in the backbone ("body", "fpn") -> module. A
    module may lack the last stages. Raises CliptexError if a tensor is missing or has another shape."""
    tensors = read_tensors(weights)
    for part, module in parts.items():
        shared = {name: tensors.get(f"{part}.{name}") for name in module.state_dict()}
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        wrong = [name for name, tensor in shared.items() if tensor is None or tensor.shape != shapes[name]]
        if wrong:
            raise CliptexError(
                f"{weights}: does not match the expert's network ({part}.{wrong[0]} and {len(wrong) - 1} more);"
                " give the expert the encoder of `backbone`, or remove `backbone`"
            )
        module.load_state_dict(shared)


def resize(images_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images to `size` (height, width), bilinear with antialiasing; unchanged if they have this size."""
    if images_BCHW.shape[-2:] == size:
        return images_BCHW
    return functional.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True, align_corners=False)


def resized_batch(images: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """uint8 images [C, H, W] of any sizes as a float32 batch [B, C, *size] in 0..1, in channels-last memory format."""
    resized = [resize(image_CHW[None] / 255, size) for image_CHW in images]
    return torch.cat(resized).contiguous(memory_format=torch.channels_last)


def normalise(
    images_BCHW: torch.Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> torch.Tensor:
    """Images in 0..1, less `mean` and divided by `std` of each channel."""
    return (images_BCHW - images_BCHW.new_tensor(mean)[:, None, None]) / images_BCHW.new_tensor(std)[:, None, None]


def finite(output: torch.Tensor) -> torch.Tensor:
    """The output of a network. Raises ValueError, which becomes the reason why an image has no label, for NaN or
    infinite values."""
    if not output.isfinite().all():
        raise ValueError("the network's output has NaN or infinite values")
    return output


def to_device(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a tensor on `device`; to a GPU asynchronously, through pinned memory."""
    tensor = torch.tensor(pixels)  # a copy, since arrays that Pillow decoded are read-only
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Copy tensors of one device to arrays; from a GPU through pinned memory, with a single synchronisation."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu().numpy() for tensor in tensors]
    hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for host, tensor in zip(hosts, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [host.numpy() for host in hosts]


class NetworkExpert(Expert):
    """An expert that is one PyTorch module, built from `settings["network"]`. A subclass defines how to build the
    module (`build`), the size of its input (`input_size`), how to label images of one input size (`label`), and, only
    to be trained here, the loss on labelled renders (`loss`, `targets`, `shared`). Images are batched by input size,
    without padding; if all are squashed to one size, images of all shapes share a forward pass."""

    Network: ClassVar[type[Section]] = Section
    """Class of the options in `settings["network"]`. Its `size_options`, if any, must be set if the network is trained
    or initialised here: their defaults are the published sizes, too large for a small machine."""
    targets: ClassVar[tuple[str, ...]]
    """HDF5 datasets of the renders that `loss` needs in addition to `image`."""
    remedy = "use other weights"
    """How to correct labels that are the wrong way round, for the error of `check`."""

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
        """Labels of images with one `input_size` (uint8 RGB [C, H, W]), each with the height and width of its image."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image of this size; by default the image's own."""
        return height, width

    def loss(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Scalar loss of a batch from `cliptex.experts.fitting.augment`: `image` and `targets`. Only for training."""
        raise NotImplementedError

    def computed_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to which the network itself resizes an input of this size; by default it does not."""
        return height, width

    def batch_key(self, height: int, width: int) -> tuple[int, int]:
        return self.input_size(height, width)

    def train_size(self) -> tuple[int, int] | None:
        """Height and width of the training batches; None for the renders' own."""
        return None

    def shared(self) -> dict[str, nn.Module]:
        """Modules to initialise from the backbone: `body`, a timm network in `features_only` form, and maybe `fpn`.
        Only for training from a backbone."""
        raise NotImplementedError

    def _lacks(self, weights: str, has_backbone: bool) -> list[str]:
        lacks = super()._lacks(weights, has_backbone)
        needed = ("loss", "targets", *(["shared"] if has_backbone else [])) if weights == "trained" else ()
        # `targets` may be of the instance, since those of an expert for several tasks depend on its options
        own = [hasattr(self, name) if name == "targets" else self._defines(name) for name in needed]
        return lacks + [name for name, is_own in zip(needed, own, strict=True) if not is_own]

    def _defines(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(NetworkExpert, name)

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
        for name in getattr(self.Network, "size_options", ()):
            if name not in self.network.model_fields_set:
                raise CliptexError(f"experts.*.network.{name}: {UNSET}")

    def check(self, weights: Path) -> None:
        from cliptex.experts.known_scenes import check_on_scenes

        path = weights / "config.json" if weights.is_dir() else weights
        check_on_scenes(self, str(path), self.remedy, self.task_parameters().get("class_names"))

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}

    def predict(self, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        return self._by_input_size(images, self.label)

    @contextmanager
    def session(self) -> Iterator[None]:
        # autocast caches its bf16 copies of the weights until the outermost context exits
        with mixed_precision(self.precision):
            yield

    def _by_input_size(self, images: list[np.ndarray], label: Callable[[list[torch.Tensor]], list[Any]]) -> list[Any]:
        """`label` of each image, called with at most `batch_size` images of one `input_size`, or with `batch_window`
        of one `batch_key`."""
        labels: list[Any] = [None] * len(images)
        groups: dict[tuple[int, int], list[int]] = {}
        key = self.batch_key if self.settings.get("batch_window") else self.input_size
        for index, image in enumerate(images):
            groups.setdefault(key(*image.shape[:2]), []).append(index)
        batch_size = self.settings.get("batch_size", 32)
        self.module.eval()
        for indices in groups.values():
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                sizes = {self.computed_size(*self.input_size(*images[index].shape[:2])) for index in part}
                precision = safe_precision(self.precision, min(sizes, key=min))
                with torch.inference_mode(), mixed_precision(precision):
                    batch = [to_device(images[index], self.device).permute(2, 0, 1) for index in part]
                    for index, image_label in zip(part, label(batch), strict=True):
                        labels[index] = image_label
        return labels

    def fit(self, renders: Path, seed: int) -> dict[str, Any]:
        """Build the module and train it; on one machine, the same seed gives the same weights."""

        def mixed_loss(batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
            precision = safe_precision(self.precision, self.train_size() or batch["image"].shape[-2:])
            # entered for each step, since autocast caches its copies of the weights until it exits
            with mixed_precision(precision):
                return self.loss(batch, generator)

        training = parse_options(TrainingOptions, self.settings.get("training", {}), "training")
        self._check_sizes()
        # fork_rng, since module initialisation and torchvision's samplers use the global generator
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.load(None)
            if "backbone" in self.settings:
                start_from(self.shared(), Path(self.settings["backbone"]))
            size = self.train_size()
            log = fit(self.module, mixed_loss, Path(renders), self.targets, size, training, seed, self.device)
        self.module.eval()
        return log

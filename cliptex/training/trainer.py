"""One optimizer step: the towers, the dense heads, their losses, and all that must survive a restart.

Holds   a batch gives the same losses and weights whether one process takes it whole, in micro batches, or several
        processes share it (to rounding); a restored engine goes on exactly.
Shapes  B rows of this process, S image side, L tokens, C encoder width, h x w the patch grid, D embedding.
"""

import copy
import math
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from open_clip.transformer import PatchDropout
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cliptex.config import Model, Train
from cliptex.core.errors import CliptexError
from cliptex.experts.precision import mixed_precision
from cliptex.models.clip import preprocessing
from cliptex.models.dense_features import features_and_embedding, resized_positions
from cliptex.models.heads import DenseHeads
from cliptex.tasks.base import Task
from cliptex.training.distributed import World, share_batch_norms
from cliptex.training.loader import Batch

MAX_LOGIT_SCALE = math.log(100)
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "latent", "query", "logit_scale")
"""Last parts of names in open_clip's and timm's towers that are neither matrices nor called an embedding."""
Outputs = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]
"""Dense features [B, C, h, w] or None, image and text embeddings [B, D], the logits' scale."""


class ImageTower(nn.Module):
    """The image encoder at any size of whole patches. dense: whether the dense features are wanted."""

    def __init__(self, visual: nn.Module, dense: bool):
        super().__init__()
        self.visual, self.dense = visual, dense

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        return features_and_embedding(self.visual, images_BCHW) if self.dense else (None, self.visual(images_BCHW))


class Towers(nn.Module):
    """Both towers of an open_clip model in one call, which is what is compiled and shared by processes."""

    def __init__(self, model: nn.Module, image: ImageTower):
        super().__init__()
        self.model, self.image = model, image

    def forward(self, images_BCHW: torch.Tensor, tokens_BL: torch.Tensor) -> Outputs:
        resized = resized_positions(self.model.visual, tuple(images_BCHW.shape[-2:]))
        if resized is None:
            dense, image = self.image(images_BCHW)
        else:
            dense, image = functional_call(self.image, {"visual.positional_embedding": resized}, (images_BCHW,))
        return dense, image, self.model.encode_text(tokens_BL), self.model.logit_scale.exp()


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


class SharedPatchDropout(PatchDropout):
    """open_clip's patch dropout, drawn once for all rows of a step, whoever computes which of them."""

    def __init__(self, prob: float):
        super().__init__(prob)
        self._drawn = self._kept = torch.empty(0, 0)

    @property
    def drawn(self) -> int:
        """Rows of the step."""
        return len(self._drawn)

    def draw(self, rows: int, patches: int) -> None:
        """Choose, for `rows` images of `patches` patches, those that stay."""
        self._drawn = torch.randn(rows, patches).topk(max(1, int(patches * (1 - self.prob))), dim=-1).indices

    def expect(self, rows: slice) -> None:
        """Say which rows of the step come next."""
        self._kept = self._drawn[rows]  # a slice kept in its place would be compiled for each of its values

    def forward(self, tokens_BLC: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return tokens_BLC
        first, patches = tokens_BLC[:, :1], tokens_BLC[:, 1:]
        rows = torch.arange(len(patches), device=patches.device)[:, None]
        return torch.cat((first, patches[rows, self._kept.to(patches.device)]), dim=1)


class Engine:
    """Networks, optimizer and one step of a model on this process' part of each batch.

    Raises CliptexError for settings that the encoder or the machine cannot do.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: DenseHeads,
        tasks: dict[str, Task],
        settings: Model,
        options: Train,
        precision: str,
        world: World,
    ):
        self.world, self.device = world, world.device
        self.model, self.heads = model.to(self.device).train(), heads.to(self.device).train()
        self.tasks, self.settings, self.options, self.precision = tasks, settings, options, precision
        self._check_crop_sizes()
        self.dropout = None
        if settings.patch_dropout:
            if not hasattr(model.visual, "patch_dropout"):
                raise CliptexError("patch_dropout: the image tower is not open_clip's vision transformer; set it to 0")
            self.dropout = model.visual.patch_dropout = SharedPatchDropout(settings.patch_dropout).train()
        if options.checkpoint_activations:
            model.set_grad_checkpointing(True)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.requires_grad_(False)  # SigLIP's, to which a softmax over the batch is blind
        prepared = preprocessing(model)
        self.mean, self.std = (
            torch.tensor(prepared[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.learning_rate, betas=(0.9, options.beta2), fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.ema = None
        if options.ema is not None:
            both = nn.ModuleList([model, heads])
            self.ema = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(options.ema))
        self._image = ImageTower(model.visual, dense=bool(tasks))
        self.towers: nn.Module = Towers(model, self._image)
        self.dense: nn.Module = heads
        if options.compile:
            self.towers = torch.compile(self.towers)
        self.clip_loss = ClipLoss()
        if world.size > 1:
            self.clip_loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=world.rank, world_size=world.size)
            share_batch_norms(heads)
            shared = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            self.towers = DistributedDataParallel(self.towers, **shared)
            if any(True for _ in heads.parameters()):
                self.dense = DistributedDataParallel(heads, **shared)

    def _check_crop_sizes(self) -> None:
        visual = self.model.visual
        for size in self.options.crop_sizes_px:
            if not isinstance(getattr(visual, "positional_embedding", None), nn.Parameter):
                raise CliptexError("train.crop_sizes_px: needs open_clip's vision transformer; leave it empty")
            if size % _side(visual.patch_size):
                raise CliptexError(
                    f"train.crop_sizes_px: {size} is not a multiple of the patch size {_side(visual.patch_size)}"
                )

    def _groups(self) -> list[dict[str, Any]]:
        """Decay only for matrices that are no embeddings, logit scale or label prior; heads learn at a higher rate."""
        groups = []
        for module, factor in ((self.model, 1.0), (self.heads, self.options.head_rate_factor)):
            decay, plain = [], []
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                last = name.rpartition(".")[2]
                exempt = parameter.ndim < 2 or "embedding" in name or last in UNDECAYED or "priors." in name
                (plain if exempt else decay).append(parameter)
            for parameters, weight_decay in ((decay, self.options.weight_decay), (plain, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "weight_decay": weight_decay, "factor": factor})
        return groups

    def rate(self, step: int) -> float:
        """Learning rate of a step in 1..steps: linear warm-up, then a cosine to zero."""
        warmup = min(self.options.warmup_steps, self.settings.steps // 2)
        if step <= warmup:
            return self.settings.learning_rate * step / warmup
        done = (step - warmup) / max(1, self.settings.steps - warmup)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def pixels(self, images_BSSC: torch.Tensor) -> torch.Tensor:
        """uint8 images [B, S, S, 3] as the float32 [B, 3, S, S] that the encoder takes."""
        images_BSSC = images_BSSC.to(self.device, non_blocking=True)
        return (images_BSSC.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step: the named losses of the whole batch, and norms of its gradient before clipping.

        `grad_norm` is that of all, `grad_norm/{part}` those of the image `encoder`, the `text` tower with the rest, and
        module and `heads`. In fp16 a gradient that overflows is left out and the `loss_scale` lowered.
        """
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        total, losses = self._differentiate(batch)
        self.scaler.unscale_(self.optimizer)
        norms = {f"grad_norm/{part}": _norm(parameters) for part, parameters in self._parts().items()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norms["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.ema is not None:
            self.ema.update_parameters(nn.ModuleList([self.model, self.heads]))
        values = self.world.mean(torch.stack([value.detach().float() for value in (total, *losses.values())]))
        found = dict(zip(("loss", *losses), values.tolist(), strict=True))
        others = {"logit_scale": self.model.logit_scale.detach().exp().squeeze(), **norms}
        found |= dict(zip(others, torch.stack([one.to(self.device) for one in others.values()]).tolist(), strict=True))
        if self.scaler.is_enabled():
            found["loss_scale"] = self.scaler.get_scale()
        return found | {"learning_rate": rate}

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        encoder = {id(parameter) for parameter in self.model.visual.parameters()}
        parts = {
            "encoder": list(self.model.visual.parameters()),
            "text": [parameter for parameter in self.model.parameters() if id(parameter) not in encoder],
            "heads": list(self.heads.parameters()),
        }
        return {part: parameters for part, parameters in parts.items() if parameters}

    def _differentiate(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the losses, and each; scaled gradients are left at the parameters."""
        images, tokens = self.pixels(batch.images), batch.tokens.to(self.device, non_blocking=True)
        targets = {store: target.to(self.device, non_blocking=True) for store, target in batch.targets.items()}
        if self.dropout is not None:
            patches = (images.shape[-1] // _side(self.model.visual.patch_size)) ** 2
            self.dropout.draw(len(images) * self.world.size, patches)
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.precision):
            if self.options.accumulate == 1:
                self._expect(slice(0, len(images)))
                total, losses = self.losses(self.towers(images, tokens), targets)
                self.scaler.scale(total).backward()
            else:
                total, losses = self._accumulated(images, tokens, targets)
        return total, losses

    def overhead(self, batch: Batch, repeats: int = 2) -> float:
        """Time of a forward and backward pass with the tasks over that of one without, on this part of a batch.

        The least of `repeats` each, alternating. Weights, running statistics and random numbers stay as they are;
        gradients are gone. Every process has to call it.
        """
        statistics, random, tasks = copy.deepcopy(self.heads.state_dict()), _random_state(self.device), self.tasks
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(repeats):
            for dense, seconds in taken.items():
                self._image.dense, self.tasks = dense, tasks if dense else {}
                begun = self._clock()
                self._differentiate(batch)
                seconds.append(self._clock() - begun)
        self._image.dense, self.tasks = bool(tasks), tasks
        self.optimizer.zero_grad(set_to_none=True)
        self.heads.load_state_dict(statistics)
        _set_random_state(random, self.device)
        return min(taken[True]) / min(taken[False])

    def _clock(self) -> float:
        """Seconds; on the CPU those of this process alone, whatever else the machine does."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def losses(
        self, outputs: Outputs, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum, and each loss. Their means over the processes are those of the whole batch."""
        dense, image, text, scale = outputs
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        losses = {"contrastive": self.clip_loss(image, text, scale)}
        total = self.settings.contrastive_weight * losses["contrastive"]
        if self.tasks:
            size = self.options.target_size_px
            for store, prediction in self.dense(dense).items():
                prediction = F.interpolate(prediction.float(), size=(size, size), mode="bilinear")
                losses[store] = self.tasks[store].loss(prediction, targets[store])
                total = total + self.settings.tasks[store] * losses[store]
        return total, losses

    def _accumulated(
        self, images: torch.Tensor, tokens: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Losses and gradients of the batch, with the towers' activations of one micro batch in memory at a time.

        The towers run once without gradients; the losses over all rows, every negative and valid pixel among them, give
        the gradients of the towers' outputs; with those each micro batch is run again and differentiated (Gao et al.
        2021, "Scaling deep contrastive learning batch size under memory limited setup", section 3).
        """
        share = len(images) // self.options.accumulate
        micro = [slice(start, start + share) for start in range(0, len(images), share)]
        towers = self.towers.module if isinstance(self.towers, DistributedDataParallel) else self.towers
        states, parts = [], []
        for rows in micro:
            states.append(_random_state(self.device))
            self._expect(rows)
            with torch.no_grad():
                parts.append(towers(images[rows], tokens[rows])[:3])
        after = _random_state(self.device)
        whole = [
            None if column[0] is None else torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)
        ]
        scale = self.model.logit_scale.detach().exp().requires_grad_()
        total, losses = self.losses((*whole, scale), targets)
        self.scaler.scale(total).backward()
        wholes = [one for one in whole if one is not None]
        for number, rows in enumerate(micro):
            last = number == len(micro) - 1
            alone = self.towers is towers or last
            _set_random_state(states[number], self.device)  # what is dropped must be the same again
            self._expect(rows)
            with nullcontext() if alone else self.towers.no_sync():
                outputs = self.towers(images[rows], tokens[rows])
                tensors = [one for one in outputs[:3] if one is not None]
                gradients = [one.grad[rows] for one in wholes]
                if last:
                    tensors, gradients = [*tensors, outputs[3]], [*gradients, scale.grad]
                torch.autograd.backward(tensors, gradients)
        _set_random_state(after, self.device)
        return total, losses

    def _expect(self, rows: slice) -> None:
        """Before rows of this process' part of the batch go through the towers."""
        if self.dropout is not None:
            first = self.world.rank * (self.dropout.drawn // self.world.size)
            self.dropout.expect(slice(first + rows.start, first + rows.stop))

    def averaged(self) -> tuple[nn.Module, DenseHeads]:
        """The model and the heads that are exported: the moving average where there is one."""
        if self.ema is None or not self.ema.n_averaged:
            return self.model, self.heads
        return tuple(self.ema.module)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batch: tensors, numbers, lists and dicts."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "random": _random_state(self.device),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.model.load_state_dict(saved["model"])
        self.heads.load_state_dict(saved["heads"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        _set_random_state(saved["random"], self.device)


def _norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)

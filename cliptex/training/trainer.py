"""The optimizer step: towers, dense heads, losses, micro-batches, and the training state.

Holds   the global batch gives the same losses and weights (up to rounding) on one process, in micro-batches, or divided
        among several processes; a restored trainer continues bit for bit.
Shapes  B rows of this process, S image side, L tokens.
"""

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cliptex.config import Model, Train
from cliptex.core.errors import CliptexError
from cliptex.experts.precision import mixed_precision
from cliptex.models.clip import preprocessing
from cliptex.models.heads import DenseHeads
from cliptex.tasks.base import Task
from cliptex.training.agreement import agreement_weights
from cliptex.training.batch import Batch
from cliptex.training.distributed import World, share_batch_norms
from cliptex.training.towers import ImageTower, SharedPatchDropout, TowerOutputs, Towers

MAX_LOGIT_SCALE = math.log(100)
UNDECAYED = ("pos_embed", "cls_token", "reg_token", "latent", "query", "logit_scale")
"""Last parts of parameter names in open_clip's and timm's towers that get no weight decay despite their shape."""


class Trainer:
    """Model, heads, optimizer, and the step of this process on its part of each batch.

    Raises CliptexError if the encoder or the machine does not support the configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: DenseHeads,
        tasks: dict[str, Task],
        model_config: Model,
        train_config: Train,
        precision: str,
        world: World,
    ):
        self.world, self.device = world, world.device
        self.model, self.heads = model.to(self.device).train(), heads.to(self.device).train()
        self.tasks, self.precision = tasks, precision
        self.model_config, self.train_config = model_config, train_config
        self._check_crop_sizes()
        self.patch_dropout = self._install_patch_dropout()
        if train_config.checkpoint_activations:
            model.set_grad_checkpointing(True)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.requires_grad_(False)  # SigLIP's; the softmax of the contrastive loss ignores it
        normalisation = preprocessing(model)
        self.mean, self.std = (
            torch.tensor(normalisation[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), lr=model_config.learning_rate, betas=(0.9, train_config.beta2), fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.ema = None
        if train_config.ema is not None:
            both = nn.ModuleList([model, heads])
            self.ema = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(train_config.ema))
        self._image_tower = ImageTower(model.visual, dense=bool(tasks))
        self.towers: nn.Module = Towers(model, self._image_tower)
        self.dense: nn.Module = heads
        if train_config.compile:
            self.towers = torch.compile(self.towers)
        self.clip_loss = ClipLoss()
        if world.size > 1:
            self._distribute()

    def _check_crop_sizes(self) -> None:
        visual = self.model.visual
        for size in self.train_config.crop_sizes_px:
            if not isinstance(getattr(visual, "positional_embedding", None), nn.Parameter):
                raise CliptexError("train.crop_sizes_px: requires open_clip's vision transformer; leave it empty")
            if size % _side(visual.patch_size):
                raise CliptexError(
                    f"train.crop_sizes_px: {size} is not a multiple of the patch size {_side(visual.patch_size)};"
                    " choose multiples"
                )

    def _install_patch_dropout(self) -> SharedPatchDropout | None:
        if not self.model_config.patch_dropout:
            return None
        if not hasattr(self.model.visual, "patch_dropout"):
            raise CliptexError("patch_dropout: requires open_clip's vision transformer; set it to 0")
        self.model.visual.patch_dropout = SharedPatchDropout(self.model_config.patch_dropout).train()
        return self.model.visual.patch_dropout

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay for matrices except embeddings, logit scale and position priors; another rate for the heads."""
        groups = []
        for module, factor in ((self.model, 1.0), (self.heads, self.train_config.head_rate_factor)):
            decayed, undecayed = [], []
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                last = name.rpartition(".")[2]
                exempt = parameter.ndim < 2 or "embedding" in name or last in UNDECAYED or "priors." in name
                (undecayed if exempt else decayed).append(parameter)
            for parameters, weight_decay in ((decayed, self.train_config.weight_decay), (undecayed, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "weight_decay": weight_decay, "factor": factor})
        return groups

    def _distribute(self) -> None:
        """Contrastive loss and batch norm over the global batch; gradients averaged by DDP."""
        self.clip_loss = ClipLoss(
            local_loss=True, gather_with_grad=True, rank=self.world.rank, world_size=self.world.size
        )
        share_batch_norms(self.heads)
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        self.towers = DistributedDataParallel(self.towers, **options)
        if any(True for _ in self.heads.parameters()):
            self.dense = DistributedDataParallel(self.heads, **options)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step in 1..steps: linear warm-up, then cosine decay to zero."""
        warmup = min(self.train_config.warmup_steps, self.model_config.steps // 2)
        if step <= warmup:
            return self.model_config.learning_rate * step / warmup
        progress = (step - warmup) / max(1, self.model_config.steps - warmup)
        return self.model_config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def pixels(self, images_BSSC: torch.Tensor) -> torch.Tensor:
        """uint8 images [B, S, S, 3] to the encoder's input, float32 [B, 3, S, S]."""
        images_BSSC = images_BSSC.to(self.device, non_blocking=True)
        return (images_BSSC.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step. Returns the losses of the global batch, gradient norms before clipping, and rates.

        `grad_norm` is the norm of the whole gradient; `grad_norm/encoder`, `/text` (text tower and logit scale) and
        `/heads` are those of its parts. In fp16 a step with overflow is skipped and the `loss_scale` reduced.
        """
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        total, losses = self.forward_backward(batch)
        self.scaler.unscale_(self.optimizer)
        grad_norms = self._clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if self.ema is not None:
            self.ema.update_parameters(nn.ModuleList([self.model, self.heads]))
        means = self.world.mean(torch.stack([loss.detach().float() for loss in (total, *losses.values())]))
        metrics = dict(zip(("loss", *losses), means.tolist(), strict=True))
        scalars = {"logit_scale": self.model.logit_scale.detach().exp().squeeze(), **grad_norms}
        values = torch.stack([scalar.to(self.device) for scalar in scalars.values()]).tolist()
        metrics |= dict(zip(scalars, values, strict=True))
        if self.scaler.is_enabled():
            metrics["loss_scale"] = self.scaler.get_scale()
        return metrics | {"learning_rate": learning_rate}

    def forward_backward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the weighted sum of the losses, and each loss. Gradients are in .grad (scaled in fp16)."""
        images, tokens = self.pixels(batch.images), batch.tokens.to(self.device, non_blocking=True)
        targets = {store: target.to(self.device, non_blocking=True) for store, target in batch.targets.items()}
        if self.patch_dropout is not None:
            patches = (images.shape[-1] // _side(self.model.visual.patch_size)) ** 2
            self.patch_dropout.draw(len(images) * self.world.size, patches)
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.precision):
            if self.train_config.accumulate > 1:
                return self._forward_backward_grad_cache(images, tokens, targets)
            self.set_micro_batch(slice(0, len(images)))
            total, losses = self.losses(self.towers(images, tokens), targets)
            self.scaler.scale(total).backward()
        return total, losses

    def _forward_backward_grad_cache(
        self, images: torch.Tensor, tokens: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`forward_backward` by GradCache: activations of only one micro-batch in memory.

        1. Run the towers on each micro-batch without gradients. 2. Compute the losses over all rows, so with all
        negatives and valid pixels, and their gradients with respect to the towers' outputs. 3. Run each micro-batch
        again and backpropagate its part of these gradients. (Gao et al. 2021, "Scaling deep contrastive learning batch
        size under memory limited setup", section 3.)
        """
        rows_each = len(images) // self.train_config.accumulate
        micro_batches = [slice(start, start + rows_each) for start in range(0, len(images), rows_each)]
        towers = self.towers.module if isinstance(self.towers, DistributedDataParallel) else self.towers

        random_states, micro_outputs = [], []
        for rows in micro_batches:
            random_states.append(_random_state(self.device))
            self.set_micro_batch(rows)
            with torch.no_grad():
                micro_outputs.append(towers(images[rows], tokens[rows])[:3])
        final_random_state = _random_state(self.device)

        # dense features (or None), image and text embeddings of all rows
        outputs = [
            None if parts[0] is None else torch.cat(parts).requires_grad_()
            for parts in zip(*micro_outputs, strict=True)
        ]
        logit_scale = self.model.logit_scale.detach().exp().requires_grad_()
        total, losses = self.losses((*outputs, logit_scale), targets)
        self.scaler.scale(total).backward()
        output_grads = [output.grad for output in outputs if output is not None]

        for number, rows in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            _set_random_state(random_states[number], self.device)  # the same dropout as in the first pass
            self.set_micro_batch(rows)
            # DDP averages the gradients once, in the last micro-batch
            with nullcontext() if last or self.towers is towers else self.towers.no_sync():
                *micro_output, micro_logit_scale = self.towers(images[rows], tokens[rows])
                tensors = [output for output in micro_output if output is not None]
                gradients = [gradient[rows] for gradient in output_grads]
                if last:
                    tensors, gradients = [*tensors, micro_logit_scale], [*gradients, logit_scale.grad]
                torch.autograd.backward(tensors, gradients)
        _set_random_state(final_random_state, self.device)
        return total, losses

    def set_micro_batch(self, rows: slice) -> None:
        """Select which of this process' rows the next forward pass gets, for the shared patch dropout."""
        if self.patch_dropout is not None:
            first = self.world.rank * (self.patch_dropout.global_rows // self.world.size)
            self.patch_dropout.set_rows(slice(first + rows.start, first + rows.stop))

    def losses(
        self, outputs: TowerOutputs, targets: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the losses, and each loss. Averaged over processes they are those of the global batch."""
        dense, image, text, logit_scale = outputs
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        losses = {"contrastive": self.clip_loss(image, text, logit_scale)}
        total = self.model_config.contrastive_weight * losses["contrastive"]
        if self.tasks:
            by_agreement = self.model_config.weight_by_agreement
            weights = agreement_weights(self.tasks, targets) if by_agreement else {}
            for store, prediction in self.dense(dense).items():
                prediction = F.interpolate(prediction.float(), size=targets[store].shape[1:3], mode="bilinear")
                weight = (weights[store],) if store in weights else ()
                losses[store] = self.tasks[store].loss(prediction, targets[store], *weight)
                total = total + self.model_config.tasks[store] * losses[store]
        return total, losses

    def _clip_gradients(self) -> dict[str, torch.Tensor]:
        """Clip the gradient of all parameters; returns the norms before clipping."""
        encoder_ids = {id(parameter) for parameter in self.model.visual.parameters()}
        parts = {
            "encoder": list(self.model.visual.parameters()),
            "text": [parameter for parameter in self.model.parameters() if id(parameter) not in encoder_ids],
            "heads": list(self.heads.parameters()),
        }
        norms = {f"grad_norm/{part}": _grad_norm(parameters) for part, parameters in parts.items() if parameters}
        norms["grad_norm"] = torch.stack(list(norms.values())).norm()  # of the whole, from those of its parts
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, self.train_config.grad_clip, norms["grad_norm"])
        return norms

    def overhead(self, batch: Batch, repeats: int = 2) -> float:
        """Time of a forward and backward pass with the tasks, divided by that without, on this process' rows.

        Uses the minimum of `repeats` alternating runs. Weights, running statistics and random state are restored;
        gradients are cleared. Every process must call it.
        """
        modules = nn.ModuleList([self.model, self.heads])
        statistics = {name: buffer.clone() for name, buffer in modules.named_buffers()}
        random_state = _random_state(self.device)
        tasks = self.tasks
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(repeats):
            for with_tasks, measured in seconds.items():
                self._image_tower.dense, self.tasks = with_tasks, tasks if with_tasks else {}
                start = self._clock()
                self.forward_backward(batch)
                measured.append(self._clock() - start)
        self._image_tower.dense, self.tasks = bool(tasks), tasks
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in modules.named_buffers():
                buffer.copy_(statistics[name])
        _set_random_state(random_state, self.device)
        return min(seconds[True]) / min(seconds[False])

    def _clock(self) -> float:
        """Wall-clock seconds on a GPU; CPU seconds of this process otherwise, since other processes may be running."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def averaged(self) -> tuple[nn.Module, DenseHeads]:
        """Model and heads to evaluate and export: the moving average if there is one, else the trained weights."""
        if self.ema is None or not self.ema.n_averaged:
            return self.model, self.heads
        return tuple(self.ema.module)

    def state_dict(self) -> dict[str, Any]:
        """All state that the next step depends on, as tensors, numbers, lists and dicts."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "random": _random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        _set_random_state(state["random"], self.device)


def _side(size: int | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _grad_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)

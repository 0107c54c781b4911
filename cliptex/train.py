"""Train one model: contrastive, and where it has tasks, with pseudo-labels through throw-away heads.

Reads   the shard index, the indexed label stores of the model's tasks, the exported model it starts from.
Writes  results/models/{model}/seed{seed}/: open_clip_config.json, open_clip_model.safetensors, heads.safetensors,
        metrics.jsonl and, last, train.json; rolling checkpoints in checkpoints/ beside them.
Holds   same seed, same batches for every model; a killed run goes on from its last checkpoint to the same weights.
"""

import json
import logging
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import ClipLoss
from open_clip.transformer import PatchDropout

from cliptex import paths, student
from cliptex.config import Config, Model, Train
from cliptex.errors import CliptexError
from cliptex.features import features_and_embedding
from cliptex.files import read_json, replacing, sha256_json, write_json
from cliptex.label_prior import BATCHES, fit_label_prior
from cliptex.labels import read_label_index
from cliptex.loader import Batch, JointLoader
from cliptex.multi_scale import DenseHeads, save_heads
from cliptex.plugins import find
from cliptex.precision import mixed_precision, native_precision
from cliptex.progress import track
from cliptex.provenance import provenance
from cliptex.versions import TRAIN

log = logging.getLogger("cliptex")
MAX_LOGIT_SCALE = math.log(100)


def train(config: Config, name: str, seed: int, root: Path = Path()) -> None:
    """Train model `name` with `seed` and export it.

    Goes on from the newest checkpoint; those that cannot be read, or that belong to another configuration or other
    data, are named in the log and left out. Raises CliptexError when an input is missing or does not fit, or when the
    loss is no longer finite.
    """
    if name not in config.models:
        raise CliptexError(f"models: no model {name!r}; there are {', '.join(config.models)}")
    settings, options = config.models[name], config.train
    folder = root / paths.model(name, seed)
    tasks = {
        store: find("tasks", config.label_stores[store].task)().with_loss(
            settings.losses.get(store, {}), f"models.{name}.losses.{store}"
        )
        for store in settings.tasks
    }
    precision = native_precision() if options.precision == "auto" else options.precision
    identity = sha256_json(
        {
            "version": TRAIN,
            "seed": seed,
            "precision": precision,
            "model": settings.model_dump(mode="json"),
            "train": options.model_dump(mode="json"),
            "student": config.student.model_dump(mode="json"),
            "stores": {
                store: read_label_index(config, store, root / paths.labels(store) / "index.json") for store in tasks
            },
            "shards": [entry["sha256"] for entry in read_json(root / paths.SHARD_INDEX)["shards"]],
        }
    )

    if settings.init is None:
        model = student.build(config.student, seed)
        started_from = config.student.pretrained or "random weights"
    else:
        model = student.load(root / paths.model(settings.init, seed))
        started_from = settings.init
    image_size = model.visual.image_size
    image_size = image_size[0] if isinstance(image_size, tuple) else image_size
    torch.manual_seed(seed)
    width = model_width(model)
    heads = DenseHeads(
        width,
        {store: task.channels for store, task in tasks.items()},
        options.multi_scale if tasks else "none",
        options.multi_scale_channels,
        options.heads,
        options.multi_scale_rates,
        options.label_prior_cells,
    )

    run = _Run(model, heads, tasks, settings, options, config.student, precision)
    checkpoints = _Checkpoints(folder / "checkpoints", identity)
    step, history, seconds = 0, [], 0.0
    if (saved := checkpoints.latest()) is not None:
        run.restore(saved)
        step, history, seconds = saved["step"], saved["history"], saved["seconds"]
        log.info("%s seed %d: going on from step %d", name, seed, step)
    start = time.monotonic()
    if step < settings.steps:
        loader = JointLoader(
            root / paths.SHARD_INDEX,
            {store: (task, root / paths.labels(store) / "index.json") for store, task in tasks.items()},
            options,
            image_size,
            seed,
            settings.shuffle_labels,
        )
        if step == 0 and heads.priors:
            fit_label_prior(heads.priors, tasks, loader.label_batches(BATCHES), options.target_size_px)
        batches = loader.batches(step)
        for step in track(range(step + 1, settings.steps + 1), f"train {name} seed {seed}"):  # noqa: B020
            losses = run.step(next(batches), step)
            if not math.isfinite(losses["loss"]):
                raise CliptexError(
                    f"models.{name}: the loss at step {step} is {losses['loss']} ({losses}); lower learning_rate"
                )
            if step % options.log_every == 0 or step in (1, settings.steps):
                history.append({"step": step, **{key: round(value, 6) for key, value in losses.items()}})
            if step % options.checkpoint_every == 0 and step < settings.steps:
                elapsed = seconds + time.monotonic() - start
                checkpoints.save(
                    {**run.state(), "step": step, "history": history, "seconds": elapsed, "identity": identity}
                )
    seconds += time.monotonic() - start

    folder.mkdir(parents=True, exist_ok=True)
    weights = student.export(model, config.student, folder)
    stores = {store: config.label_stores[store].task for store in tasks}
    save_heads(heads, folder / student.HEADS_FILE, stores, settings.losses)
    with replacing(folder / "metrics.jsonl") as scratch:
        scratch.write_text("".join(json.dumps(line) + "\n" for line in history))
    write_json(
        folder / "train.json",
        {
            "schema_version": 1,
            "model": name,
            "seed": seed,
            "source": config.dataset.source,
            "init": started_from,
            "steps": settings.steps,
            "batch_size": options.batch_size,
            "learning_rate": settings.learning_rate,
            "tasks": dict(settings.tasks),
            "losses": dict(settings.losses),
            "shuffle_labels": settings.shuffle_labels,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 2),
            "images_per_s": round(settings.steps * options.batch_size / seconds, 2) if settings.steps else None,
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "parameters": {
                "encoder": student.parameters(model.visual),
                "text": student.parameters(model) - student.parameters(model.visual),
                "heads": student.parameters(heads),
            },
            "model_sha256": weights,
            "provenance": provenance(config.plain()),
        },
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def model_width(model: torch.nn.Module) -> int:
    """Channels of the encoder's dense features."""
    visual = model.visual
    if hasattr(visual, "ln_post"):
        return visual.ln_post.normalized_shape[0]
    return visual.trunk.num_features


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, megabytes (GPU memory where there is one)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**10 if sys.platform != "darwin" else kilobytes / 2**20


class _Run:
    """Networks, optimizer and one step."""

    def __init__(self, model, heads, tasks, settings: Model, options: Train, student_config, precision: str):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.heads = model.to(self.device).train(), heads.to(self.device).train()
        self.tasks, self.settings, self.options, self.precision = tasks, settings, options, precision
        if settings.patch_dropout:
            model.visual.patch_dropout = PatchDropout(settings.patch_dropout).train()
        self.tokenizer = student.tokenizer(student_config)
        self.clip_loss = ClipLoss()
        mean = getattr(model.visual, "image_mean", None) or student.open_clip.OPENAI_DATASET_MEAN
        std = getattr(model.visual, "image_std", None) or student.open_clip.OPENAI_DATASET_STD
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.learning_rate, betas=(0.9, options.beta2), fused=True
        )

    def _groups(self) -> list[dict[str, Any]]:
        """Decay only for matrices that are no embeddings, logit scale or label prior; heads learn at a higher rate."""
        groups = []
        for module, factor in ((self.model, 1.0), (self.heads, self.options.head_rate_factor)):
            decay, plain = [], []
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                exempt = parameter.ndim < 2 or "embedding" in name or name.endswith("logit_scale") or "priors." in name
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

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step; the named losses."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        images_BHWC = torch.from_numpy(np.ascontiguousarray(batch.images)).to(self.device)
        images_BCHW = (images_BHWC.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        tokens = self.tokenizer(batch.captions).to(self.device)
        losses = {}
        with mixed_precision(self.precision):
            if self.tasks:
                dense, image = features_and_embedding(self.model.visual, images_BCHW)
            else:
                image = self.model.encode_image(images_BCHW)
            text = self.model.encode_text(tokens)
            image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
            losses["contrastive"] = self.clip_loss(image, text, self.model.logit_scale.exp())
            total = self.settings.contrastive_weight * losses["contrastive"]
            if self.tasks:
                size = self.options.target_size_px
                for store, prediction in self.heads(dense).items():
                    prediction = F.interpolate(prediction.float(), size=(size, size), mode="bilinear")
                    target = torch.from_numpy(batch.targets[store]).to(self.device)
                    losses[store] = self.tasks[store].loss(prediction, target)
                    total = total + self.settings.tasks[store] * losses[store]
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return {
            "loss": total.item(),
            **{name: value.item() for name, value in losses.items()},
            "logit_scale": self.model.logit_scale.exp().item(),
            "learning_rate": rate,
        }

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.heads.load_state_dict(saved["heads"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])


class _Checkpoints:
    """Rolling checkpoints of one run: the newest two, each written atomically, tied to the run's configuration."""

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity

    def save(self, state: dict[str, Any]) -> None:
        with replacing(self.folder / f"step-{state['step']:08d}.pt") as scratch:
            torch.save(state, scratch)
        for old in sorted(self.folder.glob("step-*.pt"))[:-2]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest readable checkpoint of this very configuration; others are named and left out."""
        for path in sorted(self.folder.glob("step-*.pt"), reverse=True):
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a truncated zip, a missing record, a foreign pickle
                log.warning("%s: unreadable checkpoint left out (%s)", path, error)
                continue
            if saved.get("identity") != self.identity:
                log.warning("%s: checkpoint of another configuration or data left out", path)
                continue
            return saved
        return None

"""Train one model: contrastive, and where it has tasks, with pseudo-labels through throw-away heads.

Reads   the shard index, the indexed label stores of the model's tasks, the exported model it starts from.
Writes  results/models/{model}/seed{seed}/: open_clip_config.json, open_clip_model.safetensors, heads.safetensors,
        metrics.jsonl and, last, train.json; while it runs, rolling checkpoints and metrics.jsonl so far in checkpoints/
        beside them, and TensorBoard's files.
Holds   same seed, same batches for every model; a killed run goes on from its last checkpoint to the same weights; a
        run that is asked to stop saves its state and writes no outputs.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cliptex.config import Config
from cliptex.core import paths, progress
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, replacing, sha256_json, write_json
from cliptex.core.plugins import find
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.experts.precision import native_precision
from cliptex.labels.label import read_label_index
from cliptex.models import clip as student
from cliptex.models.dense_features import width as feature_width
from cliptex.models.heads import DenseHeads, save_heads
from cliptex.tasks.base import Task
from cliptex.tasks.batch_mean import local_only
from cliptex.training import cost
from cliptex.training.checkpoints import Checkpoints, Stopped, StopRequest
from cliptex.training.distributed import World, init_distributed
from cliptex.training.label_prior import BATCHES, fit_label_prior
from cliptex.training.loader import Batch, JointLoader
from cliptex.training.trackers import Trackers
from cliptex.training.trainer import Engine
from cliptex.training.validator import TOP1, Watcher, valid_shares
from cliptex.versions import TRAIN

log = logging.getLogger("cliptex")
NOT_OF_THE_RESULT = {"log_every", "checkpoint_every", "trackers", "watch", "compile"}
"""Settings of `train` that may change between the parts of a run."""


def train(config: Config, name: str, seed: int, root: Path = Path(), workers: int | None = None) -> None:
    """Train model `name` with `seed` and export it.

    workers: processes that decode, 0 for this one; None is as many as the compute threads beside a GPU, else 0.

    Under torchrun the processes share each batch. Goes on from the newest checkpoint; one that cannot be read is named
    in the log and left out. Raises CliptexError when an input is missing or does not fit, when the checkpoint is of
    another configuration or other data, or when the loss is no longer finite; Stopped (exit code 75) after SIGTERM or
    SIGUSR1, when the state is saved.
    """
    if name not in config.models:
        raise CliptexError(f"models: no model {name!r}; there are {', '.join(config.models)}")
    with denormals_flushed(), init_distributed() as world:
        if not world.is_main:
            progress.bars = False
            log.setLevel(logging.ERROR)
        if workers is None:
            workers = torch.get_num_threads() if world.device.type == "cuda" else 0
        run = _Run(config, name, seed, root, world, workers)
        run.train()
        peak_memory_mb = world.all_reduce_max(cost.peak_memory_mb())
        if world.is_main:
            run.export(peak_memory_mb)
        world.barrier()


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Vanishing gradients count as zero: the processor takes several times the time of others over denormal numbers."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class _Run:
    """One model's training from its inputs to its outputs."""

    def __init__(self, config: Config, name: str, seed: int, root: Path, world: World, workers: int):
        self.config, self.name, self.seed, self.root, self.world = config, name, seed, root, world
        self.model, self.options = config.models[name], config.train
        self.folder = root / paths.model(name, seed)
        self.tasks = _tasks(config, name)
        self.precision = native_precision() if self.options.precision == "auto" else self.options.precision
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self._settings())
        self.history: list[dict[str, float]] = []
        self.first_step, self.seconds, self.seconds_loading = 0, 0.0, 0.0
        self.looking = 0.0
        """Seconds of this part of the run that the watcher took, which are not the training's."""
        self.overhead: float | None = None
        self.alarms: list[str] = []

        if self.model.init is None:
            network = student.build(config.student, seed)
            self.started_from = config.student.pretrained or "random weights"
        else:
            network = student.load(root / paths.model(self.model.init, seed))
            self.started_from = self.model.init
        image_size = network.visual.image_size
        torch.manual_seed(seed)
        heads = DenseHeads(
            feature_width(network.visual),
            {store: task.channels for store, task in self.tasks.items()},
            (self.model.multi_scale or self.options.multi_scale) if self.tasks else "none",
            self.options.multi_scale_channels,
            self.model.heads or self.options.heads,
            self.options.multi_scale_rates,
            self.options.label_prior_cells,
        )
        self.engine = Engine(network, heads, self.tasks, self.model, self.options, self.precision, world)
        self.loader = JointLoader(
            root / paths.SHARD_INDEX,
            {store: (task, root / paths.labels(store) / "index.json") for store, task in self.tasks.items()},
            self.options,
            image_size[0] if isinstance(image_size, tuple) else image_size,
            seed,
            self.model.shuffle_labels,
            tokenizer=student.tokenizer(config.student),
            rank=world.rank,
            processes=world.size,
            workers=workers,
        )
        self.watcher = Watcher(config, self.engine, self.loader, root)
        self._restore()
        if not self.first_step and heads.priors:
            with local_only():  # every process has all labels of the batch
                fit_label_prior(
                    heads.priors, self.tasks, self.loader.label_batches(BATCHES), self.options.target_size_px
                )
            world.broadcast_parameters(heads.priors.parameters())

    def _settings(self) -> dict[str, Any]:
        """All that decides the weights; data by their digests."""
        indices = {store: self.root / paths.labels(store) / "index.json" for store in self.tasks}
        shards = [entry["sha256"] for entry in read_json(self.root / paths.SHARD_INDEX)["shards"]]
        init = self.root / paths.model(self.model.init, self.seed) / "train.json" if self.model.init else None
        return {
            "version": TRAIN,
            "seed": self.seed,
            "precision": self.precision,
            "models": {self.name: self.model.model_dump(mode="json")},
            "train": self.options.model_dump(mode="json", exclude=NOT_OF_THE_RESULT),
            "student": self.config.student.model_dump(mode="json"),
            "label_stores": {
                store: {"index_sha256": sha256_json(read_label_index(self.config, store, path))}
                for store, path in indices.items()
            },
            "shards": {"number": len(shards), "sha256": sha256_json(shards)},
            "init": {"model_sha256": read_json(init).get("model_sha256")} if init is not None and init.exists() else {},
        }

    def _restore(self) -> None:
        saved = self.checkpoints.latest() if self.world.is_main else None
        step = self.world.broadcast(saved["step"] if saved else 0)
        if not step:
            return
        if saved is None:
            saved = self.checkpoints.load(step)
        self.engine.restore(saved["engine"])
        self.first_step, self.history, self.alarms = step, saved["history"], saved["alarms"]
        self.seconds, self.seconds_loading = saved["seconds"], saved["seconds_loading"]
        log.info("%s seed %d: going on from step %d", self.name, self.seed, step)

    def train(self) -> None:
        """From the first step that is not done to the last."""
        steps = self.model.steps
        if self.first_step >= steps:
            return
        names = self.options.trackers if self.world.is_main else ()
        label = f"{self.name}/seed{self.seed}"
        with StopRequest() as stop, Trackers(names, self.folder, label, self.first_step, self._settings()) as trackers:
            self._first_look(trackers)
            batches = self.loader.batches(self.first_step)
            begun = time.monotonic()
            for step in track(range(self.first_step + 1, steps + 1), f"train {self.name} seed {self.seed}"):
                waiting = time.monotonic()
                batch = next(batches)
                self.seconds_loading += time.monotonic() - waiting
                losses = self.engine.step(batch, step)
                if not _finite(losses):
                    raise self._not_finite(batch, step, losses)
                line = self._line(batch, step, losses)
                if line:
                    self.history.append(line)
                    trackers.write(line)
                stopping = self.world.mean(torch.tensor(float(stop.name is not None), device=self.engine.device)) > 0
                if step < steps and (stopping or step % self.options.checkpoint_every == 0):
                    self._save(step, self.seconds + time.monotonic() - begun - self.looking)
                if step < steps and stopping:
                    self.world.barrier()
                    log.info("%s: %s after step %d; saved, the same command goes on", label, stop.name, step)
                    raise Stopped(step)
            self.seconds += time.monotonic() - begun - self.looking
            if self.tasks:
                self.overhead = self.engine.overhead(batch)

    def _first_look(self, trackers: Trackers) -> None:
        """What is measured before step 1, and is what later measurements are compared with."""
        if not self.watcher.watches:
            return
        if self.first_step:
            self.watcher.start = self.history[0].get(TOP1)
            return
        found = self.watcher.measure() if self.world.is_main else {}
        self.watcher.start = found.get(TOP1)
        self.history.append({"step": 0, **found})
        trackers.write(self.history[0])

    def _line(self, batch: Batch, step: int, losses: dict[str, float]) -> dict[str, float]:
        """The step's line of metrics.jsonl; empty for most steps."""
        last = step == self.model.steps
        every = self.options.watch.every_epochs
        looks = self.watcher.watches and (last or (batch.ends_epoch and (batch.epoch + 1) % every == 0))
        if not looks and not last and step % self.options.log_every and step != 1:
            return {}
        line: dict[str, float] = {"step": step, "epoch": batch.epoch}
        # JSON has no infinity, which is the norm of a gradient that fp16 could not hold
        line |= {key: round(value, 6) for key, value in losses.items() if math.isfinite(value)}
        if self.tasks:
            shares = valid_shares(self.tasks, batch.targets)
            means = self.world.mean(torch.stack(list(shares.values())).to(self.engine.device)).tolist()
            line |= {key: round(value, 6) for key, value in zip(shares, means, strict=True)}
        if looks:
            begun = time.monotonic()
            found = self.watcher.measure() if self.world.is_main else {}
            self.looking += time.monotonic() - begun
            alarm = self.watcher.check(found, step, f"models.{self.name}")
            if alarm:
                self.alarms.append(alarm)
                log.warning("%s", alarm)
            if self.world.broadcast(int(alarm is not None and self.options.watch.on_drop == "stop")):
                self.history.append(line | found)
                self._write_history(self.checkpoints.folder)
                raise CliptexError(
                    alarm or "stopped by the first process",
                )
            line |= found
        return line

    def _not_finite(self, batch: Batch, step: int, losses: dict[str, float]) -> CliptexError:
        path = self.checkpoints.folder / f"not-finite-step-{step:08d}-rank-{self.world.rank}.json"
        write_json(
            path, {"step": step, "losses": {key: str(value) for key, value in losses.items()}, "keys": batch.keys}
        )
        self._write_history(self.checkpoints.folder)
        what = "loss" if not math.isfinite(losses["loss"]) else "grad_norm"
        return CliptexError(
            f"models.{self.name}: the {what} at step {step} is {losses[what]} ({losses}); the keys of the batch are in"
            f" {path}; lower learning_rate, or look at those samples"
        )

    def _save(self, step: int, seconds: float) -> None:
        if not self.world.is_main:
            return
        self.checkpoints.save(
            {
                "engine": self.engine.state(),
                "step": step,
                "history": self.history,
                "alarms": self.alarms,
                "seconds": seconds,
                "seconds_loading": self.seconds_loading,
            }
        )
        self._write_history(self.checkpoints.folder)

    def _write_history(self, folder: Path) -> None:
        if not self.world.is_main:
            return
        with replacing(folder / "metrics.jsonl") as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in self.history))

    def export(self, peak_memory_mb: float) -> None:
        """Write the outputs, train.json last, and remove the checkpoints. peak_memory_mb: of any of the processes."""
        network, heads = self.engine.averaged()
        weights = student.export(network, self.config.student, self.folder)
        stores = {store: self.config.label_stores[store].task for store in self.model.tasks}
        save_heads(heads, self.folder / student.HEADS_FILE, stores, self.model.losses)
        self._write_history(self.folder)
        write_json(self.folder / "train.json", self._record(weights, peak_memory_mb))
        self.checkpoints.remove()

    def _record(self, weights: str, peak_memory_mb: float) -> dict[str, Any]:
        steps, options = self.model.steps, self.options
        network, heads = self.engine.averaged()
        seen, unique = self.loader.samples_seen(steps)
        flops = cost.forward_flops(network, heads, student.tokenizer(self.config.student)(["a"]))
        plain = flops["encoder"] + flops["text"]
        return {
            "schema_version": 1,
            "model": self.name,
            "seed": self.seed,
            "source": self.config.dataset.source,
            "init": self.started_from,
            "steps": steps,
            "batch_size": options.batch_size,
            "learning_rate": self.model.learning_rate,
            "tasks": dict(self.model.tasks),
            "losses": dict(self.model.losses),
            "shuffle_labels": self.model.shuffle_labels,
            "precision": self.precision,
            "ema": options.ema,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
            "images_seen": seen,
            "unique_images": unique,
            "epochs": round(seen / self.loader.num_samples, 4),
            "seconds": round(self.seconds, 2),
            "seconds_loading": round(self.seconds_loading, 2),
            "images_per_s": round(seen / self.seconds, 2) if steps and self.seconds else None,
            "peak_memory_mb": round(peak_memory_mb, 1),
            "parameters": cost.parameters_of(network, heads),
            "flops": flops,
            "flops_over_contrastive": round(sum(flops.values()) / plain, 4),
            "time_over_contrastive": None if self.overhead is None else round(self.overhead, 4),
            "alarms": self.alarms,
            "model_sha256": weights,
            "provenance": provenance(self.config.plain()),
        }


def _finite(losses: dict[str, float]) -> bool:
    """Whether a step may be built upon. In fp16 a gradient may overflow, until lowering the loss' scale is no help."""
    overflow_is_usual = losses.get("loss_scale", 0.0) >= 1
    return math.isfinite(losses["loss"]) and (overflow_is_usual or math.isfinite(losses.get("grad_norm", 0.0)))


def _tasks(config: Config, name: str) -> dict[str, Task]:
    settings = config.models[name]
    return {
        store: find("tasks", config.label_stores[store].task)().with_loss(
            settings.losses.get(store, {}), f"models.{name}.losses.{store}"
        )
        for store in settings.tasks
    }

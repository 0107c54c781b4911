"""Train one model: contrastive loss, and with tasks also the losses of pseudo-labels through heads for training only.

Reads   the shard index, the indexed label stores of the model's tasks, the exported model that it starts from.
Writes  results/models/{model}/seed{seed}/: open_clip_config.json, open_clip_model.safetensors, heads.safetensors,
        metrics.jsonl and, last, train.json; during training, checkpoints/ with rolling checkpoints and metrics.jsonl,
        and TensorBoard's files.
Holds   every model sees the same batches for the same seed; a killed run resumes from its last checkpoint and ends with
        the same weights; a run stopped by a signal saves its state and writes no outputs.
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
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import replacing, write_json
from cliptex.core.progress import track
from cliptex.core.provenance import provenance
from cliptex.experts.precision import training_precision
from cliptex.models import clip as student
from cliptex.models.heads import DenseHeads, own_codecs, save_heads
from cliptex.tasks.batch_mean import local_only
from cliptex.training import cost
from cliptex.training.batch import Batch
from cliptex.training.checkpoints import Checkpoints, Stopped, StopRequest, fingerprint
from cliptex.training.distributed import World, init_distributed
from cliptex.training.loader import JointLoader
from cliptex.training.loggers import Loggers
from cliptex.training.position_prior import BATCHES, fit_position_prior
from cliptex.training.start import export_untrained, initial_network, new_heads, tasks_of
from cliptex.training.trainer import Trainer
from cliptex.training.validator import TOP1, Validator, valid_shares

log = logging.getLogger("cliptex")


def train(config: Config, name: str, seed: int, workers: int | None = None) -> None:
    """Train model `name` with `seed` and export it. Under torchrun, the processes share each batch.

    Resumes from the newest readable checkpoint. workers: number of decoding processes, 0 for none; default: as many as
    compute threads if there is a GPU, else 0. A model without steps is exported as it starts, without any pairs.
    Raises CliptexError if an input is missing or does not match, if the checkpoint was made with another configuration
    or other data, and if the loss becomes non-finite; Stopped (exit code 75) after SIGTERM or SIGUSR1, once the state
    is saved.
    """
    if name not in config.models:
        raise CliptexError(f"models: no model {name!r}; choose one of {', '.join(config.models)}")
    with flush_denormals(), init_distributed() as world:
        if not world.is_main:
            progress.bars = False
            log.setLevel(logging.ERROR)
        if not config.models[name].is_trained:
            if world.is_main:
                export_untrained(config, name, seed)
            world.barrier()
            return
        if workers is None:
            workers = torch.get_num_threads() if world.device.type == "cuda" else 0
        run = _Run(config, name, seed, world, workers)
        run.train()
        peak_memory_mb = world.all_reduce_max(cost.peak_memory_mb())
        if world.is_main:
            run.export(peak_memory_mb)
        world.barrier()


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero: vanishing gradients would slow down the CPU several times."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class _Run:
    """The training of one model, from inputs to outputs."""

    def __init__(self, config: Config, name: str, seed: int, world: World, workers: int):
        self.config, self.name, self.seed, self.world = config, name, seed, world
        self.model_config, self.train_config = config.models[name], config.train
        self.label = f"{name}/seed{seed}"
        self.folder = paths.model(name, seed)
        self.tasks = tasks_of(config, name)
        auto = self.train_config.precision == "auto"
        self.precision = training_precision() if auto else self.train_config.precision
        self.fingerprint = fingerprint(config, name, seed, self.precision)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.fingerprint)
        self.history: list[dict[str, float]] = []
        """The lines of metrics.jsonl."""
        self.first_step, self.seconds, self.seconds_loading = 0, 0.0, 0.0
        self.validation_seconds = 0.0
        """Time spent on validation since this process started, which does not count as training."""
        self.overhead: float | None = None
        self.alarms: list[str] = []
        network, self.started_from = initial_network(config, name, seed)
        heads = new_heads(config, name, seed, network, self.tasks)
        self.loader = self._new_loader(network, workers)
        steps = self.model_config.num_steps(self.loader.num_samples, self.train_config.batch_size)
        self.model_config = self.model_config.model_copy(update={"steps": steps})
        self.trainer = Trainer(network, heads, self.tasks, self.model_config, self.train_config, self.precision, world)
        self.validator = Validator(config, self.trainer, self.loader)
        self._resume()
        if not self.first_step and heads.priors:
            self._fit_position_prior(heads)

    def _new_loader(self, network: torch.nn.Module, workers: int) -> JointLoader:
        image_size = network.visual.image_size
        return JointLoader(
            paths.SHARD_INDEX,
            {store: (task, paths.labels(store) / "index.json") for store, task in self.tasks.items()},
            self.train_config,
            image_size[0] if isinstance(image_size, tuple) else image_size,
            self.seed,
            self.model_config.shuffle_labels,
            tokenizer=student.tokenizer(self.config.student),
            rank=self.world.rank,
            processes=self.world.size,
            workers=workers,
        )

    def _fit_position_prior(self, heads: DenseHeads) -> None:
        with local_only():  # every process reads the labels of the global batch
            batches = self.loader.label_batches(BATCHES)
            fit_position_prior(heads.priors, self.tasks, batches, self.model_config.weight_by_agreement)
        self.world.broadcast_parameters(heads.priors.parameters())

    def _resume(self) -> None:
        state = self.checkpoints.latest() if self.world.is_main else None
        step = self.world.broadcast(state["step"] if state else 0)
        if not step:
            return
        if state is None:
            state = self.checkpoints.load(step)
        self.trainer.load_state_dict(state["engine"])
        self.first_step, self.history, self.alarms = step, state["history"], state["alarms"]
        self.seconds, self.seconds_loading = state["seconds"], state["seconds_loading"]
        log.info("%s seed %d: resuming from step %d", self.name, self.seed, step)

    def train(self) -> None:
        """Run the remaining steps."""
        steps = self.model_config.steps
        if self.first_step >= steps:
            return
        logger_names = self.train_config.trackers if self.world.is_main else ()
        with (
            StopRequest() as stop,
            Loggers(logger_names, self.folder, self.label, self.first_step, self.fingerprint) as loggers,
        ):
            self._validate_start(loggers)
            batches = self.loader.batches(self.first_step)
            start = time.monotonic()
            for step in track(range(self.first_step + 1, steps + 1), f"train {self.name} seed {self.seed}"):
                wait_start = time.monotonic()
                with working_on(f"{self.label}: step {step}"):
                    batch = next(batches)
                self.seconds_loading += time.monotonic() - wait_start
                with working_on(f"{self.label}: step {step}"):
                    losses = self.trainer.step(batch, step)
                if not _is_finite(losses):
                    raise self._not_finite_error(batch, step, losses)
                self._log_step(batch, step, losses, loggers)
                stopping = self._any_process(stop.signal_name is not None)
                if step < steps and (stopping or step % self.train_config.checkpoint_every == 0):
                    self._save(step, self.seconds + time.monotonic() - start - self.validation_seconds)
                if step < steps and stopping:
                    self.world.barrier()
                    log.info(
                        "%s: stopped by %s after step %d; state saved, run the same command again to resume",
                        self.label,
                        stop.signal_name,
                        step,
                    )
                    raise Stopped(step)
            self.seconds += time.monotonic() - start - self.validation_seconds
            if self.tasks:
                self.overhead = self.trainer.overhead(batch)

    def _any_process(self, condition: bool) -> bool:
        return bool(self.world.mean(torch.tensor(float(condition), device=self.trainer.device)) > 0)

    def _validate_start(self, loggers: Loggers) -> None:
        """Validate before step 1; later validations are compared with this one."""
        if not self.validator.enabled:
            return
        if self.first_step:
            self.validator.initial_top1 = self.history[0].get(TOP1)
            return
        metrics = self.validator.measure()
        self.validator.initial_top1 = metrics.get(TOP1)
        self.history.append({"step": 0, **metrics})
        loggers.write(self.history[0])

    def _log_step(self, batch: Batch, step: int, losses: dict[str, float], loggers: Loggers) -> None:
        """Validate and write a line of metrics.jsonl, at the steps that are due."""
        is_first, is_last = step == 1, step == self.model_config.steps
        validating = self.validator.should_validate(batch, is_last)
        if not (validating or is_first or is_last or step % self.train_config.log_every == 0):
            return
        line = self._training_metrics(batch, step, losses)
        if validating:
            start = time.monotonic()
            line |= self.validator.measure()
            self.validation_seconds += time.monotonic() - start
            self._check_zero_shot_drop(line)
        self.history.append(line)
        loggers.write(line)

    def _training_metrics(self, batch: Batch, step: int, losses: dict[str, float]) -> dict[str, float]:
        line: dict[str, float] = {"step": step, "epoch": batch.epoch}
        # JSON has no infinity, which is the gradient norm if fp16 overflowed
        line |= {key: round(value, 6) for key, value in losses.items() if math.isfinite(value)}
        if self.tasks:
            shares = valid_shares(self.tasks, batch.targets)
            means = self.world.mean(torch.stack(list(shares.values())).to(self.trainer.device)).tolist()
            line |= {key: round(value, 6) for key, value in zip(shares, means, strict=True)}
        return line

    def _check_zero_shot_drop(self, line: dict[str, float]) -> None:
        """Record an alarm if zero-shot accuracy dropped too far; raise it as an error with `on_drop: stop`."""
        alarm = self.validator.check(line, line["step"], f"models.{self.name}")
        if alarm:
            self.alarms.append(alarm)
            log.warning("%s", alarm)
        if self.world.broadcast(int(alarm is not None and self.train_config.watch.on_drop == "stop")):
            self.history.append(line)
            self._write_history(self.checkpoints.folder)
            raise CliptexError(alarm or "stopped by rank 0, see its error")

    def _not_finite_error(self, batch: Batch, step: int, losses: dict[str, float]) -> CliptexError:
        path = self.checkpoints.folder / f"not-finite-step-{step:08d}-rank-{self.world.rank}.json"
        write_json(
            path, {"step": step, "losses": {key: str(value) for key, value in losses.items()}, "keys": batch.keys}
        )
        self._write_history(self.checkpoints.folder)
        key = "loss" if not math.isfinite(losses["loss"]) else "grad_norm"
        return CliptexError(
            f"models.{self.name}: the {key} at step {step} is {losses[key]} ({losses}); the batch's keys are in {path};"
            " lower learning_rate, or check these samples"
        )

    def _save(self, step: int, seconds: float) -> None:
        if not self.world.is_main:
            return
        self.checkpoints.save(
            {
                "engine": self.trainer.state_dict(),
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
            scratch.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")

    def export(self, peak_memory_mb: float) -> None:
        """Write the outputs, train.json last, and delete the checkpoints. peak_memory_mb: maximum over processes."""
        network, heads = self.trainer.averaged()
        weights_sha256 = student.export(network, self.config.student, self.folder)
        stores = {store: self.config.label_stores[store].task for store in self.model_config.tasks}
        heads_sha256 = save_heads(
            heads, self.folder / student.HEADS_FILE, stores, self.model_config.losses, own_codecs(self.tasks)
        )
        self._write_history(self.folder)
        digests = {"model_sha256": weights_sha256, "heads_sha256": heads_sha256}
        write_json(self.folder / "train.json", self._record(digests, peak_memory_mb))
        self.checkpoints.remove()

    def _record(self, digests: dict[str, str], peak_memory_mb: float) -> dict[str, Any]:
        """The content of train.json. digests: SHA-256 of the exported files."""
        model = self.model_config
        network, heads = self.trainer.averaged()
        seen, distinct = self.loader.samples_seen(model.steps)
        flops = cost.forward_flops(network, heads, student.tokenizer(self.config.student)(["a"]))
        contrastive_flops = flops["encoder"] + flops["text"]
        return {
            "schema_version": 1,
            "model": self.name,
            "seed": self.seed,
            "source": self.config.dataset.source,
            **self.started_from,
            "steps": model.steps,
            "batch_size": self.train_config.batch_size,
            "learning_rate": model.learning_rate,
            "tasks": dict(model.tasks),
            "losses": dict(model.losses),
            **({"weight_by_agreement": True} if model.weight_by_agreement else {}),
            "shuffle_labels": model.shuffle_labels,
            "precision": self.precision,
            "ema": self.train_config.ema,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
            "images_seen": seen,
            "unique_images": distinct,
            "epochs": round(seen / self.loader.num_samples, 4),
            **({} if model.epochs is None else {"epochs_configured": model.epochs}),
            "seconds": round(self.seconds, 2),
            "seconds_loading": round(self.seconds_loading, 2),
            "images_per_s": round(seen / self.seconds, 2) if self.seconds else None,
            "peak_memory_mb": round(peak_memory_mb, 1),
            "parameters": cost.parameters_of(network, heads),
            "flops": flops,
            "flops_over_contrastive": round(sum(flops.values()) / contrastive_flops, 4),
            "time_over_contrastive": None if self.overhead is None else round(self.overhead, 4),
            "alarms": self.alarms,
            **digests,
            "provenance": provenance(self.config.plain()),
        }


def _is_finite(losses: dict[str, float]) -> bool:
    """Whether loss and gradient are finite. In fp16 the gradient may overflow while the loss scale is still large."""
    may_overflow = losses.get("loss_scale", 0.0) >= 1
    return math.isfinite(losses["loss"]) and (may_overflow or math.isfinite(losses.get("grad_norm", 0.0)))

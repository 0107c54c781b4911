"""Fine-tune encoders end to end on one benchmark, to test whether the gains of frozen encoders remain.

Reads   results/models/{model}/seed{seed}/ and resources/{benchmark}/ in its official layout.
Writes  results/finetuned/{benchmark}/{model}/seed{seed}/{head}.json, .npz and .per_image.npz, as
        `cliptex.evaluation.probe` does.
Holds   head, loss, batches, steps and evaluation are those of the probe of a frozen encoder; the encoder has its own
        learning rate, and every row has `"frozen": false`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from cliptex.config import Config, FineTuning
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.progress import track
from cliptex.core.seeds import seed_of
from cliptex.evaluation.job import Job
from cliptex.evaluation.probe import prepare_run
from cliptex.evaluation.probes import finished_heads
from cliptex.evaluation.probes.base import Outcome, Run
from cliptex.evaluation.probes.evaluate import Subject, evaluate_head
from cliptex.evaluation.probes.parts import Part, Reader
from cliptex.evaluation.probes.tasks import probe_task
from cliptex.evaluation.probes.training import Optimisation, batches, best_of, rate_factor, require_trained
from cliptex.evaluation.probes.tuning import Loss, Recipe, Tuned, Tuner
from cliptex.evaluation.protocols.resolve import protocol_of
from cliptex.evaluation.targets import tuned_heads
from cliptex.models.encoders import Encoder, load_encoders


def run(config: Config, job: Job) -> None:
    """Fine-tune the models of a job (or "random", trained from scratch), separately for each head and task.
    Results go to `results/finetuned/{benchmark}` by default."""
    options = config.finetune.benchmarks.get(job.name)
    if options is None:
        raise CliptexError(f"finetune.benchmarks: {job.name!r} is not one of {sorted(config.finetune.benchmarks)}")
    for model in job.models_of(config):
        for seed in job.seeds_of(config):
            _finetune(config, job, options, model, seed)


def _finetune(config: Config, job: Job, options: FineTuning, model: str, seed: int) -> None:
    protocol = protocol_of(job.name, config.probes.benchmarks.get(job.name, {}))
    data = job.benchmark()
    data.check_apart()
    heads = tuned_heads(job.name, protocol, options)
    run_, indices = prepare_run(config, job.name, data, protocol, seed)
    settings = {
        "benchmark": job.name,
        "protocol": protocol.model_dump(mode="json", exclude_none=True),
        "fine_tuning": options.model_dump(mode="json"),
        "holdout": config.probes.holdout,
        "seed": seed,
    }

    def new_encoder() -> Encoder:
        return load_encoders([model], seed, job.models_dir)[model]

    inputs: dict[str, tuple[tuple[Reader, Reader], tuple[Part, Part]]] = {}
    encoder = new_encoder()
    for task in {task for tasks in heads.values() for task in tasks}:
        truths = {task: probe_task(task).truth(run_, encoder)}
        section = protocol.section(task)
        readers = tuple(Reader(data, part, indices[part], section, encoder, truths) for part in ("train", "eval"))
        inputs[task] = readers, tuple(reader.read({})[0] for reader in readers)

    def tune(task: str, head: str) -> list[Outcome]:
        return _tune(run_, task, head, lambda: Tuned(new_encoder(), *inputs[task]), options)

    def depends_on(task: str) -> Any:
        (reader, _), (train, _) = inputs[task]
        return [reader.depends_on(encoder), finished_heads.digest(train.truths[task])]

    folder = (job.out or paths.RESULTS / "finetuned" / job.name) / model / f"seed{seed}"
    subject, extra = Subject(model, seed, encoder, frozen=False), {"frozen": False, "settings": settings}
    for head, tasks in heads.items():
        parts = inputs[tasks[0]][1]
        evaluate_head(run_, subject, head, tasks, parts, partial(tune, head=head), extra, folder, depends_on)
    finished_heads.remove(folder)


def _tune(run: Run, name: str, head: str, new: Callable[[], Tuned], options: FineTuning) -> list[Outcome]:
    """Fine-tune with one head of one task, on all training views, with the rates that are best on the holdout.
    new: loads the encoder with its original weights."""
    seed = seed_of(head, run.seed)
    tuned = new()
    fit, held = split = tuned.parts[0].split(run.holdout, seed)
    tuner = probe_task(name).tuner(run, head, tuned, split, seed, options)

    def trained(tuned: Tuned, recipe: Recipe, rate: float, views: np.ndarray) -> torch.nn.Module:
        network = tuner.start()
        train_jointly(tuned, network, tuner.loss, views, recipe, rate, options, seed)
        return network

    def score(pair: tuple[Recipe, float]) -> float:
        def scored() -> dict[str, torch.Tensor]:
            candidate = new()
            network = trained(candidate, *pair, fit)
            with torch.no_grad():
                return {"score": torch.tensor(tuner.score(network, candidate, held), dtype=torch.float64)}

        # the score alone: the weights of every candidate's encoder would take gigabytes
        return finished_heads.trained(scored, "score", _described(pair))["score"].item()

    grid = [(recipe, rate) for recipe in tuner.recipes for rate in options.encoder_rates]
    (recipe, rate), scores = best_of(grid, score, _described) if len(grid) > 1 else (grid[0], {})
    network = _kept(tuned, tuner, lambda: trained(tuned, recipe, rate, np.arange(len(tuned.train))), (recipe, rate))
    chosen = {
        "encoder_rate": rate,
        "head_rate": recipe.head.learning_rate,
        "steps": recipe.training.steps,
        "batch_size": recipe.training.batch_size,
        "holdout_score": scores,
    }
    with torch.no_grad():
        return tuner.outcomes(network, tuned, chosen, len(run.kept))


def _kept(
    tuned: Tuned, tuner: Tuner, train: Callable[[], torch.nn.Module], pair: tuple[Recipe, float]
) -> torch.nn.Module:
    """The head that `train` returns; encoder and head from the file of an earlier training if there is one."""
    found: list[torch.nn.Module] = []

    def tensors() -> dict[str, torch.Tensor]:
        found.append(train())
        parts = {"encoder": tuned.network, "head": found[0]}
        return {f"{part}.{name}": value for part, net in parts.items() for name, value in net.state_dict().items()}

    state = finished_heads.trained(tensors, "all", _described(pair))
    if found:
        return found[0]
    head = tuner.start()
    for part, network in (("encoder", tuned.network), ("head", head)):
        network.load_state_dict({name[len(part) + 1 :]: v for name, v in state.items() if name.startswith(f"{part}.")})
    return head.eval()


def _described(pair: tuple[Recipe, float]) -> str:
    recipe, rate = pair
    return f"encoder {rate:g}, head {recipe.head.learning_rate:g}, decay {recipe.head.weight_decay:g}"


def train_jointly(
    tuned: Tuned,
    head: torch.nn.Module,
    loss: Loss,
    views: np.ndarray,
    recipe: Recipe,
    encoder_rate: float,
    options: FineTuning,
    seed: int,
) -> None:
    """Train encoder and head on the training views `views`; the head is in evaluation mode afterwards.
    The encoder stays in evaluation mode, since it has neither dropout nor running statistics."""
    generator = torch.Generator().manual_seed(seed)
    training, device = recipe.training, tuned.encoder.device
    decayed = [parameter for parameter in tuned.network.parameters() if parameter.ndim >= 2]
    not_decayed = [parameter for parameter in tuned.network.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=encoder_rate, fused=True)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(training, step))
    head_optimisation = Optimisation(head.parameters(), training, recipe.head)
    head.train()
    indices = torch.from_numpy(views)
    steps = batches(len(views), training.batch_size, training.steps, generator)
    for batch in track(steps, "fine-tune", len(steps)):
        batch = indices[batch]
        optimizer.zero_grad()
        head_optimisation.step(loss(head, tuned.train[batch].to(device), batch, generator))
        torch.nn.utils.clip_grad_norm_(tuned.network.parameters(), options.grad_clip)
        optimizer.step()
        schedule.step()
    require_trained(tuned.network)
    require_trained(head)
    head.eval()

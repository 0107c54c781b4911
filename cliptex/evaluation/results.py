"""The results files: one schema for what evaluators write, the report reads and docs/results-json.md documents.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.core.finite import require_finite


class Schema(BaseModel):
    """Part of a results file. Keys that are not known are kept, so that newer files can be read."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, protected_namespaces=())


class Row(Schema):
    """One model's metrics with one head on one task."""

    task: str
    """What was measured, below"""
    model: str
    """Name in the configuration, or `random`, `position`"""
    seed: int
    """Seed of training and of the head"""
    head: str
    """Name in the protocol, of a head or, without training, of a variant; `zero_shot` in zero-shot and retrieval"""
    metrics: dict[str, float | None]
    """Name to number, below; null where there is nothing to measure"""
    num_parameters: int | None = None
    """Of the probe, 0 without one; in zero-shot and retrieval of the model"""
    seconds: float | None = None
    """Training and evaluating the probe; without training a row's share, in zero-shot and retrieval a model's"""
    protocol: str = ""
    """In words"""
    protocol_name: str | None = None
    """Name of the protocol; not in zero-shot and retrieval"""
    protocol_digest: str | None = None
    """Digest of the protocol's values. Rows with the same digest are comparable; not in zero-shot and retrieval"""
    hyperparameters: dict[str, Any] = {}
    """Probes: what was chosen, and the scores on the holdout by which; null where training diverged"""
    frozen: bool = True
    """false after fine-tuning"""
    per_image_sha256: str | None = None
    """Digest of the file with the per-image parts next to the result; null in results of earlier versions"""
    thumbnails_sha256: str | None = None
    """Digest of the file with small predictions, if there is one; null in results of earlier versions"""
    family: Literal["trained_head", "no_head", "text"] | None = None
    """How the encoder is read: by a trained head, without one, or by text; null: as is usual for the task"""


class Provenance(Schema):
    """Where a result comes from."""

    cliptex: str | None = None
    """Version of the package"""
    git: str | None = None
    """`git describe`; null for an installed package"""
    code_sha256: str | None = None
    """Of all modules of the package; the same for a clone and what is installed from it"""
    config_sha256: str | None = None
    """Of the values that the result depends on"""
    packages: dict[str, str] = {}
    """Versions of the packages that compute"""
    python: str | None = None
    """Version of Python"""
    machine: str | None = None
    """Architecture of the processor"""
    model_sha256: dict[str, str | None] = {}
    """By `{model}/seed{seed}`, the digest of the weights that were used; the model's train.json has the same"""


class Result(Schema):
    """What all results files have."""

    schema_version: Literal[1] = 1
    """1"""
    benchmark: str
    """Name in the configuration"""
    source: str | None
    """`miniature` (rendered), `official`, `subset` (fewer images than the official ones) or `own` (the user's)"""
    variant: str | None = None
    """Form of the official data, or null; not in retrieval"""
    split: str
    """Official name of the evaluation split"""
    num_train: int
    """Training images; 0 where nothing is trained"""
    num_eval: int
    """Evaluation images"""
    class_names: list[str]
    """In label order, background first where it is a class; empty without classes"""
    results: list[Row]
    """The rows"""
    provenance: dict[str, Any] = {}
    """Where the result comes from"""


class ProbeResult(Result):
    """One head of one model, as `cliptex probe` and `cliptex finetune` write it."""

    input: dict[str, Any] = {}
    """`interpolation`, and by task `size_px` (height, width) and, for dense tasks, `grid` (rows and columns of
    patches)"""
    settings: dict[str, Any]
    """All values of the protocol, `fine_tuning` if any, holdout and seed"""
    seconds_features: float | None = None
    """Seconds to compute the features; not after fine-tuning"""
    frozen: bool = True
    """false after fine-tuning"""


class ProbeTable(Result):
    """All heads, models and seeds of a benchmark, as `cliptex tabulate-probes` and `tabulate-finetuned` write them."""

    protocol: dict[str, Any] = {}
    """All values of the protocol"""
    frozen: bool = True
    """false after fine-tuning"""
    fine_tuning: dict[str, Any] = {}
    """Options of fine-tuning, if any"""


class ZeroShotResult(Result):
    """Zero-shot classification of all models and seeds, as `cliptex zeroshot` writes it."""

    chance: dict[str, Any] = {}
    """Metric to the score of guessing, percent"""
    templates: str = ""
    """Name of the set of prompts"""
    num_templates: int = 0
    """Prompts per class"""
    prompts_sha256: str = ""
    """Of all prompts"""
    published: dict[str, float] = {}
    """Released model to its published top-1, percent, which was reproduced within 0.2 points"""
    preprocess: dict[str, Any] = {}
    """How images were prepared"""
    activation: str = ""
    """`gelu` or `quick_gelu`"""


class TrainingFreeResult(Result):
    """Evaluation without training of all models and seeds, as `cliptex training-free` writes it."""

    chance: dict[str, Any] = {}
    """Task to metric to the score of guessing, percent"""
    settings: dict[str, Any] = {}
    """All values of the protocol"""
    details: dict[str, Any] = {}
    """Task to what else its numbers depend on, such as `prompts_sha256`"""


class RetrievalResult(Result):
    """Retrieval of all models and seeds, as `cliptex retrieval` writes it."""

    num_captions: int = 0
    """Captions"""
    chance: dict[str, Any] = {}
    """Task to metric to the score of guessing, percent"""
    captions_sha256: str = ""
    """Of all captions"""
    preprocess: dict[str, Any] = {}
    """How images were prepared"""
    activation: str = ""
    """`gelu` or `quick_gelu`"""


class AnyResult(ProbeTable, ZeroShotResult, TrainingFreeResult):
    """A results file whose kind does not matter; `chance` is by task in retrieval."""

    settings: dict[str, Any] = Field({})


AnyKind = TypeVar("AnyKind", bound=Result)


def write_result(path: Path, result: Result) -> None:
    """Write a results file without the keys that were not set. Raises CliptexError for a metric that is not finite."""
    for row in result.results:
        for name, value in row.metrics.items():
            if value is not None:
                subject = f"{path}: {name} of {row.model}/seed{row.seed}, {row.head}"
                require_finite(value, subject, "look for a split without ground truth, and for broken predictions")
    write_json(path, result.model_dump(exclude_unset=True))


def read_result(path: Path, kind: type[AnyKind] = AnyResult) -> AnyKind:
    """Read a results file. Raises CliptexError that names the file and the key that is missing or wrong."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its content"
        reason = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        remedy = "it may be of another version of cliptex; move it away, and run the same command again"
        raise CliptexError(f"{path}: {key} {reason}; {remedy}") from error


OUTDATED = "move the outdated one away, and run the workflow again"
SAME = ("benchmark", "source", "variant", "split", "num_train", "num_eval", "class_names")


def tabulate(benchmark: str, files: Sequence[Path], out: Path) -> None:
    """Write the table of a benchmark from its result files."""
    if not files:
        raise CliptexError(f"{out}: there are no probes of {benchmark}; add models to the configuration")
    results = [read_result(path, ProbeResult) for path in files]
    first = results[0]
    for path, result in zip(files, results, strict=True):
        if not isinstance(result.settings.get("protocol"), dict) or "model_sha256" not in result.provenance:
            raise CliptexError(f"{path}: settings.protocol or provenance.model_sha256 is missing; {OUTDATED}")
        for key in SAME:
            if getattr(result, key) != getattr(first, key):
                raise CliptexError(f"{path}: its {key} differs from that of {files[0]}; {OUTDATED}")
        if result.settings["protocol"] != first.settings["protocol"]:
            raise CliptexError(f"{path}: its protocol differs from that of {files[0]}; {OUTDATED}")
        if result.settings.get("fine_tuning") != first.settings.get("fine_tuning"):
            raise CliptexError(f"{path}: its options of fine-tuning differ from {files[0]}'s; {OUTDATED}")
    digests = {name: digest for result in results for name, digest in result.provenance["model_sha256"].items()}
    tuned = "fine_tuning" in first.settings
    table = ProbeTable(
        schema_version=1,
        **{key: getattr(first, key) for key in SAME},
        results=[row for result in results for row in result.results],
        provenance=first.provenance | {"model_sha256": digests},
        protocol=first.settings["protocol"],
        **({"frozen": False, "fine_tuning": first.settings["fine_tuning"]} if tuned else {}),
    )
    write_result(out, table)

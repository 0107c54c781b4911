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
    """What was measured: a task of the table [Metrics](#metrics)"""
    model: str
    """Name of the model in the configuration, or the baseline `random` or `position`"""
    seed: int
    """Seed with which the model was trained and the head was fitted"""
    head: str
    """Name of the head in the protocol; without training, name of the variant; in zero-shot and retrieval `zero_shot`
"""
    metrics: dict[str, float | None]
    """Value of each [metric](#metrics) by name; null where it is undefined, such as AP of small objects if there are
    none"""
    num_parameters: int | None = None
    """Number of parameters of the head, 0 if it has none; in zero-shot and retrieval of the model"""
    seconds: float | None = None
    """Seconds to train and evaluate the head; without training, the mean over the rows of the task; in zero-shot and
    retrieval, those of the model"""
    protocol: str = ""
    """The protocol as a text, such as the head, its training and the input's size"""
    protocol_name: str | None = None
    """Name of the protocol; null in zero-shot and retrieval"""
    protocol_digest: str | None = None
    """Digest of the protocol's values, 12 hexadecimal digits: rows with the same digest are comparable. null in
    zero-shot and retrieval"""
    hyperparameters: dict[str, Any] = {}
    """Probes: the selected hyper-parameters, and the holdout's scores by which they were selected; a score is null if
    training diverged"""
    frozen: bool = True
    """Whether the encoder was frozen; false after fine-tuning"""
    per_image_sha256: str | None = None
    """SHA-256 of the file with the per-image parts, which is next to the result; null in results of earlier versions"""
    thumbnails_sha256: str | None = None
    """SHA-256 of the file with small versions of the predictions; null without one, and in results of earlier versions
"""
    family: Literal["trained_head", "no_head", "text"] | None = None
    """How the encoder was read: `trained_head`, `no_head` (a head that is not trained) or `text`; null: as usual for
    the task"""


class Provenance(Schema):
    """Where a result comes from."""

    cliptex: str | None = None
    """Version of the package"""
    git: str | None = None
    """`git describe` of the source code, or of the clone whose workflow ran the job; null if there is neither"""
    code_sha256: str | None = None
    """SHA-256 of all modules of the package; a clone and the package installed from it have the same"""
    config_sha256: str | None = None
    """SHA-256 of the values of the configuration on which the result depends"""
    packages: dict[str, str] = {}
    """Versions of PyTorch and the other libraries that compute, by name"""
    python: str | None = None
    """Version of Python"""
    machine: str | None = None
    """Architecture of the processor, such as `x86_64`"""
    model_sha256: dict[str, str | None] = {}
    """SHA-256 of the weights that were used, by `{model}/seed{seed}`; the model's train.json has the same"""


class Result(Schema):
    """What all results files have."""

    schema_version: Literal[1] = 1
    """Version of this format: 1"""
    benchmark: str
    """Name of the benchmark in the configuration; in retrieval, of the caption set"""
    source: str | None
    """Source of the data: `miniature` (rendered), `official`, `subset` (fewer images than the official ones) or `own`
    (your own benchmark)"""
    variant: str | None = None
    """Variant of the official data (`benchmark_data.benchmarks.<name>.variant`); null if there are none, and in
    retrieval"""
    split: str
    """Official name of the evaluation split"""
    num_train: int
    """Number of training images; 0 if nothing is trained"""
    num_eval: int
    """Number of evaluation images"""
    class_names: list[str]
    """Names of the classes in label order, background first if it is a class; empty if there are no classes"""
    results: list[Row]
    """The results: one row per model, seed, head and task"""
    provenance: dict[str, Any] = {}
    """Origin of the result, see [below](#provenance)"""


class ProbeResult(Result):
    """One head of one model, as `cliptex probe` and `cliptex finetune` write it."""

    input: dict[str, Any] = {}
    """`interpolation`: how images are resized. By task `size_px` (height, width) and, for dense tasks, `grid` (rows and
    columns of patches)"""
    settings: dict[str, Any]
    """All values of the protocol, the seed, the share of the holdout, and `fine_tuning` after fine-tuning"""
    seconds_features: float | None = None
    """Seconds to compute the encoder's features; null or absent after fine-tuning"""
    frozen: bool = True
    """Whether the encoder was frozen; false after fine-tuning"""


class ProbeTable(Result):
    """All heads, models and seeds of a benchmark, as `cliptex tabulate-probes` and `tabulate-finetuned` write them."""

    protocol: dict[str, Any] = {}
    """All values of the protocol"""
    frozen: bool = True
    """Whether the encoder was frozen; false after fine-tuning"""
    fine_tuning: dict[str, Any] = {}
    """Options of fine-tuning (`finetune.benchmarks.<name>`); only after fine-tuning"""


class ZeroShotResult(Result):
    """Zero-shot classification of all models and seeds, as `cliptex zeroshot` writes it."""

    chance: dict[str, Any] = {}
    """Score of guessing, percent, by metric"""
    templates: str = ""
    """Name of the set of prompt templates (`zeroshot.templates`)"""
    num_templates: int = 0
    """Number of prompts per class"""
    prompts_sha256: str = ""
    """SHA-256 of all prompts"""
    published: dict[str, float] = {}
    """Published top-1, percent, by released model; the measured value is within 0.2 points of it"""
    preprocess: dict[str, Any] = {}
    """Preprocessing of the images, as the exported model defines it: `interpolation`, `resize_mode`, `size`"""
    activation: str = ""
    """Activation function of the model: `gelu` or `quick_gelu`"""


class TrainingFreeResult(Result):
    """Evaluation without training of all models and seeds, as `cliptex training-free` writes it."""

    chance: dict[str, Any] = {}
    """Score of guessing, percent, by task and metric"""
    settings: dict[str, Any] = {}
    """Name of the benchmark, and all values of the protocol"""
    details: dict[str, Any] = {}
    """Further values on which a task's numbers depend, by task, such as `prompts_sha256`"""


class RetrievalResult(Result):
    """Retrieval of all models and seeds, as `cliptex retrieval` writes it."""

    num_captions: int = 0
    """Number of captions"""
    chance: dict[str, Any] = {}
    """Score of guessing, percent, by task and metric"""
    captions_sha256: str = ""
    """SHA-256 of all captions"""
    preprocess: dict[str, Any] = {}
    """Preprocessing of the images, as the exported model defines it: `interpolation`, `resize_mode`, `size`"""
    activation: str = ""
    """Activation function of the model: `gelu` or `quick_gelu`"""


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

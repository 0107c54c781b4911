"""The configuration: every key with its type, default, unit and meaning. Unknown keys are errors.

`Config` serves the YAML files, the JSON schema (`cliptex config-schema`), the workflow and the command line. Its
sections are in one module per stage; all of them can be imported from here.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from cliptex.config.base import Name, Positive, Rate, Rates, Section, Share, Shares
from cliptex.config.data import BenchmarkData, BenchmarkSource, Dataset, Download, Miniature, Split, Urls
from cliptex.config.evaluation import (
    PUBLISHED_TOLERANCE,
    CaptionSet,
    ClipBenchmark,
    Corruptions,
    Finetune,
    FineTuning,
    Probes,
    Report,
    Zeroshot,
    dataset_slug,
)
from cliptex.config.labels import Backbone, ExpertConfig, Labels, LabelStore
from cliptex.config.study import Study
from cliptex.config.training import HeadKind, Interpolation, Model, MultiScale, Student, Train, Watch
from cliptex.core.errors import CliptexError

__all__ = [
    "PUBLISHED_TOLERANCE",
    "Backbone",
    "BenchmarkData",
    "BenchmarkSource",
    "CaptionSet",
    "ClipBenchmark",
    "Config",
    "Corruptions",
    "Dataset",
    "Download",
    "ExpertConfig",
    "FineTuning",
    "Finetune",
    "HeadKind",
    "Interpolation",
    "LabelStore",
    "Labels",
    "Miniature",
    "Model",
    "MultiScale",
    "Name",
    "Positive",
    "Probes",
    "Rate",
    "Rates",
    "Report",
    "Section",
    "Share",
    "Shares",
    "Split",
    "Student",
    "Study",
    "Train",
    "Urls",
    "Watch",
    "Zeroshot",
    "dataset_slug",
]


class Config(Section):
    """The whole configuration."""

    dataset: Dataset = Dataset()
    download: Download = Download()
    benchmark_data: BenchmarkData = BenchmarkData()
    miniature: Miniature = Miniature()
    backbone: Backbone | None = None
    """Backbone that experts trained here start from; null: random weights."""
    experts: dict[Name, ExpertConfig] = {}
    """The experts, by name."""
    label_stores: dict[Name, LabelStore] = {}
    """The label stores, by name (by default the task's name)."""
    labels: Labels = Labels()
    student: Student = Student()
    train: Train = Train()
    models: dict[Name, Model] = {}
    """The models, by name."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """Seeds of training and probing; every model is trained once per seed."""
    probes: Probes = Probes()
    finetune: Finetune = Finetune()
    zeroshot: Zeroshot = Zeroshot()
    clip_benchmark: ClipBenchmark = ClipBenchmark()
    report: Report = Report()
    plugins: list[str] = []
    """Folders with your own modules, added to Python's path in every job; relative to the working directory, or else to
    the Snakefile's folder."""
    study: Study | None = None
    """Study to run with the target `study` (docs/studies.md)."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        """Check references between sections. References to a section that is absent from a subset are not checked."""
        for name, expert in self.experts.items():
            key = {"url": "url", "hub": "repo", "local": "path"}.get(expert.weights)
            if key and getattr(expert, key) is None:
                raise ValueError(
                    f"experts.{name}.{key}: is required for weights {expert.weights!r}; see docs/experts.md"
                )
        for name, store in self.label_stores.items():
            if self.experts and store.expert not in self.experts:
                raise ValueError(f"label_stores.{name}.expert: {store.expert!r} is not one of {sorted(self.experts)}")
            if store.of in self.label_stores and self.label_stores[store.of].of is not None:
                raise ValueError(
                    f"label_stores.{name}.of: {store.of!r} is itself derived from another store; name that store"
                )
        for name, model in self.models.items():
            for store in model.tasks:
                if self.label_stores and store not in self.label_stores:
                    raise ValueError(f"models.{name}.tasks: {store!r} is not one of {sorted(self.label_stores)}")
            if unknown := sorted(model.losses.keys() - model.tasks.keys()):
                raise ValueError(f"models.{name}.losses: {unknown[0]!r} is not one of its tasks, {sorted(model.tasks)}")
            if model.tasks and model.patch_dropout:
                raise ValueError(f"models.{name}.patch_dropout: models with tasks need all patches; set it to 0")
            if model.interpolate is not None:
                self._check_interpolation(name, model)
            self._check_no_cycle([name])
        for name in self.probes.models:
            if self.models and name not in self.models:
                raise ValueError(f"probes.models: {name!r} is not one of {sorted(self.models)}")
        for name, accuracies in self.zeroshot.published.items():
            if self.models and name not in self.models:
                raise ValueError(f"zeroshot.published: {name!r} is not one of {sorted(self.models)}")
            if self.zeroshot.benchmarks and (unknown := sorted(accuracies.keys() - set(self.zeroshot.benchmarks))):
                benchmarks = sorted(self.zeroshot.benchmarks)
                raise ValueError(f"zeroshot.published.{name}: {unknown[0]!r} is not one of {benchmarks}")
        benchmarks = {*self.zeroshot.benchmarks, *self.probes.benchmarks, *self.miniature.benchmarks}
        if clashes := [name for name in self.zeroshot.caption_sets if name in benchmarks]:
            raise ValueError(f"zeroshot.retrieval: {clashes[0]!r} is the name of a benchmark; choose another name")
        return self

    def _check_interpolation(self, name: str, model: Model) -> None:
        for key, field in Model.model_fields.items():
            if key != "interpolate" and getattr(model, key) != field.get_default(call_default_factory=True):
                raise ValueError(f"models.{name}.{key}: not allowed together with `interpolate`; remove one of them")
        for key, other in zip(("of", "with"), model.sources(), strict=True):
            if other not in self.models:
                raise ValueError(f"models.{name}.interpolate.{key}: {other!r} is not one of {sorted(self.models)}")

    def _check_no_cycle(self, chain: list[str]) -> None:
        """Raise ValueError if a model is made from itself. chain: models, each made from the next."""
        model = self.models[chain[-1]]
        for other in model.sources():
            if other in chain:
                key = "init" if self.models[chain[0]].interpolate is None else "interpolate"
                raise ValueError(f"models.{chain[0]}.{key}: {' -> '.join([*chain, other])} is a cycle")
            if other in self.models:
                self._check_no_cycle([*chain, other])

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a YAML file, a JSON text (starts with "{") or a mapping.

        Raises CliptexError with the file, the key and the problem.
        """
        where = "configuration"
        if not isinstance(source, Mapping):
            text = str(source)
            if not text.lstrip().startswith("{"):
                where = text
                try:
                    text = Path(source).read_text(encoding="utf-8")
                except OSError as error:
                    raise CliptexError(
                        f"{where}: cannot be read ({error.strerror}); give a configuration file: --config FILE"
                    ) from error
                except ValueError as error:  # not text
                    raise CliptexError(f"{where}: not UTF-8 text ({error})") from error
            try:
                source = yaml.safe_load(text) or {}
            except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
                mark = getattr(error, "problem_mark", None)
                problem = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else error
                raise CliptexError(f"{where}: not valid YAML ({problem})") from error
            except RecursionError as error:
                raise CliptexError(f"{where}: not a configuration (nested too deeply)") from error
            if not isinstance(source, Mapping):
                raise CliptexError(
                    f"{where}: not a configuration; it must be a mapping with sections such as dataset: and train:"
                )
        try:
            return cls.model_validate(dict(source))
        except ValidationError as error:
            problems = []
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"])
                if item["type"] == "extra_forbidden":
                    problems.append(f"{key}: unknown key")
                elif item["type"] == "value_error":
                    problems.append(str(item["ctx"]["error"]))
                else:
                    problems.append(f"{key}: {item['msg']}, got {reprlib.repr(item['input'])}")
            raise CliptexError(f"{where}: " + "; ".join(problems)) from error

    def benchmark_source(self, benchmark: str) -> BenchmarkSource:
        """Source of a benchmark's data, with `source` filled in."""
        section = self.benchmark_data.benchmarks.get(benchmark, BenchmarkSource())
        default = "miniature" if self.dataset.source == "miniature" else "official"
        return section.model_copy(update={"source": section.source or self.benchmark_data.source or default})

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values, including defaults."""
        return self.model_dump(mode="json", by_alias=True)

    def subset(self, *keys: str) -> str:
        """JSON text of only these dotted keys, e.g. `subset("train", "models.clip")`.

        The workflow passes it to a stage as a parameter, so that a job runs again exactly when a value it uses changes.
        """
        plain = self.plain()
        out: dict[str, Any] = {}
        for key in keys:
            *parents, last = key.split(".")
            source, target = plain, out
            for parent in parents:
                source, target = source[parent], target.setdefault(parent, {})
            target[last] = source[last]
        return json.dumps(out, sort_keys=True, separators=(",", ":"))

"""The configuration: every key with its type, default, unit and meaning. Unknown keys are errors.

`Config` serves the YAML files, the JSON schema (`cliptex config-schema`), the workflow and the command line. Its
sections are in one module per stage; all of them can be imported from here.
"""
# ruff: noqa: F401

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from cliptex.config import checks
from cliptex.config.base import FilePath, Name, Positive, Rate, Rates, Section, Share, Shares, Unique, without
from cliptex.config.data import RECORDED, BenchmarkData, BenchmarkSource, Dataset, Download, Miniature, Split, Urls
from cliptex.config.evaluation import (
    PUBLISHED_TOLERANCE,
    CaptionSet,
    ClipBenchmark,
    Corruptions,
    Finetune,
    FineTuning,
    Probes,
    Report,
    TrainingFree,
    Zeroshot,
    dataset_slug,
)
from cliptex.config.explain import explain
from cliptex.config.files import ConfigFile, Layers, given, parse, read
from cliptex.config.labels import Backbone, ExpertConfig, Labels, LabelStore
from cliptex.config.study import Study
from cliptex.config.training import HeadKind, Interpolation, Model, MultiScale, Student, Train, Watch
from cliptex.core.errors import ConfigError
from cliptex.core.plugins import name_benchmarks

DEFAULT = "config/config.yaml"
"""The default configuration, relative to the repository."""


class Config(Section):
    """The whole configuration."""

    dataset: Dataset = Dataset()
    download: Download = Download()
    benchmark_data: BenchmarkData = BenchmarkData()
    miniature: Miniature = Miniature()
    backbone: Backbone | None = None
    """Encoder pre-trained on rendered images, from which the experts trained by this run start; null: random weights.
"""
    experts: dict[Name, ExpertConfig] = {}
    """The experts, by name. Only those run that an entry of `label_stores` names."""
    label_stores: dict[Name, LabelStore] = {}
    """The label stores, by name (by default the task's name). `models.*.tasks` names those that a model learns from."""
    labels: Labels = Labels()
    student: Student = Student()
    train: Train = Train()
    models: dict[Name, Model] = {}
    """The models, by name: trained, interpolated or released ones."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), Unique] = [0]
    """Random seeds, 0 to 4294967295. Every model is trained and probed once per seed."""
    probes: Probes = Probes()
    finetune: Finetune = Finetune()
    zeroshot: Zeroshot = Zeroshot()
    training_free: TrainingFree = TrainingFree()
    clip_benchmark: ClipBenchmark = ClipBenchmark()
    report: Report = Report()
    plugins: list[FilePath] = []
    """Folders with your own Python modules, which every job can import. A relative path is one in the working directory
    or, if that has no such folder, next to the Snakefile."""
    study: Study | None = None
    """Study that the target `study` runs (docs/studies.md); null: none."""

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), "training_free", {"benchmarks": {}})

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a YAML or JSON file, a JSON text (starts with "{") or a mapping, and nothing else.

        It may be a part of a configuration, such as a job is given: references to sections that it lacks are not
        checked. Raises ConfigError with file, line, key and remedy.
        """
        if isinstance(source, Mapping):
            return cls._checked(Layers([ConfigFile("configuration", dict(source))]), is_whole=False)
        text = str(source)
        file = parse(text, "configuration") if text.lstrip().startswith("{") else read(text)
        return cls._checked(Layers([file]), is_whole=False)

    @classmethod
    def from_files(
        cls,
        files: Sequence[str | Path] = (),
        values: Mapping[str, Any] | None = None,
        default: str | Path | None = DEFAULT,
    ) -> Self:
        """Lay `files`, in order, and then `values` over the file `default`, as Snakemake lays `--configfile` and
        `--config` over the workflow's configuration.

        values: what Snakemake makes of `--config key=value`. default: None for `--replace-workflow-config`.
        Raises ConfigError with file, line, key and remedy; also for references to entries that do not exist.
        """
        layers = [read(file) for file in files]
        base = None if default is None else read(default)
        if not values:
            return cls._checked(Layers(layers, base), is_whole=True)
        try:
            return cls._checked(Layers([*layers, given(values)], base), is_whole=True)
        except ConfigError as error:
            with suppress(ConfigError):  # a text such as title: "2024", whose quotes Snakemake has removed
                return cls._checked(Layers([*layers, given(values, as_text=True)], base), is_whole=True)
            raise error from None

    @classmethod
    def _checked(cls, layers: Layers, is_whole: bool) -> Self:
        try:
            config = cls.model_validate(layers.values)
        except ValidationError as error:
            problems = list(explain(error, cls, layers.values, layers.texts))
        else:
            problems = list(checks.problems(config, is_whole))
        if problems:
            raise ConfigError([f"{layers.where(path)}{problem}" for path, problem in problems])
        name_benchmarks(config.own_benchmarks)
        return config

    def benchmark_source(self, benchmark: str) -> BenchmarkSource:
        """Source of a benchmark's data, with `source` filled in."""
        section = self.benchmark_data.benchmarks.get(benchmark, BenchmarkSource())
        default = "miniature" if self.dataset.source == "miniature" else "official"
        default = "own" if section.plugin else self.benchmark_data.source or default
        return section.model_copy(update={"source": section.source or default})

    def plugin_folders(self, base: str | Path) -> list[str]:
        """The folders in `plugins`, absolute. base: folder of those that are not in the working directory."""
        return [str((folder if folder.exists() else base / folder).resolve()) for folder in map(Path, self.plugins)]

    def student_of(self, model: str) -> Student:
        """`student`, with the weights that a model names in their place."""
        given = self.models[model].pretrained
        return self.student if given is None else self.student.model_copy(update={"pretrained": given})

    @property
    def students(self) -> list[Student]:
        """The students of all models that start from given or random weights, each once."""
        models = [*self.models.values(), *(self.study.models.values() if self.study else ())]
        given = dict.fromkeys(model.pretrained for model in models if not model.sources())
        own = [self.student.model_copy(update={"pretrained": name}) for name in given if name is not None]
        return [*([self.student] if None in given else []), *own]

    def is_seedless(self, model: str) -> bool:
        """Whether a model's weights are the same for every seed: given ones that are not trained, without heads."""
        chosen = self.models[model]
        if chosen.is_trained or chosen.tasks or chosen.interpolate is not None:
            return False
        if chosen.init is None:
            return self.student_of(model).pretrained is not None
        return chosen.init in self.models and self.is_seedless(chosen.init)

    @property
    def own_benchmarks(self) -> dict[str, str]:
        """Benchmark from outside the package -> its import path."""
        return {name: entry.plugin for name, entry in self.benchmark_data.benchmarks.items() if entry.plugin}

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values, including defaults."""
        return self.model_dump(mode="json", by_alias=True)

    def subset(self, *keys: str, naming: str | None = None) -> str:
        """JSON text of only these dotted keys, e.g. `subset("train", "models.clip")`.

        The workflow passes it to a stage as a parameter, so that a job runs again exactly when a value it uses changes.
        It has the import paths of the user's own benchmarks that these values name, or `naming`; of newer benchmarks
        than those of `RECORDED`, the section `miniature` has only the ones that other keys name, or `naming`. Raises
        KeyError for a key that does not exist.
        """
        plain = self.plain()
        out: dict[str, Any] = {}
        for key in keys:
            *parents, last = key.split(".")
            section, source, target = self, plain, out
            for parent in parents:
                source, target = source[parent], target.setdefault(parent, {})
                section = section[parent] if isinstance(section, dict) else getattr(section, parent)
            if last in source:
                target[last] = source[last]
            elif last not in getattr(type(section), "model_fields", ()):  # some are only recorded if they are set
                raise KeyError(key)
        if "benchmarks" in (rendered := out.get("miniature", {})):
            kept = RECORDED | {naming, *_words({name: out[name] for name in out if name != "miniature"})}
            rendered["benchmarks"] = {name: item for name, item in rendered["benchmarks"].items() if name in kept}
        own = self.own_benchmarks.keys() & {naming, *_words(out)}
        for name in own:
            benchmarks = out.setdefault("benchmark_data", {}).setdefault("benchmarks", {})
            benchmarks.setdefault(name, {})["plugin"] = self.own_benchmarks[name]
        return json.dumps(out, sort_keys=True, separators=(",", ":"))


def _words(value: Any) -> set[str]:
    """All keys and texts in nested JSON values."""
    if isinstance(value, dict):
        return set(value).union(*map(_words, value.values()))
    if isinstance(value, list):
        return set().union(*map(_words, value))
    return {value} if isinstance(value, str) else set()

"""What every evaluator is called with: `run(config, job)` in `probe`, `finetune`, `zeroshot` and `retrieval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cliptex.core import paths

if TYPE_CHECKING:
    from cliptex.benchmarks.base import Benchmark
    from cliptex.config import Config


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of an evaluator.

    name: the benchmark, or for retrieval the entry of `zeroshot.retrieval`. models: models and baselines; by default
    all of the configuration, in the order of its tables. seeds: by default those of the configuration. models_dir:
    holds {model}/seed{seed}/. benchmark_dir: the benchmark in its official layout; by default `resources/{name}`. out:
    folder or file of the results; by default that of the main run. cache_dir: where features are kept. data: evaluated
    in place of the benchmark in benchmark_dir, for a study.
    """

    name: str
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    models_dir: Path = paths.RESULTS / "models"
    benchmark_dir: Path | None = None
    out: Path | None = None
    cache_dir: Path = paths.FEATURES
    data: Benchmark | None = None

    @property
    def folder(self) -> Path:
        """Where the benchmark's data are."""
        return self.benchmark_dir or paths.benchmark(self.name)

    def benchmark(self) -> Benchmark:
        """The benchmark that is evaluated on."""
        from cliptex.core.plugins import find

        return self.data or find("benchmarks", self.name)(self.folder)

    def models_of(self, config: Config) -> tuple[str, ...]:
        """The models, without baselines; all of the configuration by default."""
        return self.models or tuple(config.probes.models or config.models)

    def seeds_of(self, config: Config) -> tuple[int, ...]:
        """The seeds; all of the configuration by default."""
        return self.seeds or tuple(config.seeds)

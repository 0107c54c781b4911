"""Studies: additional runs that answer one question, their comparison, and their page.

Imports nothing heavy: the workflow needs a study's configuration at every start.
"""

from typing import Any

from cliptex.config import Config, Study
from cliptex.core.errors import CliptexError

OWN = ("experts", "label_stores", "models")


def study_of(config: Config) -> Study:
    """The study of a configuration. Raises CliptexError without one."""
    if config.study is None:
        raise CliptexError("study: there is none; add a file of config/studies/ (--configfile)")
    return config.study


def study_config(config: Config) -> Config:
    """The configuration of a study's jobs: the main run's with the study's own experts, stores and models, and
    only the probes and zero-shot benchmarks that the study asks for.

    config: with resolved protocols (`cliptex.evaluation.protocols.resolve.with_protocols`). What both have is the same
    in both, so a study shares the shards, labels and models of the main run. Without a study it is returned unchanged.
    Raises CliptexError for a name that the main run has too, and for an unknown benchmark, head, model or label store.
    """
    study = config.study
    if study is None:
        return _with_sources(config)
    plain = config.plain()
    for section in OWN:
        if both := sorted(getattr(study, section).keys() & plain[section].keys()):
            raise CliptexError(f"study.{section}.{both[0]}: the main run has one of this name; choose another")
        plain[section] |= plain["study"][section]
    if unknown := [name for name in study.compared if name not in plain["models"]]:
        raise CliptexError(f"study.shown: {unknown[0]!r} is not one of {sorted(plain['models'])}")
    compared = {study.reference, *study.shown, *study.models}
    if study.rows and (differing := sorted({name for name, _ in study.rows} ^ compared)):
        raise CliptexError(f"study.rows: must name {', '.join(sorted(compared))}, each once; check {differing[0]!r}")
    if unknown := [name for name in study.zeroshot if name not in config.zeroshot.benchmarks]:
        raise CliptexError(f"study.zeroshot: {unknown[0]!r} is not one of {config.zeroshot.benchmarks}")
    plain["probes"]["benchmarks"] = {
        name: _with_heads(plain["probes"]["benchmarks"], name, heads) for name, heads in study.probes.items()
    }
    plain["probes"] |= {"models": study.compared, "baselines": [], "save_predictions": 0}
    plain["zeroshot"] |= {"benchmarks": study.zeroshot, "retrieval": {}}
    plain.pop("training_free", None)
    return _with_sources(Config.load(plain))


def _with_sources(config: Config) -> Config:
    """The configuration unchanged. Raises CliptexError for a store whose source store (`of`) is missing."""
    for name, store in config.label_stores.items():
        if store.of is not None and store.of not in config.label_stores:
            raise CliptexError(f"label_stores.{name}.of: {store.of!r} is not one of {sorted(config.label_stores)}")
    return config


def _with_heads(benchmarks: dict[str, Any], name: str, heads: list[str]) -> dict[str, Any]:
    """A benchmark's resolved entry with only some heads; the digest stays that of the whole protocol."""
    if name not in benchmarks:
        raise CliptexError(f"study.probes: {name!r} is not one of {sorted(benchmarks)}")
    out, known = dict(benchmarks[name]), set()
    for task, section in out.items():
        if isinstance(section, dict) and "heads" in section:
            out[task] = section | {"heads": {key: head for key, head in section["heads"].items() if key in heads}}
            known |= section["heads"].keys()
    if unknown := [head for head in heads if head not in known]:
        raise CliptexError(f"study.probes.{name}: {unknown[0]!r} is not one of its heads, {sorted(known)}")
    return out

"""What differs between two runs: configuration, code, environment, data, labels, weights."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cliptex.core.provenance import code
from cliptex.evaluation.results import SAME
from cliptex.report import names
from cliptex.report.compare.paired import SharedTable
from cliptex.report.compare.runs import KINDS, ComparedRun
from cliptex.report.integrity import RECORDED

LONGEST = 160
"""Characters of a value."""
NOT_SHOWN = {"class_names"}
"""Values too long to show next to each other."""


@dataclass(frozen=True)
class Facts:
    """differing: group -> (what, in the first run, in the second). same: groups known in both that do not differ.
    unknown: sentences on what one of the runs does not record."""

    differing: dict[str, list[tuple[str, str, str]]]
    same: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def facts(first: ComparedRun, second: ComparedRun, tables: list[SharedTable]) -> Facts:
    groups: dict[str, Callable[[ComparedRun], dict[str, Any]]] = {
        "configuration": lambda run: _flat(run.config or {}),
        "code": _code,
        "environment": _environment,
        "training data": _shards,
        "experts": lambda run: {name: _digest(record.get("weights_sha256")) for name, record in run.experts.items()},
        "label stores": _stores,
        "benchmarks": lambda run: _benchmarks(run, first.scores.keys() & second.scores.keys()),
    }
    unknown = []
    if first.config is None or second.config is None:
        lacking = " and ".join(name for name, run in (("A", first), ("B", second)) if run.config is None)
        unknown.append(
            f"The configuration of {lacking} is not known, since there is no results/report.html; what the trainings "
            "recorded is compared instead."
        )
        del groups["configuration"]
        groups["trainings"] = _trainings
    groups["weights"] = lambda run: {name: _digest(one.get("model_sha256")) for name, one in run.trainings.items()}
    out = Facts({}, unknown=unknown)
    for group, values_of in groups.items():
        rows = _differing(values_of(first), values_of(second))
        if rows:
            out.differing[group] = rows
        elif values_of(first):
            out.same.append(group)
    if protocols := _protocols(tables):
        out.differing["protocols"] = protocols
    return out


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    keys = [*first, *(key for key in second if key not in first)]
    rows = [(key, first.get(key, ""), second.get(key, "")) for key in keys]
    return [(key, *map(_text, values)) for key, *values in rows if values[0] != values[1]]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value, of nested mappings."""
    if not isinstance(value, dict) or not value:
        return {key: value} if key else {}
    return {
        name: one for part, below in value.items() for name, one in _flat(below, f"{key}.{part}".lstrip(".")).items()
    }


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _digest(value: Any) -> str:
    return str(value or "")[:12]


def _all(run: ComparedRun, value_of: Callable[[dict[str, Any]], Any]) -> str:
    """What the run's results record, several values if they differ."""
    return ", ".join(sorted({str(value) for source in run.provenances if (value := value_of(source))}))


def _known(values: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _code(run: ComparedRun) -> dict[str, str]:
    return _known({"cliptex": _all(run, lambda one: one.get("cliptex")), "commit or modules": _all(run, code)})


def _environment(run: ComparedRun) -> dict[str, str]:
    packages = sorted({name for source in run.provenances for name in source.get("packages", {})})
    found = {key: _all(run, lambda one, key=key: one.get(key)) for key in ("python", "machine")}
    found |= {name: _all(run, lambda one, name=name: one.get("packages", {}).get(name)) for name in packages}
    return _known(found)


def _shards(run: ComparedRun) -> dict[str, Any]:
    if run.shards is None:
        return {}
    return {"image-caption pairs": run.shards["num_samples"], "their digest": _digest(run.shards.get("data_sha256"))}


def _stores(run: ComparedRun) -> dict[str, Any]:
    shown = {}
    for name, index in run.stores.items():
        shown |= {f"{name}: {key}": index.get(key) for key in ("expert", "images", "labelled")}
        shown |= {f"{name}: {key}": _digest(index.get(key)) for key in ("weights_sha256", "recipe_sha256")}
    return shown


def _benchmarks(run: ComparedRun, shared: Collection[tuple[str, str]]) -> dict[str, Any]:
    """Of the results that both runs have; the page states which others are missing."""
    shown = {}
    for (kind, name), scores in run.scores.items():
        if (kind, name) not in shared:
            continue
        where = f"{names.benchmark(name)}, {KINDS[kind]}"
        shown |= {f"{where}: {key}": getattr(scores, key) for key in SAME if key not in NOT_SHOWN}
        shown[f"{where}: classes"] = len(scores.class_names)
    return shown


def _trainings(run: ComparedRun) -> dict[str, Any]:
    kept = {name: {key: one[key] for key in RECORDED if key in one} for name, one in run.trainings.items()}
    return _flat(kept)


def _protocols(tables: list[SharedTable]) -> list[tuple[str, str, str]]:
    rows = {}
    for table in tables:
        for pair in table.pairs:
            if pair.other_protocol:
                rows[pair.title] = (pair.title, *pair.protocols)
    return list(rows.values())

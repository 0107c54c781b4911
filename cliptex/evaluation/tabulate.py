"""Gather a benchmark's probes over models, seeds and heads into one table. Imports nothing heavy.

Reads   results/probes/{benchmark}/{model}/seed{seed}/{head}.json
Writes  results/probes/{benchmark}.json
Holds   every row was judged on the same data by the same protocol; anything else is an error that names the file.
"""

from collections.abc import Sequence
from pathlib import Path

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, write_json
from cliptex.evaluation.probes import heads

SAME = ("benchmark", "source", "variant", "split", "num_train", "num_eval", "class_names")


def probe_files(config: Config, benchmark: str) -> list[Path]:
    """The result files of a benchmark: baselines and models, seeds, heads, in this order."""
    models = [*config.probes.baselines, *(config.probes.models or config.models)]
    return [
        paths.probe(benchmark, model, seed) / f"{head}.json"
        for model in models
        for seed in config.seeds
        for head in heads(benchmark, config.probes.benchmarks.get(benchmark, {}))
    ]


def tabulate(benchmark: str, files: Sequence[Path], out: Path) -> None:
    """Write the table of a benchmark from its result files."""
    if not files:
        raise CliptexError(f"{out}: there are no probes of {benchmark}; name models in the configuration")
    results, shas, first = [], {}, None
    for path in files:
        one = read_json(path)
        first = first or one
        for key in SAME:
            if one[key] != first[key]:
                raise CliptexError(f"{path}: its {key} differs from that of {files[0]}; delete it and probe again")
        protocol, others = (result["settings"]["protocol"] for result in (one, first))
        if protocol != others:
            raise CliptexError(f"{path}: its protocol differs from that of {files[0]}; delete it and probe again")
        tuning, others = (result["settings"].get("fine_tuning") for result in (one, first))
        if tuning != others:
            raise CliptexError(f"{path}: was fine-tuned otherwise than {files[0]}; delete it and run again")
        results += one["results"]
        shas |= one["provenance"]["model_sha256"]
    table = {"schema_version": 1} | {key: first[key] for key in SAME}
    table["results"] = results
    table["provenance"] = first["provenance"] | {"model_sha256": shas}
    table["protocol"] = first["settings"]["protocol"]
    if "fine_tuning" in first["settings"]:
        table |= {"frozen": False, "fine_tuning": first["settings"]["fine_tuning"]}
    write_json(out, table)

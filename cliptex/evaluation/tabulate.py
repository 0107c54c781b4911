"""Gather a benchmark's probes over models, seeds and heads into one table. Imports nothing heavy.

Reads   results/probes/{benchmark}/{model}/seed{seed}/{head}.json
Writes  results/probes/{benchmark}.json
Holds   all rows have the same data and protocol; a file that differs is an error that names it.
"""

from collections.abc import Sequence
from pathlib import Path

from cliptex.core.errors import CliptexError
from cliptex.evaluation.results import ProbeResult, ProbeTable, read_result, write_result

SAME = ("benchmark", "source", "variant", "split", "num_train", "num_eval", "class_names")


def tabulate(benchmark: str, files: Sequence[Path], out: Path) -> None:
    """Write the table of a benchmark from its result files."""
    if not files:
        raise CliptexError(f"{out}: there are no probes of {benchmark}; add models to the configuration")
    results = [read_result(path, ProbeResult) for path in files]
    first = results[0]
    for path, result in zip(files, results, strict=True):
        for key in SAME:
            if getattr(result, key) != getattr(first, key):
                raise CliptexError(f"{path}: its {key} differs from that of {files[0]}; delete it and probe again")
        if result.settings["protocol"] != first.settings["protocol"]:
            raise CliptexError(f"{path}: its protocol differs from that of {files[0]}; delete it and probe again")
        if result.settings.get("fine_tuning") != first.settings.get("fine_tuning"):
            raise CliptexError(
                f"{path}: its options of fine-tuning differ from those of {files[0]}; delete it and run again"
            )
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

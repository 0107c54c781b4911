"""Whether the results of a run belong together: weights by their digests, main metrics by their per-image parts.

Reads   what `cliptex.report.gather` has read, and the results of single heads.
Holds   a result that would make a table wrong is an error; what is only missing is a sentence on the page.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError, working_on
from cliptex.core.files import sha256_file
from cliptex.evaluation.measures import measures
from cliptex.evaluation.metrics.base import Arrays
from cliptex.evaluation.per_image import mismatch, per_image_path
from cliptex.evaluation.results import Row, read_result
from cliptex.report import names
from cliptex.report.gather import PUT_BACK, Results, Scores

log = logging.getLogger("cliptex")
AGREEMENT = {"weight_by_agreement": False}
"""A key that is only recorded if it is true."""
RECORDED = ("interpolate", "steps", "epochs", "learning_rate", "tasks", "losses", "shuffle_labels", "batch_size", "ema")
RECORDED += tuple(AGREEMENT)
"""Config keys of a model and of `train` that train.json records, too."""


def check(results: Results) -> list[str]:
    """Sentences for the page on what could not be checked. Raises CliptexError for the first file that does not fit."""
    notes = [*_check_runs(results), *_check_sources(results)]
    for _, scores in results.all_scores:
        with working_on(scores.path):
            notes += _check_weights(results, scores)
            notes += _check_rows(results, scores)
    for note in notes:
        log.warning("%s", note)
    return notes


def config_differences(config: Config, name: str, record: dict[str, Any]) -> list[str]:
    """How the configuration of a model differs from what its train.json records, each as "a.b = 1, now 2"."""
    plain = config.plain()
    if mixed := record.get("interpolate"):
        record = record | {"interpolate": {key: mixed.get(key) for key in ("of", "with", "alpha")}}
    # in train.json, `epochs` is the number that was reached
    record = AGREEMENT | record | {"epochs": record.get("epochs_configured")}
    out = []
    for where, now in ((f"models.{name}", AGREEMENT | plain["models"][name]), ("train", plain["train"])):
        keys = [key for key in RECORDED if key in record and key in now and record[key] != now[key]]
        if keys:
            from cliptex.training.checkpoints import differences  # imports PyTorch

            out += differences({key: record[key] for key in keys}, {key: now[key] for key in keys}, where)
    return out


def check_identity(path: Path, record: dict[str, Any], name: str, seed: int) -> None:
    """Raise CliptexError unless a train.json is that of a model and seed."""
    if (record["model"], record["seed"]) != (name, seed):
        of = f"{record['model']!r}, seed {record['seed']}"
        raise CliptexError(f"{path}: is of {of}; {PUT_BACK}, or train {name} with seed {seed} again")


def check_metric(path: Path, parts: Path, row: Row, arrays: Arrays) -> None:
    """Raise CliptexError unless a row's main metric follows from its per-image parts, and these are its own."""
    if wrong := mismatch(row.task, arrays, row.metrics):
        raise CliptexError(
            f"{path}: {row.task} of {row.model}, seed {row.seed}, {row.head}: {wrong} in {parts}; {PUT_BACK}, or "
            "evaluate that model again"
        )
    if row.per_image_sha256 and row.per_image_sha256 != sha256_file(parts):
        raise CliptexError(
            f"{parts}: is not the file that was written with the results of {row.model}, seed {row.seed}: its SHA-256 "
            f"is not that in {path}; {PUT_BACK}, or evaluate that model again"
        )


def check_thumbnails(path: Path, thumbnails: Path, row: Row) -> None:
    """Raise CliptexError unless a row's thumbnails are those that were written with it, if it says so."""
    if row.thumbnails_sha256 and thumbnails.exists() and row.thumbnails_sha256 != sha256_file(thumbnails):
        raise CliptexError(
            f"{thumbnails}: is not the file that was written with the results of {row.model}, seed {row.seed}: its "
            f"SHA-256 is not that in {path}; {PUT_BACK}, or evaluate that model again"
        )


def check_weights(path: Path, name: str, evaluated: str | None, trained: str | None, folder: Path) -> bool:
    """Whether a result is of the weights that train.json records; False if either does not say.

    name: `cliptex/seed0`. folder: of the model. Raises CliptexError if they are others.
    """
    if not evaluated or not trained:
        return False
    if evaluated != trained:
        from cliptex.models.clip import WEIGHTS_FILE  # imports PyTorch

        weights = folder / WEIGHTS_FILE
        own = sha256_file(weights) if weights.exists() else None
        remedy = {
            trained: f"evaluate {name} again",
            evaluated: f"these are the weights in {weights}, so put the train.json of their training back",
        }.get(own, f"{PUT_BACK}, or train and evaluate {name} again")
        raise CliptexError(
            f"{path}: {name} was evaluated with the weights {evaluated[:12]}, but {folder / 'train.json'} is of "
            f"{trained[:12]} (SHA-256); {remedy}"
        )
    return True


def check_seeds(workdir: Path, name: str, records: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise CliptexError if a model has the same weights with two seeds. records: seed -> its train.json."""
    seed_of: dict[str, int] = {}
    for seed, record in records.items():
        digest = record.get("model_sha256")
        # models that are not trained have the same weights in all seeds
        if digest and record.get("steps") and seed_of.setdefault(digest, seed) != seed:
            path = workdir / paths.model(name, seed) / "train.json"
            raise CliptexError(
                f"{path}: its weights (SHA-256 {digest[:12]}) are also those of seed {seed_of[digest]}, so the two "
                f"seeds show no spread; train {name} again with one of them"
            )


def _check_runs(results: Results) -> list[str]:
    notes = []
    for name, runs in results.runs.items():
        for seed, run in runs.items():
            check_identity(results.workdir / paths.model(name, seed) / "train.json", run.record, name, seed)
            if differing := config_differences(results.config, name, run.record):
                notes.append(f"{names.model(name)}, seed {seed}, was trained with {'; '.join(differing)}.")
        check_seeds(results.workdir, name, {seed: run.record for seed, run in runs.items()})
    return notes


def _check_sources(results: Results) -> list[str]:
    """What label stores and interpolated models were made from, where that has changed since."""
    notes = []
    for store, index in results.stores.items():
        if taken := index.get("from"):
            if taken["found"] < index["images"]:
                share = f"{taken['found']:,} of {index['images']:,} images ({100 * taken['share']:.1f} %)"
                notes.append(f"The published set {taken['source']}, from which {store} is taken, has {share}.")
            continue
        pair = index.get("weights_sha256"), (results.experts.get(index["expert"]) or {}).get("weights_sha256")
        if None not in pair and pair[0] != pair[1]:
            notes.append(f"The label store {store} is of other weights than {index['expert']} has now.")
    for name, runs in results.runs.items():
        for seed, run in runs.items():
            start = results.runs.get(run.record.get("init"), {}).get(seed)
            pair = run.record.get("init_sha256"), start and start.record.get("model_sha256")
            if None not in pair and pair[0] != pair[1]:
                notes.append(f"{name}, seed {seed}, started from an earlier {run.record['init']} than the page's.")
            for part in ("of", "with") if (mixed := run.record.get("interpolate")) else ():
                source = results.runs.get(mixed[part], {}).get(seed)
                pair = mixed.get(f"{part}_sha256"), source and source.record.get("model_sha256")
                if None not in pair and pair[0] != pair[1]:
                    notes.append(f"{name}, seed {seed}, is interpolated from an earlier {mixed[part]} than the page's.")
    return notes


def _check_weights(results: Results, scores: Scores) -> list[str]:
    digests, unknown = scores.provenance.get("model_sha256", {}), []
    for name, runs in results.runs.items():
        for seed, run in runs.items():
            key, folder = f"{name}/seed{seed}", results.workdir / paths.model(name, seed)
            if not check_weights(scores.path, key, digests.get(key), run.record.get("model_sha256"), folder):
                unknown += [key] if name in (*results.models, *results.yardstick) else []
    return [f"{scores.path} does not record the weights of {', '.join(unknown)}."] if unknown else []


def _check_rows(results: Results, scores: Scores) -> list[str]:
    notes, cells = [], Counter((row.task, row.head, row.model, row.seed) for row in scores.results)
    for (task, head, model, seed), number in cells.items():
        if number > 1:
            raise CliptexError(
                f"{scores.path}: {number} rows of {task}, {head}, {model}, seed {seed}; tabulate it again"
            )
        if missing := [one for one in results.config.seeds if (task, head, model, one) not in cells]:
            raise CliptexError(f"{scores.path}: no row of {task}, {head}, {model}, seed {missing[0]}; evaluate it")
    own: dict[Path, list[Row]] = {}
    for row in scores.results:
        path = scores.head_path(row)
        if scores.folder and path.exists():
            if path not in own:
                own[path] = read_result(path).results
            _check_head(scores.path, row, path, own[path])
        if row.task in measures() and (arrays := scores.parts(row)) is not None:
            check_metric(scores.path, per_image_path(scores.head_path(row)), row, arrays)
    if scores.left_out:
        notes.append(f"{scores.path} also has {', '.join(scores.left_out)}, left out since the configuration has not.")
    return [*notes, *_copies(results, scores)]


def _check_head(table: Path, row: Row, path: Path, own: list[Row]) -> None:
    """Raises CliptexError if a table's row is not in the head's own file."""
    metrics = [one.metrics for one in own if (one.task, one.model, one.seed) == (row.task, row.model, row.seed)]
    if metrics != [row.metrics]:
        raise CliptexError(
            f"{table}: {row.task} of {row.model}, seed {row.seed}, {row.head} is {row.metrics}, but {metrics} in "
            f"{path}; tabulate it again"
        )


def _copies(results: Results, scores: Scores) -> list[str]:
    """Per-image parts that are the same for two seeds of a trained model, which is unlikely unless one was copied."""
    notes, first = [], {}
    for path, row in {per_image_path(scores.head_path(row)): row for row in scores.results}.items():
        run = results.runs.get(row.model, {}).get(row.seed)
        if scores.folder and run and run.record["steps"] and len(results.config.seeds) > 1:
            other = first.setdefault((row.model, row.head, sha256_file(path)), path)
            notes += [] if other == path else [f"{path} is the same as {other}."]
    return notes

"""The keys that the report needs of other stages' JSON files, and their types. Results files have `read_result`.

A record stays the dictionary that was read; keys that are not named may have any value.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json
from cliptex.evaluation.results import Provenance


class Record(BaseModel):
    """A JSON object without NaN, in which a number is not a string."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    schema_version: Literal[1] = 1


def _record(base: type[Record] = Record, **keys: Any) -> type[Record]:
    """A type with keys -> type, or (type, value of a key that may be missing)."""
    fields = {key: value if isinstance(value, tuple) else (value, ...) for key, value in keys.items()}
    return create_model("Record", __base__=base, **fields)


def _with_step(line: dict[str, float | None]) -> dict[str, float | None]:
    if line.get("step") is None:
        raise ValueError("no step")
    return line


Number = Annotated[float, Field(ge=-1e15, le=1e15)]  # the square of a larger one could overflow
Count, Size = Annotated[int, Field(ge=0, le=10**15)], Annotated[int, Field(gt=0, le=10**15)]
Counts, Numbers = dict[str, Count], dict[str, Number]
TRAINING = _record(
    model=str,
    seed=int,
    source=str,
    init=str,
    steps=Count,
    tasks=Numbers,
    seconds=Number,
    images_per_s=Number | None,
    peak_memory_mb=Number,
    parameters=Counts,
    flops=(_record(encoder=Number, text=Number, multi_scale=Number, heads=Number) | None, None),
    flops_over_contrastive=(Number | None, None),
    time_over_contrastive=(Number | None, None),
    model_sha256=(str | None, None),
    heads_sha256=(str | None, None),
    init_sha256=(str | None, None),
    interpolate=(_record(of=str, alpha=Number, **{"with": str}) | None, None),
    provenance=(Provenance, Provenance()),
)
"""train.json."""
TRAINED = _record(TRAINING, batch_size=Size, learning_rate=Number)
"""train.json of a model that was trained for some steps."""
_Line = dict[str, Annotated[Number | None, Field(allow_inf_nan=False, strict=True)]]
LOGGED = list[Annotated[_Line, AfterValidator(_with_step)]]
"""The lines of metrics.jsonl; the first index of an error is the line, from 0."""
SHARD_INDEX = _record(num_samples=Size, dropped=Counts, shards=list[_record(shard=str, path=str)])
LABEL_INDEX = _record(
    task=str,
    expert=str,
    licence=str | None,
    codec=_record(name=str),
    images=Count,
    labelled=Count,
    coverage=Number,
    bytes_per_image=Number,
    failures=Counts,
    statistics=_record(scalars=dict[str, dict[str, Number | None]], variance_kept=(Number | None, None)),
    weights=(str | None, None),
    weights_sha256=(str | None, None),
    **{"from": (_record(source=str, found=Count, share=Number) | None, None)},
)
AGREEMENT = _record(
    pairs=list[
        _record(
            stores=Annotated[list[str], Field(min_length=2, max_length=2)],
            task=str,
            images=Count,
            agreement=Number | None,
            quality=Numbers | None,
        )
    ]
)
"""results/labels/agreement.json"""
_SCORES = list[_record(model=str, seed=int, mean=Number, sets=Count)]
SUITE = _record(
    suite=_record(
        published=list[
            _record(
                **dict.fromkeys(("model", "architecture", "pretrained"), str),
                **dict.fromkeys(("mean", "published_mean"), Number),
                seed=int,
                sets=dict[str, _record(measured=Number, published=Number, deviates=bool)],
                deviating=list[str],
            )
        ],
        means=Annotated[_SCORES, Field(min_length=1)],
        sets=list[_record(name=str, metric=Literal["top1", "mean_per_class_recall", "mean R@1"], values=Numbers)],
        differences=list[_record(model=str, reference=str, mean=Number, better=Count, worse=Count, sets=Numbers)],
        not_run=dict[str, str],
    ),
    few_shot=(_record(means=list[_record(model=str, seed=int, shots=Count, mean=Number, sets=Count)]) | None, None),
)
"""results/clip_benchmark/table.json of a run with a suite."""
STUDIED = _record(flops_over_contrastive=Number, model_sha256=str)
"""train.json, as far as a study needs it."""
EXPERT = _record(
    num_parameters=(Count | None, None),
    weights_sha256=(str | None, None),
    plugin=(str | None, None),
    source=(str | None, None),
    origin=(dict[str, str] | None, None),
    trained_on=(list[_record(name=str, split=str, how=str)] | None, None),
)
QUALITY = _record(
    task=str, source=str, split=str, quality=Numbers, prior=(Numbers, {}), images_per_cpu_second=(Number, 0.0)
)
USAGE = _record(
    processor_seconds=Annotated[float, Field(ge=0, le=1e15)],
    ended=(Annotated[float, Field(ge=0, le=1e11)] | None, None),
    machine=(str, ""),
)
"""What a job recorded of itself, next to Snakemake's table of times. ended: seconds since 1970."""
STUDY = _record(
    **dict.fromkeys(("study", "title", "question", "seen", "not_proved", "command"), str),
    table=_record(caption=str, columns=list[str], rows=list[list[list[str]]], notes=list[str]),
    plot=_record(caption=str, alt=str),
    provenance=Provenance,
)


def read_record(path: Path, kind: type[Record]) -> dict[str, Any]:
    """Read a JSON file. Raises CliptexError that names the file and the key that is missing or wrong."""
    value = read_json(path)
    validate(path, value, kind)
    return value


def validate(where: Path | str, value: Any, kind: Any) -> None:
    """Raise CliptexError unless `value` is of a type. where: the file, and the line in it."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its content"
        reason = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise CliptexError(f"{where}: {key} {reason}; run the step that writes it again") from error

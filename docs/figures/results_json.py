"""Write the reference of the results files from their schema, `cliptex/evaluation/results.py`:

python docs/figures/results_json.py docs/results-json.md
"""
# ruff: noqa: E501  (rows of Markdown tables)

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from cliptex.evaluation.measures import measures
from cliptex.evaluation.results import (
    ProbeResult,
    ProbeTable,
    Provenance,
    Result,
    RetrievalResult,
    Row,
    Schema,
    TrainingFreeResult,
    ZeroShotResult,
)

KINDS = {
    "one probe": ProbeResult,
    "table of a benchmark": ProbeTable,
    "zero-shot": ZeroShotResult,
    "retrieval": RetrievalResult,
    "without training": TrainingFreeResult,
}
NAMES = {str: "string", int: "int", float: "number", bool: "bool", dict: "object", list: "list", NoneType: "null"}
HEAD = """# Results as JSON

<!-- Generated from cliptex/evaluation/results.py by docs/figures/results_json.py. -->

All files are UTF-8 and are written completely or not at all. `schema_version` is 1. It does not change when a key is
added, only when the meaning of a key changes. `cliptex.evaluation.results.read_result(path)` reads and checks each of
these files:

| file | content | written by |
|---|---|---|
| `results/probes/{benchmark}/{model}/seed{seed}/{head}.json` | one head on the features of one model | `cliptex probe` |
| `results/probes/{benchmark}.json` | table of a benchmark: all heads, models and seeds | `cliptex tabulate-probes`, from those |
| `results/finetuned/...` | the same two for fine-tuned encoders, with `frozen: false` | `cliptex finetune`, `cliptex tabulate-finetuned` |
| `results/zeroshot/{benchmark}.json` | zero-shot classification on a benchmark, or retrieval on a caption set: all models and seeds | `cliptex zeroshot`, `cliptex retrieval` |
| `results/training_free/{benchmark}.json` | evaluation without training on a benchmark: all tasks, models and seeds | `cliptex training-free` |

## Keys

"where" says in which files a key is; optional keys are absent where they do not apply.
"""
METRICS = """## Metrics

| task | metrics | unit |
|---|---|---|
| `semantic_segmentation`, `text_segmentation` | `mIoU mAcc aAcc` | percent, from the confusion matrix of the whole split, without ignored pixels |
| `detection`, `instance_segmentation` | `AP AP50 AP75 APs APm APl` | percent, COCO's definition; null for a size without objects |
| `depth` | `delta1 delta2 delta3`; `rmse`; `absrel log10` | percent; metres; without unit. With the prefix `affine_`: after scale and shift were fitted to each image |
| `normals` | `mean median rmse`; `within_5` to `within_30` | degrees of the angular error; percent of pixels with a smaller one |
| `classification`, `zero_shot_classification` | `top1 top5` | percent |
| `region_classification`, `stuff_classification` | `mean_top1 mean_top5`; `top1 top5` | percent, mean over classes; percent of all regions |
| `semantic_correspondence` | `PCK@0.1 PCK@0.05`, with the suffixes `_per_point` and (0.1) `_category_mean` | percent of correct keypoints: mean over image pairs; over keypoints; over categories |
| `geometric_correspondence` | `recall@5px recall@10px recall@20px`; `recall@10px_0_15` to `recall@10px_60_180` | percent of matches with a smaller error in an image of 120 rows, mean over image pairs; over pairs with that angle between the views, degrees, null without any |
| `video_propagation` | `JF J F`; `J_recall F_recall` | percent, mean over objects; percent of frames above 0.5 |
| `image_to_text_retrieval`, `text_to_image_retrieval` | `R@1 R@5 R@10` | percent |

The report compares models by the main metric of each task: """
TAIL = """

## Files next to them

- `{head}.npz`, and `{benchmark}.npz` of zero-shot, retrieval and evaluation without training: with
  `probes.save_predictions: N`, the first N images with predictions and ground truth (`image_0`, `prediction_0`,
  `truth_0`, ...), from which other tools can compute the metric. For retrieval, the five nearest captions of each image
  and the five nearest images of its captions (`cliptex/evaluation/retrieval.py`).
- `{head}.per_image.npz`, and `{benchmark}.per_image.npz` of the same: the per-image parts of the main metric. From these
  the metric can be computed for any resample of the images, as the bootstrap does.

The docstring of each task's module, in `cliptex/evaluation/probes/` or `cliptex/evaluation/training_free/`, lists the
arrays of both files.

## Reading

```python
from pathlib import Path

from cliptex.evaluation.results import read_result

for path in sorted(Path("results/probes").glob("*.json")):
    table = read_result(path)
    for row in table.results:
        print(table.benchmark, table.source, row.task, row.head, row.model, row.seed, row.metrics)
```

DuckDB, without Python:

```sql
select r.model, r.seed, r.head, r.metrics.mIoU
from (select unnest(results) as r from 'results/probes/voc.json') order by 4 desc
```
"""


def type_name(annotation: Any) -> str:
    """`dict[str, float | None]` -> `object`, `str | None` -> `string or null`."""
    if get_origin(annotation) in (Union, UnionType):  # Literal[...] | None is a typing.Union
        return " or ".join(type_name(part) for part in get_args(annotation))
    origin = get_origin(annotation) or annotation
    if origin is list and (parts := get_args(annotation)):
        return f"list of {'rows' if parts[0] is Row else type_name(parts[0])}"
    if origin is Literal:
        return NAMES[type(get_args(annotation)[0])]
    return NAMES[origin]


def fields(model: type[Schema], inherited: type[Schema] | None = None) -> list[tuple[str, str, str]]:
    """(key, type, meaning) of each field, without those of `inherited`."""
    known = inherited.model_fields if inherited else {}
    return [
        (f"`{name}`", type_name(field.annotation), " ".join(field.description.split()))
        for name, field in model.model_fields.items()
        if name not in known
    ]


def table(header: str, rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown. header: names of the columns, separated by spaces."""
    columns = header.split()
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, *rows]).replace(
        f"| {' | '.join(columns)} |", f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", 1
    )


def page() -> str:
    """The page's text."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for kind, model in KINDS.items():
        for field in fields(model, Result):
            kinds.setdefault(field, []).append(kind)
    keys = [(key, "all", *rest) for key, *rest in fields(Result)]
    keys += [(key, ", ".join(where), *rest) for (key, *rest), where in kinds.items()]
    parts = [
        table("key where type meaning", keys),
        "## Rows",
        "Each row of `results` is one model with one head on one task:",
        table("key type meaning", fields(Row)),
        "## Provenance",
        "The keys of `provenance`:",
        table("key type meaning", fields(Provenance)),
        METRICS + ", ".join(f"`{measure.main}` ({name})" for name, measure in measures().items()) + ".",
    ]
    return HEAD + "\n" + "\n\n".join(parts) + TAIL


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")

"""The card (README.md) of a published label set: the hub's metadata, origin, licences, and how to decode a label."""

import json
import re
from typing import Any

from cliptex.core.licences import hub_terms, is_non_commercial

CATEGORIES = {"depth": "depth-estimation", "segmentation": "image-segmentation", "normals": "image-to-image"}
"""Task -> the hub's category."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
SIZES = (*SIZES, (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
DECODERS = {
    "linear-uint8-webp": """\
# float32 [H, W], relative inverse depth, larger is nearer, NaN invalid
low, high = np.frombuffer(row["payload"][:8], "<f4")
codes = np.asarray(Image.open(io.BytesIO(row["payload"][8:])).convert("RGB"))[..., 0].astype(np.float32)
label = np.where(codes > 0, low + (codes - 1) / 254 * (high - low), np.nan)""",
    "uint8-zstd": """\
# uint8 [H, W], the class; 255 is to be ignored
label = np.frombuffer(pa.decompress(row["payload"], height * width, "zstd"), np.uint8).reshape(height, width)""",
    "uint8-scored-zstd": """\
# uint8 [2, H, W], the class (255 is to be ignored), and its score in 1/255
label = np.frombuffer(pa.decompress(row["payload"], 2 * height * width, "zstd"), np.uint8).reshape(2, height, width)""",
    "octahedral-2x7-kappa-log48-webp": """\
# float [H, W, 4], unit x (right), y (down), z (forward) and concentration kappa, NaN invalid
codes = np.asarray(Image.open(io.BytesIO(row["payload"])).convert("RGB")).astype(np.float64)
x, y = (codes[..., 0] - 64) / 63, (codes[..., 1] - 64) / 63
z = 1 - abs(x) - abs(y)
folded = [(1 - abs(b)) * np.copysign(1, a) for a, b in ((x, y), (y, x))]
xyz = np.stack([np.where(z < 0, folded[0], x), np.where(z < 0, folded[1], y), z], axis=-1)
kappa = 0.01 * 1e6 ** ((codes[..., 2] - 1) / 47)
label = np.concatenate([xyz / np.linalg.norm(xyz, axis=-1, keepdims=True), kappa[..., None]], axis=-1)
label[codes[..., 2] == 0] = np.nan""",
}
"""Codec -> code that makes `label` of a `row`, without this package."""
OWN_DECODER = """\
from cliptex.core.plugins import find

codec = json.loads(table.schema.metadata[b"cliptex"])["codec"]
label = find("tasks", {task!r}).from_codec(codec).decode(row["payload"], height, width)"""
EXAMPLE = """\
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

table = pq.read_table({file!r})  # or a row of datasets.load_dataset
row = next(row for row in table.to_pylist() if row["error"] is None)
height, width = row["height"], row["width"]
{decoder}
print(row["key"], label.shape, label.dtype)"""


def card(record: dict[str, Any]) -> str:
    """README.md of a label set. record: its labels.json."""
    from huggingface_hub import DatasetCardData

    task, licence, weights_licence = (_plain(record[name]) for name in ("task", "licence", "weights_licence"))
    size = next((name for limit, name in SIZES if record["rows"] < limit), "n>1B")
    limits = [name for name in dict.fromkeys((licence, weights_licence)) if is_non_commercial(name)]
    data = DatasetCardData(
        **hub_terms(licence),
        pretty_name=f"{task} labels by {record['expert']}",
        annotations_creators=["machine-generated"],
        task_categories=[CATEGORIES.get(task.removeprefix("scored_"), "other")],
        size_categories=[size],
        tags=["cliptex", "pseudo-labels", task.replace(":", "."), *(["non-commercial-teacher"] if limits else [])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    codec = {name: value for name, value in record["codec"].items() if name != "class_names"}
    decoder = DECODERS.get(codec["name"]) or OWN_DECODER.format(task=record.get("task_plugin", record["task"]))
    example = EXAMPLE.format(file=record["files"][0]["file"], decoder=decoder)
    images = (
        "`image` (upright) and `caption` are included; they have their own terms."
        if record["images"]
        else "The images are not included; `image_sha256` is the SHA-256 of each image's file, by which they are found."
    )
    terms = f"The licence of the labels is {licence}. That of the network's weights is {weights_licence}."
    if limits:
        terms += f" **{' and '.join(limits)} exclude{'s' * (len(limits) == 1)} commercial use.**"
    classes = record["codec"].get("class_names")
    named = f"\nClasses, in the order of their numbers: {_plain(', '.join(map(str, classes)))}.\n" if classes else ""
    return f"""---
{data.to_yaml().strip()}
---

# {task} of {record["rows"]:,} images

Pseudo-labels of a vision network, made with cliptex: {record["labelled"]:,} labels
in {len(record["files"]):,} Parquet files, one row per image. {images}

| | |
|---|---|
| task | {task} |
| network | {_plain(record["expert"])} (plugin {_plain(record["plugin"])}), weights: {record["weights"]} |
| SHA-256 of the weights | {record["weights_sha256"]} |
| licence of the weights | {weights_licence} |
| recipe | {record["recipe_sha256"]} |

## Columns

`key` of the image where the labels were made; `height` and `width` of the label; `payload`, the encoded label, null if
there is none; `error`, the reason for that; `image_sha256`; statistics of the label. {record["frame"]}.

## Decoding

The payload's codec:

```json
{json.dumps(codec, indent=1)}
```
{named}
```python
{example}
```

## Use

Your own images get these labels by three lines of a cliptex configuration, joined by {record["join"]}:

```yaml
label_stores:
  {record["task"]}: {{task: "{record.get("task_plugin", record["task"])}", expert: null, from: "hf://OWNER/NAME"}}
```

`sha256sum -c SHA256SUMS` checks the files; labels.json lists them for programs.

## Licence

{terms}
"""


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is: one line, without markup."""
    return re.sub(r"([\\|<>\[\]`*])", r"\\\1", " ".join(str(text).split()))

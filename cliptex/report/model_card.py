"""A trained model as a folder to publish: open_clip's files, the heads, the training record and a model card.

Reads   results/models/{model}/seed{seed}/, the shard index, the label stores' indexes, and any results of the model.
Writes  open_clip_config.json, open_clip_model.safetensors, heads.safetensors, train.json and README.md into a folder.
Holds   weights are copied unchanged; the card names every expert's licence, and whether its weights were random.
"""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing, sha256_file
from cliptex.core.licences import is_non_commercial
from cliptex.core.provenance import code
from cliptex.core.redact import without_secrets
from cliptex.evaluation.measures import measure, metric_of, shown
from cliptex.evaluation.per_image import per_image_path
from cliptex.evaluation.probes.tasks import load_tasks
from cliptex.models.clip import CONFIG_FILE, HEADS_FILE, WEIGHTS_FILE, copy_tokenizer, exported_config
from cliptex.report import names
from cliptex.report.card_experts import experts_section, licence_section, non_commercial
from cliptex.report.gather import PUT_BACK, read_expert, read_scores, read_training
from cliptex.report.integrity import check_identity, check_metric, check_weights, config_differences
from cliptex.report.records import LABEL_INDEX, SHARD_INDEX, read_record
from cliptex.report.seen import Degree, SeenData, footnotes, stores_of
from cliptex.report.table import markdown_text as md

log = logging.getLogger("cliptex")
TIMM_NAMES = {
    (32, 768, 12): "vit_base_patch32_clip_224",
    (16, 768, 12): "vit_base_patch16_clip_224",
    (14, 1024, 24): "vit_large_patch14_clip_224",
    (14, 1280, 32): "vit_huge_patch14_clip_224",
}
"""(patch size, width, layers) -> timm's name of the same network."""
TIMM_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"}


def timm_arguments(model_cfg: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and keyword arguments for `timm.create_model` to build the image tower of an open_clip `model_cfg`.

    None for a tower other than CLIP's plain vision transformer, which timm does not build with the same parameters.
    timm's own `checkpoint_filter_fn` renames open_clip's tensors when it loads them.
    """
    vision = model_cfg["vision_cfg"]
    if not isinstance(vision.get("layers", 12), int) or vision.keys() - TIMM_KEYS:
        return None
    size = patch, width, layers = vision.get("patch_size", 16), vision.get("width", 768), vision.get("layers", 12)
    name = TIMM_NAMES.get(size, "vit_base_patch16_clip_224")
    arguments: dict[str, Any] = {"num_classes": model_cfg["embed_dim"]}
    if vision.get("image_size", 224) != 224:
        arguments["img_size"] = vision["image_size"]
    if size not in TIMM_NAMES:
        arguments |= {"patch_size": patch, "embed_dim": width, "depth": layers}
    head_width = vision.get("head_width", 64)
    if size not in TIMM_NAMES or head_width != {768: 64, 1024: 64, 1280: 80}[width]:
        arguments["num_heads"] = width // head_width
    if vision.get("mlp_ratio", 4.0) != 4.0:
        arguments["mlp_ratio"] = vision["mlp_ratio"]
    if model_cfg.get("quick_gelu"):
        arguments["act_layer"] = "quick_gelu"
    return name, arguments


def export_model(
    config: Config, name: str, seed: int, out: Path, *, heads: bool = True, licence: str = "", workdir: Path = Path()
) -> None:
    """Copy model `name` of `seed` to the folder `out` and write its card.

    heads: whether to copy the heads. licence: as the Hugging Face hub writes it, e.g. "apache-2.0"; "other" if empty.
    workdir: the working directory of the run. Raises CliptexError if the model is not in the configuration, not
    trained, or trained with another configuration.
    """
    if name not in config.models:
        raise CliptexError(f"--model: no model {name!r}; choose from {', '.join(config.models)}")
    folder = workdir / paths.model(name, seed)
    record = read_training(folder / "train.json")
    if out.resolve() == folder.resolve():
        raise CliptexError(f"--out: {out} is the folder of the trained model; choose another")
    check_identity(folder / "train.json", record, name, seed)
    if differing := config_differences(config, name, record):
        raise CliptexError(
            f"{folder}: trained with {'; '.join(differing)}; export it with the --config of its training, or train it "
            "again"
        )
    copied = [CONFIG_FILE, WEIGHTS_FILE, "train.json"]
    with_heads = heads and bool(record["tasks"]) and (folder / HEADS_FILE).exists()
    for file in [*copied, *([HEADS_FILE] if with_heads else [])]:
        if not (folder / file).exists():
            raise CliptexError(f"{folder / file}: no such file; train that model first")
        with replacing(out / file) as scratch:
            shutil.copyfile(folder / file, scratch)
            recorded = record.get({WEIGHTS_FILE: "model_sha256", HEADS_FILE: "heads_sha256"}.get(file, ""))
            if recorded not in (None, digest := sha256_file(scratch)):
                raise CliptexError(
                    f"{folder / file}: is not the file that was trained: its SHA-256 is {digest[:12]}, train.json has "
                    f"{recorded[:12]}; {PUT_BACK}, or train the model again"
                )
    copy_tokenizer(folder, out)
    if not with_heads:
        (out / HEADS_FILE).unlink(missing_ok=True)
    with replacing(out / "README.md") as scratch:
        scratch.write_text(model_card(config, name, seed, record, with_heads, licence, workdir), encoding="utf-8")


def model_card(
    config: Config, name: str, seed: int, record: dict[str, Any], heads: bool, licence: str, workdir: Path = Path()
) -> str:
    """The model card: YAML front matter as the Hugging Face hub expects it, then Markdown. record: its train.json."""
    model_cfg = exported_config(workdir / paths.model(name, seed))["model_cfg"]
    stores = [
        {"store": store} | read_record(workdir / paths.labels(store) / "index.json", LABEL_INDEX)
        for store in stores_of(config, name)
    ]
    seen = SeenData(config, {expert: read_expert(workdir / paths.expert(expert)) for expert in config.experts})
    results = _results(config, name, seed, record.get("model_sha256"), workdir, seen)
    limited = non_commercial(stores)
    terms = {"license": licence}
    if not licence:  # for `other` the hub requires a name, and a link or a file
        terms = {"license": "other", "license_name": "see-model-card", "license_link": "README.md"}
        if limited:
            terms["license_name"] = "non-commercial-see-model-card"
    elif limited and not is_non_commercial(licence):
        log.warning("%s: licence %s, but %s", name, licence, limited)
    evaluated = [
        EvalResult(
            task_type=shown(result["task"]).hub_task,
            task_name=names.task(result["task"]),
            dataset_type=result["benchmark"],
            dataset_name=_dataset(result),
            metric_type=result["metric"],
            metric_name=f"{metric_of(result['task'], result['metric']).title}, {names.head(result['head'])}",
            metric_value=round(result["value"], 4),
        )
        for result in results
    ]
    data = ModelCardData(
        **terms,
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=[
            *("clip", "cliptex"),
            *(["rendered-miniature"] if record["source"] == "miniature" else []),
            *(["non-commercial-teacher"] if limited else []),
        ],
        model_name=f"{name}-seed{seed}",
        eval_results=evaluated or None,
    )
    parts = [f"---\n{data.to_yaml().strip()}\n---\n\n# {name}, seed {seed}\n"]
    parts += [_about(record, model_cfg), _use(model_cfg, heads), _data(config, record, workdir)]
    parts += [experts_section(stores, seen), _training(config, name, record)]
    parts += [_measured(results, seen.not_stated([name])), licence_section(licence, stores)]
    return "\n".join(filter(None, parts))


def _about(record: dict[str, Any], model_cfg: dict[str, Any]) -> str:
    text = (
        f"A CLIP whose image encoder has {record['parameters']['encoder']:,} parameters and whose text encoder has"
        f" {record['parameters']['text']:,}, trained with CLIPTeX"
    )
    if mixed := record.get("interpolate"):
        text += (
            f" by interpolation of weights, {mixed['alpha']:g} x {mixed['of']} + {1 - mixed['alpha']:g} x"
            f" {mixed['with']} (WiSE-FT, Wortsman et al. 2022)"
        )
    elif record["tasks"]:
        text += ": on image-caption pairs, and on pseudo-labels of the same images from frozen vision experts"
    else:
        text += " on image-caption pairs alone"
    text += f". Embeddings have {model_cfg['embed_dim']} dimensions.\n"
    if record["source"] == "miniature":
        text += (
            "\n**Trained on the rendered miniature, to test the method: the model has only seen rendered toy scenes. No"
            " number here is from real photographs.**\n"
        )
    return text


def _use(model_cfg: dict[str, Any], heads: bool) -> str:
    blocks = [
        "## Use\n\n`DIR` is the folder of this card.\n",
        """open_clip, with preprocessing and tokenizer:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR", require_pretrained=True)
tokenizer = open_clip.get_tokenizer("local-dir:DIR")
```
""",
    ]
    if timm := timm_arguments(model_cfg):
        name, arguments = timm
        listed = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
        blocks.append(
            f"""timm, the image encoder alone; the output is open_clip's image embedding before normalisation:

```python
import timm

encoder = timm.create_model(
    "{name}",
    pretrained=True,
    pretrained_cfg_overlay={{"file": "DIR/{WEIGHTS_FILE}", "num_classes": {model_cfg["embed_dim"]}}},
{listed})
```
"""
        )
    dense = '\nmodel.predict("photo.jpg")  # label store -> segmentation, depth, normals of the image' if heads else ""
    blocks.append(
        f"""cliptex, which also gives dense features{" and predictions" if heads else ""}:

```python
import cliptex

model = cliptex.load("DIR")
model.encode_image(["photo.jpg"]) @ model.encode_text(["a photo of a cat"]).T
model.dense_features(["photo.jpg"])  # [1, C, h, w]{dense}
```
"""
    )
    return "\n".join(blocks)


def _data(config: Config, record: dict[str, Any], workdir: Path) -> str:
    index = workdir / paths.SHARD_INDEX
    samples = f", {read_record(index, SHARD_INDEX)['num_samples']:,} of them" if index.exists() else ""
    source = {
        "miniature": "rendered; some captions are noisy on purpose",
        "webdataset": f"existing tars: {md(', '.join(config.dataset.shards))}",
        "urls": f"downloaded from the lists {md(', '.join(config.dataset.urls.files if config.dataset.urls else ()))}",
    }.get(record["source"], md(record["source"]))
    return f"## Data\n\nImage-caption pairs{samples}, {source}. Training started from {md(record['init'])}.\n"


def _training(config: Config, name: str, record: dict[str, Any]) -> str:
    plain = config.plain()
    shown = {"student": plain["student"], "train": plain["train"], "models": {name: plain["models"][name]}}
    seen = f"{record['steps']:,} steps" + (f" of {record['batch_size']:,} pairs" if record["steps"] else "")
    made_by = record.get("provenance", {})
    where = f"cliptex {md(str(made_by.get('cliptex')))}, code {md(code(made_by) or 'unknown')}"
    text = without_secrets(yaml.safe_dump(shown, sort_keys=False))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
    return f"## Training\n\n{seen}, seed {record['seed']}; {where}.\n\n{fence}yaml\n{text}{fence}\n"


def _results(
    config: Config, name: str, seed: int, sha256: str | None, workdir: Path, seen: SeenData | None = None
) -> list[dict[str, Any]]:
    """The main metric of each benchmark, task and head with results of this model and seed.

    sha256: of the model's weights. Results of other weights, from before a retraining, and those that do not follow
    from their per-image parts are logged and left out.
    """
    load_tasks(config)
    measured = []
    zeroshot = [*config.zeroshot.benchmarks, *config.zeroshot.caption_sets]
    kinds = {"probes": config.probes.benchmarks, "zeroshot": zeroshot, "training_free": config.training_free.benchmarks}
    for kind, benchmarks in kinds.items():
        for benchmark in benchmarks:
            path = workdir / paths.RESULTS / kind / f"{benchmark}.json"
            if not path.exists():
                continue
            scores, folder = read_scores(path), workdir / paths.model(name, seed)
            rows = [row for row in scores.results if (row.model, row.seed) == (name, seed)]
            rows = [row for row in rows if row.metrics.get(measure(row.task).main) is not None]
            evaluated = scores.provenance.get("model_sha256", {}).get(f"{name}/seed{seed}")
            try:
                if not check_weights(path, f"{name}/seed{seed}", evaluated, sha256, folder):
                    log.warning("%s: does not record which weights of %s seed %d it is of", path, name, seed)
                for row in rows:
                    parts = per_image_path(scores.head_path(row))
                    if not parts.exists():
                        log.warning("%s: no such file, so a result of %s seed %d is not checked", parts, name, seed)
                    elif (arrays := scores.parts(row)) is not None:
                        check_metric(path, parts, row, arrays)
            except CliptexError as error:
                log.warning("left out of the card: %s", error)
                continue
            for row in rows:
                metric = measure(row.task).main
                result = {"task": row.task, "head": row.head, "metric": metric, "value": row.metrics[metric]}
                keys = ("benchmark", "source", "split", "num_eval")
                result["seen"] = seen.by(scores, [name]) if seen else {}
                measured.append(result | {key: getattr(scores, key) for key in keys})
    return measured


def _dataset(result: dict[str, Any]) -> str:
    stand_in = " (rendered stand-in)" if result["source"] == "miniature" else ""
    return f"{names.benchmark(result['benchmark'], result['source'])}{stand_in}"


def _measured(results: list[dict[str, Any]], not_stated: Sequence[str] = ()) -> str:
    """not_stated: experts whose training sets nobody states."""
    if not results:
        return "## Results\n\nThere were no results when this card was written.\n"
    lines = ["## Results\n\nHeads trained on the frozen encoder, and zero-shot.\n"]
    lines += ["| data | images | task | head | metric | value |\n|---|---:|---|---|---|---:|"]
    notes: dict[Degree, dict[str, None]] = {}
    for result in results:
        metric, data = metric_of(result["task"], result["metric"]), f"{_dataset(result)}, {result['split']}"
        for degree, experts in result["seen"].items():
            data += f" {degree.symbol}"
            notes.setdefault(degree, {})[f"{_dataset(result)} by {'; '.join(experts)}"] = None
        lines.append(
            f"| {md(data)} | {result['num_eval']:,} | {md(names.task(result['task']))} |"
            f" {md(names.head(result['head']))} | {metric.title} | {metric.format(result['value'])} {metric.unit} |"
        )
    official = any(result["source"] != "miniature" for result in results)
    for note in footnotes(notes, not_stated if official else ()):
        lines += ["", md(note)]
    return "\n".join(lines) + "\n"

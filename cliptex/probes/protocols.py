"""Protocols: how frozen encoders are judged, one file each (config/protocols/*.yaml), named in every result.

A file has a section for each task that it covers. An entry of `probes.benchmarks` names a protocol and may lay values
of its own over it; resolved, it holds every value of the benchmark's tasks, and a digest of them. Imports nothing
heavy: the workflow resolves protocols at every start.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

import cliptex
from cliptex.config import Config, Name, Positive, Rate, Section, Share
from cliptex.errors import CliptexError
from cliptex.files import sha256_json
from cliptex.plugins import find

Grid = Annotated[tuple[Rate, ...], Field(min_length=1)]
Decays = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
DEFAULT = "miniature"
SHIPPED = Path(cliptex.__file__).parent / "protocols"
"""The shipped protocols: a link to config/protocols in a clone, a copy of it in an installed package."""
DIGEST_DIGITS = 12


class Training(Section):
    """How a head is trained: AdamW, a linear warm-up, a polynomial decay to zero."""

    steps: Positive
    """Optimizer steps."""
    batch_size: Positive
    """Images a step."""
    learning_rates: Grid
    """Peak rates; of several the one best on the holdout is taken, then the head is trained on all training images."""
    weight_decays: Decays
    """AdamW weight decays; several as above, every rate with every decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate rises to its peak."""
    power: Annotated[float, Field(ge=0)] = 0.9
    """Of the polynomial decay."""


class SegmentationTraining(Training):
    """What the segmentation heads share."""

    batch_size: Annotated[int, Field(ge=2)]
    """Images a step; batch norm needs two."""
    loss_points: Positive | None = None
    """Points a side at which the loss is taken each step, a regular sub-grid of the mask at a random offset; null: all
    of the mask."""
    balance: Share = 0.0
    """Classes are weighted in the loss by their share of the pixels to the power of minus this; 0 is plain."""


class LinearSegmentation(SegmentationTraining):
    """A 1x1 convolution."""

    kind: Literal["linear"]
    """Which head it is."""


class DeepLabV3(SegmentationTraining):
    """Dilated convolutions side by side (mmsegmentation's ASPPHead)."""

    kind: Literal["deeplabv3"]
    """Which head it is."""
    channels: Positive
    """Channels of its layers."""
    dilations: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Dilations in cells of the feature map; of 1 is a 1x1 convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


class PSPNet(SegmentationTraining):
    """Pyramid pooling (mmsegmentation's PSPHead)."""

    kind: Literal["pspnet"]
    """Which head it is."""
    channels: Positive
    """Channels of its layers."""
    pool_scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3, 6)
    """Sides of the pooled grids."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifier."""


SegmentationHead = Annotated[LinearSegmentation | DeepLabV3 | PSPNet, Field(discriminator="kind")]


class SemanticSegmentation(Section):
    """Semantic segmentation: mIoU over the whole split."""

    mask_size_px: Positive
    """Training masks are kept as squares of this side (nearest); evaluation uses the original resolution."""
    heads: dict[Name, SegmentationHead]
    """The heads by name."""


class MaskRCNN(Training):
    """Mask R-CNN on a simple feature pyramid. Boxes live in a frame in which a cell of the map is 16 pixels wide."""

    kind: Literal["mask_rcnn"]
    """Which head it is."""
    channels: Positive
    """Channels of the pyramid and of the mask head."""
    box_units: Positive
    """Units of the two layers of the box head."""
    mask_layers: Positive
    """3x3 convolutions of the mask head."""
    class_agnostic: bool
    """One box and one mask a region, whatever its class, as small training sets need; false is one a class."""
    anchor_scale: Rate
    """Anchor side in strides of its level."""
    proposals: Positive
    """Proposals an image after suppression; four times as many before."""
    rois: Positive
    """Regions an image on which box and mask heads are trained."""
    detections: Positive
    """Detections an image that are kept; COCO counts up to 100."""
    score_threshold: Annotated[float, Field(ge=0, lt=1)]
    """Detections below this score are dropped."""


class Detection(Section):
    """Detection, and instance segmentation by the heads that have masks: COCO's average precision."""

    heads: dict[Name, MaskRCNN]
    """The heads by name."""


class Ridge(Section):
    """Ridge regression of each cell, solved exactly."""

    kind: Literal["ridge"]
    """Which head it is."""
    grid: Positive
    """Side of the grid of points at which the regression is fitted; evaluation uses the original resolution."""
    penalties: Grid
    """Penalties on the squared weights beside the MEAN squared error; chosen on the holdout."""


class DepthRidge(Ridge):
    """Ridge regression of depth."""

    targets: Annotated[tuple[Literal["metric", "log"], ...], Field(min_length=1)]
    """What is regressed: metres or their logarithm; chosen on the holdout."""


class Depth(Section):
    """Monocular depth in metres."""

    min_depth_m: Rate
    """Truths below are left out, predictions are clipped."""
    max_depth_m: Rate
    """Truths above are left out, predictions are clipped."""
    crop: Literal["none", "eigen"]
    """`eigen`: judged in rows 45..470 and columns 41..600 only, of 480 x 640."""
    heads: dict[Name, DepthRidge]
    """The heads by name."""


class Normals(Section):
    """Surface normals."""

    heads: dict[Name, Ridge]
    """The heads by name."""


class Logistic(Section):
    """Multinomial logistic regression, fitted to convergence with L-BFGS."""

    kind: Literal["logistic"]
    """Which head it is."""
    penalties: Grid
    """Half of it times the squared weights is added to the MEAN cross-entropy (scikit-learn's C is
    1 / (penalty * samples)); chosen on the holdout."""
    iterations: Positive
    """Most L-BFGS iterations a fit."""


class Classification(Section):
    """Classification from one feature an image."""

    heads: dict[Name, Logistic]
    """The heads by name."""


class Protocol(Section):
    """What a protocol file holds: a section for each task that it covers."""

    about: str = ""
    """Where the recipe is from, in a sentence."""
    semantic_segmentation: SemanticSegmentation | None = None
    detection: Detection | None = None
    depth: Depth | None = None
    normals: Normals | None = None
    classification: Classification | None = None


class Entry(Protocol):
    """An entry of `probes.benchmarks`: a protocol's name, what is laid over it, and, once resolved, all of it."""

    protocol: str = DEFAULT
    """A file of config/protocols/, without its suffix; or the path of one of your own."""
    digest: str = ""
    """Of all values, 12 hexadecimal digits; there once the entry is resolved."""
    max_train: Positive | None = None
    """Only this many training images, drawn once from the seed; all when null."""
    max_eval: Positive | None = None
    """Only the first images of the evaluation split; all when null. For trying things out."""

    def heads(self, task: str) -> dict[str, Any]:
        """The heads of a task by name."""
        return getattr(self, task).heads


def protocol_of(benchmark: str, values: Mapping[str, Any], folders: Iterable[Path] = ()) -> Entry:
    """The checked entry of a benchmark with every value of its protocol for the benchmark's tasks.

    values: what the configuration has; one that is resolved already comes back as it is. folders: where protocols lie;
    the shipped ones are looked for last. Raises CliptexError that names the file, or the entry, and the key.
    """
    where = f"probes.benchmarks.{benchmark}."
    if values.get("digest"):
        return _checked(Entry, values, where)
    tasks = find("benchmarks", benchmark).tasks
    name = values.get("protocol", DEFAULT)
    path = _path(name, folders, f"{where}protocol")
    file = _read(path)
    _checked(Protocol, file, f"{path}: ")
    for task in Protocol.model_fields.keys() - {"about", *tasks}:
        if task in values:
            raise CliptexError(f"{where}{task}: {benchmark} has no such task; it has {', '.join(tasks)}")
    base = {key: file[key] for key in ("about", *tasks) if file.get(key) is not None}
    entry = _checked(Entry, _laid_over(base, {**values, "protocol": name}), where)
    for task in tasks:
        if getattr(entry, task) is None:
            raise CliptexError(
                f"{path}: has no section {task!r}, which {benchmark} needs ({where}protocol names the file)"
            )
    sections = entry.model_dump(mode="json", include={*tasks, "max_train", "max_eval"})
    return entry.model_copy(update={"digest": sha256_json(sections)[:DIGEST_DIGITS]})


def resolve(benchmark: str, values: Mapping[str, Any], folders: Iterable[Path] = ()) -> dict[str, Any]:
    """`protocol_of` as JSON values."""
    return protocol_of(benchmark, values, folders).model_dump(mode="json", exclude_none=True)


def with_protocols(config: Config, folders: Iterable[Path] = ()) -> Config:
    """`config` with all entries of `probes.benchmarks` resolved."""
    folders = tuple(folders)
    resolved = {name: resolve(name, values, folders) for name, values in config.probes.benchmarks.items()}
    return config.model_copy(update={"probes": config.probes.model_copy(update={"benchmarks": resolved})})


def folders_near(config: str) -> list[Path]:
    """Where a configuration given as a path keeps its protocols: beside it, or a folder above for a study."""
    if config.lstrip().startswith("{"):
        return []
    return [folder / "protocols" for folder in list(Path(config).absolute().parents)[:2]]


def _path(name: str, folders: Iterable[Path], key: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise CliptexError(f"{key}: {name}: no such file")
        return Path(name)
    looked = [folder for folder in (*folders, SHIPPED) if folder.is_dir()]
    for folder in looked:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in looked for path in folder.glob("*.yaml")})
    there = f"there are {', '.join(known)}" if known else "none are here; give the path of a file"
    raise CliptexError(f"{key}: {name!r} is no protocol; {there}")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CliptexError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise CliptexError(f"{path}: not a protocol; it must have a section for each task")
    return values


def _laid_over(base: Any, over: Any) -> Any:
    """`over` laid over `base`, key by key; a head of another kind replaces, and one that is null is left out."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "kind" in base and over.get("kind", base["kind"]) != base["kind"]:
        return over
    out = {**base, **{key: _laid_over(base.get(key), value) for key, value in over.items()}}
    if isinstance(out.get("heads"), Mapping):
        out["heads"] = {name: head for name, head in out["heads"].items() if head is not None}
    return out


def _checked(model: type[Protocol], values: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = where + ".".join(_keys(values, item["loc"]))
            if item["type"] == "extra_forbidden":
                problems.append(f"{key}: unknown key")
            elif item["type"] == "missing":
                problems.append(f"{key}: missing")
            else:
                problems.append(f"{key}: {item['msg']}, got {item['input']!r}")
        raise CliptexError("; ".join(problems)) from error


def _keys(values: Any, loc: tuple[int | str, ...]) -> list[str]:
    """pydantic's path to a value without the tags of unions in it, which are no keys of the file."""
    out = []
    for number, part in enumerate(loc):
        if isinstance(values, Mapping) and part not in values and number < len(loc) - 1:
            continue
        out.append(str(part))
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
    return out

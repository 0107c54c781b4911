"""The classes of a saved segmentation network: from `id2label` in its config.json to the classes of the labels."""

from typing import Any, NamedTuple

import numpy as np

from cliptex.benchmarks.coco_names import coco_categories
from cliptex.core.errors import CliptexError

MOST = 1000
"""Classes of a label store."""
UNUSED = ("", "n/a", "unused", "none")
"""Names of outputs that have no class, as of the ids that COCO leaves out."""
BACKGROUND = ("background", "__background__", "bg", "no object", "no-object", "unlabeled", "unlabelled")
SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "plant": "potted plant",
    "diningtable": "dining table",
    "table": "dining table",
    "tvmonitor": "tv",
    "television": "tv",
    "television receiver": "tv",
    "television set": "tv",
    "hairdryer": "hair drier",
    "hair dryer": "hair drier",
    "cellphone": "cell phone",
    "mobile phone": "cell phone",
    "donought": "donut",
    "doughnut": "donut",
    "mouse (computer)": "mouse",
    "stop-sign": "stop sign",
}
"""Other names of COCO's classes, in lower case."""


class ClassList(NamedTuple):
    """The classes of labels, and the one that each output of the network has."""

    names: list[str] | None
    """Names by number of the label; None for those of the task's default, background and COCO's 80."""
    codes: np.ndarray
    """[outputs] number of each output's class in the labels; the ignore value for outputs without a class."""
    dtype: type[np.unsignedinteger]

    @property
    def ignore(self) -> int:
        """The value of pixels without a class: the largest of `dtype`."""
        return int(np.iinfo(self.dtype).max)


def class_list(names: list[str | None], instances: bool) -> ClassList:
    """The classes of labels for the names of a network's outputs (None: an output without a class).

    All of COCO's 80 things, in any order and with `SYNONYMS`, become the classes of the task's default. Otherwise the
    classes keep the order of the outputs, after "background", if there is one, or the masks of `instances` leave some.
    """
    plain = [None if name is None else name.strip().lower() for name in names]
    is_background = [name in BACKGROUND for name in plain]
    if is_coco(names):
        number = {name: index + 1 for index, (_, name, _) in enumerate(coco_categories())}
        codes = [
            0 if back else number.get(coco_name(name), 255) for name, back in zip(plain, is_background, strict=True)
        ]
        return ClassList(None, np.array(codes, np.uint8), np.uint8)
    listed: list[str] = ["background"] if instances or any(is_background) else []
    numbers: list[int | None] = []
    for name, back in zip(names, is_background, strict=True):
        numbers.append(0 if back else None if name is None else len(listed))
        if not back and name is not None:
            clean = name.strip()
            listed.append(clean if clean not in listed else f"{clean} ({len(listed)})")
    dtype = np.uint8 if len(listed) <= 255 else np.uint16
    ignore = int(np.iinfo(dtype).max)
    return ClassList(listed, np.array([ignore if one is None else one for one in numbers], dtype), dtype)


def coco_name(name: str | None) -> str | None:
    """COCO's name of a class; the name itself if it is not one."""
    return None if name is None else SYNONYMS.get(name.strip().lower(), name.strip().lower())


def is_coco(names: list[str | None]) -> bool:
    """Whether the classes are COCO's 80 things, each once, and maybe a background."""
    found = [coco_name(name) for name in names if name is not None and name.strip().lower() not in BACKGROUND]
    return sorted(found) == sorted(name for _, name, _ in coco_categories())


def output_names(config: dict[str, Any], given: list[str] | None, outputs: int, path: str) -> list[str | None]:
    """The name of each of a network's `outputs`, None for those without a class.

    config: the content of config.json at `path`. given: the config's `network.classes`, which replaces its `id2label`.
    Raises CliptexError if the names are unknown or do not fit.
    """
    if given is not None:
        if len(given) != outputs:
            raise CliptexError(f"{path}: the network has {outputs} classes, but network.classes lists {len(given)}")
        names: list[str] = list(given)
    else:
        table = config.get("id2label")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise CliptexError(f"{path}: has no names of classes (id2label); set network.classes, in the order of them")
        try:
            by_number = {int(key): name for key, name in table.items()}
        except ValueError:
            raise CliptexError(f"{path}: id2label has keys that are no numbers; set network.classes") from None
        lacking = sorted(set(range(outputs)) - set(by_number))
        if lacking or len(by_number) != outputs:
            raise CliptexError(
                f"{path}: id2label has no class {lacking[0] if lacking else 0} of the network's {outputs}, so the order"
                " of the others is unclear; set network.classes"
            )
        names = [by_number[number] for number in range(outputs)]
    unknown = [name.strip().lower() in UNUSED or name == f"LABEL_{number}" for number, name in enumerate(names)]
    if all(unknown):
        raise CliptexError(f"{path}: id2label has placeholders ({names[0]!r}) for names; set network.classes")
    found = [None if lacks else name for name, lacks in zip(names, unknown, strict=True)]
    if not 2 <= len(found) <= MOST:
        raise CliptexError(f"{path}: the network has {len(found)} classes; a label store has 2 to {MOST}")
    return found

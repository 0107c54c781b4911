"""The kinds of objects and surfaces in the scenes, and their names in the official class lists.

A kind without a name in a data set is background (VOC, COCO) or "other" (ADE20K) there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind, with its official class names, or None."""

    name: str
    coco: str | None = None
    voc: str | None = None
    ade20k: str | None = None


def _stuff(*names: str) -> list[Kind]:
    return [Kind(name, ade20k=name) for name in names]


KINDS: list[Kind] = [
    Kind("nothing"),
    # objects: each is an instance
    Kind("person", "person", "person", "person"),
    Kind("car", "car", "car", "car"),
    Kind("bus", "bus", "bus", "bus"),
    Kind("boat", "boat", "boat", "boat"),
    Kind("bird", "bird", "bird", "animal"),
    Kind("bottle", "bottle", "bottle", "bottle"),
    Kind("chair", "chair", "chair", "chair"),
    Kind("couch", "couch", "sofa", "sofa"),
    Kind("potted plant", "potted plant", "pottedplant", "plant"),
    Kind("dining table", "dining table", "diningtable", "table"),
    Kind("tv", "tv", "tvmonitor", "television receiver"),
    Kind("bed", "bed", None, "bed"),
    Kind("refrigerator", "refrigerator", None, "refrigerator"),
    Kind("umbrella", "umbrella", None, None),
    Kind("sports ball", "sports ball", None, "ball"),
    Kind("traffic light", "traffic light", None, "traffic light"),
    # the rest: stuff, and furniture that COCO does not name
    *_stuff("wall", "floor", "ceiling", "sky", "tree", "road", "grass", "sidewalk", "earth", "sand", "sea", "water"),
    *_stuff("mountain", "hill", "rock", "path", "field", "building", "house", "fence", "palm", "streetlight"),
    *_stuff("signboard", "windowpane", "door", "painting", "curtain", "rug", "lamp", "cabinet", "shelf", "wardrobe"),
    *_stuff("desk", "box", "column", "stairs", "mirror", "barrel", "radiator", "light"),
    Kind("ramp"),
]

KIND_ID: dict[str, int] = {kind.name: number for number, kind in enumerate(KINDS)}
THINGS: list[str] = [kind.name for kind in KINDS if kind.coco]

INDOORS = ("living_room", "bedroom", "kitchen", "office", "corridor")
OUTDOORS = ("street", "beach", "mountain", "park", "desert_road")
SCENE_CATEGORIES: dict[str, bool] = dict.fromkeys(INDOORS, True) | dict.fromkeys(OUTDOORS, False)
"""Official Places365 category -> whether it is indoors."""

"""Build a scene: an indoor room or an outdoor ground, its furniture, objects and light.

One catalogue of scene categories, so it is longer than other modules. The order of random draws determines every
rendered image: a change in the order changes all data sets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cliptex.data.miniature.kinds import SCENE_CATEGORIES
from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.meshes import Paint, Shape
from cliptex.data.miniature.scenery import build, ground, peak, shell
from cliptex.data.miniature.stage import Light, Stage
from cliptex.data.miniature.things import BUILDERS, Thing


@dataclass(frozen=True)
class Contents:
    """Kinds that occur in a scene category; earlier ones are more likely."""

    things: tuple[str, ...]
    standing: tuple[str, ...]
    hanging: tuple[str, ...] = ()


CONTENTS = {
    "living_room": Contents(
        ("couch", "tv", "chair", "potted plant", "dining table", "person", "bottle", "sports ball"),
        ("lamp", "cabinet", "shelf", "box", "ramp"),
        ("windowpane", "painting", "curtain", "door", "radiator", "mirror"),
    ),
    "bedroom": Contents(
        ("bed", "bed", "potted plant", "chair", "tv", "person", "umbrella", "sports ball"),
        ("wardrobe", "lamp", "cabinet", "box"),
        ("windowpane", "curtain", "painting", "mirror", "door"),
    ),
    "kitchen": Contents(
        ("refrigerator", "dining table", "chair", "bottle", "refrigerator", "person", "potted plant"),
        ("cabinet", "cabinet", "shelf", "barrel"),
        ("windowpane", "radiator", "door", "painting"),
    ),
    "office": Contents(
        ("chair", "tv", "potted plant", "person", "bottle", "couch", "umbrella", "dining table"),
        ("desk", "desk", "shelf", "cabinet", "box"),
        ("windowpane", "door", "radiator", "painting"),
    ),
    "corridor": Contents(
        ("person", "potted plant", "chair", "umbrella", "bottle", "refrigerator", "sports ball"),
        ("stairs", "box", "ramp", "barrel", "cabinet"),
        ("door", "door", "painting", "radiator"),
    ),
    "street": Contents(
        ("car", "bus", "traffic light", "person", "car", "umbrella", "bird", "sports ball"),
        ("building", "building", "streetlight", "house", "tree", "signboard", "fence"),
    ),
    "beach": Contents(
        ("boat", "umbrella", "person", "boat", "sports ball", "bird", "chair", "bottle"),
        ("palm", "rock", "fence", "barrel"),
    ),
    "mountain": Contents(
        ("bird", "person", "car", "umbrella", "bottle", "chair"),
        ("rock", "tree", "rock", "house", "signboard"),
    ),
    "park": Contents(
        ("person", "sports ball", "bird", "umbrella", "potted plant", "chair", "dining table", "bottle"),
        ("tree", "tree", "fence", "streetlight", "house"),
    ),
    "desert_road": Contents(
        ("car", "bus", "person", "bird", "traffic light", "couch", "bottle"),
        ("cactus", "rock", "signboard", "barrel"),
    ),
}

SMALL = ("bottle", "potted plant", "tv", "sports ball")
"""Kinds of objects that may stand on a table."""


@dataclass(frozen=True)
class Placed:
    """A placed object."""

    kind: str
    thing: Thing
    instance: int
    centre: np.ndarray
    extent: float  # largest of width, depth and height, metres
    yaw: float
    on: str | None  # kind of the furniture on which it stands, if any


@dataclass
class SceneWorld:
    """A furnished stage with its light, and the values that cameras depend on."""

    category: str
    stage: Stage
    light: Light
    room: tuple[float, float, float] | None  # size in x, y, z; None outdoors
    height_at: Callable[[float, float], float]
    sky: tuple[np.ndarray, np.ndarray]  # its colours at the horizon and overhead
    fog_m: float
    things: list[Placed] = field(default_factory=list)
    spots: list[tuple[float, float, float]] = field(default_factory=list)  # occupied circles: x, y, radius

    def free(self, x: float, y: float, radius: float) -> bool:
        """Whether a circle is free (a small overlap is allowed)."""
        return all((x - a) ** 2 + (y - b) ** 2 > (0.9 * (radius + r)) ** 2 for a, b, r in self.spots)


def build_world(
    s: Stylist, category: str, subject: tuple[str, str | None] | None, things: tuple[int, int], scenery: float
) -> SceneWorld:
    """Build a scene.

    subject: kind, and specific name or None, of an object that is placed first. things: minimum and maximum number of
    further objects. scenery: factor for the amount of furniture without a COCO class.
    """
    world = _room(s, category) if SCENE_CATEGORIES[category] else _ground(s, category)
    contents = CONTENTS[category]
    count = things[0] + int(s.random() * (things[1] + 1 - things[0]))
    kinds = [subject[0]] if subject else []
    for _ in range(count):
        any_kind = s.chance(0.08)
        options = tuple(BUILDERS) if any_kind else contents.things
        if any_kind and SCENE_CATEGORIES[category]:
            options = tuple(kind for kind in options if kind not in ("car", "bus", "boat"))
        kinds.append(options[int(len(options) * s.random() ** 1.4)])
    if kinds:
        _put_thing(s, world, kinds[0], subject[1] if subject else None)
    standing = contents.standing
    for _ in range(int(scenery * s.uniform(1.2, 5.0))):
        _put_standing(s, world, standing[int(len(standing) * s.random() ** 1.3)])
    for kind in kinds[1:]:
        _put_thing(s, world, kind)
    if world.room:
        for _ in range(int(scenery * s.uniform(2.0, 7.0))):
            _hang(s, world, s.pick(contents.hanging))
    world.stage.build()
    return world


def _light_colour(s: Stylist) -> np.ndarray:
    warmth = s.uniform(*s.look.warmth)
    return np.array([1 + 0.16 * warmth, 1 + 0.02 * warmth, 1 - 0.20 * warmth], np.float32)


def _room(s: Stylist, category: str) -> SceneWorld:
    """An empty room centred on the origin."""
    if category == "corridor":
        x, y, z = s.uniform(1.7, 3.0), s.uniform(6, 11), s.uniform(2.2, 3.2)
    else:
        x, y, z = s.uniform(3.0, 7.0), s.uniform(3.0, 7.0), s.uniform(2.3, 3.6)
    slope = s.uniform(-0.35, 0.35) * x if s.chance(0.25) and category != "corridor" else 0.0
    slope = float(np.clip(slope, -1.2, 1.2))
    colours = {
        "living_room": ("beige", "white", "green", "orange"),
        "bedroom": ("blue", "pink", "white", "purple", "beige"),
        "kitchen": ("white", "yellow", "green", "beige"),
        "office": ("white", "grey", "blue", "white"),
        "corridor": ("grey", "white", "yellow", "beige"),
    }[category]
    # As in real homes, floors are dark and often wooden, walls pale and plain, ceilings whitish: the appearance of a
    # surface indicates its orientation, also if the camera is tilted.
    pale = [tuple(0.4 * channel + 0.52 for channel in s.shade(colour)) for colour in colours]
    tone = s.pick(pale)
    pattern = s.pick(("solid", "solid", "solid", "noise", "stripes", "brick"))
    if category == "kitchen" and s.chance(0.6):
        pattern = "tiles"
    sizes = {"stripes": s.uniform(0.2, 0.6), "brick": 0.25, "tiles": s.uniform(0.2, 0.4)}
    size = sizes.get(pattern, s.uniform(0.3, 0.8))
    shift = s.uniform(0.85, 0.95)
    walls = []
    for _ in range(4):
        accent = s.pick(pale) if s.chance(0.2) else tone
        walls.append(Paint(accent, tuple(shift * channel for channel in accent), pattern, size, 0.03))
    covering = s.pick(("wood", "planks", "planks", "checker", "tiles", "noise"))
    if covering in ("wood", "planks"):
        base = s.shade(s.pick(("brown", "brown", "orange")), 0.3)
        floor = Paint(base, tuple(0.65 * channel for channel in base), covering, s.uniform(0.12, 0.3), 0.04)
    elif covering in ("checker", "tiles"):
        colours = s.pick(("grey", "brown", "red")), s.pick(("black", "black", "brown"))
        floor = s.mixed(*colours, covering, s.uniform(0.3, 1.0))
    else:
        base = tuple(0.7 * channel for channel in s.shade(s.pick(("red", "blue", "green", "grey", "brown"))))
        floor = Paint(base, tuple(0.75 * channel for channel in base), covering, s.uniform(0.2, 0.6), 0.09)
    ceiling = s.mixed("white", "grey", s.pick(("solid", "tiles")), s.uniform(0.3, 0.7))
    stage = Stage()
    stage.place(shell((x, y, z), slope, (floor, walls, ceiling)), (0, 0, 0), 0, "wall")
    low = z - abs(slope) / 2
    at = np.array([s.uniform(-0.3, 0.3) * x, s.uniform(-0.3, 0.3) * y, low - s.uniform(0.15, 0.6)], np.float32)
    if s.chance(0.25):  # light from one side, like a window
        at[:2] = s.pick(((0.46, 0.0), (-0.46, 0.0), (0.0, 0.46), (0.0, -0.46))) * np.array([x, y])
        at[2] = 0.6 * low
    ambient = s.uniform(*s.look.ambient)
    colour = _light_colour(s)
    light = Light(np.zeros(3, np.float32), at, colour * (1.25 - ambient), np.full(3, 0.95 * ambient, np.float32))
    world = SceneWorld(category, stage, light, (x, y, low), lambda x, y: 0.0, (colour, colour), 1e6)
    if slope == 0.0:
        for _ in range(int(s.uniform(0, 3))):
            shape, at = build("light", s), (s.uniform(-0.35, 0.35) * x, s.uniform(-0.35, 0.35) * y, z)
            stage.place(shape, at, s.pick((0.0, 1.5708)), "light")
    if s.chance(0.3):
        shape = build("column", s)
        shape.scale((1, 1, z + abs(slope) / 2))
        _stand(s, world, shape, "column")
    if s.chance(0.3):  # a slanting wall across a corner
        shape = Shape()
        shape.box((s.uniform(1.2, 2.4), 0.1, z + abs(slope)), (0, 0, 0), walls[0])
        sx, sy = s.pick((-1, 1)), s.pick((-1, 1))
        angle = float(np.arctan2(-sx, sy)) + s.uniform(-0.25, 0.25)
        stage.place(shape, (sx * (x / 2 - 0.45), sy * (y / 2 - 0.45), 0), angle, "wall")
        world.spots.append((sx * (x / 2 - 0.4), sy * (y / 2 - 0.4), 0.7))
    if s.chance(0.45):
        shape = build("rug", s)
        stage.place(shape, (s.uniform(-0.2, 0.2) * x, s.uniform(-0.2, 0.2) * y, 0), s.uniform(0, 3.1), "rug")
    return world


def _ground(s: Stylist, category: str) -> SceneWorld:
    """An outdoor ground centred on the origin, with distant surroundings."""
    grass = s.mixed((0.30, 0.46, 0.16), (0.20, 0.34, 0.11), "noise", s.uniform(0.4, 1.5), 0.12)
    earth = s.mixed((0.50, 0.38, 0.26), (0.36, 0.27, 0.19), "noise", s.uniform(0.5, 2), 0.12)
    sand = s.mixed((0.86, 0.74, 0.52), (0.74, 0.61, 0.40), s.pick(("noise", "waves")), s.uniform(0.4, 1.5), 0.06)
    asphalt = s.mixed((0.30, 0.30, 0.32), (0.24, 0.24, 0.26), "noise", 0.8, 0.06)
    paving = s.mixed((0.62, 0.60, 0.57), (0.45, 0.44, 0.42), s.pick(("tiles", "brick", "checker")), s.uniform(0.4, 0.9))
    path = s.mixed((0.76, 0.68, 0.54), (0.62, 0.54, 0.42), "noise", 0.6, 0.08)
    sea = s.mixed((0.12, 0.36, 0.52), (0.30, 0.55, 0.66), "waves", s.uniform(0.5, 1.4), 0.06)
    reach = 70.0
    tilt = (s.uniform(-0.16, 0.16), s.uniform(-0.16, 0.16))
    mounds = [(s.uniform(-25, 25), s.uniform(-25, 25), s.uniform(2.5, 9), s.uniform(-0.6, 1.6)) for _ in range(5)]
    shore = s.uniform(-4, 6)

    def heights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The ground's z."""
        out = tilt[0] * x + tilt[1] * y
        for a, b, wide, high in mounds:
            out = out + high * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * wide * wide))
        if category == "beach":  # level sea, rising beach
            inland = np.clip(shore - x, 0, None)
            out = 0.12 * inland + np.clip(inland / 6, 0, 1) * 0.6 * (out - tilt[0] * x)
        if category == "street":
            out = 0.5 * out
        return out

    half = s.uniform(2.8, 4.5)
    edge = half + s.uniform(1.2, 2.5)
    beside, verge = ("grass", grass) if s.chance(0.5) else ("sidewalk", paving)
    bands = {
        "street": [
            (-edge, beside, verge), (-half, "sidewalk", paving), (-0.12, "road", asphalt),
            (0.12, "road", s.plain("white")), (half, "road", asphalt), (edge, "sidewalk", paving), (99, beside, verge),
        ],
        "beach": [(shore, "sand", sand), (99, "sea", sea)],
        "mountain": [(s.uniform(-6, 3), "grass", grass), (99, "earth", earth)],
        "park": [(s.uniform(-3, -1), "grass", grass), (s.uniform(0, 2), "path", path), (99, "grass", grass)],
        "desert_road": [
            (-half, "sand", sand), (-0.12, "road", asphalt), (0.12, "road", s.plain("yellow")),
            (half, "road", asphalt), (99, "sand", sand),
        ],
    }[category]  # fmt: skip
    stage = Stage()
    stage.place(ground(heights, bands, reach), (0, 0, 0), 0, bands[0][1])
    ambient = s.uniform(*s.look.ambient) * (1.3 if s.chance(0.25) else 1.0)
    elevation, azimuth = s.uniform(0.3, 1.25), s.uniform(0, 6.28)
    level = np.cos(elevation)
    direction = np.array([level * np.sin(azimuth), level * np.cos(azimuth), np.sin(elevation)], np.float32)
    colour = _light_colour(s)
    tint = np.array([0.92, 0.98, 1.08], np.float32)
    light = Light(direction, None, colour * (1.35 - ambient), tint * 0.85 * ambient)
    grey = s.uniform(0, 1) ** 2
    overhead = np.array([0.22, 0.42, 0.80]) * (1 - grey) + 0.72 * grey
    horizon = np.array([0.78, 0.86, 0.95]) * colour
    sky = horizon.astype(np.float32), overhead.astype(np.float32)
    fog = s.uniform(25, 90)

    def height_at(x: float, y: float) -> float:
        return float(heights(np.float64(x), np.float64(y)))

    world = SceneWorld(category, stage, light, None, height_at, sky, fog)
    far = {"mountain": 7, "desert_road": 3, "beach": 1, "park": 1, "street": 0}[category]
    for _ in range(far):
        angle, distance = s.uniform(0, 6.28), s.uniform(38, 62)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        if category == "beach":
            x = -abs(x)
        near = s.chance(0.3)
        if near:
            x, y = 0.4 * x, 0.4 * y
            world.spots.append((x, y, 6.0))
        stage.place(peak(s, far=not near), (x, y, height_at(x, y) - 1), angle, "hill" if near else "mountain")
    if category == "street":
        for side in (-1, 1):
            y = -14.0
            while y < 34 and s.chance(0.85):
                kind = "building" if s.chance(0.8) else "house"
                x = side * (edge + s.uniform(4.5, 7.5))
                stage.place(build(kind, s), (x, y, height_at(x, y) - 0.3), -side * 1.5708, kind)
                world.spots.append((x, y, 5.0))
                y += s.uniform(9, 14)
    return world


def _spot(s: Stylist, world: SceneWorld, radius: float, wall: bool, band: tuple[float, float] | None = None):
    """A free position (x, y, yaw), or None. wall: with the back to a wall. band: limits of x."""
    for _ in range(8):
        yaw = s.uniform(0, 6.283)
        if world.room:
            x_max, y_max = world.room[0] / 2 - radius, world.room[1] / 2 - radius
            if x_max < 0.05 or y_max < 0.05:
                return None
            x, y = s.uniform(-x_max, x_max), s.uniform(-y_max, y_max)
            if wall:
                side = int(s.random() * 4)
                yaw = (3.1416, 0.0, 1.5708, -1.5708)[side] + s.uniform(-0.08, 0.08)
                x, y = ((x, -y_max), (x, y_max), (-x_max, y), (x_max, y))[side]
        else:
            reach = 9.0 + radius
            x, y = s.uniform(-reach, reach), s.uniform(-0.6 * reach, reach)
            if band:
                x = s.uniform(*band)
        if world.free(x, y, radius):
            return x, y, yaw
    return None


def _stretch(s: Stylist, shape: Shape) -> None:
    wide = s.uniform(0.9, 1.1)
    shape.scale((wide, wide, wide * s.uniform(*s.look.stretch)))


def _stand(s: Stylist, world: SceneWorld, shape: Shape, kind: str, wall: bool = False) -> bool:
    low, high = shape.bounds()
    half = (high - low)[:2] / 2
    radius = float(half[1] + 0.04) if wall else float(0.85 * np.hypot(*half))
    spot = _spot(s, world, radius, wall)
    if spot is None:
        return False
    x, y, yaw = spot
    world.stage.place(shape, (x, y, world.height_at(x, y)), yaw, kind)
    world.spots.append((x, y, float(max(half)) if wall else radius))
    return True


def _put_standing(s: Stylist, world: SceneWorld, kind: str) -> None:
    shape = build(kind, s)
    _stretch(s, shape)
    wall = world.room is not None and kind in ("cabinet", "shelf", "wardrobe", "desk") and s.chance(0.75)
    # ADE20K has no cactus class: it annotates cacti as "plant", which here is COCO's potted plant
    if _stand(s, world, shape, "nothing" if kind == "cactus" else kind, wall) and kind in ("cabinet", "desk"):
        x, y, _ = world.spots[-1]
        high = float(shape.bounds()[1][2])
        if s.chance(0.5):
            _put_on(s, world, s.pick(("bottle", "tv", "potted plant")), x, y, high, kind)


def _put_on(s: Stylist, world: SceneWorld, kind: str, x: float, y: float, z: float, support: str) -> None:
    """Place a small object on a piece of furniture."""
    thing = BUILDERS[kind](s)
    _stretch(s, thing.shape)
    if kind in ("potted plant", "sports ball"):
        thing.shape.scale((0.6, 0.6, 0.6))
    if kind == "tv":
        thing.shape.scale((0.75, 0.75, 0.75))
    at = (x + s.uniform(-0.12, 0.12), y + s.uniform(-0.12, 0.12), z)
    yaw = s.uniform(-0.5, 0.5) + (float(np.arctan2(at[0], -at[1])) + 3.1416 if world.room else 0.0)
    _record(world, kind, thing, at, yaw, support)


def _record(world: SceneWorld, kind: str, thing: Thing, at: tuple, yaw: float, on: str | None) -> None:
    low, high = thing.shape.bounds()
    instance = world.stage.place(thing.shape, at, yaw, kind, instance=True)
    centre = np.array([at[0], at[1], at[2] + (low[2] + high[2]) / 2], np.float32)
    world.things.append(Placed(kind, thing, instance, centre, float((high - low).max()), yaw, on))


def _thing(s: Stylist, kind: str, name: str | None) -> Thing:
    """Build an object of a kind. name: repeat until it has this specific name."""
    while True:
        thing = BUILDERS[kind](s)
        if name is None or thing.name == name:
            return thing


def _put_thing(s: Stylist, world: SceneWorld, kind: str, name: str | None = None) -> None:
    """Place an object: on the road, in the sea, on a table, at a wall, or anywhere free, depending on its kind."""
    supports = [p for p in world.things if p.kind == "dining table"]
    if kind in SMALL and supports and s.chance(0.7):
        table = s.pick(supports)
        top = 2 * float(table.centre[2]) - world.height_at(float(table.centre[0]), float(table.centre[1]))
        _put_on(s, world, kind, float(table.centre[0]), float(table.centre[1]), top, "dining table")
        return
    thing = _thing(s, kind, name)
    _stretch(s, thing.shape)
    low, high = thing.shape.bounds()
    half = (high - low)[:2] / 2
    wall = world.room is not None and kind in ("couch", "bed", "refrigerator", "tv") and s.chance(0.65)
    radius = float(half[1] + 0.04) if wall else float(0.8 * np.hypot(*half))
    band = None
    if kind in ("car", "bus") and world.category in ("street", "desert_road"):
        band = (-3.0, 3.0)
    if kind == "boat" and world.category == "beach":
        band = (5.0, 14.0)
    spot = _spot(s, world, radius, wall, band)
    if spot is None:
        if world.things:
            return
        spot = (sum(band) / 2 if band else 0.0, 0.0, s.uniform(0, 6.283))  # the main object must be placed
    x, y, yaw = spot
    if band and kind != "boat" and s.chance(0.8):
        yaw = 1.5708 * s.pick((-1, 1)) + s.uniform(-0.15, 0.15)
    z = world.height_at(x, y)
    support = None
    world.spots.append((x, y, float(max(half)) if wall else radius))
    if kind == "boat" and world.category == "beach":
        z -= 0.15
    elif kind == "bird" and s.chance(0.35):
        z += s.uniform(0.8, 2.0)
    elif kind == "tv":
        support = "cabinet"
        stand = build(support, s)
        stand.scale((1, 1, 0.7))
        world.stage.place(stand, (x, y, z), yaw, support)
        z += float(stand.bounds()[1][2])
    elif kind in ("bottle", "bird", "potted plant") and world.room and s.chance(0.5):
        support = s.pick(("box", "barrel", "cabinet"))
        stand = build(support, s)
        world.stage.place(stand, (x, y, z), yaw, support)
        z += float(stand.bounds()[1][2])
    _record(world, kind, thing, (x, y, z), yaw, support)


def _hang(s: Stylist, world: SceneWorld, kind: str) -> None:
    """Hang an object of a kind on a wall."""
    shape = build(kind, s)
    low, high = shape.bounds()
    half = float(high[0] - low[0]) / 2
    side = int(s.random() * 4)
    x_max, y_max, top = world.room[0] / 2, world.room[1] / 2, world.room[2]
    base = {"windowpane": 0.95, "painting": 1.25, "mirror": 0.9}.get(kind, 0.0) + s.uniform(-0.15, 0.2)
    base = 0.0 if kind in ("door", "radiator") else max(base, 0.05)
    if base + high[2] > top - 0.05:
        return
    reach = (x_max if side < 2 else y_max) - half - 0.1
    if reach <= 0:
        return
    for _ in range(4):
        along = s.uniform(-reach, reach)
        key = (1000.0 * (side + 1) + along, 0.0, half)
        if world.free(*key):
            break
    else:
        return
    world.spots.append(key)
    yaw = (3.1416, 0.0, 1.5708, -1.5708)[side]
    x, y = ((along, -y_max), (along, y_max), (-x_max, along), (x_max, along))[side]
    world.stage.place(shape, (x, y, base), yaw, kind)

"""Builders of furniture, trees, buildings and ground: everything without a COCO class.

One catalogue, so it is longer than other modules. The order of random draws in a builder determines its shapes.
"""

from collections.abc import Callable

import numpy as np

from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.meshes import Paint, Shape, Vector, cone, lathe, roof, turn, wedge

Heights = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cabinet(shape: Shape, s: Stylist) -> None:
    """A low chest with doors or drawers."""
    body = s.wood(s.pick(("brown", "beige"))) if s.chance(0.6) else s.plain(s.pick(("white", "grey", "blue", "green")))
    wide, deep, high = s.uniform(0.7, 1.6), s.uniform(0.4, 0.6), s.uniform(0.6, 1.0)
    shape.box((wide, deep, high), (0, 0, 0), body)
    shape.box((wide + 0.05, deep + 0.05, 0.04), (0, 0, high), s.plain(s.pick(("white", "grey", "black", "brown"))))
    rows, columns = s.pick(((1, 2), (3, 1), (2, 2), (1, 3)))
    for i in range(rows):
        for j in range(columns):
            size = (wide / columns * 0.9, 0.03, high / rows * 0.86)
            at = ((j - (columns - 1) / 2) * wide / columns, -deep / 2 - 0.015, high * (i + 0.07) / rows)
            shape.box(size, at, body)
            shape.box((0.1, 0.04, 0.03), (at[0], at[1] - 0.03, at[2] + size[2] * 0.7), Paint((0.2, 0.2, 0.2)))


def shelf(shape: Shape, s: Stylist) -> None:
    """An open shelf with boxes."""
    wood = s.wood(s.pick(("brown", "beige", "white")))
    wide, high, deep = s.uniform(0.7, 1.4), s.uniform(1.2, 2.0), 0.32
    for x in (-1, 1):
        shape.box((0.04, deep, high), (x * wide / 2, 0, 0), wood)
    shape.box((wide, 0.03, high), (0, deep / 2, 0), wood)
    count = 4
    for i in range(count + 1):
        z = i * (high - 0.04) / count
        shape.box((wide, deep, 0.04), (0, 0, z), wood)
        if i < count:
            for _ in range(2):
                size = (s.uniform(0.1, 0.3) * wide, deep * 0.7, high / count * s.uniform(0.4, 0.8))
                shape.box(size, (s.uniform(-0.33, 0.33) * wide, 0, z + 0.04), s.plain(s.colour("red blue green white")))


def wardrobe(shape: Shape, s: Stylist) -> None:
    body = s.wood(s.pick(("brown", "beige", "white")))
    wide, high = s.uniform(1.0, 1.6), s.uniform(1.8, 2.15)
    shape.box((wide, 0.6, high), (0, 0, 0), body)
    for x in (-1, 1):
        shape.box((wide * 0.47, 0.03, high * 0.92), (x * wide * 0.245, -0.315, high * 0.04), body)
        shape.box((0.04, 0.05, 0.2), (x * 0.06, -0.35, high * 0.5), Paint((0.2, 0.2, 0.2)))


def desk(shape: Shape, s: Stylist) -> None:
    body = s.wood(s.pick(("brown", "beige")))
    wide, deep, high = s.uniform(1.1, 1.6), s.uniform(0.6, 0.75), 0.74
    shape.box((wide, deep, 0.05), (0, 0, high - 0.05), body)
    shape.box((wide * 0.9, 0.03, 0.4), (0, deep / 2 - 0.04, 0.3), body)
    for x in (-1, 1):
        shape.box((0.36, deep * 0.9, high - 0.05), (x * (wide / 2 - 0.2), 0, 0), body)
        for i in range(3):
            at = (x * (wide / 2 - 0.2), -deep * 0.46, 0.05 + i * 0.21)
            shape.box((0.32, 0.03, 0.18), at, s.plain("beige"))


def lamp(shape: Shape, s: Stylist) -> None:
    """A standing lamp with a bright shade."""
    high = s.uniform(1.2, 1.7)
    stick = s.plain(s.pick(("black", "grey", "brown")))
    shape.post(0.32, 0.04, (0, 0, 0), stick)
    shape.post(0.04, high, (0, 0, 0), stick)
    shade = Paint(s.shade(s.pick(((1.0, 0.92, 0.7), (1.0, 0.8, 0.6)))), glow=0.6)
    shape.add(cone(0.6), (0.44, 0.44, 0.34), (0, 0, high), shade)


def crate(shape: Shape, s: Stylist) -> None:
    size = (s.uniform(0.35, 0.9), s.uniform(0.35, 0.9), s.uniform(0.3, 0.9))
    planks = s.chance(0.5)
    wood = s.mixed((0.68, 0.52, 0.34), (0.55, 0.40, 0.25), "planks", 0.15) if planks else s.plain((0.70, 0.55, 0.38))
    shape.box(size, (0, 0, 0), wood)
    shape.box((size[0] * 1.01, 0.08, size[2] * 1.01), (0, 0, 0), s.plain((0.8, 0.7, 0.5)))


def barrel(shape: Shape, s: Stylist) -> None:
    high = s.uniform(0.7, 1.0)
    paint = s.mixed("brown", (0.2, 0.14, 0.1), "bands", high / 3)
    shape.add(lathe(((0.8, 0), (1, 0.3), (1, 0.7), (0.8, 1))), (high * 0.7, high * 0.7, high), (0, 0, 0), paint)


def column(shape: Shape, s: Stylist) -> None:
    """A round or square column from floor to ceiling; stretched by the caller."""
    wide, paint = s.uniform(0.3, 0.6), s.plain(s.pick(("white", "beige", "grey")))
    if s.chance(0.5):
        shape.post(wide, 1.0, (0, 0, 0), paint)
    else:
        shape.box((wide, wide, 1.0), (0, 0, 0), paint)
    shape.box((wide * 1.3, wide * 1.3, 0.05), (0, 0, 0), paint)
    shape.box((wide * 1.3, wide * 1.3, 0.05), (0, 0, 0.949), paint)


def stairs(shape: Shape, s: Stylist) -> None:
    """Steps that rise along y."""
    paint = s.wood() if s.chance(0.5) else s.plain("grey")
    wide, steps = s.uniform(0.9, 1.5), 3 + int(s.random() * 5)
    for i in range(steps):
        shape.box((wide, 0.28, 0.18 * (i + 1)), (0, (i - steps / 2) * 0.28, 0), paint)


def ramp(shape: Shape, s: Stylist) -> None:
    """A sloping plane."""
    size = (s.uniform(1.2, 2.6), s.uniform(1.0, 2.0), s.uniform(0.4, 1.3))
    paint = s.mixed(s.pick(("grey", "beige", "brown")), "white", s.pick(("tiles", "solid", "planks")), 0.3)
    shape.add(wedge(), size, (0, 0, 0), paint)


def windowpane(shape: Shape, s: Stylist) -> None:
    """A pane with a frame, to hang on a wall; its back is at y = 0."""
    frame = s.plain(s.pick(("white", "brown", "grey")))
    wide, high = s.uniform(0.8, 1.8), s.uniform(0.9, 1.4)
    view = Paint(s.shade((0.72, 0.85, 1.0)), s.shade((0.45, 0.62, 0.42)), "noise", 1.2, 0.01, 0.75)
    shape.box((wide, 0.04, high), (0, -0.02, 0), view)
    for x in (-0.5, 0.0, 0.5):
        shape.box((0.06, 0.08, high), (x * wide, -0.04, 0), frame)
    for z in (0.0, 0.5, 1.0):
        shape.box((wide + 0.06, 0.08, 0.06), (0, -0.04, z * high - 0.03), frame)


def door(shape: Shape, s: Stylist) -> None:
    leaf = s.wood() if s.chance(0.5) else s.plain(s.pick(("white", "red", "green", "blue", "grey")))
    frame = s.plain(s.pick(("white", "brown")))
    shape.box((1.02, 0.06, 2.08), (0, -0.03, 0), frame)
    shape.box((0.86, 0.08, 2.0), (0, -0.05, 0), leaf)
    for low in (0.15, 1.1):
        shape.box((0.6, 0.04, 0.75), (0, -0.1, low), leaf)
    shape.leaf((0.08, 0.1, 0.08), (0.35, -0.13, 0.98), s.plain("yellow"))


def painting(shape: Shape, s: Stylist) -> None:
    wide, high = s.uniform(0.5, 1.2), s.uniform(0.4, 0.9)
    colours = s.colour("green blue orange"), s.colour("yellow red white")
    picture = s.mixed(*colours, s.pick(("noise", "patches", "checker", "waves")), 0.3)
    shape.box((wide, 0.05, high), (0, -0.025, 0), s.plain(s.pick(("brown", "black", "yellow", "white"))))
    shape.box((wide * 0.86, 0.02, high * 0.82), (0, -0.055, high * 0.09), picture)


def mirror(shape: Shape, s: Stylist) -> None:
    wide, high = s.uniform(0.5, 0.8), s.uniform(0.7, 1.3)
    shape.box((wide, 0.05, high), (0, -0.025, 0), s.plain(s.pick(("brown", "black", "yellow"))))
    pane = Paint(s.shade((0.7, 0.78, 0.82)), (0.85, 0.9, 0.95), "waves", 1.0, 0.0, 0.35)
    shape.box((wide * 0.88, 0.02, high * 0.9), (0, -0.055, high * 0.05), pane)


def curtain(shape: Shape, s: Stylist) -> None:
    colour = s.colour("red blue green beige white")
    base = s.shade(colour)
    cloth = Paint(base, tuple(0.65 * channel for channel in base), "stripes", 0.16, 0.03)
    wide, high = s.uniform(0.5, 0.9), s.uniform(1.8, 2.2)
    for i in range(5):
        shape.post(wide / 4, high, ((i / 4 - 0.5) * wide, -0.1, 0), cloth)


def radiator(shape: Shape, s: Stylist) -> None:
    paint = s.plain("white", 0.01)
    for i in range(7):
        shape.box((0.1, 0.12, 0.55), ((i - 3) * 0.13, -0.09, 0.12), paint)
    shape.box((0.95, 0.06, 0.04), (0, -0.08, 0.2), paint)


def rug(shape: Shape, s: Stylist) -> None:
    size = (s.uniform(1.2, 2.6), s.uniform(0.9, 1.8), 0.02)
    if s.chance(0.3):
        shape.post(size[1], 0.02, (0, 0, 0), s.fabric(s.colour("red blue green beige"), 0.8))
    else:
        shape.box(size, (0, 0, 0), s.fabric(s.colour("red blue green beige"), 0.8))
        shape.box((size[0] * 0.85, size[1] * 0.8, 0.025), (0, 0, 0), s.fabric(s.colour("white beige red blue"), 0.6))


def light(shape: Shape, s: Stylist) -> None:
    """A bright panel under the ceiling; its top is at z = 0."""
    paint = Paint((1.0, 0.98, 0.9), glow=0.9)
    if s.chance(0.5):
        shape.box((1.1, 0.3, 0.06), (0, 0, -0.06), paint)
    else:
        shape.post(0.5, 0.08, (0, 0, -0.08), paint)


def tree(shape: Shape, s: Stylist) -> None:
    """A trunk with a round crown, or a conifer."""
    bark = s.mixed((0.36, 0.26, 0.18), (0.22, 0.15, 0.10), "noise", 0.3)
    green = s.pick(((0.20, 0.42, 0.14), (0.14, 0.34, 0.14), (0.32, 0.46, 0.14), (0.50, 0.38, 0.12)))
    leaf = s.mixed(green, tuple(0.5 * channel for channel in green), "noise", 0.6, 0.12)
    high = s.uniform(3.0, 6.5)
    if s.chance(0.45):
        shape.post(0.3, high * 0.3, (0, 0, 0), bark)
        for i in range(3):
            wide = high * (0.52 - 0.13 * i)
            shape.add(cone(), (wide, wide, high * 0.42), (0, 0, high * (0.15 + 0.22 * i)), leaf)
    else:
        shape.post(0.32, high * 0.55, (0, 0, 0), bark)
        for _ in range(4):
            wide = high * s.uniform(0.34, 0.5)
            at = (s.uniform(-0.15, 0.15) * high, s.uniform(-0.15, 0.15) * high, high * s.uniform(0.35, 0.6))
            shape.ball((wide, wide, wide * 0.9), at, leaf)


def palm(shape: Shape, s: Stylist) -> None:
    """A thin trunk with long leaves."""
    high = s.uniform(3.0, 5.0)
    shape.add(cone(0.7), (0.36, 0.36, high), (0, 0, 0), s.mixed((0.50, 0.38, 0.25), (0.33, 0.25, 0.16), "bands", 0.4))
    leaf = s.mixed((0.24, 0.48, 0.16), (0.16, 0.32, 0.1), "noise", 0.4)
    for i in range(8):
        shape.leaf((0.45, 0.08, 1.9), (0, 0, high - 0.05), leaf, turn(2, i * 0.785) @ turn(0, s.uniform(1.3, 2.1)))


def cactus(shape: Shape, s: Stylist) -> None:
    """A green post with arms."""
    green = s.mixed((0.25, 0.45, 0.22), (0.16, 0.32, 0.15), "stripes", 0.14)
    high = s.uniform(1.4, 2.6)
    shape.add(lathe(((1, 0), (1, 0.9), (0.6, 1))), (0.4, 0.4, high), (0, 0, 0), green)
    for side in (-1, 1):
        level = high * s.uniform(0.35, 0.6)
        shape.post(0.24, 0.5, (0, 0, level), green, turn(1, side * 1.57))
        shape.post(0.24, high * 0.3, (side * 0.5, 0, level - 0.1), green)


def rock(shape: Shape, s: Stylist) -> None:
    stone = s.pick(((0.48, 0.46, 0.44), (0.56, 0.46, 0.36), (0.40, 0.36, 0.34)))
    paint = s.mixed(stone, tuple(0.65 * channel for channel in stone), "noise", 0.5, 0.1)
    for _ in range(3):
        size = (s.uniform(0.5, 1.4), s.uniform(0.5, 1.3), s.uniform(0.4, 1.1))
        at = (s.uniform(-0.5, 0.5), s.uniform(-0.5, 0.5), -0.1)
        rotation = turn(2, s.uniform(0, 3)) @ turn(0, s.uniform(-0.3, 0.3))
        shape.add(lathe(((0.9, 0), (1.0, 0.35), (0.45, 1)), 6), size, at, paint, rotation)


def building(shape: Shape, s: Stylist) -> None:
    wall = s.shade(s.pick(("red", "beige", "grey", "white", "brown", "yellow")), 0.25)
    wall = tuple(0.5 * channel + 0.2 for channel in wall)
    wide, deep, high = s.uniform(6, 12), s.uniform(6, 9), s.uniform(5, 16)
    paint = Paint(wall, s.shade(s.pick(((0.15, 0.2, 0.28), (0.35, 0.45, 0.55)))), "windows", s.uniform(1.5, 2.4), 0.04)
    shape.box((wide, deep, high), (0, 0, 0), paint)
    shape.box((wide + 0.4, deep + 0.4, 0.4), (0, 0, high), s.plain("grey"))
    shape.box((1.3, 0.2, 2.2), (s.uniform(-0.3, 0.3) * wide, -deep / 2, 0), s.wood())


def house(shape: Shape, s: Stylist) -> None:
    wall = s.mixed(s.pick(("white", "beige", "yellow", "red")), "white", s.pick(("solid", "brick")), 0.3)
    wide, deep, high = s.uniform(4, 6), s.uniform(4, 7), s.uniform(2.4, 3.2)
    shape.box((wide, deep, high), (0, 0, 0), wall)
    tiles = s.mixed(s.pick(("red", "brown", "grey")), (0.25, 0.15, 0.12), "tiles", 0.4)
    shape.add(roof(), (wide + 0.8, deep + 0.6, s.uniform(1.2, 2.4)), (0, 0, high), tiles)
    for x in (-0.28, 0.28):
        shape.box((0.9, 0.1, 0.9), (x * wide, -deep / 2, 1.1), Paint((0.2, 0.26, 0.34)))
    shape.box((0.9, 0.12, 1.9), (0, -deep / 2, 0), s.plain(s.pick(("brown", "green", "red", "blue"))))


def fence(shape: Shape, s: Stylist) -> None:
    wood = s.plain(s.pick(("white", "brown", "grey")))
    for z in (0.3, 0.75):
        shape.box((3.2, 0.05, 0.1), (0, 0, z), wood)
    for i in range(8):
        shape.box((0.14, 0.06, 1.05), ((i - 3.5) * 0.44, -0.05, 0), wood)


def streetlight(shape: Shape, s: Stylist) -> None:
    paint = s.plain(s.pick(("grey", "black", "green")))
    high = s.uniform(3.2, 4.6)
    shape.add(cone(0.6), (0.2, 0.2, high), (0, 0, 0), paint)
    shape.box((1.1, 0.1, 0.1), (0.5, 0, high - 0.1), paint)
    shape.box((0.5, 0.26, 0.12), (0.95, 0, high - 0.2), Paint((1.0, 0.95, 0.8), glow=0.5))


def signboard(shape: Shape, s: Stylist) -> None:
    high = s.uniform(0.8, 1.6)
    for x in (-0.5, 0.5):
        shape.post(0.08, high + 0.4, (x, 0, 0), s.plain("grey"))
    board = s.mixed(s.colour("green blue yellow"), "white", s.pick(("bands", "lines", "dots")), 0.3)
    shape.box((1.5, 0.08, 0.9), (0, -0.06, high), board)


def peak(s: Stylist, far: bool) -> Shape:
    """A mountain, sometimes with snow; or a rounded hill."""
    shape = Shape()
    sides = 7
    stone = s.pick(((0.42, 0.42, 0.46), (0.50, 0.42, 0.36), (0.34, 0.40, 0.34)))
    paint = s.mixed(stone, tuple(0.7 * channel for channel in stone), "noise", 9.0 if far else 2.0, 0.05)
    wide, high = s.uniform(50, 90), s.uniform(18, 45)
    if not far:
        wide, high = wide * 0.22, high * 0.2
    profile = [(1.0, 0.0), (0.62, 0.3), (0.34, 0.66), (0.02, 1.0)]
    shape.add(lathe(tuple(profile), sides), (wide, wide, high), (0, 0, -0.5), paint)
    if s.chance(0.5):
        snow = s.mixed("white", (0.75, 0.8, 0.9), "noise", 5.0)
        top = tuple((radius * 1.04, height) for radius, height in ((0.36, 0.66), (0.02, 1.01)))
        shape.add(lathe(top, sides), (wide, wide, high), (0, 0, -0.5), snow)
    return shape


def ground(heights: Heights, bands: list[tuple[float, str, Paint]], reach: float, cells: int = 16) -> Shape:
    """A square ground of side 2 * `reach`, with a finer mesh in the middle, divided along x into bands.

    bands: (end in x, kind, paint), x increasing; the last one ends beyond `reach`.
    """
    shape = Shape()
    line = np.linspace(-1, 1, cells + 1)
    base = np.sign(line) * np.abs(line) ** 2.2 * reach
    y = base.astype(np.float32)
    start = -reach
    for end, kind, paint in bands:
        end = min(end, reach)
        if end <= start:
            continue
        inside = base[(base > start + 0.05) & (base < end - 0.05)]
        x = np.concatenate([[start], inside, [end]]).astype(np.float32)
        xs, ys = np.meshgrid(x, y, indexing="ij")
        vertices = np.stack([xs, ys, heights(xs, ys)], axis=-1).reshape(-1, 3).astype(np.float32)
        i, j = (index.ravel() for index in np.meshgrid(np.arange(len(x) - 1), np.arange(cells), indexing="ij"))
        corner = i * (cells + 1) + j
        quads = np.stack([corner, corner + cells + 1, corner + cells + 2, corner + 1], axis=1)
        triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
        shape.add((vertices, triangles), (1, 1, 1), (0, 0, 0), paint, kind=kind)
        start = end
    return shape


def shell(size: Vector, slope: float, paints: tuple[Paint, list[Paint], Paint]) -> Shape:
    """The inside of a room centred on the origin: floor, four walls, ceiling.

    size: x, y and mean height. slope: rise of the ceiling over the room's width. paints: floor, walls, ceiling.
    """
    shape = Shape()
    x, y, z = size[0] / 2, size[1] / 2, size[2]
    low, high = z - slope / 2, z + slope / 2
    square = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    floor = [(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)]
    top = [(-x, -y, low), (x, -y, high), (x, y, high), (-x, y, low)]
    shape.add((np.array(floor, np.float32), square), (1, 1, 1), (0, 0, 0), paints[0], kind="floor")
    shape.add((np.array(top, np.float32), square), (1, 1, 1), (0, 0, 0), paints[2], kind="ceiling")
    for i in range(4):
        j = (i + 1) % 4
        wall = np.array([floor[i], floor[j], top[j], top[i]], np.float32)
        shape.add((wall, square), (1, 1, 1), (0, 0, 0), paints[1][i], kind="wall")
    return shape


SCENERY: dict[str, Callable[[Shape, Stylist], None]] = {"box": crate} | {
    builder.__name__: builder
    for builder in (
        cabinet, shelf, wardrobe, desk, lamp, barrel, column, stairs, ramp, windowpane, door, painting, mirror, curtain,
        radiator, rug, light, tree, palm, cactus, rock, building, house, fence, streetlight, signboard,
    )
}  # fmt: skip
"""Kind -> builder, which adds its parts to a shape. Scenery for walls has its back at y = 0."""


def build(kind: str, s: Stylist) -> Shape:
    """A piece of scenery of a kind."""
    shape = Shape()
    SCENERY[kind](shape, s)
    return shape

"""Builders of the sixteen object classes, with typical proportions, colours and textures.

A builder makes one object, about life-size (small objects are enlarged, to be visible in small images), and returns the
colour and name for its caption. One catalogue, so it is longer than other modules. The order of random draws in a
builder determines its shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.meshes import Paint, Shape, cone, cylinder, lathe, strip, turn


class Thing(NamedTuple):
    """An object of one class."""

    shape: Shape
    colour: str
    """Colour name for the caption."""
    name: str
    """Name for the caption: a more specific one, or the class name."""


GLASS = (0.16, 0.20, 0.26)
SKIN = ((0.85, 0.64, 0.50), (0.72, 0.50, 0.36), (0.48, 0.31, 0.21), (0.33, 0.21, 0.15))
METAL = (0.62, 0.63, 0.66)
CAR = (
    (-0.5, 0.15, 0.45), (-0.46, 0.12, 0.55), (-0.2, 0.12, 0.6), (0.42, 0.12, 0.6), (0.48, 0.12, 0.55), (0.5, 0.2, 0.45),
)  # fmt: skip
HULL = (
    (-0.5, 0.85, 1.05), (-0.42, 0.3, 1.0), (-0.25, 0.0, 0.92), (0.3, 0.0, 0.92), (0.46, 0.1, 0.96), (0.5, 0.5, 1.0),
)  # fmt: skip


def person(s: Stylist) -> Thing:
    """Head, hair, torso, two arms, two legs; shirt, and trousers or a skirt."""
    shape, colour = Shape(), s.colour("red blue green yellow white black purple orange")
    skin = Paint(s.shade(s.pick(SKIN)), grain=0.02)
    shirt, trousers = s.fabric(colour), s.plain(s.colour("blue black grey brown beige"))
    hair = s.plain(s.pick(("black", "brown", "yellow", "grey")))
    wide, stride = s.uniform(0.9, 1.15), s.uniform(0.0, 0.3)
    if s.chance(0.25):
        shape.add(cone(0.5), (0.55 * wide, 0.45, 0.6), (0, 0, 0.35), shirt)
        for side in (-1, 1):
            shape.post(0.11, 0.4, (0.1 * side, 0, 0), skin)
    else:
        for side in (-1, 1):
            shape.post(0.17, 0.88, (0.1 * side, -side * stride, 0), trousers, turn(0, -side * stride * 1.1))
    shape.add(cone(1.25), (0.36 * wide, 0.24, 0.62), (0, 0, 0.84), shirt)
    for side in (-1, 1):
        lift = s.pick((0.15, 0.3, 0.3, 1.3, 2.4))
        bend = turn(1, side * (3.14 - lift))
        shape.post(0.11, 0.36, (0.25 * side * wide, 0, 1.40), shirt, bend)
        shape.post(0.09, 0.62, (0.25 * side * wide, 0, 1.40), skin, bend)
    shape.post(0.11, 0.12, (0, 0, 1.44), skin)
    shape.ball((0.23, 0.25, 0.29), (0, 0, 1.52), skin)
    shape.ball((0.26, 0.26, 0.22), (0, 0.03, 1.64), hair)
    shape.leaf((0.05, 0.05, 0.05), (0, -0.13, 1.63), skin)
    return Thing(shape, colour, s.pick(("person", "person", "man", "woman")))


def car(s: Stylist) -> Thing:
    """A saloon, a low sports car, an estate or a pick-up."""
    shape, colour = Shape(), s.colour("red blue white grey black green yellow")
    body, glass = s.plain(colour, 0.015), Paint(GLASS, grain=0.02)
    model = s.pick(("sports car", "sports car", "car", "wagon"))
    length, height = (4.2, 1.15) if model == "sports car" else (4.2, 1.5)
    shape.add(strip(CAR), (length, 1.75, height), (0, 0, 0), body)
    back = 0.48 if model == "wagon" else 0.3
    for thick, paint, grow in ((1.5, body, 0.0), (1.54, glass, -0.045)):
        top, base = 1.0 + 1.2 * min(grow, 0), 0.58 - 0.5 * grow
        cabin = strip(
            ((-0.24 - 1.2 * grow, base, base), (-0.08, base, top), (back - 0.14, base, top), (back + grow, base, base))
        )
        shape.add(cabin, (length, thick, height), (0, 0, 0), paint)
    shape.add(strip(((-0.215, 0.62, 0.66), (-0.1, 0.9, 0.99))), (length * 1.02, 1.3, height), (-0.07, 0, 0), glass)
    tyre, hub = Paint((0.06, 0.06, 0.07)), s.plain(METAL)
    for x in (-0.31, 0.3):
        for y in (-0.8, 0.8):
            shape.post(0.66, 0.22, (x * length, y + 0.11, 0.33), tyre, turn(0, 1.5708))
            shape.post(0.36, 0.26, (x * length, y + 0.13, 0.33), hub, turn(0, 1.5708))
    for y in (-0.62, 0.62):
        shape.box((0.1, 0.28, 0.13), (-length / 2 - 0.01, y, 0.42 * height), Paint((1.0, 0.97, 0.8), glow=0.5))
        shape.box((0.1, 0.28, 0.13), (length / 2 + 0.01, y, 0.42 * height), Paint((0.8, 0.06, 0.05), glow=0.2))
    return Thing(shape, colour, model)


def bus(s: Stylist) -> Thing:
    """A long box with a row of windows."""
    shape, colour = Shape(), s.colour("yellow yellow red blue white green")
    body, glass = s.plain(colour, 0.02), Paint(GLASS, grain=0.02)
    length, height = s.uniform(6.5, 9), s.uniform(2.5, 3.1)
    shape.box((length, 2.4, height - 0.35), (0, 0, 0.35), body)
    shape.box((length * 0.96, 2.2, 0.12), (0, 0, height), s.plain("white"))
    count = 5 if length < 7.5 else 6
    for i in range(count):
        x = (i - (count - 1) / 2) * (length * 0.94 / count)
        shape.box((length * 0.76 / count, 2.44, height * 0.28), (x, 0, height * 0.55), glass)
    shape.box((0.1, 2.1, height * 0.36), (-length / 2, 0, height * 0.48), glass)
    shape.box((0.1, 2.0, height * 0.25), (length / 2, 0, height * 0.55), glass)
    if s.chance(0.7):
        band = s.plain("black" if colour == "yellow" else "white")
        shape.box((length * 1.002, 2.42, 0.16), (0, 0, height * 0.36), band)
    for x in (-0.32, 0.3):
        for y in (-1.1, 1.1):
            shape.post(0.95, 0.3, (x * length, y + 0.15, 0.47), Paint((0.06, 0.06, 0.07)), turn(0, 1.5708))
            shape.post(0.45, 0.34, (x * length, y + 0.17, 0.47), s.plain(METAL), turn(0, 1.5708))
    for y in (-0.85, 0.85):
        shape.box((0.06, 0.3, 0.2), (-length / 2 - 0.03, y, 0.6), Paint((1.0, 0.97, 0.8), glow=0.5))
    return Thing(shape, colour, "school bus" if colour == "yellow" else s.pick(("bus", "bus", "coach")))


def boat(s: Stylist) -> Thing:
    """A hull with a mast and sails, or with a cabin."""
    shape, colour = Shape(), s.colour("white blue red brown yellow")
    length = s.uniform(3.6, 5.0)
    shape.add(strip(HULL), (length, 1.5, 0.9), (0, 0, 0), s.plain(colour, 0.02))
    shape.box((length * 0.86, 1.54, 0.12), (0, 0, 0.66), s.plain(s.pick(("white", "red", "blue", "brown"))))
    sails = s.chance(0.7)
    if sails:
        mast, sail = s.wood("beige"), s.fabric(s.pick(("white", "white", "beige", "red", "orange")), 0.3)
        tall = s.uniform(3.6, 4.8)
        shape.post(0.12, tall, (-0.3, 0, 0.8), mast)
        shape.add(strip(((0.0, 0.0, 1.0), (1.0, 0.0, 0.04))), (length * 0.45, 0.05, tall * 0.85), (-0.2, 0, 1.05), sail)
        if s.chance(0.7):
            jib = strip(((-1.0, 0.0, 0.03), (0.0, 0.0, 1.0)))
            shape.add(jib, (length * 0.33, 0.05, tall * 0.7), (-0.45, 0, 1.05), sail)
    else:
        shape.box((length * 0.34, 1.1, 0.8), (0.2, 0, 0.85), s.plain("white"))
        shape.box((length * 0.3, 1.14, 0.3), (0.2, 0, 1.2), Paint(GLASS))
        shape.box((length * 0.4, 1.2, 0.1), (0.2, 0, 1.62), s.plain(colour))
    return Thing(shape, colour, s.pick(("yawl", "yawl", "sailboat")) if sails else "boat")


def bird(s: Stylist) -> Thing:
    """Body, head, beak, tail, wings, legs; a red-breasted one is a robin."""
    shape, colour = Shape(), s.colour("brown brown brown blue white black yellow red")
    robin = colour == "brown"
    coat = s.plain(colour, 0.07)
    breast = s.plain("orange" if robin else s.pick(("white", "yellow", "grey", colour)), 0.05)
    beak = s.plain(s.pick(("orange", "yellow", "black")))
    shape.ball((0.36, 0.62, 0.36), (0, 0.02, 0.22), coat, turn(0, -0.4))
    shape.ball((0.33, 0.36, 0.36), (0, -0.17, 0.2), breast)
    shape.ball((0.27, 0.28, 0.27), (0, -0.24, 0.52), coat)
    shape.add(cone(), (0.1, 0.1, 0.18), (0, -0.36, 0.65), beak, turn(0, 1.6))
    shape.box((0.2, 0.42, 0.05), (0, 0.44, 0.26), coat, turn(0, 0.3))
    spread = s.chance(0.3)
    for side in (-1, 1):
        if spread:
            shape.ball((0.75, 0.34, 0.06), (0.42 * side, 0.05, 0.48), coat, turn(1, -0.35 * side))
        else:
            shape.ball((0.1, 0.52, 0.26), (0.17 * side, 0.1, 0.28), s.plain(colour, 0.1, spread=0.35), turn(0, -0.35))
        shape.leaf((0.04, 0.05, 0.05), (0.11 * side, -0.34, 0.66), Paint((0.03, 0.03, 0.03)))
        shape.post(0.035, 0.26, (0.08 * side, -0.02, 0), beak)
    return Thing(shape, colour, "robin" if robin else "bird")


BOTTLE = (
    ((0.9, 0.0), (1.0, 0.04), (1.0, 0.58), (0.42, 0.74), (0.36, 0.93)),
    ((0.9, 0.0), (1.0, 0.03), (1.0, 0.45), (0.6, 0.65), (0.34, 0.80), (0.34, 0.93)),
    ((0.85, 0.0), (1.0, 0.05), (0.9, 0.35), (1.0, 0.6), (0.5, 0.8), (0.4, 0.93)),
)


def bottle(s: Stylist) -> Thing:
    """A turned profile with a label and a cap."""
    shape, colour = Shape(), s.colour("green green brown blue white red")
    height = s.uniform(0.42, 0.6)
    wide = height * s.uniform(0.26, 0.36)
    shape.add(lathe(s.pick(BOTTLE), 14), (wide, wide, height), (0, 0, 0), s.plain(colour, 0.015))
    if s.chance(0.8):
        ground, print_ = s.pick(("white", "beige", "yellow", "red")), s.pick(("black", "red", "blue"))
        label = s.mixed(ground, print_, "bands", height * 0.12)
        shape.add(cylinder(14), (wide * 1.03, wide * 1.03, height * 0.24), (0, 0, height * 0.16), label)
    cap = s.plain(s.pick(("red", "black", "yellow", "white", "blue")))
    shape.post(wide * 0.42, height * 0.09, (0, 0, height * 0.92), cap)
    return Thing(shape, colour, "wine bottle" if colour == "green" else "bottle")


def chair(s: Stylist) -> Thing:
    """Four legs, a seat and a back that is a board, slats or rungs."""
    shape, colour = Shape(), s.colour("brown brown white black red blue green")
    frame = s.wood() if colour == "brown" else s.plain(colour)
    seat = s.fabric(s.pick(("red", "blue", "grey", "beige"))) if s.chance(0.35) else frame
    wide, high, top = s.uniform(0.46, 0.58), s.uniform(0.42, 0.52), s.uniform(0.9, 1.1)
    folding = s.chance(0.3)
    for x in (-1, 1):
        for y in (-1, 1):
            tilt = turn(0, 0.35 * y) if folding else None
            at = (x * (wide / 2 - 0.03), y * (wide / 2 - 0.03) * (-0.6 if folding else 1), 0)
            shape.box((0.06, 0.06, high), at, frame, tilt)
    shape.box((wide, wide, 0.07), (0, 0, high - 0.03), seat)
    lean = turn(0, -s.uniform(0.05, 0.25))
    rise = top - high
    style = s.pick(("board", "slats", "rungs"))
    for x in (-1, 1):
        shape.box((0.05, 0.05, rise), (x * (wide / 2 - 0.03), wide / 2 - 0.03, high), frame, lean)
    if style == "board":
        shape.box((wide, 0.05, rise * 0.6), (0, wide / 2 + 0.01, high + rise * 0.4), seat, lean)
    elif style == "slats":
        for i in (-1, 0, 1):
            shape.box((0.06, 0.04, rise), (i * wide * 0.25, wide / 2 - 0.03, high), frame, lean)
        shape.box((wide, 0.05, 0.1), (0, wide / 2 + 0.05, top - 0.08), frame)
    else:
        for share in (0.3, 0.6, 0.92):
            shape.box((wide, 0.04, 0.09), (0, wide / 2 + 0.05 * share, high + rise * share - 0.04), frame)
    names = ("chair", "chair", "wooden chair") if colour == "brown" else ("chair",)
    return Thing(shape, colour, "folding chair" if folding else s.pick(names))


def couch(s: Stylist) -> Thing:
    """Base, cushions, back and two arms, all in one fabric."""
    shape, colour = Shape(), s.colour("red blue grey beige green brown purple")
    cloth = s.fabric(colour, 0.5)
    wide, deep = s.uniform(1.5, 2.2), s.uniform(0.8, 0.95)
    shape.box((wide, deep, 0.32), (0, 0, 0.08), cloth)
    seats = 2 if wide < 1.85 else 3
    inner = wide - 0.4
    for i in range(seats):
        x = (i - (seats - 1) / 2) * inner / seats
        shape.box((inner / seats * 0.96, deep - 0.25, 0.15), (x, -0.1, 0.38), cloth)
    shape.box((wide, 0.24, s.uniform(0.72, 0.9)), (0, deep / 2 - 0.1, 0.08), cloth, turn(0, -0.1))
    for x in (-1, 1):
        shape.box((0.2, deep, 0.58), (x * (wide / 2 - 0.1), 0, 0.08), cloth)
        shape.box((0.08, 0.08, 0.1), (x * (wide / 2 - 0.1), -deep / 2 + 0.1, 0), s.wood())
    if s.chance(0.6):
        pillow = s.fabric(s.pick(("yellow", "white", "red", "blue", "orange")))
        shape.box((0.42, 0.14, 0.4), (s.pick((-1, 1)) * inner * 0.3, 0.12, 0.5), pillow, turn(0, -0.3))
    return Thing(shape, colour, s.pick(("studio couch", "studio couch", "couch")))


def potted_plant(s: Stylist) -> Thing:
    """A pot with leaves on stems, a round bush or blades."""
    shape, colour = Shape(), s.colour("orange brown white red grey blue")
    pot_high, wide = s.uniform(0.28, 0.45), s.uniform(0.34, 0.48)
    shape.add(cone(1.35), (wide * 0.75, wide * 0.75, pot_high), (0, 0, 0), s.plain(colour))
    shape.post(wide * 1.1, 0.06, (0, 0, pot_high - 0.05), s.plain(colour))
    leaf = s.mixed("green", (0.10, 0.32, 0.10), "noise", 0.08, 0.08)
    style = s.pick(("bush", "leaves", "blades"))
    if style == "bush":
        for _ in range(5):
            size = s.uniform(0.32, 0.5)
            at = (s.uniform(-0.18, 0.18), s.uniform(-0.18, 0.18), pot_high + s.uniform(-0.05, 0.35))
            shape.ball((size, size, size), at, leaf)
    else:
        for i in range(9):
            angle, bend = i * 2.4, s.uniform(0.15, 0.9)
            rotation = turn(2, angle) @ turn(0, bend)
            long = s.uniform(0.5, 0.9)
            size = (0.12, 0.05, long) if style == "blades" else (0.24, 0.05, long * 0.9)
            shape.leaf(size, (0, 0, pot_high - 0.04), leaf, rotation)
    if s.chance(0.25):
        for _ in range(4):
            at = (s.uniform(-0.25, 0.25), s.uniform(-0.25, 0.25), pot_high + s.uniform(0.25, 0.55))
            shape.leaf((0.14, 0.14, 0.14), at, s.plain(s.pick(("red", "yellow", "pink", "white"))))
    return Thing(shape, colour, s.pick(("potted plant", "flowerpot", "plant pot")))


def dining_table(s: Stylist) -> Thing:
    """A square, long or round top on legs."""
    shape, colour = Shape(), s.colour("brown brown brown white beige black")
    top = s.wood(colour) if colour in ("brown", "beige") else s.plain(colour)
    cloth = s.fabric(s.pick(("red", "white", "blue", "green")), 0.9) if s.chance(0.2) else top
    high = s.uniform(0.68, 0.8)
    if s.chance(0.35):
        wide = s.uniform(0.9, 1.3)
        shape.post(wide, 0.06, (0, 0, high - 0.06), cloth)
        shape.post(0.12, high - 0.06, (0, 0, 0), top)
        shape.post(0.5, 0.05, (0, 0, 0), top)
        return Thing(shape, colour, s.pick(("dining table", "table", "round table")))
    wide, deep = s.uniform(1.2, 1.9), s.uniform(0.75, 1.0)
    shape.box((wide, deep, 0.06), (0, 0, high - 0.06), cloth)
    shape.box((wide * 0.9, deep * 0.85, 0.08), (0, 0, high - 0.14), top)
    for x in (-1, 1):
        for y in (-1, 1):
            shape.box((0.08, 0.08, high - 0.06), (x * (wide / 2 - 0.07), y * (deep / 2 - 0.07), 0), top)
    return Thing(shape, colour, s.pick(("dining table", "dining table", "table")))


def tv(s: Stylist) -> Thing:
    """A screen in a dark frame, on a foot."""
    shape, colour = Shape(), s.colour("black black black grey white")
    wide = s.uniform(0.8, 1.25)
    high = wide * s.uniform(0.56, 0.7)
    case = s.plain(colour, 0.01)
    shape.box((wide, 0.08, high), (0, 0, 0.12), case)
    if s.chance(0.6):
        first, second = s.pick((("blue", "green"), ("blue", "white"), ("orange", "purple"), ("green", "yellow")))
        pattern = ("noise", "bands", "checker", "stripes")
        picture = Paint(s.shade(first), s.shade(second), s.pick(pattern), wide * 0.3, 0.01, 0.8)
    else:
        picture = Paint(s.shade((0.1, 0.12, 0.16)), glow=0.3, grain=0.01)
    shape.box((wide * 0.91, 0.02, high * 0.88), (0, -0.045, 0.12 + high * 0.06), picture)
    shape.box((0.12, 0.06, 0.14), (0, 0, 0), case)
    shape.box((wide * 0.45, 0.24, 0.03), (0, 0, 0), case)
    return Thing(shape, colour, s.pick(("tv", "television", "television")))


def bed(s: Stylist) -> Thing:
    """Frame, mattress, blanket, pillows, headboard; sometimes four posts."""
    shape, colour = Shape(), s.colour("blue red white green beige purple pink")
    frame, sheet, blanket = s.wood(), s.plain("white"), s.fabric(colour, 0.6)
    wide = s.uniform(1.1, 1.8)
    shape.box((wide, 2.0, 0.28), (0, 0, 0.06), frame)
    shape.box((wide * 0.97, 1.94, 0.2), (0, 0, 0.34), sheet)
    shape.box((wide * 1.0, 1.3, 0.2), (0, -0.34, 0.37), blanket)
    shape.box((wide * 1.04, 0.08, s.uniform(0.85, 1.15)), (0, 1.0, 0), frame)
    pillows = 1 if wide < 1.35 else 2
    for i in range(pillows):
        shape.ball((wide * 0.8 / pillows, 0.42, 0.26), ((i - (pillows - 1) / 2) * wide * 0.45, 0.68, 0.48), sheet)
    posts = s.chance(0.45)
    if posts:
        for x in (-1, 1):
            for y in (-1, 1):
                shape.post(0.09, 1.8, (x * wide * 0.49, y * 0.98, 0), frame)
        if s.chance(0.6):
            shape.box((wide * 1.04, 2.05, 0.07), (0, 0, 1.78), s.fabric(colour, 0.3))
    else:
        shape.box((wide * 1.04, 0.06, 0.45), (0, -1.0, 0), frame)
    return Thing(shape, colour, s.pick(("four-poster", "four-poster bed")) if posts else "bed")


def refrigerator(s: Stylist) -> Thing:
    """A tall box with two doors and handles."""
    shape, colour = Shape(), s.colour("white white grey red blue green")
    body = s.plain(colour, 0.01)
    wide, high = s.uniform(0.68, 0.85), s.uniform(1.55, 1.95)
    split = s.pick((0.3, 0.62, 0.7))
    shape.box((wide, 0.66, high), (0, 0, 0), body)
    for low, top in ((0.03, split - 0.012), (split + 0.012, 0.985)):
        shape.box((wide * 0.96, 0.05, high * (top - low)), (0, -0.345, high * low), body)
        at = (-wide * 0.36, -0.4, high * (low + (top - low) * 0.25))
        shape.box((0.05, 0.06, high * (top - low) * 0.5), at, s.plain(METAL))
    shape.box((wide * 0.97, 0.03, 0.03), (0, -0.335, high * split - 0.015), Paint((0.1, 0.1, 0.1)))
    return Thing(shape, colour, s.pick(("refrigerator", "refrigerator", "fridge")))


def umbrella(s: Stylist) -> Thing:
    """A canopy in two colours on a stick."""
    shape, colour = Shape(), s.colour("red blue yellow green white purple orange")
    wide, high = s.uniform(1.3, 1.9), s.uniform(1.6, 2.1)
    canopy = s.fabric(colour, 0.6)
    rise = wide * s.uniform(0.2, 0.32)
    dome = lathe(((1.0, 0.0), (0.86, 0.42), (0.55, 0.78), (0.2, 0.97)), 8)
    shape.add(dome, (wide, wide, rise), (0, 0, high - rise), canopy)
    shape.post(0.05, high + 0.1, (0, 0, 0), s.plain(s.pick(("white", "black", "brown"))))
    return Thing(shape, colour, s.pick(("umbrella", "umbrella", "parasol")))


def sports_ball(s: Stylist) -> Thing:
    """A black and white soccer ball, an orange basketball, a striped beach ball."""
    shape = Shape()
    size = s.uniform(0.4, 0.6)
    name = s.pick(("soccer ball", "soccer ball", "basketball", "ball"))
    if name == "soccer ball":
        colour, paint = "white", s.mixed("white", "black", "dots", size * 0.42)
    elif name == "basketball":
        colour, paint = "orange", s.mixed("orange", "black", "lines", size * 0.5)
    else:
        colour = s.colour("red blue yellow green")
        paint = s.mixed(colour, "white", "stripes", size * 0.3)
    shape.ball((size, size, size), (0, 0, 0), paint)
    return Thing(shape, colour, name)


def traffic_light(s: Stylist) -> Thing:
    """Three lamps in a dark case on a pole, one of them lit."""
    shape, colour = Shape(), s.colour("black yellow green")
    pole, high = s.plain(s.pick(("grey", "black", "green"))), s.uniform(1.3, 2.2)
    shape.post(0.12, high, (0, 0, 0), pole)
    shape.box((0.44, 0.34, 1.2), (0, 0, high), s.plain(colour, spread=0.3))
    lit = int(s.random() * 3)
    for i, lamp in enumerate(((0.1, 0.95, 0.35), (1.0, 0.75, 0.1), (1.0, 0.12, 0.08))):
        gain = 1.0 if i == lit else 0.22
        paint = Paint(tuple(gain * channel for channel in lamp), glow=0.9 if i == lit else 0.1, grain=0.01)
        shape.post(0.3, 0.08, (0, -0.16, high + 0.22 + 0.38 * i), paint, turn(0, 1.5708))
        shape.box((0.34, 0.16, 0.03), (0, -0.24, high + 0.38 + 0.38 * i), s.plain("black"))
    return Thing(shape, colour, s.pick(("traffic light", "traffic light", "traffic signal")))


BUILDERS: dict[str, Callable[[Stylist], Thing]] = {
    builder.__name__.replace("_", " "): builder
    for builder in (
        person, car, bus, boat, bird, bottle, chair, couch, potted_plant, dining_table, tv, bed, refrigerator, umbrella,
        sports_ball, traffic_light,
    )
}  # fmt: skip
"""Kind -> builder."""

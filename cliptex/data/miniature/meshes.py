"""Mesh primitives, and shapes composed of them.

A primitive spans x, y in -0.5..0.5 and z in 0..1; it is placed by its size and the centre of its base.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

Vector = tuple[float, float, float]
Primitive = tuple[np.ndarray, np.ndarray]
"""Vertices float32 [V, 3] and triangles int32 [F, 3]."""


class Paint(NamedTuple):
    """Appearance of a surface: two colours (RGB in 0..1) mixed by a pattern; its size is in metres."""

    colour: Vector
    other: Vector = (0.0, 0.0, 0.0)
    pattern: str = "solid"
    size: float = 0.2
    grain: float = 0.03
    glow: float = 0.0
    """Share of the colour that is independent of the light."""


def _quads_to_triangles(quads: np.ndarray) -> np.ndarray:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


@cache
def box() -> Primitive:
    vertices = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)], np.float32)
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    return vertices, _quads_to_triangles(quads)


@cache
def lathe(profile: tuple[tuple[float, float], ...], segments: int = 12) -> Primitive:
    """A solid of revolution around the z axis with closed ends. profile: (radius, height) relative to the size."""
    rings = [(0.0, profile[0][1]), *profile, (0.0, profile[-1][1])]
    angle = np.arange(segments) * (2 * np.pi / segments)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 0.5
    vertices = np.concatenate([np.c_[circle * radius, np.full(segments, height)] for radius, height in rings])
    start = np.arange(segments)
    after = (start + 1) % segments
    quads = np.concatenate(
        [
            np.stack([start, after, after + segments, start + segments], axis=1) + ring * segments
            for ring in range(len(rings) - 1)
        ]
    )
    triangles = _quads_to_triangles(quads)
    # the rings at the ends have radius 0, so half of their triangles are degenerate
    first, last = triangles[: len(quads)], triangles[len(quads) :]
    return vertices.astype(np.float32), np.concatenate(
        [first[quads[:, 0] >= segments], last[quads[:, 2] < (len(rings) - 1) * segments]]
    )


def cylinder(segments: int = 12) -> Primitive:
    return lathe(((1.0, 0.0), (1.0, 1.0)), segments)


def cone(top: float = 0.0, segments: int = 12) -> Primitive:
    """A cone, or a frustum. top: top radius relative to the base radius."""
    return lathe(((1.0, 0.0), (max(top, 1e-3), 1.0)), segments)


@cache
def ball(segments: int = 12, rings: int = 6) -> Primitive:
    angles = np.linspace(0.02, np.pi - 0.02, rings)
    return lathe(tuple((float(np.sin(a)), float(0.5 - 0.5 * np.cos(a))) for a in angles), segments)


@cache
def strip(profile: tuple[tuple[float, float, float], ...]) -> Primitive:
    """An extrusion along y. profile: (x, bottom, top) relative to the size, x increasing."""
    points = np.array(profile, np.float32)
    count = len(points)
    x, low, high = points.T
    corners = [(x, -0.5, low), (x, -0.5, high), (x, 0.5, low), (x, 0.5, high)]
    vertices = np.concatenate([np.stack([x, np.full(count, y), z], axis=1) for x, y, z in corners])
    a = np.arange(count - 1)
    b = a + 1
    front_low, front_high, back_low, back_high = (np.stack([a, b], axis=1) + k * count for k in range(4))
    sides = [(front_low, front_high), (back_low, back_high), (front_low, back_low), (front_high, back_high)]
    quads = [np.stack([p[:, 0], p[:, 1], q[:, 1], q[:, 0]], axis=1) for p, q in sides]
    ends = np.array([[i, i + count, i + 3 * count, i + 2 * count] for i in (0, count - 1)])
    return vertices.astype(np.float32), _quads_to_triangles(np.concatenate([*quads, ends]))


def wedge() -> Primitive:
    """A ramp that rises along x."""
    return strip(((-0.5, 0.0, 0.0), (0.5, 0.0, 1.0)))


def roof() -> Primitive:
    """A gable whose ridge runs along y."""
    return strip(((-0.5, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.0, 0.0)))


def turn(axis: int, angle: float) -> np.ndarray:
    """Rotation by `angle` radians about the x (0), y (1) or z (2) axis, float32 [3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    out = np.eye(3, dtype=np.float32)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


@dataclass(frozen=True)
class MeshPart:
    """A placed primitive: vertices float32 [V, 3] in the shape's frame (metres), triangles, paint, kind."""

    vertices: np.ndarray
    triangles: np.ndarray
    paint: Paint
    kind: str | None = None


class Shape:
    """Mesh parts in a common frame: z up, the front towards -y, the base at z = 0."""

    def __init__(self) -> None:
        self.parts: list[MeshPart] = []

    def add(
        self,
        primitive: Primitive,
        size: Vector,
        at: Vector,
        paint: Paint,
        rotation: np.ndarray | None = None,
        kind: str | None = None,
    ) -> None:
        """Add a primitive of `size` with its base centre at `at`, rotated about that point.

        kind: for a part with a kind of its own, e.g. the road in a ground.
        """
        vertices = primitive[0] * np.array(size, np.float32)
        if rotation is not None:
            vertices = vertices @ rotation.T
        self.parts.append(MeshPart(vertices + np.array(at, np.float32), primitive[1], paint, kind))

    def box(self, size: Vector, at: Vector, paint: Paint, rotation: np.ndarray | None = None) -> None:
        self.add(box(), size, at, paint, rotation)

    def post(self, diameter: float, height: float, at: Vector, paint: Paint, rotation: np.ndarray | None = None):
        self.add(cylinder(6 if diameter < 0.13 else 12), (diameter, diameter, height), at, paint, rotation)

    def ball(self, size: Vector, at: Vector, paint: Paint, rotation: np.ndarray | None = None) -> None:
        self.add(ball(), size, at, paint, rotation)

    def leaf(self, size: Vector, at: Vector, paint: Paint, rotation: np.ndarray | None = None) -> None:
        """Add a coarse ellipsoid, for small or thin parts."""
        self.add(ball(6, 4), size, at, paint, rotation)

    def scale(self, factors: Vector) -> None:
        factors = np.array(factors, np.float32)
        self.parts = [MeshPart(p.vertices * factors, p.triangles, p.paint, p.kind) for p in self.parts]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest x, y, z."""
        points = np.concatenate([part.vertices for part in self.parts])
        return points.min(axis=0), points.max(axis=0)

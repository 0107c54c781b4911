"""A stage of placed shapes: ray casting with Embree, and shading.

World axes: x right, y forward, z up, metres. Camera axes: x right, y down, z forward.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore import EmbreeDevice
from embreex.rtcore_scene import EmbreeScene

from cliptex.data.miniature.kinds import KIND_ID
from cliptex.data.miniature.meshes import Paint, Shape, Vector

PATTERNS = (
    "solid", "checker", "stripes", "bands", "noise", "wood", "brick", "windows", "dots", "tiles", "waves", "patches",
    "lines", "planks",
)  # fmt: skip
CLEARANCE_M = 2e-3
"""Distance from its surface at which a ray to a light or a camera starts, so that it does not hit the surface."""
PATTERN_ID = {name: number for number, name in enumerate(PATTERNS)}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels and a centred principal point."""

    position: np.ndarray  # float32 [3], world
    rotation: np.ndarray  # float32 [3, 3], world to camera; its rows are the camera's x, y and z axes
    focal: float  # focal length relative to the image width

    @classmethod
    def looking(cls, position: Vector, yaw: float, pitch: float, roll: float, field_of_view: float) -> "Camera":
        """Angles in radians. yaw: to the right of world y. pitch: up. roll: clockwise. field_of_view: horizontal."""
        cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
        forward = np.array([sy * cp, cy * cp, sp])
        right = np.array([cy, -sy, 0.0])
        down = -np.cross(right, forward)
        c, s = np.cos(roll), np.sin(roll)
        rows = np.stack([c * right + s * down, c * down - s * right, forward])
        return cls(np.array(position, np.float32), rows.astype(np.float32), 0.5 / float(np.tan(field_of_view / 2)))

    def project(self, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows [N, 2] and z-depths [N] of world points [N, 3] in an image; the centre of the first pixel is
        0, 0. A point with a negative depth is behind the camera."""
        seen = (points.astype(np.float64) - self.position) @ self.rotation.T.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            places = self.focal * width * seen[:, :2] / seen[:, 2:]
        return places + np.array([width, height]) / 2 - 0.5, seen[:, 2]

    def rays(self, height: int, width: int) -> np.ndarray:
        """Ray directions float32 [H * W, 3] in camera axes, with z = 1, so that the ray parameter is the z-depth."""
        x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / (self.focal * width)
        y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / (self.focal * width)
        out = np.ones((height, width, 3), np.float32)
        out[..., 0] = x
        out[..., 1] = y[:, None]
        return out.reshape(-1, 3)


@dataclass(frozen=True)
class Light:
    """The sun, or a lamp if `position` is set."""

    direction: np.ndarray  # float32 [3], of the sun
    position: np.ndarray | None  # float32 [3], of the lamp; None: the sun
    colour: np.ndarray  # float32 [3]
    ambient: np.ndarray  # float32 [3], colour of the ambient light
    falloff: float = 0.05  # attenuation of a lamp's light per squared metre of distance


@dataclass(frozen=True)
class Hits:
    """The first hit of each ray; arrays with one entry per ray."""

    part: np.ndarray  # int32, index of the mesh part, -1 for the sky
    depth: np.ndarray  # float32, z-depth in metres, NaN for the sky
    position: np.ndarray  # float32 [N, 3], world
    normal: np.ndarray  # float32 [N, 3], world, unit length, towards the camera


@cache
def _device() -> EmbreeDevice:
    """Embree's state, shared by all scenes of this process: to start it takes a tenth of the time of a scene's tree."""
    return EmbreeDevice()


@cache
def noise_table() -> np.ndarray:
    """Tileable fractal noise float32 [256, 256] in 0..1, with a fixed seed."""
    rng = np.random.default_rng(20)
    total = np.zeros((256, 256))
    for octave in (8, 16, 32, 64, 128):
        coarse = rng.random((octave, octave))
        coarse = np.concatenate([coarse, coarse[:1]])
        coarse = np.concatenate([coarse, coarse[:, :1]], axis=1)
        at = np.arange(256) * octave / 256
        low, share = at.astype(int), at % 1
        share = share * share * (3 - 2 * share)
        rows = coarse[low] * (1 - share[:, None]) + coarse[low + 1] * share[:, None]
        total += (rows[:, low] * (1 - share) + rows[:, low + 1] * share) / octave**0.7
    total -= total.mean()
    return np.clip(0.5 + total / (4 * total.std()), 0, 1).astype(np.float32)


def noise(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Fractal noise in 0..1; its largest features have a size of about 1."""
    columns = (s * 32).astype(np.int32) & 255
    rows = (t * 32).astype(np.int32) & 255
    return noise_table().ravel()[(rows << 8) + columns]


class Stage:
    """All shapes of a scene."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._triangles: list[np.ndarray] = []
        self._counts: list[int] = []
        self._offset = 0
        self._paints: list[Paint] = []
        self._frames: list[tuple[float, float, float, float, float]] = []
        self._kinds: list[int] = []
        self._instances: list[int] = []
        self.instance_kinds: list[str] = []

    def place(self, shape: Shape, position: Vector, yaw: float, kind: str, instance: bool = False) -> int:
        """Place a shape in the world, rotated by `yaw` about z. Returns its instance number (0 for none)."""
        number = 0
        if instance:
            self.instance_kinds.append(kind)
            number = len(self.instance_kinds)
        c, s = float(np.cos(yaw)), float(np.sin(yaw))
        rotation = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], np.float32)
        frame = (*position, c, s)
        at = np.array(position, np.float32)
        for part in shape.parts:
            self._vertices.append(part.vertices @ rotation + at)
            self._triangles.append(part.triangles + self._offset)
            self._counts.append(len(part.triangles))
            self._offset += len(part.vertices)
            self._paints.append(part.paint)
            self._frames.append(frame)
            self._kinds.append(KIND_ID[part.kind or kind])
            self._instances.append(number)
        return number

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole mesh: vertices float32 [V, 3] in world coordinates, triangles int32 [F, 3]."""
        return np.concatenate(self._vertices), np.concatenate(self._triangles)

    def corners(self, instance: int) -> np.ndarray:
        """The vertices float32 [V, 3] of an instance, in world coordinates."""
        own = zip(self._vertices, self._instances, strict=True)
        return np.concatenate([vertices for vertices, number in own if number == instance])

    def build(self) -> None:
        """Build the ray-casting structures. Call once, after the last shape and before the first ray."""
        self._scene = EmbreeScene(_device())
        TriangleMesh(self._scene, *self.mesh())
        self._part_of = np.append(np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts), -1)
        self.kinds = np.array(self._kinds, np.uint8)
        self.instances = np.array(self._instances, np.int32)
        self.frames = np.array(self._frames, np.float32)
        colours = np.clip(np.array([[p.colour, p.other] for p in self._paints], np.float32), 0.02, 1.2)
        self.colours, self.changes = colours[:, 0].copy(), colours[:, 1] - colours[:, 0]
        numbers = np.array([[p.size, 4 * p.grain, p.glow] for p in self._paints], np.float32)
        self.sizes, self.grains, self.glows = numbers.T.copy()
        self.patterns = np.array([PATTERN_ID[p.pattern] for p in self._paints], np.uint8)

    def _run(self, camera: Camera, height: int, width: int):
        """Directions, parts and Embree's results of the camera's rays."""
        rays = camera.rays(height, width) @ camera.rotation
        out = self._scene.run(np.broadcast_to(camera.position, rays.shape).copy(), rays, output=1)
        return rays, self._part_of[out["primID"]], out

    def first_hits(self, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Part [N] and z-depth [N] of the rays of a coarse image, to score a camera."""
        _, part, out = self._run(camera, height, width)
        return part, out["tfar"]

    def cast(self, camera: Camera, height: int, width: int) -> Hits:
        """Cast the camera's rays."""
        rays, part, out = self._run(camera, height, width)
        depth = np.where(part >= 0, out["tfar"], np.float32(np.nan))
        normal = out["Ng"]
        normal /= np.maximum(np.sqrt(np.einsum("ij,ij->i", normal, normal)), 1e-20)[:, None]
        normal *= np.where(np.einsum("ij,ij->i", normal, rays) > 0, np.float32(-1), np.float32(1))[:, None]
        position = camera.position + rays * np.where(part >= 0, out["tfar"], 0)[:, None]
        return Hits(part, depth, position, normal)

    def visible_from(self, eye: np.ndarray, position: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """bool [N]: whether nothing is between `eye` and the surface points `position` [N, 3] with `normal` [N, 3]."""
        origin = position + normal * np.float32(CLEARANCE_M)
        towards = np.ascontiguousarray((eye - origin).astype(np.float32))
        reach = np.ones(len(origin), np.float32)
        return self._scene.run(origin, towards, dists=reach, query="OCCLUDED") != 0

    def shade(self, hits: Hits, light: Light, pixel: float) -> np.ndarray:
        """Colour float32 [N, 3] of each ray's hit, 0 for the sky. pixel: a pixel's width at 1 m distance."""
        seen = np.flatnonzero(hits.part >= 0)
        out = np.zeros((len(hits.part), 3), np.float32)
        if not len(seen):
            return out
        part, position, normal, depth = hits.part, hits.position, hits.normal, hits.depth
        if len(seen) < len(part):
            part, position, normal, depth = part[seen], position[seen], normal[seen], depth[seen]
        albedo = self._albedo(part, position, normal, depth * pixel)
        if light.position is None:
            towards = np.broadcast_to(light.direction, position.shape)
            lambert = np.maximum(normal @ light.direction, 0)
            reach = np.full(len(seen), 1e6, np.float32)
        else:
            towards = light.position - position
            distance = np.sqrt(np.einsum("ij,ij->i", towards, towards))
            lambert = np.maximum(np.einsum("ij,ij->i", normal, towards) / distance, 0)
            lambert *= np.float32(1.35) / (1 + np.float32(light.falloff) * distance * distance)
            reach = np.ones(len(seen), np.float32)
        lit = np.flatnonzero(lambert > 0)
        origin = position[lit] + normal[lit] * np.float32(CLEARANCE_M)
        free = self._scene.run(origin, np.ascontiguousarray(towards[lit]), dists=reach[lit], query="OCCLUDED") != 0
        direct = np.zeros(len(seen), np.float32)
        direct[lit] = lambert[lit] * free
        # ambient light depends on the normal, so that shadowed surfaces of different orientation differ
        sky = 0.68 + 0.32 * normal[:, 2] + 0.10 * normal[:, 0]
        shading = direct[:, None] * light.colour
        shading += sky[:, None] * light.ambient
        if (glow := self.glows[part]).any():
            shading = shading * (1 - glow)[:, None] + glow[:, None]
        albedo *= shading
        out[seen] = albedo
        return out

    def _albedo(self, part: np.ndarray, position: np.ndarray, normal: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Albedo [N, 3]: each part's two colours mixed by its pattern, in the shape's frame."""
        frame = self.frames[part]
        offset = position - frame[:, :3]
        c, s = frame[:, 3], frame[:, 4]
        x = c * offset[:, 0] + s * offset[:, 1]
        y = c * offset[:, 1] - s * offset[:, 0]
        z = offset[:, 2]
        flat = np.abs(normal[:, 2]) > 0.75
        side = np.abs(c * normal[:, 0] + s * normal[:, 1]) > np.abs(c * normal[:, 1] - s * normal[:, 0])
        across = np.where(side & ~flat, y, x)
        along = np.where(flat, y, z)
        size = self.sizes[part]
        across, along = across / size, along / size
        mix = np.zeros(len(part), np.float32)
        pattern = self.patterns[part]
        for number in np.unique(pattern):
            if number:
                where = np.flatnonzero(pattern == number)
                mix[where] = _pattern(PATTERNS[number], across[where], along[where])
        # a pattern finer than a pixel is replaced by its mean
        sharp = np.clip(1.4 * size / np.maximum(footprint, 1e-6) - 0.7, 0, 1)
        mix = 0.4 + (mix - 0.4) * sharp
        mix[pattern == 0] = 0
        albedo = self.changes[part]
        albedo *= mix[:, None]
        albedo += self.colours[part]
        albedo *= (1 + self.grains[part] * (noise(x * 3 + z, y * 3 - z) - 0.5))[:, None]
        return albedo


def _pattern(name: str, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Share of the second colour, 0..1, at coordinates s, t, in units of the pattern's size."""
    if name == "noise":
        return np.clip(2.2 * noise(s * 0.35, t * 0.35) - 0.6, 0, 1)
    if name == "patches":
        return (noise(s * 0.55 + 0.37, t * 0.55) > 0.62).astype(np.float32)
    if name == "wood":
        return 0.5 + 0.5 * np.sin(6.28 * (s + 1.6 * noise(t * 0.12, s * 0.3)))
    if name == "waves":
        return 0.5 + 0.5 * np.sin(3.1 * (t + 1.5 * noise(s * 0.15, t * 0.2)) + 1.2 * np.sin(s))
    u, v = s - np.floor(s), t - np.floor(t)
    if name == "checker":
        return ((u < 0.5) ^ (v < 0.5)).astype(np.float32)
    if name == "stripes":
        return (u < 0.5).astype(np.float32)
    if name == "bands":
        return (v < 0.5).astype(np.float32)
    if name == "dots":
        return ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.08).astype(np.float32)
    if name == "tiles":
        return ((u < 0.06) | (v < 0.06)).astype(np.float32)
    if name == "lines":
        return ((np.abs(u - 0.5) < 0.07) | (np.abs(v - 0.5) < 0.07)).astype(np.float32)
    if name == "brick":
        shifted = 0.5 * s + 0.5 * (np.floor(t) % 2)
        return ((v < 0.14) | (shifted - np.floor(shifted) < 0.07)).astype(np.float32)
    if name == "windows":
        return ((np.abs(u - 0.5) < 0.28) & (np.abs(v - 0.5) < 0.3)).astype(np.float32)
    if name == "planks":
        board = np.floor(s * 0.999)
        tone = noise(board * 0.173, board * 0.311)
        return np.where(u < 0.08, 1.0, 0.8 * np.clip(tone + 0.3 * (noise(s * 0.8, t * 0.1) - 0.5), 0, 1))
    raise AssertionError(name)

"""Two views of one room, from cameras whose angle and overlap are chosen as those of ScanNet's test pairs.

The same arguments give the same bytes.
"""

from dataclasses import replace

import numpy as np

from cliptex.data.miniature.kinds import INDOORS
from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.scenes import SceneOptions, compose
from cliptex.data.miniature.sequences import Shot, first_suitable, shoot
from cliptex.data.miniature.stage import Camera, Stage
from cliptex.data.miniature.worlds import SceneWorld

OPTIONS = SceneOptions(categories=INDOORS, things=(2, 5), scenery=1.2, closeness=0.0)
ANGLES = ((4, 15), (15, 30), (30, 60), (4, 15), (15, 30), (30, 60), (4, 15), (15, 30), (30, 60), (60, 100))
"""Ranges of the angle between the two views, degrees, one scene after the other. Of ScanNet's 1,500 test pairs 32, 34,
24 and 10 % are below 15, 30, 60 and 180 degrees."""
OVERLAP = (0.3, 0.9)
"""Smallest and largest share of either view that the other one sees."""
COARSE = (24, 32)
"""Rows and columns of the rays by which cameras are chosen."""
VIEW_TRIES = 60
NEAR_M, MOST_NEAR = 0.4, 0.08
"""No more than this share of a view is this near."""
MARGIN_M = 0.15
"""Distance of cameras from walls."""


def room_pair(seed: int, domain: str, stream: int, index: int, height: int, width: int) -> tuple[Shot, Shot]:
    """Two images of scene `index` by cameras of one focal length, without flash. Arguments as of `scenes.render`.
    Raises CliptexError if no scene is suitable."""
    limits = ANGLES[index % len(ANGLES)]
    return first_suitable(lambda scene: _room_pair(seed, domain, stream, scene, height, width, limits), index)


def _room_pair(
    seed: int, domain: str, stream: int, index: int, height: int, width: int, limits: tuple[int, int]
) -> tuple[Shot, Shot] | None:
    s, world, first = compose(seed, domain, stream, index, OPTIONS)
    s.look = replace(s.look, flash=0.0)
    for _ in range(VIEW_TRIES):
        second = _moved(s, world.stage, first, limits)
        apart = np.degrees(np.arccos(np.clip((np.trace(second.rotation @ first.rotation.T) - 1) / 2, -1, 1)))
        if limits[0] <= apart < limits[1] and _is_free(world, second):
            shares = [overlap(world.stage, first, second), overlap(world.stage, second, first)]
            if OVERLAP[0] <= min(shares) and max(shares) <= OVERLAP[1]:
                break
    else:
        return None
    quality = int(s.uniform(*s.look.jpeg))
    return tuple(shoot(s, world, camera, height, width, quality) for camera in (first, second))


def _moved(s: Stylist, stage: Stage, camera: Camera, limits: tuple[int, int]) -> Camera:
    """A camera that is moved around the vertical line through a point that is seen, and turned with it, so that the
    point stays in the image; nearer or farther, and tilted a little."""
    hits = stage.cast(camera, *COARSE)
    seen = np.flatnonzero(hits.part >= 0)
    pivot = hits.position[seen[int(s.random() * len(seen))]].astype(np.float64)
    angle = np.radians(s.uniform(*limits)) * s.pick((-1, 1))
    around = _turn(angle, 2)
    tilt = _turn(s.uniform(-0.12, 0.12), 0) @ _turn(s.uniform(-0.12, 0.12), 2)
    place = pivot + s.uniform(0.7, 1.3) * (around @ (camera.position - pivot))
    rotation = tilt @ camera.rotation @ around.T
    return Camera(place.astype(np.float32), rotation.astype(np.float32), camera.focal)


def _turn(angle: float, axis: int) -> np.ndarray:
    """The rotation matrix [3, 3] by an angle about an axis, radians."""
    c, s = np.cos(angle), np.sin(angle)
    out = np.eye(3)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    out[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return out


def _is_free(world: SceneWorld, camera: Camera) -> bool:
    """Whether a camera is in the room, with nothing right before the lens."""
    x, y, z = camera.position
    half = np.array(world.room[:2]) / 2 - MARGIN_M
    if abs(x) > half[0] or abs(y) > half[1] or not MARGIN_M < z < world.room[2] - MARGIN_M:
        return False
    part, depth = world.stage.first_hits(camera, *COARSE)
    return bool((part >= 0).all() and (depth < NEAR_M).mean() < MOST_NEAR)


def overlap(stage: Stage, first: Camera, second: Camera) -> float:
    """Share of the first camera's view that the second one sees, too."""
    hits = stage.cast(first, *COARSE)
    places, depth = second.project(hits.position, *COARSE)
    inside = (hits.part >= 0) & (depth > 0)
    inside &= ((places >= -0.5) & (places <= np.array(COARSE[::-1]) - 0.5)).all(1)
    visible = stage.visible_from(second.position, hits.position[inside], hits.normal[inside])
    return float(visible.sum() / len(hits.part))

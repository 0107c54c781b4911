"""Choose a camera: looking at an object, or anywhere in the scene.

Height, pitch, roll, field of view and distance vary widely, so that depth and normals cannot be predicted from a
pixel's position.
"""

import numpy as np

from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.stage import Camera
from cliptex.data.miniature.worlds import Placed, SceneWorld

COARSE = 14
TRIES = 9
PITCH = (-0.61, 0.44)
"""-35 to 25 degrees."""
ROLL = 0.35


def choose_camera(s: Stylist, world: SceneWorld, target: Placed | None, share: tuple[float, float]) -> Camera:
    """The first acceptable one of a few random cameras, or else the best of them.

    target: the object to look at, None for any direction. share: the target's extent relative to the image width.
    """
    best, best_score = None, -np.inf
    for attempt in range(TRIES):
        camera = _at_object(s, world, target, share) if target else _anywhere(s, world)
        score = _score(world, camera, target)
        if score > best_score:
            best, best_score = camera, score
        if score >= 1 - 0.05 * attempt:
            break
    return best


def _roll(s: Stylist) -> float:
    return float(np.clip(s.rng.normal(0, 0.14), -ROLL, ROLL))


def _at_object(s: Stylist, world: SceneWorld, target: Placed, share: tuple[float, float]) -> Camera:
    field_of_view = s.uniform(0.70, 1.40)
    distance = target.extent / (2 * s.uniform(*share) * np.tan(field_of_view / 2)) + 0.25 * target.extent
    front = np.arctan2(-np.cos(target.yaw), np.sin(target.yaw))
    for _ in range(10):
        bearing = front + s.rng.normal(0, 0.9)
        elevation = s.uniform(-0.12, 0.75)
        x = target.centre[0] + distance * np.cos(elevation) * np.cos(bearing)
        y = target.centre[1] + distance * np.cos(elevation) * np.sin(bearing)
        if not world.room or (abs(x) < world.room[0] / 2 - 0.15 and abs(y) < world.room[1] / 2 - 0.15):
            break
        distance *= 0.93
    floor = world.height_at(x, y)
    ceiling = world.room[2] - 0.15 if world.room else floor + 4.0
    z = float(
        np.clip(target.centre[2] + distance * np.sin(elevation), floor + 0.3, max(min(ceiling, floor + 4), floor + 0.3))
    )
    if world.room:
        x = float(np.clip(x, 0.15 - world.room[0] / 2, world.room[0] / 2 - 0.15))
        y = float(np.clip(y, 0.15 - world.room[1] / 2, world.room[1] / 2 - 0.15))
    dx, dy, dz = target.centre - np.array([x, y, z])
    off = 0.22 * field_of_view
    yaw = np.arctan2(dx, dy) + s.uniform(-off, off)
    pitch = np.clip(np.arctan2(dz, np.hypot(dx, dy)) + s.uniform(-off, off), *PITCH)
    return Camera.looking((x, y, z), yaw, pitch, _roll(s), field_of_view)


def _anywhere(s: Stylist, world: SceneWorld) -> Camera:
    field_of_view = s.uniform(0.70, 1.57)
    if world.room:
        x = s.uniform(0.2 - world.room[0] / 2, world.room[0] / 2 - 0.2)
        y = s.uniform(0.2 - world.room[1] / 2, world.room[1] / 2 - 0.2)
        top = min(3.0, world.room[2] - 0.2)
    else:
        x, y, top = s.uniform(-11, 11), s.uniform(-9, 9), 3.0
    z = world.height_at(x, y) + s.uniform(0.3, top)
    # mostly towards the middle, where most objects are
    yaw = np.arctan2(-x, -y) + s.rng.normal(0, 1.0)
    if world.category in ("street", "desert_road") and s.chance(0.5):
        yaw = s.pick((0.0, 3.14)) + s.rng.normal(0, 0.5)
    if world.category == "corridor" and s.chance(0.5):
        yaw = s.pick((0.0, 3.14)) + s.rng.normal(0, 0.4)
    return Camera.looking((x, y, z), yaw, s.uniform(*PITCH), _roll(s), field_of_view)


def _score(world: SceneWorld, camera: Camera, target: Placed | None) -> float:
    """Score of a view, 1 if good: nothing right before the lens, target visible, not only sky or a single surface."""
    part, depth = world.stage.first_hits(camera, COARSE, COARSE)
    seen = part >= 0
    if not seen.any():
        return -1.0
    near = np.mean(depth < 0.4)
    score = 1.0 - 4 * max(near - 0.08, 0) - 2 * max(np.mean(~seen) - 0.65, 0)
    if target is not None:
        visible = np.mean(world.stage.instances[part[seen]] == target.instance) * np.mean(seen)
        score -= 5 * max(0.06 - visible, 0)
    else:
        count = np.bincount(part[seen])
        score -= max(count.max() / len(part) - 0.62, 0) * 2
        if len(world.things):
            score -= 0.15 * (not (world.stage.instances[part[seen]] > 0).any())
    return score

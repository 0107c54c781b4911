"""Several images of one scene: two views of an object with exact correspondences, and videos with a moving camera.

The scene does not move. Both start from a scene and camera of `cliptex.data.miniature.scenes.compose`; the same
arguments give the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cliptex.core.errors import CliptexError
from cliptex.data.miniature.looks import Stylist
from cliptex.data.miniature.scenes import SceneOptions, compose, photograph
from cliptex.data.miniature.stage import Camera, Hits
from cliptex.data.miniature.views import choose_camera
from cliptex.data.miniature.worlds import Placed, SceneWorld

Made = TypeVar("Made")
NUM_POINTS = (4, 10)
"""Smallest and largest number of keypoints of a pair."""
VIEW_TRIES = 16
SCENE_TRIES, NEXT_SCENE = 20, 1_000_000
"""Scenes that are tried, and the distance of their numbers: in some the object is hidden."""
GRAZING = 0.2
"""Smallest cosine between a keypoint's normal and the ray to either camera."""
NUM_FRAMES = 8
MIN_OBJECT, MAX_OBJECT = 0.01, 0.5
"""Objects that cover a smaller share of a video's first frame are part of its background, and the subject never covers
a larger one."""
MOTIONS = (1.0, -1.0, 0.6, -0.6)
"""Tried in this order: camera motions relative to the full one, to either side."""


@dataclass(frozen=True)
class Shot:
    """An image of a sequence. camera, hits: what it was made from, for its ground truth."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    instances: np.ndarray  # int32 [H, W], number of the placed object, 0 for none
    camera: Camera
    hits: Hits
    jpeg_quality: int


@dataclass(frozen=True)
class ViewPair:
    """Two views of one object, and points of its surface that both see.

    points: float32 [2, K, 2], columns and rows in each view; the centre of the first pixel is 0, 0. positions: float32
    [K, 3], the points in the world. turn: angle between the directions from which the object is seen, radians.
    occluded: for each view whether other objects hide a part of it.
    """

    shots: tuple[Shot, Shot]
    instance: int
    points: np.ndarray
    positions: np.ndarray
    turn: float
    occluded: tuple[bool, bool]


@dataclass(frozen=True)
class Video:
    """Frames of a moving camera. masks: uint8 [H, W] of each frame, 0 for the background, the objects of the first
    frame by size."""

    frames: list[Shot]
    masks: list[np.ndarray]
    kind: str


def shoot(
    s: Stylist,
    world: SceneWorld,
    camera: Camera,
    height: int,
    width: int,
    quality: int,
    noise: np.random.Generator | None = None,
) -> Shot:
    """The shot that a camera takes of a scene. quality: of its JPEG file. Other arguments as of `photograph`."""
    image, hits = photograph(s, world, camera, height, width, noise)
    instances = np.append(world.stage.instances, 0)[hits.part].reshape(height, width)
    return Shot(image, instances, camera, hits, quality)


# ---- pairs


def view_pair(seed: int, domain: str, stream: int, index: int, size: int, options: SceneOptions) -> ViewPair:
    """Two images of the subject of scene `index`, from cameras that are drawn independently until both see enough of
    the same surface. Arguments as of `scenes.render`. Raises CliptexError if no scene is suitable."""
    return first_suitable(lambda scene: _view_pair(seed, domain, stream, scene, size, options), index)


def first_suitable(make: Callable[[int], Made | None], index: int) -> Made:
    """What `make` returns for scene `index`, or the first of its substitutes for which it returns something."""
    for scene in range(index, index + SCENE_TRIES * NEXT_SCENE, NEXT_SCENE):
        if (made := make(scene)) is not None:
            return made
    raise CliptexError(f"none of {SCENE_TRIES} scenes has suitable views; please report this")


def _view_pair(seed: int, domain: str, stream: int, index: int, size: int, options: SceneOptions) -> ViewPair | None:
    s, world, first = compose(seed, domain, stream, index, options)
    target = world.things[0]
    shot = shoot(s, world, first, size, size, int(s.uniform(*s.look.jpeg)))
    for _ in range(VIEW_TRIES):
        camera = choose_camera(s, world, target, options.share)
        points, positions = _shared(world, target, shot, camera)
        if len(positions) >= NUM_POINTS[0]:
            break
    else:
        return None
    count = NUM_POINTS[0] + int(s.random() * (NUM_POINTS[1] - NUM_POINTS[0] + 1))
    chosen = _spread(points[0], count, int(s.random() * len(positions)))
    other = shoot(s, world, camera, size, size, int(s.uniform(*s.look.jpeg)))
    turn = _angle(first.position - target.centre, camera.position - target.centre)
    occluded = tuple(_is_occluded(world, target, view) for view in (shot, other))
    return ViewPair((shot, other), target.instance, points[:, chosen], positions[chosen], turn, occluded)


def _shared(world: SceneWorld, target: Placed, shot: Shot, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Places float32 [2, N, 2] in both views, and positions [N, 3], of what the pixels of `shot` see of the target, if
    `camera` sees it, too. Pixels next to another object are left out, since the image mixes them."""
    height, width = shot.instances.shape
    mask = np.pad(shot.instances == target.instance, 1)
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    pixels = np.flatnonzero(inner)
    position, normal = shot.hits.position[pixels], shot.hits.normal[pixels]
    places, depth = camera.project(position, height, width)
    fits = (depth > 0) & (places >= 0).all(1) & (places <= [width - 1, height - 1]).all(1)
    for eye in (shot.camera.position, camera.position):
        towards = eye - position
        fits &= np.einsum("ij,ij->i", normal, towards) > GRAZING * np.linalg.norm(towards, axis=1)
    fits[fits] = world.stage.visible_from(camera.position, position[fits], normal[fits])
    rows, columns = np.divmod(pixels[fits], width)
    own = np.stack([columns, rows], 1)
    return np.stack([own, places[fits]]).astype(np.float32), position[fits]


def _spread(places: np.ndarray, count: int, first: int) -> list[int]:
    """Indices of at most `count` places [N, 2] that are far apart: each is the farthest from those before."""
    chosen = [first]
    distance = np.linalg.norm(places - places[first], axis=1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return chosen


def _is_occluded(world: SceneWorld, target: Placed, shot: Shot) -> bool:
    """Whether some pixels in the projection of the target's corners see another object that is in front of it."""
    height, width = shot.instances.shape
    corners = world.stage.corners(target.instance)
    places, depth = shot.camera.project(corners, height, width)
    pixels = np.round(places)
    inside = (depth > 0) & (pixels >= 0).all(1) & (pixels < [width, height]).all(1)
    columns, rows = pixels[inside].astype(int).T
    others = shot.instances[rows, columns]
    nearer = shot.hits.depth.reshape(height, width)[rows, columns] < depth[inside]
    return bool(((others != target.instance) & (others > 0) & nearer).any())


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1)))


# ---- videos


def video(seed: int, domain: str, stream: int, index: int, height: int, width: int, options: SceneOptions) -> Video:
    """A video of the subject of scene `index`. Arguments as of `scenes.render`. Light, exposure and colour cast are the
    same in all frames; the sensor noise is not. Raises CliptexError if no scene is suitable."""
    return first_suitable(lambda scene: _video(seed, domain, stream, scene, height, width, options), index)


def _video(
    seed: int, domain: str, stream: int, index: int, height: int, width: int, options: SceneOptions
) -> Video | None:
    s, world, camera = compose(seed, domain, stream, index, options)
    target = world.things[0]
    quality, drawn = int(s.uniform(*s.look.jpeg)), [s.random() for _ in range(4)]
    noise = np.random.default_rng([seed, s.look.domain, stream, index, 1])
    for scale in MOTIONS:
        cameras = _path(world, target, camera, scale, drawn)
        if _keeps(world, target, cameras, height, width):
            break
    else:
        return None
    frames = [
        # the same draws for each frame
        shoot(
            Stylist(np.random.default_rng([seed, s.look.domain, stream, index, 2]), s.look),
            world, moved, height, width, quality, noise,
        )
        for moved in cameras
    ]  # fmt: skip
    pixels = np.bincount(frames[0].instances.ravel(), minlength=len(world.things) + 1)
    objects = [number for number in np.argsort(-pixels, kind="stable") if number > 0]
    objects = [number for number in objects if pixels[number] >= MIN_OBJECT * height * width]
    table = np.zeros(len(pixels), np.uint8)
    table[objects] = np.arange(1, len(objects) + 1)
    return Video(frames, [table[frame.instances] for frame in frames], target.kind)


def _path(world: SceneWorld, target: Placed, camera: Camera, scale: float, drawn: list[float]) -> list[Camera]:
    """Cameras of all frames: sideways and forwards past the target, turning with it in part, so that it moves in the
    image. drawn: four numbers in 0..1."""
    away = target.centre - camera.position
    distance = float(np.linalg.norm(away))
    right, down, forward = camera.rotation
    step = scale * distance * ((0.4 + 0.5 * drawn[0]) * right + 0.15 * (drawn[1] - 0.5) * down)
    step += abs(scale) * distance * 0.3 * (drawn[2] - 0.3) * forward
    out = []
    for share in np.linspace(0, 1, NUM_FRAMES):
        place = camera.position + np.float32(share) * step
        if world.room:
            limits = np.array([world.room[0] / 2 - 0.15, world.room[1] / 2 - 0.15, world.room[2] - 0.15])
            place = np.clip(place, [-limits[0], -limits[1], 0.3], limits)
        else:
            place[2] = max(place[2], world.height_at(float(place[0]), float(place[1])) + 0.3)
        # a part of the turn that would keep the target where it is
        angle = (0.3 + 0.3 * drawn[3]) * (_bearing(camera, target.centre - place) - _bearing(camera, away))
        c, n = np.cos(angle), np.sin(angle)
        turned = np.array([[c, 0, -n], [0, 1, 0], [n, 0, c]]) @ camera.rotation
        out.append(Camera(place.astype(np.float32), turned.astype(np.float32), camera.focal))
    return out


def _bearing(camera: Camera, direction: np.ndarray) -> float:
    """Angle of a direction to the right of the camera's axis, radians."""
    x, _, z = camera.rotation @ direction
    return float(np.arctan2(x, z))


def _keeps(world: SceneWorld, target: Placed, cameras: list[Camera], height: int, width: int) -> bool:
    """Whether all cameras see the target and what is around it, and nothing is right before the lens."""
    for camera in cameras:
        part, depth = world.stage.first_hits(camera, height // 3, width // 3)
        visible = np.append(world.stage.instances, 0)[part] == target.instance
        if not 2 * MIN_OBJECT < visible.mean() < MAX_OBJECT or (depth < 0.4).mean() > 0.08:
            return False
    return True

"""Render a scene from a seed: image, exact ground truth and caption. The same arguments give the same bytes."""

from dataclasses import dataclass

import numpy as np

from cliptex.data.miniature.captions import CONTEXT, Seen, describe
from cliptex.data.miniature.kinds import KIND_ID, KINDS, SCENE_CATEGORIES, THINGS
from cliptex.data.miniature.looks import LOOKS, SHIFTED, Stylist
from cliptex.data.miniature.stage import Camera, Hits, Light, noise
from cliptex.data.miniature.views import choose_camera
from cliptex.data.miniature.worlds import CONTENTS, SceneWorld, build_world

MIN_INSTANCE = 0.0012
"""Instances that cover a smaller share of the image are not annotated."""


@dataclass(frozen=True)
class Scene:
    """A rendered scene and its ground truth."""

    image: np.ndarray  # uint8 RGB [H, W, 3]
    kinds: np.ndarray  # uint8 [H, W], index into KINDS
    instances: np.ndarray  # uint8 [H, W]; 0 is none, i is the i-th object of `objects`
    depth: np.ndarray  # float32 [H, W], z-depth in metres, NaN for the sky
    normals: np.ndarray
    """float32 [H, W, 3], unit vectors in camera axes x right, y down, z forward, with non-negative dot product with the
    viewing ray (a wall facing the camera is 0, 0, 1); NaN for the sky."""
    objects: list[Seen]  # the annotated instances, largest first
    category: str  # the official Places365 category
    caption: str  # true of the scene
    jpeg_quality: int


@dataclass(frozen=True)
class SceneOptions:
    """What the scenes of a data set contain."""

    categories: tuple[str, ...] = tuple(SCENE_CATEGORIES)
    subject: str | None = None  # kind of the main object
    name: str | None = None  # the subject's specific name, e.g. "school bus"
    things: tuple[int, int] = (0, 3)  # minimum and maximum number of further objects
    scenery: float = 0.6  # amount of furniture without a COCO class
    closeness: float = 0.8  # share of images with a main object, if `subject` is None
    share: tuple[float, float] = (0.5, 1.0)  # minimum and maximum extent of the main object, relative to the width


def compose(
    seed: int, domain: str, stream: int, index: int, options: SceneOptions
) -> tuple[Stylist, SceneWorld, Camera]:
    """Build scene `index` of a data set and choose its camera; see `render`."""
    look = (LOOKS | SHIFTED)[domain]
    s = Stylist(np.random.default_rng([seed, look.domain, stream, index]), look)
    kind = options.subject
    if kind is None and s.chance(options.closeness):
        kind = s.pick([k for k in THINGS if any(k in CONTENTS[c].things for c in options.categories)])
    fitting = [c for c in options.categories if kind is None or kind in CONTENTS[c].things]
    subject = (kind, options.name) if kind else None
    world = build_world(s, s.pick(fitting or options.categories), subject, options.things, options.scenery)
    target = world.things[0] if subject else None
    return s, world, choose_camera(s, world, target, options.share)


def render(
    seed: int, domain: str, stream: int, index: int, height: int, width: int, options: SceneOptions | None = None
) -> Scene:
    """Render scene `index` of a data set.

    domain: a key of LOOKS or SHIFTED. stream: distinguishes data sets and splits of a domain.
    """
    s, world, camera = compose(seed, domain, stream, index, options or SceneOptions())
    image, hits = photograph(s, world, camera, height, width)
    kinds = np.append(world.stage.kinds, KIND_ID["sky"]).astype(np.uint8)[hits.part].reshape(height, width)
    depth = hits.depth.reshape(height, width)
    instances, objects = _instances(world, hits, depth)
    normals = -(hits.normal @ camera.rotation.T).reshape(height, width, 3)
    normals[np.isnan(depth)] = np.nan
    count = np.bincount(kinds.ravel(), minlength=len(KINDS)) / kinds.size
    visible = sorted((kind for kind in CONTEXT if count[KIND_ID[kind]] > 0.03), key=lambda k: -count[KIND_ID[k]])
    mentioned = [seen for seen in objects if seen.pixels > 0.012 * kinds.size]
    caption = describe(s, world.category, mentioned, visible)
    quality = int(s.uniform(*s.look.jpeg))
    return Scene(image, kinds, instances, depth, normals, objects, world.category, caption, quality)


def photograph(
    s: Stylist, world: SceneWorld, camera: Camera, height: int, width: int, noise: np.random.Generator | None = None
) -> tuple[np.ndarray, Hits]:
    """The image uint8 RGB [H, W, 3] that a camera takes of a scene, and the hits of its rays, row by row.

    s: draws flash, exposure, colour cast, blur and noise. noise: draws the sensor noise in its place, for images that
    differ in nothing else.
    """
    light = _flash(s, world.light, camera) if world.room else world.light
    hits = world.stage.cast(camera, height, width)
    return _develop(s, world, light, camera, hits, height, width, noise or s.rng), hits


def _flash(s: Stylist, light: Light, camera: Camera) -> Light:
    """Add a flash, as in most indoor photographs: brightness then depends on the distance and slant of surfaces."""
    if not s.chance(s.look.flash):
        return light
    above = camera.position - np.float32(s.uniform(0.1, 0.4)) * camera.rotation[1]
    return Light(light.direction, above, 1.6 * light.colour, 0.45 * light.ambient, falloff=s.uniform(0.08, 0.16))


def _instances(world: SceneWorld, hits: Hits, depth: np.ndarray) -> tuple[np.ndarray, list[Seen]]:
    """Number the visible instances by size, without tiny ones."""
    raw = np.append(world.stage.instances, 0)[hits.part]
    pixels = np.bincount(raw, minlength=len(world.things) + 1)
    order = [p for p in world.things if pixels[p.instance] >= MIN_INSTANCE * raw.size]
    order.sort(key=lambda p: -pixels[p.instance])
    number = np.zeros(len(pixels), np.uint8)
    objects = []
    for i, placed in enumerate(order):
        number[placed.instance] = i + 1
        middle = float(np.median(hits.depth[raw == placed.instance]))
        thing = placed.thing
        objects.append(Seen(placed.kind, thing.name, thing.colour, int(pixels[placed.instance]), middle, placed.on))
    return number[raw].reshape(depth.shape), objects


def _develop(
    s: Stylist,
    world: SceneWorld,
    light: Light,
    camera: Camera,
    hits: Hits,
    height: int,
    width: int,
    noise_rng: np.random.Generator,
) -> np.ndarray:
    """Compute the image from the hits: shading, sky, haze, exposure, colour cast, blur, noise."""
    colour = world.stage.shade(hits, light, 1 / (camera.focal * width))
    sky = hits.part < 0
    horizon, overhead = world.sky
    if not world.room:
        rays = (camera.rays(height, width) @ camera.rotation)[sky]
        rise = rays[:, 2] / np.linalg.norm(rays, axis=1)
        clouds = noise(rays[:, 0] / (np.abs(rays[:, 2]) + 0.3) * 0.5, rays[:, 1] / (np.abs(rays[:, 2]) + 0.3) * 0.5)
        share = np.clip(rise * 1.8, 0, 1)[:, None]
        blue = horizon * (1 - share) + overhead * share
        colour[sky] = blue + (0.95 - blue) * np.clip(2.0 * clouds - 0.95, 0, 0.8)[:, None]
        haze = 1 - np.exp(-np.where(sky, 0, hits.depth) / world.fog_m)
        colour += (horizon - colour) * haze[:, None]
    image = colour.reshape(height, width, 3)
    exposure = (s.uniform(0.36, 0.56) / max(float(image.mean()), 0.02)) ** 0.8
    gains = np.clip(1 + s.rng.normal(0, s.look.cast, 3), 0.6, 1.4) * exposure
    image *= gains.astype(np.float32)
    # compress highlights instead of clipping them
    bright = image > 0.8
    image[bright] = 1 - 0.2 * np.exp(-(image[bright] - 0.8) / 0.2)
    image = _blur(image, s.uniform(*s.look.blur) * width / 96)
    sigma = s.uniform(*s.look.noise)
    image += noise_rng.standard_normal(image.shape, np.float32) * np.float32(sigma)
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    return image.astype(np.uint8)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of float32 [H, W, 3] by two passes over shifted copies; edges are repeated."""
    radius = 1 if sigma < 0.65 else 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis]
        first, last = (image[:1], image[-1:]) if axis == 0 else (image[:, :1], image[:, -1:])
        padded = np.concatenate([*[first] * radius, image, *[last] * radius], axis=axis)
        parts = [padded[:, k : k + length] if axis else padded[k : k + length] for k in range(2 * radius + 1)]
        image = weights[0] * parts[0]
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            image += weight * part
    return image

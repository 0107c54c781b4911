"""One scene from a seed: picture, exact truth and caption. The same arguments give the same bytes."""

from dataclasses import dataclass

import numpy as np

from cliptex.data.miniature.captions import CONTEXT, Seen, describe
from cliptex.data.miniature.kinds import KIND_ID, KINDS, SCENE_CATEGORIES, THINGS
from cliptex.data.miniature.looks import LOOKS, SHIFTED, Stylist
from cliptex.data.miniature.stage import Camera, Hits, Light, noise
from cliptex.data.miniature.views import choose_camera
from cliptex.data.miniature.worlds import CONTENTS, World, build_world

MIN_INSTANCE = 0.0012
"""Instances that cover a smaller share of the image are not labelled."""


@dataclass(frozen=True)
class Scene:
    """A rendered scene and its truth."""

    image: np.ndarray
    """uint8 RGB [H, W, 3]."""
    kinds: np.ndarray
    """uint8 [H, W], index into KINDS."""
    instances: np.ndarray
    """uint8 [H, W]; 0 is none, i is the i-th of `objects`."""
    depth: np.ndarray
    """float32 [H, W], z-depth in metres, NaN for the sky."""
    normals: np.ndarray
    """float32 [H, W, 3], unit vectors in camera axes x right, y down, z forward, with a non-negative dot product with
    the viewing ray (a wall that faces the camera is 0, 0, 1); NaN for the sky."""
    objects: list[Seen]
    """The labelled instances, largest first."""
    category: str
    """Official Places365 category."""
    caption: str
    """A caption that is true of the scene."""
    jpeg_quality: int


@dataclass(frozen=True)
class Wish:
    """What a data set asks of its scenes."""

    categories: tuple[str, ...] = tuple(SCENE_CATEGORIES)
    subject: str | None = None
    """Kind of the object that the picture is about."""
    name: str | None = None
    """The subject's specific name, e.g. "school bus"."""
    things: tuple[int, int] = (0, 3)
    """Smallest and largest number of further objects."""
    scenery: float = 0.6
    """Amount of furniture that COCO does not name."""
    closeness: float = 0.8
    """Share of pictures that are about one object, where no subject is asked for."""
    share: tuple[float, float] = (0.5, 1.0)
    """Extent of the object that a picture is about, as a share of the image's width."""


def compose(seed: int, domain: str, stream: int, index: int, wish: Wish) -> tuple[Stylist, World, Camera]:
    """Furnish scene `index` of a data set and choose its camera; see `render`."""
    look = (LOOKS | SHIFTED)[domain]
    s = Stylist(np.random.default_rng([seed, look.domain, stream, index]), look)
    kind = wish.subject
    if kind is None and s.chance(wish.closeness):
        kind = s.pick([k for k in THINGS if any(k in CONTENTS[c].things for c in wish.categories)])
    fitting = [c for c in wish.categories if kind is None or kind in CONTENTS[c].things]
    subject = (kind, wish.name) if kind else None
    world = build_world(s, s.pick(fitting or wish.categories), subject, wish.things, wish.scenery)
    target = world.things[0] if subject else None
    return s, world, choose_camera(s, world, target, wish.share)


def render(seed: int, domain: str, stream: int, index: int, height: int, width: int, wish: Wish | None = None) -> Scene:
    """Render scene `index` of a data set.

    domain: a key of LOOKS or SHIFTED. stream: tells apart the data sets and splits of one domain.
    """
    s, world, camera = compose(seed, domain, stream, index, wish or Wish())
    if world.room:
        world.light = _flash(s, world.light, camera)
    hits = world.stage.cast(camera, height, width)
    image = _develop(s, world, camera, hits, height, width)
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


def _flash(s: Stylist, light: Light, camera: Camera) -> Light:
    """A flash, as most photographs of rooms have: brightness then tells how far and how oblique a surface is."""
    if not s.chance(s.look.flash):
        return light
    above = camera.position - np.float32(s.uniform(0.1, 0.4)) * camera.rotation[1]
    return Light(light.direction, above, 1.6 * light.colour, 0.45 * light.ambient, falloff=s.uniform(0.08, 0.16))


def _instances(world: World, hits: Hits, depth: np.ndarray) -> tuple[np.ndarray, list[Seen]]:
    """Number the visible instances by size, without the tiny ones."""
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


def _develop(s: Stylist, world: World, camera: Camera, hits: Hits, height: int, width: int) -> np.ndarray:
    """From hits to the picture: shading, sky, haze, exposure, colour cast, blur, noise."""
    colour = world.stage.shade(hits, world.light, 1 / (camera.focal * width))
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
    picture = colour.reshape(height, width, 3)
    exposure = (s.uniform(0.36, 0.56) / max(float(picture.mean()), 0.02)) ** 0.8
    gains = np.clip(1 + s.rng.normal(0, s.look.cast, 3), 0.6, 1.4) * exposure
    picture = picture * gains.astype(np.float32)
    # roll off the highlights instead of clipping them
    picture = np.where(picture > 0.8, 1 - 0.2 * np.exp(-(picture - 0.8) / 0.2), picture)
    picture = _blur(picture, s.uniform(*s.look.blur) * width / 96)
    sigma = s.uniform(*s.look.noise)
    picture = picture + s.rng.standard_normal(picture.shape, np.float32) * np.float32(sigma)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of float32 [H, W, 3] by two passes over shifted copies."""
    radius = 1 if sigma < 0.65 else 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.pad(picture, pad, mode="edge")
        length = picture.shape[axis]
        slices = (padded[:, k : k + length] if axis else padded[k : k + length] for k in range(2 * radius + 1))
        picture = sum(w * part for w, part in zip(weights, slices, strict=True))
    return picture

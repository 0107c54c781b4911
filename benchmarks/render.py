"""Rendering and encoding an image, compared with only casting its rays: the overhead of the renderer over Embree.

    python benchmarks/render.py [--quick] [--images 60]

`bare` builds Embree's tree over the same triangles and casts the same camera rays and as many shadow rays. `full`
builds the scene, chooses the camera, casts, shades, annotates, writes the caption and encodes as JPEG. Repeats
alternate in one process on one thread; times are CPU time. The ratio is bare time over full time (1 = no overhead).
`--quick` takes 20 images. The last line is a JSON list.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from cliptex.data.images import encode_jpeg
from cliptex.data.miniature.scenes import SceneOptions, compose, render

REPEATS = 5
GOALS = {96: 70, 128: 40}
"""Side of the image -> images per second and core."""
RATIO = 0.25

Cast = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def prepare(images: int, side: int) -> list[Cast]:
    """Mesh, camera rays and shadow rays of each image."""
    casts = []
    for index in range(images):
        _, world, camera = compose(0, "pairs", 0, index, SceneOptions())
        hits = world.stage.cast(camera, side, side)
        seen = hits.part >= 0
        rays = camera.rays(side, side) @ camera.rotation
        origins = np.broadcast_to(camera.position, rays.shape).copy()
        towards = world.light.direction if world.light.position is None else world.light.position - hits.position[seen]
        starts = hits.position[seen] + hits.normal[seen] * np.float32(2e-3)
        shadows = np.ascontiguousarray(np.broadcast_to(towards, starts.shape).astype(np.float32))
        casts.append((*world.stage.mesh(), origins, rays, starts, shadows))
    return casts


def bare(casts: list[Cast]) -> None:
    """Embree's work only."""
    for vertices, triangles, origins, rays, starts, shadows in casts:
        scene = EmbreeScene()
        TriangleMesh(scene, vertices, triangles)
        scene.run(origins, rays, output=1)
        if len(starts):
            scene.run(starts, shadows, query="OCCLUDED")


def full(images: int, side: int) -> None:
    """All work for an image-caption pair."""
    for index in range(images):
        scene = render(0, "pairs", 0, index, side, side)
        encode_jpeg(scene.image, scene.jpeg_quality)


def seconds(work: Callable[[], None]) -> float:
    """CPU time of `work`."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(images: int, side: int) -> dict:
    """Measure one image size."""
    casts = prepare(images, side)
    times = [(seconds(lambda: bare(casts)), seconds(lambda: full(images, side))) for _ in range(REPEATS)]
    ratios = [a / b for a, b in times]
    ratio = statistics.median(ratios)
    rate = images / statistics.median(b for _, b in times)
    return {
        "benchmark": "render",
        "side_px": side,
        "ratio": round(ratio, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": f">= {RATIO}",
        "holds": ratio >= RATIO,
        "what": "time of Embree's tree and rays alone over time of the whole image, JPEG included",
        "images_per_s_core": round(rate, 1),
        "images_per_s_core_wanted": GOALS[side],
        "bare_per_s_core": round(images / statistics.median(a for a, _ in times), 1),
        "triangles": round(statistics.mean(len(cast[1]) for cast in casts)),
        "images": images,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 images")
    parser.add_argument("--images", type=int, default=60, help="images per repeat")
    options = parser.parse_args(argv)
    if options.quick:
        options.images = 20
    render(0, "pairs", 0, 0, 32, 32)  # primitives and noise are cached
    results = [measure(options.images, side) for side in GOALS]
    for result in results:
        ours, goal = result["images_per_s_core"], result["images_per_s_core_wanted"]
        print(
            f"{result['side_px']} px: {ours} images/s/core (goal {goal}),"
            f" Embree alone {result['bare_per_s_core']}, ratio {result['ratio']} {result['spread']}"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""Small copies of predictions: they look like what they were made of, whatever the images' sizes."""

import numpy as np

from cliptex.evaluation.per_image import read_per_image, write_per_image
from cliptex.evaluation.probes.tasks import probe_task
from cliptex.evaluation.thumbnails import (
    BOXES,
    box_thumbnails,
    depth_thumbnails,
    mask_thumbnails,
    normals_thumbnails,
    shrunk,
    thumbnails_path,
)

RNG = np.random.default_rng(0)


def test_longer_side_is_bounded_and_the_aspect_kept():
    assert shrunk(np.zeros((480, 640, 3)), 48).shape == (36, 48, 3)
    assert shrunk(np.zeros((500, 333)), 96).shape == (96, 64)
    small = RNG.random((40, 20))
    assert shrunk(small, 48) is small
    # an even pattern keeps its cells
    cells = RNG.integers(0, 9, (6, 8))
    assert np.array_equal(shrunk(np.kron(cells, np.ones((10, 10))), 8), cells)


def test_every_image_comes_back(tmp_path):
    sizes = [(30, 40), (200, 100), (48, 48)]
    masks = [RNG.integers(0, 150, size, dtype=np.uint8) for size in sizes]
    depths = [RNG.uniform(0.5, 9, size) for size in sizes[:2]] + [np.full(sizes[2], 3.0)]
    normals = [RNG.normal(size=(*size, 3)) for size in sizes]
    normals = [one / np.linalg.norm(one, axis=-1, keepdims=True) for one in normals]
    path = thumbnails_path(tmp_path / "linear.json")
    tasks = {"semantic_segmentation": mask_thumbnails(masks), "depth": depth_thumbnails(depths)}
    write_per_image(path, ["a", "b", "c"], tasks | {"normals": normals_thumbnails(normals)})
    assert path.name == "linear.thumbnails.npz"
    file = read_per_image(path)
    for index in range(3):
        mask = probe_task("semantic_segmentation").thumbnail(file.tasks["semantic_segmentation"], index)["mask"]
        assert np.array_equal(mask, shrunk(masks[index], 96)) and mask.dtype == np.uint8
        depth = probe_task("depth").thumbnail(file.tasks["depth"], index)["depth"]
        np.testing.assert_allclose(depth, shrunk(depths[index], 48), atol=0.51 * 8.5 / 255)
        normal = probe_task("normals").thumbnail(file.tasks["normals"], index)["normals"]
        cosine = (normal * shrunk(normals[index], 48)).sum(-1)
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.7


def test_the_surest_boxes_of_each_image_come_back():
    found = []
    for count in (0, 3, 50):
        boxes, scores = RNG.uniform(0, 90, (count, 4)).astype(np.float32), RNG.random(count).astype(np.float32)
        found.append({"boxes": boxes, "labels": RNG.integers(0, 80, count), "scores": scores})
    arrays = box_thumbnails(found)
    assert arrays["counts"].tolist() == [0, 3, BOXES]
    for index, one in enumerate(found):
        back = probe_task("detection").thumbnail(arrays, index)
        best = np.argsort(-one["scores"])[:BOXES]
        assert all(np.array_equal(back[name], one[name][best]) for name in back)
    assert box_thumbnails(found[:1])["boxes"].shape == (0, 4)

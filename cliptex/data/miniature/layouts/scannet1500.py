"""ScanNet's test pairs: a scene for each pair, with color, depth and pose of two frames, and the lists of LoFTR.

Images are 4:3. Depth is exact, and rounded to millimetres; official depth has holes and noise.
"""

from pathlib import Path

import numpy as np

from cliptex.benchmarks.scannet1500 import MM_PER_METRE
from cliptex.core.progress import track
from cliptex.data.miniature.layouts import Renderer, save_jpeg, save_png, save_text
from cliptex.data.miniature.sequences import Shot

FIRST_SCENE = 707
"""Number of the first official test scene."""
FRAME_STEP = 15
"""Official frame numbers are multiples of it."""


def write(renderer: Renderer, benchmark_dir: Path) -> None:
    """Write the tree; there is no training split."""
    folder, width = benchmark_dir / "scannet_test_1500", round(renderer.size * 4 / 3)
    names, relative, intrinsics = [], [], {}
    for index in track(range(renderer.counts["val"]), "render scannet1500"):
        shots = renderer.room_pair("val", index, width)
        scene = f"scene{FIRST_SCENE + index:04d}_00"
        frames = [0, FRAME_STEP * (1 + index % 9)]
        poses = [_write_frame(folder / scene, frame, shot) for frame, shot in zip(frames, shots, strict=True)]
        names.append([FIRST_SCENE + index, 0, *frames])
        relative.append((np.linalg.inv(poses[1]) @ poses[0])[:3].ravel())
        intrinsics[scene] = _intrinsics(shots[0], width)
    np.savez(folder / "test.npz", name=np.array(names, np.uint16), rel_pose=np.array(relative, np.float32))
    np.savez(folder / "intrinsics.npz", **intrinsics)


def _write_frame(scene: Path, frame: int, shot: Shot) -> np.ndarray:
    """Write a frame. Returns its pose [4, 4], camera to world."""
    height, width = shot.instances.shape
    depth = np.nan_to_num(shot.hits.depth.reshape(height, width))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = shot.camera.rotation.T, shot.camera.position
    save_jpeg(scene / "color" / f"{frame}.jpg", shot)
    save_png(scene / "depth" / f"{frame}.png", np.round(depth * MM_PER_METRE).astype(np.uint16))
    save_text(scene / "pose" / f"{frame}.txt", [" ".join(f"{value:.6f}" for value in row) for row in pose])
    return pose


def _intrinsics(shot: Shot, width: int) -> np.ndarray:
    """The camera matrix [3, 3] of a shot; the centre of the first pixel is 0, 0."""
    height, focal = shot.instances.shape[0], shot.camera.focal * width
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

"""The label that needs no image: per-pixel maps of the renders it was given, in the form of the experts' labels."""

import h5py
import numpy as np
import pytest

from cliptex.experts.truth import prior_label


@pytest.fixture
def renders(tmp_path):
    """Three renders of 3 x 4: the top row is sky in all of them, one more pixel in the first."""
    depth = np.repeat(np.array([2.0, 4.0, 6.0], np.float32), 12).reshape(3, 3, 4)
    normals = np.zeros((3, 3, 4, 3), np.float16)
    normals[:2, ..., 0], normals[2, ..., 1] = 1, 1
    depth[:, 0], normals[:, 0] = np.nan, np.nan
    depth[0, 1, 1], normals[0, 1, 1] = np.nan, np.nan
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        file["depth"], file["normals"] = depth, normals
        file["instance"] = np.ones((3, 3, 4), np.uint8)
    return path


def test_depth_is_the_inverse_of_the_mean_depth_of_a_pixel_and_sky_is_far(renders):
    prior = prior_label("depth", renders)
    expected = np.full((3, 4), 1 / 4, np.float32)
    expected[0], expected[1, 1] = 0, 1 / 5
    assert prior.dtype == np.float32 and np.allclose(prior, expected)


def test_normals_are_the_mean_direction_of_a_pixel_and_unknown_in_the_sky(renders):
    prior = prior_label("normals", renders)
    assert prior.dtype == np.float32 and np.isnan(prior[0]).all()
    assert np.allclose(prior[2], np.array([2, 1, 0]) / np.sqrt(5))
    assert np.allclose(prior[1, 1], np.array([1, 1, 0]) / np.sqrt(2))


def test_segmentation_is_background_and_other_tasks_have_no_prior(renders):
    assert (prior_label("segmentation", renders) == np.zeros((3, 4), np.uint8)).all()
    assert prior_label("edges", renders) is None

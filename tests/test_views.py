"""What an encoder sees of an image, and that truths go with it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cliptex.core.errors import CliptexError
from cliptex.evaluation.probes.heads.segmentation import merge_windows, resized_argmax
from cliptex.evaluation.probes.views import (
    ImageView,
    crop_truth,
    crop_view,
    evaluation_views,
    random_crops,
    random_views,
    windows,
    windows_of,
)
from cliptex.evaluation.protocols.base import Augmentation, DenseInput, RandomCrops
from cliptex.models.encoders import centre_crop, squash


def smooth(height, width):
    """An image whose colours tell the place: red grows to the right, green down."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def test_the_whole_image_is_squashed_as_ever():
    image = np.random.default_rng(0).integers(0, 255, (31, 47, 3), np.uint8)
    (view,) = evaluation_views((31, 47), DenseInput(), (24, 24))
    np.testing.assert_array_equal(crop_view(image, view, (24, 24), "bicubic"), squash(image, 24, "bicubic"))
    mask = np.arange(31 * 47).reshape(31, 47)
    rows, columns = (((np.arange(10) + 0.5) * side / 10).astype(int) for side in mask.shape)
    np.testing.assert_array_equal(crop_truth(mask, view, (10, 10), -1), mask[rows][:, columns])


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((480, 640), (480, 480), (0, 80, 480, 480)),  # probe3d's crop of NYU
        ((480, 640), (224, 224), (0, 80, 480, 480)),
        ((641, 480), (100, 100), (80, 0, 480, 480)),
        ((480, 640), (96, 128), (0, 0, 480, 640)),
        ((300, 300), (100, 200), (75, 0, 150, 300)),
    ],
)
def test_the_centre_is_a_box_of_whole_pixels_of_the_inputs_ratio(shape, size, box):
    (view,) = evaluation_views(shape, DenseInput(fit="crop"), size)
    assert (view.top, view.left, view.height, view.width) == box
    assert np.zeros(shape)[view.slices()].shape == box[2:]


@pytest.mark.parametrize("shape", [(100, 160), (333, 250), (97, 97), (64, 300)])
def test_windows_cover_the_image_and_stay_inside(shape):
    found = windows(shape, 64, 40)
    assert min(found.canvas) == 64
    assert found.canvas[0] / found.canvas[1] == pytest.approx(shape[0] / shape[1], rel=0.02)
    seen = np.zeros(found.canvas, int)
    for top, left in found.corners:
        assert 0 <= top <= found.canvas[0] - 64 and 0 <= left <= found.canvas[1] - 64
        seen[top : top + 64, left : left + 64] += 1
    assert seen.min() >= 1
    image = smooth(*shape)
    resized = np.asarray(Image.fromarray(image).resize(found.canvas[::-1], Image.Resampling.BICUBIC)).astype(int)
    views = evaluation_views(shape, DenseInput(fit="windows", stride_px=40), (64, 64))
    assert len(views) == len(found.corners)
    for view, (top, left) in zip(views, found.corners, strict=True):
        ours = crop_view(image, view, (64, 64), "bicubic").astype(int)
        assert np.abs(ours - resized[top : top + 64, left : left + 64]).max() <= 1


def test_windows_are_those_of_mmsegmentation():
    # its slide_inference: 512 x 683, crop 512, stride 341
    assert windows((480, 640), 512, 341).corners == ((0, 0), (0, 171))
    assert windows((480, 1280), 512, 341).corners == ((0, 0), (0, 341), (0, 682), (0, 853))
    with pytest.raises(CliptexError, match="squares"):
        windows_of((48, 64), DenseInput(fit="windows"), (32, 48))


def test_windows_of_one_map_give_that_map_again():
    """Logits that are a linear function of the place are the same from overlapping windows as from the whole."""
    found = windows((64, 128), 32, 24)
    place = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij"))
    inside = torch.stack([place[:, top : top + 32, left : left + 32] for top, left in found.corners])
    whole = merge_windows(inside, found)
    torch.testing.assert_close(whole, place)
    logits = torch.stack([place[1], 63 - place[1]])
    inside = torch.stack([logits[:, top : top + 32, left : left + 32] for top, left in found.corners])
    mask = resized_argmax(merge_windows(inside, found), 64, 128)
    assert (mask[:, :63] == 1).all() and (mask[:, 65:] == 0).all()
    # two windows that disagree are averaged
    both = merge_windows(torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]), windows((4, 6), 4, 2))
    assert both[0, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_random_views_show_what_their_truths_say():
    """The truth of a view, drawn as a picture, is the view of the picture, wherever it lies and however mirrored."""
    shape, size = (60, 90), (32, 32)
    image = smooth(*shape)
    rng = np.random.default_rng(0)
    augment = Augmentation(views=40, scale=(0.5, 2.0), flip=0.5)
    views = random_views(shape, DenseInput(fit="crop"), size, augment, rng)
    assert len({view.flip for view in views}) == 2
    assert any(view.height > 60 for view in views) and any(view.height < 40 for view in views)
    for view in views:
        seen = crop_view(image, view, size, "bilinear", (7, 8, 9)).astype(int)
        truth = crop_truth(image.astype(int), view, size, -1)
        beyond = truth[..., 0] < 0
        assert np.abs(seen - truth)[~beyond].max() <= 12
        # a cell at the border may be half beyond
        inner = beyond & np.roll(beyond, 1, 0) & np.roll(beyond, 1, 1) & np.roll(beyond, -1, 1)
        assert (seen[inner] == [7, 8, 9]).all()
    plain = random_views(shape, DenseInput(), size, Augmentation(views=3), rng)
    assert set(plain) == {ImageView(0, 0, 60, 90)}


def test_random_views_leave_out_no_part_of_the_range():
    """One view in each of as many parts of the scales and places, and as many mirrored ones as are wanted."""
    shape, count = (60, 60), 16
    augment = Augmentation(views=count, scale=(2.0, 4.0), flip=0.25)
    for seed in range(20):
        views = random_views(shape, DenseInput(), (32, 32), augment, np.random.default_rng(seed))
        scales = np.array([60 / view.height for view in views])
        down, across = (
            np.array([getattr(view, name) / (60 - view.height) for view in views]) for name in ("top", "left")
        )
        for values in ((scales - 2) / 2, down, across):
            assert sorted(np.floor(values * count).astype(int)) == list(range(count))
        assert sum(view.flip for view in views) == 4
    assert random_views(shape, DenseInput(), (32, 32), Augmentation(views=0), np.random.default_rng(0)) == []


def test_random_crops_are_of_the_area_and_ratio_that_torchvision_draws():
    rng = np.random.default_rng(0)
    crops = random_crops((90, 120), RandomCrops(views=500, area=(0.2, 0.9)), rng)
    areas = np.array([one.height * one.width for one in crops]) / (90 * 120)
    ratios = np.array([one.width / one.height for one in crops])
    assert 0.19 < areas.min() < 0.25 and 0.8 < areas.max() < 0.91
    assert 0.74 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.35
    assert all(one.top + one.height <= 90 and one.left + one.width <= 120 for one in crops)
    assert 0.4 < np.mean([one.flip for one in crops]) < 0.6
    image = smooth(90, 120)
    assert crop_view(image, crops[0], (24, 24), "bicubic").shape == (24, 24, 3)


def test_the_centre_for_classification_is_torchvisions():
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = np.random.default_rng(0).integers(0, 255, (77, 130, 3), np.uint8)
    for resize, side in ((64, 56), (48, 48)):
        theirs = Compose([Resize(resize, InterpolationMode.BICUBIC), CenterCrop(side)])(Image.fromarray(image))
        ours = centre_crop(image, side, "bicubic", resize)
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_a_mirrored_view_is_the_view_mirrored():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    plain, turned = ImageView(3, 4, 30, 20), ImageView(3, 4, 30, 20, flip=True)
    np.testing.assert_array_equal(
        crop_view(image, turned, (8, 8), "bicubic"), crop_view(image, plain, (8, 8), "bicubic")[:, ::-1]
    )
    np.testing.assert_array_equal(crop_truth(image, turned, (8, 8), 0), crop_truth(image, plain, (8, 8), 0)[:, ::-1])


def test_bilinear_cells_of_a_view_and_its_truth_have_the_same_centres():
    """A truth that is linear in the place, sampled on the grid, is what resizing the map to that grid gives."""
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    sampled = crop_truth(ramp, ImageView(0, 0, 64, 64), (16, 16), np.nan)
    small = F.interpolate(torch.from_numpy(ramp)[None, None], size=(16, 16), mode="area")[0, 0].numpy()
    np.testing.assert_allclose(sampled, small, atol=1 / 64)

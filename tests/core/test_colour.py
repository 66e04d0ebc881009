import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import hed_from_rgb, rgb2hed, rgb_from_hed, separate_stains

from pixel2gene.core.encoders.colour import CHANNELS, colour, optical_density, stain_density

SIZES = rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True)
pictures = hnp.arrays(np.uint8, (1, 3, 8, 12))


def dyed(density):
    """(1, 3, ...) intensities that have these densities (..., 3) of the three stains, in our optical density."""
    optical = np.moveaxis(np.asarray(density) @ SIZES, -1, 0)
    return torch.from_numpy(256 * 10.0**-optical - 1)[None]


def test_optical_density():
    rgb = torch.tensor([255, 0, 127], dtype=torch.uint8)
    torch.testing.assert_close(optical_density(rgb), torch.tensor([0, np.log10(256), np.log10(2)]).float())


def test_stains_are_unmixed_exactly():
    density = np.random.default_rng(0).uniform(0, 0.5, (5, 6, 3))
    found = stain_density(dyed(density))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, density[..., :2], atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(30, 255)))
def test_proportional_to_scikit_image(rgb):
    # scikit-image's stains are not normalised, its density is in units of log(1e-6), and it adds no 1.
    length = np.linalg.norm(rgb_from_hed, axis=1)[:2]
    expected = separate_stains((rgb + 1.0) / 256, hed_from_rgb)[..., :2] * (6 * length)
    found = stain_density(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    # scikit-image cuts negative densities off.
    np.testing.assert_allclose(found.clip(0), expected, atol=2e-5)


def test_tissue_ranks_as_by_rgb2hed():
    rgb = np.random.default_rng(1).integers(60, 250, (40, 40, 3), np.uint8)
    expected = rgb2hed(rgb)
    found = stain_density(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].numpy()
    for stain in (0, 1):
        assert np.corrcoef(found[stain].clip(0).ravel(), expected[..., stain].ravel())[0, 1] > 0.999


@settings(deadline=None, max_examples=30)
@given(pictures, st.sampled_from([2, 4]))
def test_means_and_spreads(rgb, stride):
    found = colour(torch.from_numpy(rgb), stride)[0].numpy()
    assert found.shape == (CHANNELS, 8 // stride, 12 // stride)
    tiles = (8 // stride, stride, 12 // stride, stride)
    np.testing.assert_allclose(found[:3], rgb[0].reshape(3, *tiles).mean(axis=(2, 4)) / 255, atol=1e-6)
    stains = stain_density(torch.from_numpy(rgb))[0].double().numpy().reshape(2, *tiles)
    np.testing.assert_allclose(found[3:5], stains.mean(axis=(2, 4)), atol=1e-5)
    # Of a mean of squares less a squared mean, float32 leaves 1e-3 near zero.
    np.testing.assert_allclose(found[5:], stains.std(axis=(2, 4)), atol=3e-3)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_plain_colour_has_no_spread(value):
    found = colour(torch.full((1, 3, 16, 16), value), 16)[0, :, 0, 0]
    torch.testing.assert_close(found[:3], torch.full((3,), value / 255))
    assert found[5:].max() < 2e-3

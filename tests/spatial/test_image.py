import threading

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import downscale_local_mean
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel

from pixel2gene.spatial.image import Slide, open_image, resample_weights


def sdata_of(pixels, scale_factors=None, **kwargs):
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=scale_factors, **kwargs)
    return SpatialData(images={"he": image})


def slide_of(pixels, scale_factors=None):
    return open_image(sdata_of(pixels, scale_factors), "he")


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def area_mean(row, scale, start, stop):
    """Mean of each target pixel by the integral of the source, with its borders repeated."""
    pad = 50
    padded = np.pad(row.astype(float), pad, mode="edge")
    integral = np.concatenate([[0], np.cumsum(padded)])
    edges = np.arange(start, stop + 1) * scale + pad
    return np.diff(np.interp(edges, np.arange(len(integral)), integral)) / scale


@settings(deadline=None)
@given(
    st.one_of(st.floats(1, 9), st.integers(1, 9).map(float)),
    st.integers(-3, 5),
    st.integers(1, 8),
    st.integers(1, 40),
)
def test_shrinking_weights_take_the_mean_of_the_area(scale, start, size, n):
    row = np.random.default_rng(n).uniform(0, 255, n)
    weights, first, last = resample_weights(start, start + size, scale, n)
    if start * scale > -50 and (start + size) * scale < n + 50:
        np.testing.assert_allclose(weights @ row[first:last], area_mean(row, scale, start, start + size), rtol=1e-5)


@given(st.floats(0.1, 30), st.integers(-20, 20), st.integers(1, 9), st.integers(1, 30))
def test_weights_are_a_mean_and_read_no_more_than_they_need(scale, start, size, n):
    weights, first, last = resample_weights(start, start + size, scale, n)
    assert 0 <= first < last <= n
    assert weights.shape == (size, last - first)
    assert weights.dtype == np.float32
    assert weights.data.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert last - first <= np.ceil(size * scale) + 2


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_integer_factors_equal_the_block_mean(factor):
    pixels = noise(30, 60)
    expected = downscale_local_mean(pixels, (1, factor, factor))
    found = slide_of(pixels).read(factor, 0, 30 // factor, 0, 60 // factor)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_full_resolution_passes_through():
    pixels = noise(11, 13)
    np.testing.assert_array_equal(slide_of(pixels).read(1, 0, 11, 0, 13), pixels)
    np.testing.assert_array_equal(slide_of(pixels, [2]).read(1, 2, 5, 3, 9), pixels[:, 2:5, 3:9])
    multiscale = slide_of(pixels, [2])
    np.testing.assert_array_equal(multiscale.read(2, 0, 5, 0, 6), multiscale.levels[1])


def exact_ramp(factors):
    """Slide whose pixels have twice the x of their centre, in level-0 pixels, at every level."""
    levels = [(2 * np.arange(120 // factor) + 1) * factor for factor in factors]
    pixels = [
        np.broadcast_to(row.astype(np.uint8), (3, 48 // f, len(row))) for f, row in zip(factors, levels, strict=True)
    ]
    return Slide(
        tuple(xr.DataArray(da.from_array(level), dims=("c", "y", "x")) for level in pixels),
        tuple((factor, factor) for factor in factors),
    )


@pytest.mark.parametrize("scale", [0.6, 0.9, 1, 1.7, 2, 2.35, 3.9, 4, 5])
@pytest.mark.parametrize("factors", [(1,), (1, 2), (1, 2, 4), (1, 4)])
def test_a_ramp_stays_a_ramp(scale, factors):
    found = exact_ramp(factors).read(scale, 2, 6, 2, 22)
    error = found - 2 * (np.arange(2, 22) + 0.5) * scale
    factor = max(f for f in factors if f <= max(scale, 1))
    step = scale / factor
    # Constant pixels stand for the ramp; an area that cuts one at half loses 1/8 of its step.
    bound = 0 if step < 1 or step.is_integer() else 2 * factor / 8 / step
    assert np.abs(error).max() <= bound + 1e-4
    assert abs(error.mean()) <= bound / 5 + 1e-4


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
@settings(deadline=None, max_examples=30)
@given(
    scale=st.floats(0.5, 6),
    y=st.tuples(st.integers(-3, 9), st.integers(1, 4)),
    x=st.tuples(st.integers(-3, 9), st.integers(1, 4)),
)
def test_any_window_is_a_crop_of_the_whole(scale_factors, scale, y, x):
    slide = slide_of(noise(37, 53), scale_factors)
    whole = slide.read(scale, -3, 14, -3, 14)
    crop = slide.read(scale, y[0], sum(y), x[0], sum(x))
    np.testing.assert_allclose(crop, whole[:, y[0] + 3 : sum(y) + 3, x[0] + 3 : sum(x) + 3], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.7, 1, 2.35, 4])
@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_constant_stays_constant_also_outside(scale, scale_factors):
    found = slide_of(np.full((3, 40, 40), 77, np.uint8), scale_factors).read(scale, -5, 60, 30, 80)
    np.testing.assert_allclose(found, 77, rtol=1e-6)


def test_border_pixels_repeat():
    pixels = noise(6, 8)
    found = slide_of(pixels).read(1, -2, 9, -3, 10)
    np.testing.assert_array_equal(found, np.pad(pixels, ((0, 0), (2, 3), (3, 2)), mode="edge"))
    far = slide_of(pixels).read(2, 100, 102, 100, 102)
    np.testing.assert_array_equal(far, np.broadcast_to(pixels[:, -1:, -1:], (3, 2, 2)))


@pytest.mark.parametrize("scale", [2, 2.35, 4, 5.5])
def test_multiscale_equals_single_scale(scale):
    # Smooth, because a level has lost what is finer than its own pixels.
    y, x = np.indices((160, 200))
    pixels = np.stack([128 + 100 * np.sin(x / 9 + c) * np.cos(y / 11) for c in range(3)]).round().astype(np.uint8)
    size = 160 // 6
    single = slide_of(pixels).read(scale, 0, size, 0, size)
    error = slide_of(pixels, [2, 2]).read(scale, 0, size, 0, size) - single
    assert np.abs(error).max() < 5
    assert np.corrcoef((error + single).ravel(), single.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_noise_shrinks_like_an_area_mean(scale):
    pixels = noise(360, 360)
    found = slide_of(pixels).read(scale, 0, 360 // scale, 0, 360 // scale)
    assert found.var() == pytest.approx(pixels.var() / scale**2, rel=0.03)


@pytest.mark.parametrize(("size", "factors"), [(1001, (1, 2, 4)), (1003, (1, 2, 4)), (33, (1, 2, 4)), (100, (1, 2, 4))])
def test_level_factors_are_whole_numbers(size, factors):
    slide = slide_of(np.zeros((3, size, size), np.uint8), [2, 2])
    assert slide.factors == tuple((factor, factor) for factor in factors)
    assert slide.shape == (size, size)


def test_levels_of_a_fractional_factor_keep_it():
    tree = xr.DataTree.from_dict(
        {
            "scale0": xr.Dataset({"image": Image2DModel.parse(noise(90, 150), dims=("c", "y", "x"))}),
            "scale1": xr.Dataset({"image": Image2DModel.parse(noise(60, 100), dims=("c", "y", "x"))}),
        }
    )
    assert open_image(SpatialData(images={"he": tree}), "he").factors == ((1, 1), (1.5, 1.5))


def test_alpha_is_dropped():
    pixels = np.concatenate([noise(8, 8), np.zeros((1, 8, 8), np.uint8)])
    sdata = sdata_of(pixels, c_coords=["r", "g", "b", "a"])
    np.testing.assert_array_equal(open_image(sdata, "he").read(1, 0, 8, 0, 8), pixels[:3])


def test_reads_only_the_chunks_it_needs_in_the_calling_thread():
    touched = []

    def chunk(block_info=None):
        touched.append((block_info[None]["chunk-location"][1:], threading.get_ident()))
        return np.zeros((3, 10, 10), np.uint8)

    pixels = da.map_blocks(
        chunk, chunks=((3,), (10,) * 5, (10,) * 5), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    slide = slide_of(pixels)
    touched.clear()
    assert slide.read(2, 5, 10, 10, 15).shape == (3, 5, 5)
    assert touched == [((1, 2), threading.get_ident())]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (noise(8, 8).astype(np.uint16), "is uint16; uint8 expected: scale its values to 0-255"),
        (noise(8, 8) / 255, "is float64; uint8 expected"),
        (noise(8, 8)[:1], r"has 1 channels; 3 \(RGB\) or 4 \(RGBA\) expected, so it is not an H&E"),
        (np.concatenate([noise(8, 8)] * 2), "has 6 channels"),
    ],
)
def test_what_is_no_he_is_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        open_image(sdata_of(pixels), "he")


def test_volumes_are_refused():
    volume = Image3DModel.parse(np.zeros((3, 2, 8, 8), np.uint8), dims=("c", "z", "y", "x"))
    with pytest.raises(ValueError, match="'z'"):
        open_image(SpatialData(images={"he": volume}), "he")


def test_an_unknown_key_lists_the_keys():
    with pytest.raises(KeyError, match=r"'morphology' among the images; there are \['he'\]"):
        open_image(sdata_of(noise(8, 8)), "morphology")

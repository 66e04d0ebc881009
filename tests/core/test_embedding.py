import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel2gene.core import embedding as module
from pixel2gene.core.embedding import (
    add_context,
    blend_windows,
    choose_overlap,
    choose_scales,
    embed_tile,
    embedding_channels,
    linear_cells,
    local_channels,
    own_channels,
    seam,
    surroundings,
    window_step,
)
from pixel2gene.core.encoders.colour import CHANNELS, colour


class Means:
    """An encoder of one channel: the mean of red."""

    name, stride, channels, window, overlap, halo, mpp = "means", 4, 1, None, 0.0, 8, 2.0

    def encode_dense(self, rgb):
        return F.avg_pool2d(rgb[:, :1], self.stride)


class Windows(Means):
    """Sees windows of 6 x 6 superpixels, and says where in the window each is."""

    channels, window, overlap, halo = 2, 24, 0.5, 0

    def __init__(self):
        self.batches = []

    def encode_dense(self, rgb):
        assert rgb.shape[1:] == (3, self.window, self.window)
        self.batches.append(len(rgb))
        mean = F.avg_pool2d(rgb[:, :1], self.stride)
        return torch.cat([mean, torch.arange(36.0).view(1, 1, 6, 6).expand_as(mean)], dim=1)


def masked_means(local, mask, windows, border):
    """By the definition, one superpixel at a time."""
    channels, rows, columns = local.shape
    inner = (rows - 2 * border, columns - 2 * border)
    result = np.zeros(((1 + len(windows)) * channels, *inner))
    for i in range(inner[0]):
        for j in range(inner[1]):
            y, x = i + border, j + border
            if not mask[y, x]:
                continue
            result[:channels, i, j] = local[:, y, x]
            for k, window in enumerate(windows, start=1):
                half = window // 2
                around = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
                values = local[:, *around][:, mask[around]].astype(np.float64)
                result[k * channels : (k + 1) * channels, i, j] = values.mean(axis=1)
    return result


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 2), st.integers(1, 6), st.integers(1, 7))
def test_context_is_the_masked_mean(seed, share, wider, rows, columns):
    rng = np.random.default_rng(seed)
    windows, border = (3, 7), 3 + wider
    mask = rng.random((rows + 2 * border, columns + 2 * border)) < share
    local = (rng.normal(5, 2, (4, *mask.shape)) * mask).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONTEXT_WINDOWS", windows)
        found = add_context(local, mask, border)
    assert found.dtype == np.float16
    # Half precision keeps 11 bits.
    np.testing.assert_allclose(found, masked_means(local, mask, windows, border), rtol=6e-4, atol=1e-3)
    assert not found[:, ~mask[border:-border, border:-border]].any()


def test_the_windows_in_use(monkeypatch):
    windows = module.CONTEXT_WINDOWS
    assert all(window % 2 for window in windows)
    border = max(windows) // 2
    rng = np.random.default_rng(0)
    mask = rng.random((2 * border + 2, 2 * border + 3)) < 0.6
    local = (rng.normal(size=(2, *mask.shape)) * mask).astype(np.float16)
    found = add_context(local, mask, border)
    np.testing.assert_allclose(found, masked_means(local, mask, windows, border), rtol=6e-4, atol=1e-3)


def test_a_tile_is_encoded_and_its_halo_cut_off():
    encoder = Means()
    rgb = np.random.default_rng(0).uniform(0, 255, (3, 8 + 12 + 8, 8 + 20 + 8)).astype(np.float32)
    inside = np.ones((3, 5), bool)
    inside[1, 2] = False
    found = embed_tile(encoder, rgb, inside, (2, 2), 0.0)
    assert not found[:, ~inside].any()
    assert found.shape == (local_channels(encoder), 3, 5) == (1 + CHANNELS, 3, 5)
    assert found.dtype == np.float16
    core = rgb[:, 8:-8, 8:-8]
    expected = core[0].reshape(3, 4, 5, 4).mean(axis=(1, 3)) * inside
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)
    expected = colour(torch.from_numpy(core)[None], 4)[0].numpy() * inside
    np.testing.assert_allclose(found[1:], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_windows_are_blended_by_what_each_superpixel_received(step):
    """One superpixel at a time."""
    encoder, side = Windows(), 6
    rows, columns = side + 2 * step, side + step
    rgb = torch.rand(3, 4 * rows, 4 * columns) * 255
    wanted = np.zeros((rows, columns), bool)
    wanted[1, 2] = wanted[-1, -1] = True
    found = blend_windows(encoder, rgb, wanted, step)
    bump = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    for y, x in np.argwhere(wanted):
        windows = [
            (y - top, x - left)
            for top in range(0, rows - side + 1, step)
            for left in range(0, columns - side + 1, step)
            if top <= y < top + side and left <= x < left + side
        ]
        weights = np.array([bump[i] * bump[j] for i, j in windows])
        places = np.array([i * side + j for i, j in windows])
        assert found[1, y, x] == pytest.approx((weights * places).sum() / weights.sum(), rel=1e-4)
        assert found[0, y, x] == pytest.approx(float(rgb[0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean()), rel=1e-4)


def test_windows_without_tissue_are_left_out():
    encoder = Windows()
    wanted = np.zeros((18, 18), bool)
    wanted[7, 8] = True
    found = blend_windows(encoder, torch.zeros(3, 72, 72), wanted, 6)
    assert encoder.batches == [1]
    assert torch.isfinite(found).all() and not found[:, :6].any()


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("start", "stop"), [(0, 8), (-3, 5), (13, 14)])
def test_surroundings_are_all_windows_that_meet_a_tile(overlap, start, stop):
    encoder, side = Windows(), 6
    step = window_step(encoder, overlap)
    starts = [k * step for k in range(-50, 50) if k * step < stop and k * step + side > start]
    assert surroundings(encoder, start, stop, overlap) == (starts[0], starts[-1] + side)


def test_surroundings_of_an_encoder_without_windows_are_its_halo():
    assert surroundings(Means(), 10, 20, 0.0) == (8, 22)


def test_overlap_is_the_encoders_own_unless_one_is_given():
    assert (choose_overlap(Windows(), None), choose_overlap(Windows(), 0.25)) == (0.5, 0.25)
    assert (choose_overlap(Means(), None), choose_overlap(Means(), 0.0)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="overlap=1.0: a share of a window expected"):
        choose_overlap(Windows(), 1.0)
    with pytest.raises(ValueError, match="overlap=0.5: 'means' sees every superpixel with 8 px around it"):
        choose_overlap(Means(), 0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(-20, 20), st.integers(1, 15))
def test_between_cells_values_are_interpolated_linearly(scale, start, size):
    first, weights = linear_cells(start, start + size, scale)
    # Far enough around them that the border of the reference does not matter.
    origin = (start // scale) - 2
    cells = torch.randn(1, 1, size // scale + 6, generator=torch.Generator().manual_seed(size))
    whole = F.interpolate(cells, scale_factor=scale, mode="linear", align_corners=False)[0, 0].numpy()
    expected = whole[start - scale * origin :][:size]
    known = cells[0, 0, first - origin :][: weights.shape[1]].numpy()
    np.testing.assert_allclose(weights @ known, expected, rtol=1e-4, atol=1e-5)


def test_scales_grow_from_one():
    assert choose_scales([1, 2, 4]) == (1, 2, 4) and choose_scales((np.int64(1),)) == (1,)
    for wrong in ((), (2,), (1, 1), (1, 4, 2), (1, 1.5), (1, "2"), (True, 2), "124", 2, None):
        with pytest.raises(ValueError, match=r"whole numbers expected that grow from 1, such as \(1, 2, 4\)"):
            choose_scales(wrong)
    for scales in ((1,), (1, 2), (1, 2, 4)):
        assert own_channels(embedding_channels(Means(), scales), len(scales)) == local_channels(Means())


def test_seam_is_the_jump_at_borders_relative_to_the_same_places():
    rng = np.random.default_rng(0)
    elsewhere = rng.normal(size=(3, 12, 15)).astype(np.float16)
    features = elsewhere.copy()
    features[:, 4:8] += 2
    features[:, :, 8:] -= 1
    borders = np.array([4, 8])
    assert seam(elsewhere, elsewhere, borders) == 1

    def jumps(values):
        total = 0.0
        for channel, reference in zip(values.astype(np.float64), elsewhere.astype(np.float64), strict=True):
            for k in borders:
                total += np.abs(channel[k] - channel[k - 1]).sum() / reference.std()
                total += np.abs(channel[:, k] - channel[:, k - 1]).sum() / reference.std()
        return total

    assert seam(features, elsewhere, borders) == pytest.approx(jumps(features) / jumps(elsewhere))
    assert seam(features, elsewhere, borders) > 1.1

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel2gene.core import embedding as module
from pixel2gene.core.embedding import add_context, embed_tile, local_channels
from pixel2gene.core.encoders.colour import CHANNELS, colour


class Means:
    """An encoder of one channel: the mean of red."""

    stride, channels, halo, mpp = 4, 1, 8, 2.0

    def encode_dense(self, rgb):
        return F.avg_pool2d(rgb[:, :1], self.stride)


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
    found = embed_tile(encoder, rgb, encoder.halo)
    assert found.shape == (local_channels(encoder), 3, 5) == (1 + CHANNELS, 3, 5)
    assert found.dtype == np.float16
    core = rgb[:, 8:-8, 8:-8]
    np.testing.assert_allclose(found[0], core[0].reshape(3, 4, 5, 4).mean(axis=(1, 3)), rtol=1e-3)
    np.testing.assert_allclose(found[1:], colour(torch.from_numpy(core)[None], 4)[0], rtol=1e-3, atol=1e-3)

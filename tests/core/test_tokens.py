"""Tokens on superpixels: against the definition, pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel2gene.core.encoders.tokens import place_tokens


def by_pixel(tokens, token, stride):
    """Each pixel has the value of its token; a superpixel has the mean of its pixels."""
    pixels = tokens.repeat_interleave(token, dim=2).repeat_interleave(token, dim=3)
    return F.avg_pool2d(pixels, stride)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 36), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_equals_the_mean_over_pixels(token, stride, rows, columns, seed):
    tokens = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(seed))
    found = place_tokens(tokens, token, stride)
    assert found.shape[2:] == (rows * token // stride, columns * token // stride)
    if found.numel():
        torch.testing.assert_close(found, by_pixel(tokens, token, stride), rtol=1e-4, atol=1e-5)


def test_14_px_onto_16_px():
    """Superpixel 1 covers 12 px of token 1 and 4 px of token 2."""
    tokens = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    found = place_tokens(tokens, 14, 16)[0, 0, 0]
    assert len(found) == 14
    assert found[1].item() == pytest.approx((12 * 1 + 4 * 2) / 16)


@pytest.mark.parametrize(("token", "stride"), [(14, 16), (16, 16), (16, 32), (16, 8), (14, 17)])
def test_a_plane_stays_where_it_is(token, stride):
    """What is linear in place is so after; the mean over the window too."""
    centres = token * (torch.arange(2 * stride) + 0.5)
    found = place_tokens((centres[:, None] + 2 * centres).expand(1, 1, -1, -1), token, stride)[0, 0]
    if stride % token == 0 or token == stride:
        expected = stride * (torch.arange(2 * token) + 0.5)
        torch.testing.assert_close(found, expected[:, None] + 2 * expected)
    torch.testing.assert_close(found.mean(), (centres[:, None] + 2 * centres).mean())


def test_equal_grids_are_left_alone():
    tokens = torch.randn(1, 2, 5, 4)
    assert torch.equal(place_tokens(tokens, 16, 16), tokens)

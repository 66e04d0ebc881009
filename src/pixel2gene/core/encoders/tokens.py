"""Tokens of a vision transformer, laid on superpixels by area."""

from __future__ import annotations

import torch
from torch import Tensor


def place_tokens(tokens: Tensor, token: int, stride: int) -> Tensor:
    """Average the tokens over each superpixel, weighted by the area that they share.

    Parameters
    ----------
    tokens
        (batch, channels, rows, columns); token i covers the pixels [i * token, (i + 1) * token).
    token, stride
        Sides of a token and of a superpixel in pixels.

    Returns
    -------
    (batch, channels, rows * token // stride, columns * token // stride): the superpixels that lie on tokens entirely.
    """
    rows, columns = (_shares(size, token, stride).to(tokens) for size in tokens.shape[2:])
    return torch.einsum("rh,bchw,sw->bcrs", rows, tokens, columns)


def _shares(size: int, token: int, stride: int) -> Tensor:
    """(superpixels, tokens): the share of a superpixel that each token covers, along one axis."""
    start = torch.arange(size * token // stride)[:, None] * stride
    other = torch.arange(size)[None] * token
    overlap = torch.minimum(start + stride, other + token) - torch.maximum(start, other)
    return overlap.clamp_min(0) / stride

"""Colour of every superpixel: mean RGB, and mean and spread of the two stains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 7
# Superpixels, high, of what is looked at at once.
BAND = 1
# Rows: optical density of haematoxylin, eosin and DAB (Ruifrok & Johnston, 2001).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def optical_density(rgb: Tensor) -> Tensor:
    """Beer-Lambert optical density (base 10) of 8-bit intensities; shape unchanged, float32."""
    if rgb.dtype == torch.uint8:
        # Looked up, which is faster.
        table = optical_density(torch.arange(256.0, device=rgb.device))
        return table.index_select(0, rgb.flatten().int()).view(rgb.shape)
    return -torch.log10((rgb.float() + 1) / 256)


def stain_density(rgb: Tensor) -> Tensor:
    """Haematoxylin and eosin density: (batch, 3, height, width) RGB to (batch, 2, height, width)."""
    stains = F.normalize(torch.tensor(STAINS, device=rgb.device), dim=1)
    unmix = torch.linalg.inv(stains)[:, :2]
    return torch.einsum("bchw,cs->bshw", optical_density(rgb), unmix)


def colour(rgb: Tensor, stride: int) -> Tensor:
    """Seven colour channels per superpixel.

    Parameters
    ----------
    rgb
        (batch, 3, height, width), values 0 to 255, sides multiples of `stride`.
    stride
        Side of a superpixel in pixels.

    Returns
    -------
    (batch, 7, height / stride, width / stride): mean R, G, B (0 to 1), mean haematoxylin and eosin density, their
    standard deviations.
    """
    # Some rows at a time, which the cache of a core holds.
    return torch.cat([_colour(rows, stride) for rows in rgb.split(BAND * stride, dim=2)], dim=2)


def _colour(rgb: Tensor, stride: int) -> Tensor:
    stains = stain_density(rgb)
    mean = _means(stains, stride)
    variance = _means(stains.square(), stride) - mean**2
    return torch.cat([_means(rgb.float() / 255, stride), mean, variance.clamp_min(0).sqrt()], dim=1)


def _means(values: Tensor, stride: int) -> Tensor:
    """Of squares, as of `torch.nn.functional.avg_pool2d`, which takes three times as long."""
    rows = values.reshape(*values.shape[:2], -1, stride, values.shape[3]).mean(dim=3)
    return rows.reshape(*rows.shape[:3], -1, stride).mean(dim=4)

"""Encoders: from H&E pixels to a vector per superpixel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pixel2gene.core.encoders.lite0 import Lite0


class Encoder(Protocol):
    """What an encoder offers.

    Attributes
    ----------
    name
        By which users choose it.
    mpp
        Resolution of the images that it wants, µm per pixel.
    stride
        Pixels per superpixel and axis.
    channels
        Length of the vector per superpixel.
    halo
        Pixels around a tile after which the tile's border no longer shows.
    licence, weights_sha256
        Of its weights.
    """

    name: str
    mpp: float
    stride: int
    channels: int
    halo: int
    licence: str
    weights_sha256: str

    def encode_dense(self, rgb: Tensor) -> Tensor:
        """(batch, 3, height, width) of 0 to 255 to (batch, channels, height / stride, width / stride)."""
        ...


ENCODERS = {"lite0": Lite0}


def get_encoder(name: str, device: torch.device) -> Encoder:
    """Load an encoder by name; a ValueError lists those there are."""
    if name not in ENCODERS:
        raise ValueError(f"No encoder {name!r}; there are {sorted(ENCODERS)}.")
    return ENCODERS[name](device)

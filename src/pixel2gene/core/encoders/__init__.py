"""Encoders: from H&E pixels to a vector per superpixel."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pixel2gene.core.encoders.registry import REGISTRY

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Encoder(Protocol):
    """What an encoder offers.

    Attributes
    ----------
    name
        By which users choose it, or that of the folder of its weights.
    mpp
        Resolution of the images that it wants, µm per pixel.
    stride
        Pixels per superpixel and axis.
    channels
        Length of the vector per superpixel.
    window
        Height and width in pixels of the images that it wants, a multiple of `stride`; None if any multiple will do.
    overlap
        Share of a window that the next one covers too, unless told otherwise.
    halo
        Pixels around an image after which its border no longer shows; 0 where windows are blended instead.
    licence, weights_sha256
        Of its weights.
    """

    name: str
    mpp: float
    stride: int
    channels: int
    window: int | None
    overlap: float
    halo: int
    licence: str
    weights_sha256: str

    def encode_dense(self, rgb: Tensor) -> Tensor:
        """(batch, 3, height, width) of 0 to 255 to (batch, channels, height / stride, width / stride)."""
        ...


def get_encoder(name: str | os.PathLike[str], device: torch.device) -> Encoder:
    """Load an encoder by name or from a folder of weights.

    Raises
    ------
    ValueError
        If there is no such encoder or folder, or the folder holds no weights that can be read.
    ImportError
        If a package is missing that loads it.
    OSError
        If the weights cannot be had: they are gated, or there is no network.
    """
    name = os.fspath(name)
    if name == "lite0":
        from pixel2gene.core.encoders.lite0 import Lite0

        return Lite0(device)
    info = REGISTRY.get(name)
    if info is not None and info.lazyslide is not None:
        from pixel2gene.core.encoders.vit import vit_from_hub

        return vit_from_hub(info, device)
    folder = Path(name)
    if info is not None:
        raise ValueError(f"The weights of {info.name!r} come from {info.weights}: pass encoder='path/to/folder'.")
    if not folder.is_dir():
        raise ValueError(f"No encoder {name!r}; there are {sorted(REGISTRY)}, and folders of weights.")
    if (folder / "config.json").is_file():
        from pixel2gene.core.encoders.vit_folder import vit_from_folder

        return vit_from_folder(folder, device)
    from pixel2gene.core.encoders.hipt import hipt_from_folder

    return hipt_from_folder(folder, device)


@cache
def shared_encoder(name: str, device: torch.device) -> Encoder:
    """`get_encoder`, once in each process."""
    return get_encoder(name, device)

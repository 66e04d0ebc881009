"""The embedding of a block of superpixels: encoder, colour, and the mean of the surroundings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pixel2gene.core.encoders import Encoder
from pixel2gene.core.encoders.colour import CHANNELS as COLOUR_CHANNELS
from pixel2gene.core.encoders.colour import colour

# Sides, in superpixels, of the surroundings whose mean joins a superpixel's own features (72 and 200 µm).
CONTEXT_WINDOWS = (9, 25)


def local_channels(encoder: Encoder) -> int:
    """Channels of a superpixel itself, without surroundings."""
    return encoder.channels + COLOUR_CHANNELS


def embed_tile(encoder: Encoder, rgb: NDArray[np.float32], halo: int) -> NDArray[np.float16]:
    """Features of the superpixels of a tile, its halo cut off.

    Parameters
    ----------
    encoder
        Gives most of the channels; colour gives the rest.
    rgb
        (3, height, width) of 0 to 255.
    halo
        Pixels at each border that are there for the encoder's sake only.

    Returns
    -------
    (channels, rows, columns).
    """
    tile = torch.from_numpy(rgb)[None]
    border = halo // encoder.stride
    features = encoder.encode_dense(tile).cpu()[0, :, border:-border, border:-border]
    core = tile[:, :, halo:-halo, halo:-halo]
    return torch.cat([features, colour(core, encoder.stride)[0]]).half().numpy()


def add_context(local: NDArray[np.float16], mask: NDArray[np.bool_], border: int) -> NDArray[np.float16]:
    """Join the mean over the surrounding tissue, one per window, to the features of each superpixel.

    Parameters
    ----------
    local
        (channels, rows, columns), zero outside the mask.
    mask
        (rows, columns), where there is tissue.
    border
        Rows and columns at each side that are there as surroundings only; at least half of the largest window.

    Returns
    -------
    ((1 + windows) * channels, rows - 2 * border, columns - 2 * border), zero outside the mask.
    """
    stacked = np.concatenate([local, mask[None]]).astype(np.float64)
    integral = np.pad(stacked.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    rows, columns = mask.shape[0] - 2 * border, mask.shape[1] - 2 * border
    core = slice(border, border + rows), slice(border, border + columns)
    inside = mask[core]
    parts = [local[:, *core]]
    for window in CONTEXT_WINDOWS:
        first, last = border - window // 2, border + window // 2 + 1
        low_y, high_y = slice(first, first + rows), slice(last, last + rows)
        low_x, high_x = slice(first, first + columns), slice(last, last + columns)
        total = (
            integral[:, high_y, high_x]
            - integral[:, low_y, high_x]
            - integral[:, high_y, low_x]
            + integral[:, low_y, low_x]
        )
        parts.append((total[:-1] / np.maximum(total[-1], 1) * inside).astype(np.float16))
    return np.concatenate(parts)
